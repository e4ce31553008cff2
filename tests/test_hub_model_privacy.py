"""What must not be published is found in any text."""

import pytest

from dim_hf.hub.privacy import KEY_FILE, find_leaks, secret_key, without_machine


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


def test_the_key_is_kept_and_a_broken_one_is_never_used(tmp_path):
    key = secret_key(tmp_path)
    assert (len(key), secret_key(tmp_path)) == (32, key)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    for content in (b"", key[:5]):
        (tmp_path / KEY_FILE).write_bytes(content)
        with pytest.raises(ValueError, match=f"holds {len(content)} bytes instead of 32"):
            secret_key(tmp_path)
