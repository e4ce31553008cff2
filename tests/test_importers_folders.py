from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from dim_hf.data.importers.cases import ImportOptions
from dim_hf.data.importers.finding import label_values, remap
from dim_hf.data.importers.folders_layout import FOLDERS, resolve_label_map
from tests import layout_trees as trees


def find(root, **options):
    return FOLDERS.find(root, ImportOptions(**options))


def facts(found, *columns):
    return [tuple(getattr(case, column) for column in ("domain", "name", "split", *columns)) for case in found.cases]


def label_of(found, name):
    return next(case for case in found.cases if case.name == name).read()[1]


def test_remap_takes_whole_floats_and_fortran_order():
    array = np.asfortranarray(np.array([[0.0, 255.0], [128.0, 0.0]]))
    assert remap(array, {0: 2, 128: 1, 255: 0}, Path("m.png")).tolist() == [[2, 0], [1, 2]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 7, 9], r"m.png: the mask holds the values 7, 9, but only 0, 1 are known"),
        ([0.0, 0.5], r"m.png: the value 0.5 is no whole number"),
        ([0.0, np.nan], r"m.png: the value nan is no whole number"),
        (range(33), "m.png: more than 32 different values, so this looks like a photograph"),
    ],
)
def test_remap_names_values_that_mean_nothing(values, message):
    with pytest.raises(ValueError, match=message):
        remap(np.array(values), {0: 0, 1: 1}, Path("m.png"))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=32), st.sampled_from(["u1", "i4", "f4"]))
@settings(max_examples=30, deadline=None)
def test_label_values_are_the_sorted_set(values, dtype):
    assert label_values(np.array(values, dtype=dtype), Path("m.png")) == sorted(set(values))


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([0, 1], None, {0: 0, 1: 1}),
        ([], None, {0: 0, 1: 1}),
        ([0], None, {0: 0, 1: 1}),
        ([0, 2], None, {0: 0, 1: 1, 2: 2}),
        ([0, 2], ["a", "b", "c", "d"], {0: 0, 1: 1, 2: 2, 3: 3}),
        ([0, 255], None, {0: 0, 255: 1}),
        ([255], None, {0: 0, 255: 1}),
        ([0, 1, 2, 255], None, {0: 0, 1: 1, 2: 2, 255: 255}),
        ([0, 1, 255], ["a", "b"], {0: 0, 1: 1, 255: 255}),
        ([0, 1, 3, 255], None, {0: 0, 1: 1, 2: 2, 3: 3, 255: 255}),
        ([1, 255], None, {0: 0, 1: 1, 255: 255}),
        ([0, 85, 170, 255], None, {0: 0, 85: 1, 170: 2, 255: 3}),
        ([0, 128, 255], None, {0: 0, 128: 1, 255: 2}),
        ([0, 128, 255], ["a", "b", "c"], {0: 0, 128: 1, 255: 2}),
        ([600, 0, 500], None, {0: 0, 500: 1, 600: 2}),
    ],
)
def test_label_values_are_understood(values, names, expected):
    assert resolve_label_map(values, names, "data") == expected


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([-1, 0], None, r"masks of data hold the values \[-1, 0\]; say with --label-map"),
        (range(0, 330, 10), None, "and more; say with --label-map"),
        ([0, 1, 255], ["a", "b", "c"], "255 may be a class or ignored pixels"),
        ([0, 1, 3, 255], ["a", "b", "c", "d"], "255 may be a class or ignored pixels"),
        ([0, 128, 255], ["a", "b"], r"3 classes, but 2 are named \(a, b\)"),
    ],
)
def test_ambiguous_label_values_are_refused(values, names, message):
    with pytest.raises(ValueError, match=message):
        resolve_label_map(values, names, "data")


def test_folders_are_read_with_the_values_of_all_masks(tmp_path):
    trees.plain(tmp_path, {"p_2": [[0, 128]], "p_1": [[0, 255]], "q_1": None})
    found = find(tmp_path, patient_pattern=r"^(.)_")
    assert facts(found, "patient") == [("site", "p_1", "", "p"), ("site", "p_2", "", "p"), ("site", "q_1", "", "q")]
    assert found.id2label == {0: "background", 1: "class_1", 2: "class_2"}
    assert found.structures == {"class_1": [1], "class_2": [2]}
    assert (found.label_values, found.num_channels) == ({"0": 0, "128": 1, "255": 2}, 3)
    assert found.notes == ("1 image without a mask",)
    assert [label_of(found, name) is None for name in ("p_1", "p_2", "q_1")] == [False, False, True]
    assert label_of(found, "p_1").tolist() == [[0, 2]]
    assert label_of(found, "p_2").tolist() == [[0, 1]]


def test_one_mask_of_another_coding_is_named(tmp_path):
    """A mask saved with one bit among those of 0 and 255: the others' foreground would become ignored pixels."""
    trees.plain(tmp_path, {"a": [[0, 1]], "b": [[0, 255]], "c": [[0, 255]]})
    with pytest.raises(ValueError, match=r"masks/b.png holds \[0, 255\], site/masks/a.png \[0, 1\], so 255 may be"):
        find(tmp_path)
    assert find(tmp_path, label_map={0: 0, 1: 1, 255: 1}).id2label == {0: "background", 1: "foreground"}


def test_a_mask_of_ignored_pixels_alone_is_legal_beside_one_that_shows_both(tmp_path):
    trees.plain(tmp_path, {"a": [[0, 1, 255]], "b": [[0, 255]]})
    assert find(tmp_path).label_values == {"0": 0, "1": 1, "255": 255}


def test_pictures_have_no_modality(tmp_path):
    trees.plain(tmp_path, {"a": [[0, 1]]})
    with pytest.raises(ValueError, match="leave out --modality"):
        find(tmp_path, modality=2)


def test_folders_take_what_the_user_says(tmp_path):
    trees.plain(tmp_path, {"a": [[0, 10, 20]]})
    options = {"label_map": {0: 0, 10: 1, 20: 255}, "class_names": ["bone", "skin"], "structures": {"skin": [1]}}
    found = find(tmp_path, **options)
    assert (found.id2label, found.structures) == ({0: "bone", 1: "skin"}, {"skin": [1]})
    assert found.cases[0].read()[1].tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match=r"1 classes are named \(bone\), but the label map has the class 1"):
        find(tmp_path, label_map={0: 0, 10: 1, 20: 1}, class_names=["bone"])
    with pytest.raises(ValueError, match="a label map gives class ids from 0, or 255"):
        find(tmp_path, label_map={0: -1})


def test_folders_copy_only_what_is_read_as_stored(tmp_path):
    trees.plain(tmp_path, {"rgb": None})
    folder = tmp_path / "site" / "images"
    trees.save(folder / "grey.png", trees.color()[..., 0])
    Image.fromarray(trees.color()).convert("RGBA").save(folder / "alpha.png")
    found = find(tmp_path)
    assert {case.name: case.copies for case in found.cases} == {"alpha": False, "grey": True, "rgb": True}
    assert found.num_channels == 3


def test_a_broken_mask_breaks_its_case_only(tmp_path):
    photograph = np.arange(64).reshape(8, 8)
    trees.plain(tmp_path, {"good": [[0, 1]], "photo": photograph, "bad": [[0, 1]]})
    (tmp_path / "site" / "masks" / "bad.png").write_bytes(b"no picture")
    found = find(tmp_path)
    assert found.label_values == {"0": 0, "1": 1}
    assert label_of(found, "good").tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"masks/photo.png: more than 32 .* looks like a photograph"):
        label_of(found, "photo")
    with pytest.raises(ValueError, match=r"masks/bad.png is not an image of the formats"):
        label_of(found, "bad")
    (tmp_path / "site" / "masks" / "good.png").unlink()
    with pytest.raises(ValueError, match=r"masks/bad.png is not an image"):
        find(tmp_path)


def test_a_mask_in_jpeg_is_believed_only_if_black_and_white(tmp_path):
    trees.plain(tmp_path, {"a": np.full((8, 8), 255)}, suffix=".jpg")
    assert find(tmp_path).label_values == {"0": 0, "255": 1}
    trees.plain(tmp_path, {"a": np.full((8, 8), 3)}, suffix=".jpg")
    with pytest.raises(ValueError, match=r"a.jpg is JPEG-compressed and holds the values \[3\]"):
        find(tmp_path)


def test_folders_of_volumes(tmp_path):
    nibabel, sitk = pytest.importorskip("nibabel"), pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    voxels, mask = rng.random((3, 4, 5), dtype=np.float32), rng.integers(0, 2, (3, 4, 5)).astype(np.float32)
    for part, array in (("images", voxels), ("masks", mask * 255)):
        folder = tmp_path / "site" / "train" / part
        folder.mkdir(parents=True)
        image = nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0]))
        nibabel.save(image, folder / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(voxels), tmp_path / "site" / "train" / "images" / "b.mhd")
    found = find(tmp_path)
    assert facts(found, "copies") == [("site", "a", "train", True), ("site", "b", "train", False)]
    assert (found.spatial_dims, found.num_channels, found.label_values) == (3, 1, {"0": 0, "255": 1})
    image, label = found.cases[0].read()
    assert np.array_equal(image.array, voxels)
    assert image.spacing_mm == (2, 2, 3)
    assert label.array.dtype == np.uint8
    assert np.array_equal(label.array, mask)
    trees.save(tmp_path / "site" / "train" / "images" / "c.png", trees.color())
    with pytest.raises(ValueError, match=r"mixed, such as .*c.png and .*a.nii.gz; import them from two folders"):
        find(tmp_path)
