"""Files that are there in full or not at all."""

import pytest

from dim_hf.whole_files import whole_file, write_text


def test_the_new_file_takes_the_old_ones_place(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with whole_file(path) as partial:
        partial.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def _fail_half_way(path, begun):
    with whole_file(path) as partial:
        if begun:
            partial.write_text("ne", encoding="utf-8")
        raise RuntimeError("half way")


@pytest.mark.parametrize("begun", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, begun):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(path, begun)
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_block_that_wrote_nothing_is_an_error(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), whole_file(path):
        pass
    assert path.read_text(encoding="utf-8") == "old"


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "a.txt", "µ ≤ 1")
    assert (tmp_path / "a.txt").read_bytes() == "µ ≤ 1".encode()
