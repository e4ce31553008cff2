"""What must not be published is found in any text."""

from dim_hf.hub.privacy import find_leaks, without_machine


def test_places_and_tokens_are_found_anywhere(tmp_path):
    texts = {
        "a": f'{{"x": "{tmp_path}/y"}}',
        "b": "see C:\\me, or file:///x",
        "c": "and/or 3/4 of https://a.org/home/x",
        "d": "~/scans",
    }
    found = find_leaks(texts, tmp_path, None)
    assert [leak.split(" ")[0] for leak in found] == ["a", "b", "d"]
    assert without_machine({"output_dir": "x", "a": ["/data/me/x", "y"]}) == {
        "output_dir": None,
        "a": ["(local)", "y"],
    }
