import os

import datasets
import numpy as np
import pytest
from PIL import Image

from dim_hf.data.folders import read_folders


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), value, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def flat(tmp_path):
    for name in ("b_2", "a_1", "b_1"):
        write(tmp_path / "site_b" / "images" / f"{name}.png", 7)
    write(tmp_path / "site_b" / "masks" / "b_1.png", 1)
    write(tmp_path / "site_a" / "image" / "z.JPG")
    (tmp_path / "index.csv").write_text("not a domain")
    return tmp_path


def test_flat_layout_sorted_with_masks_where_there_are_any(flat):
    rows = read_folders(flat)
    assert rows.column_names == ["image", "label", "domain", "patient", "name", "split"]
    assert list(rows["domain"]) == ["site_a"] + ["site_b"] * 3
    assert list(rows["name"]) == list(rows["patient"]) == ["z", "a_1", "b_1", "b_2"]
    assert list(rows["split"]) == [""] * 4
    assert [row["label"] is not None for row in rows] == [False, False, True, False]
    assert np.array_equal(rows[2]["image"], np.full((4, 6), 7))
    assert np.array_equal(rows[2]["label"], np.full((4, 6), 1))


def test_files_are_kept_as_paths(flat):
    rows = read_folders(flat).cast_column("image", datasets.Image(decode=False))
    assert rows[1]["image"] == {"path": str(flat / "site_b" / "images" / "a_1.png"), "bytes": None}


@pytest.mark.parametrize(("images", "masks"), [("image", "mask"), ("images", "masks")])
def test_split_layout(tmp_path, images, masks):
    for split, name in (("train", "1"), ("test", "2"), ("val", "0")):
        write(tmp_path / "d" / split / images / f"{name}.tif")
        write(tmp_path / "d" / split / masks / f"{name}.png")
    rows = read_folders(tmp_path)
    assert list(rows["name"]) == ["0", "1", "2"]
    assert list(rows["split"]) == ["validation", "train", "test"]
    assert all(row["label"] is not None for row in rows)


def test_rows_do_not_depend_on_the_order_of_the_file_system(flat, monkeypatch):
    expected = read_folders(flat)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    assert read_folders(flat).data.to_pydict() == expected.data.to_pydict()


def test_patient_pattern_and_choice_of_domains(flat):
    rows = read_folders(flat, patient=r"^(.*)_\d+$", domains=["site_b"])
    assert list(rows["patient"]) == ["a", "b", "b"]


def test_hidden_files_and_litter_are_skipped(flat):
    (flat / ".git").mkdir()
    (flat / "__MACOSX").mkdir()
    (flat / "site_b" / "images" / "._a_1.png").write_text("")
    (flat / "site_b" / "masks" / "Thumbs.db").write_text("")
    assert len(read_folders(flat)) == 4


def break_layout(root):
    (root / "site_c" / "pictures").mkdir(parents=True)


def break_both(root):
    write(root / "site_b" / "train" / "image" / "x.png")


def break_mask(root):
    write(root / "site_b" / "masks" / "lonely.png")


def break_duplicate(root):
    write(root / "site_b" / "images" / "a_1.bmp")


def break_duplicate_mask(root):
    write(root / "site_b" / "masks" / "b_1.tif")


def break_empty(root):
    (root / "site_c" / "images").mkdir(parents=True)


def break_format(root):
    (root / "site_b" / "masks" / "a_1.gif").write_text("")


def break_plural(root):
    write(root / "site_b" / "image" / "x.png")


def break_split(root):
    (root / "site_c" / "train" / "pictures").mkdir(parents=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_layout, r"site_c has an unknown layout \(it holds \['pictures'\]\); arrange it as"),
        (break_both, "site_b has both layouts at once"),
        (break_mask, "lonely.png is a mask without an image .* remove the mask"),
        (break_duplicate, "domain 'site_b' has the stem 'a_1' twice: .*a_1.bmp.*a_1.png"),
        (break_duplicate_mask, "has the stem 'b_1' twice"),
        (break_empty, "site_c/images is empty; add images"),
        (break_format, "a_1.gif is not an image file that can be read here"),
        (break_plural, "holds both image and images"),
        (break_split, "site_c/train has no folder images or image"),
    ],
)
def test_damaged_trees_are_refused_by_file_and_fix(flat, damage, message):
    damage(flat)
    with pytest.raises(ValueError, match=message):
        read_folders(flat)


def test_the_same_name_in_train_and_test_is_refused(tmp_path):
    write(tmp_path / "d" / "train" / "image" / "1.png")
    write(tmp_path / "d" / "test" / "image" / "1.png")
    with pytest.raises(ValueError, match="stem '1' twice"):
        read_folders(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patient": "("}, "is not a regular expression"),
        ({"patient": "abc"}, "has 0 groups; write exactly one"),
        ({"patient": "(a)(b)"}, "has 2 groups"),
        ({"patient": r"^(\d+)"}, r"z.JPG: the patient pattern .* finds no patient in the stem 'z'"),
        ({"domains": ["site_x"]}, r"no domains \['site_x'\]; choose from \['site_a', 'site_b'\]"),
    ],
)
def test_wrong_options_are_refused(flat, options, message):
    with pytest.raises(ValueError, match=message):
        read_folders(flat, **options)


def test_wrong_roots_are_refused(flat, tmp_path_factory):
    with pytest.raises(ValueError, match="is not a folder"):
        read_folders(flat / "nowhere")
    with pytest.raises(ValueError, match="holds no domain folders"):
        read_folders(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match="looks like one domain"):
        read_folders(flat / "site_b")
