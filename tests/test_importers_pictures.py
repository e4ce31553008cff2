import os
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dim_hf.data.importers.cases import ImportOptions
from dim_hf.data.importers.finding import base_folder
from dim_hf.data.importers.fundus import DRISHTI_GS1, RIMONE_DL, rim_and_cup, square_about
from dim_hf.data.importers.midss import MIDSS_FUNDUS, MIDSS_PROSTATE
from tests import layout_trees as trees

REAL = Path(os.environ.get("DIM_HF_REAL_FUNDUS", "nowhere"))
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="set DIM_HF_REAL_FUNDUS to a folder that holds drishti and rimone"
)


def find(layout, root, **options):
    return layout.find(root, ImportOptions(**options))


def facts(found, *columns):
    return [tuple(getattr(case, column) for column in ("domain", "name", "split", *columns)) for case in found.cases]


def label_of(found, name):
    return next(case for case in found.cases if case.name == name).read()[1]


def test_a_layout_may_start_below_the_folder_but_only_once(tmp_path):
    trees.drishti(tmp_path / "a" / "b")
    assert len(find(DRISHTI_GS1, tmp_path).cases) == 2
    trees.drishti(tmp_path / "a" / "c")
    with pytest.raises(ValueError, match=r"holds the layout twice, in .*a/b and .*a/c; name one of them"):
        find(DRISHTI_GS1, tmp_path)
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        base_folder(tmp_path / "nowhere", lambda folder: True, "x")


@pytest.mark.parametrize("layout", [MIDSS_FUNDUS, MIDSS_PROSTATE, DRISHTI_GS1, RIMONE_DL])
def test_another_tree_is_refused_with_the_layout(tmp_path, layout):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="holds pictures, but the layout is ") as error:
        find(layout, tmp_path)
    assert layout.tree in str(error.value)


# MiDSS


def test_midss_fundus_gives_nested_classes_in_readable_domains(tmp_path):
    found = find(MIDSS_FUNDUS, trees.midss_fundus(tmp_path / "Fundus", grey=("Domain1",)).parent)
    assert facts(found, "patient") == [
        ("drishti_gs", "gdrishtiGS_002", "train", "gdrishtiGS_002"),
        ("drishti_gs", "ndrishtiGS_001", "test", "ndrishtiGS_001"),
        ("rimone_r3", "G-10-L", "train", "G-10"),
        ("rimone_r3", "N-3-R", "test", "N-3"),
    ]
    assert (found.num_channels, found.spatial_dims, found.notes) == (3, 2, ())
    assert found.id2label == {0: "background", 1: "rim", 2: "cup"}
    assert found.structures == {"disc": [1, 2], "cup": [2]}
    assert found.label_values == {"0": 2, "128": 1, "255": 0}
    assert found.cases[0].columns == {
        "source_file": "Fundus/Domain1/train/ROIs/image/gdrishtiGS_002.png",
        "source_domain": "Domain1",
    }
    for case in found.cases:  # grey and color masks alike
        image, label = case.read()
        assert case.copies
        assert np.array_equal(image, trees.color())
        assert label.dtype == np.uint8
        assert np.array_equal(label, trees.CLASSES)


def test_midss_fundus_without_masks_is_unlabeled_and_says_what_it_left_out(tmp_path):
    root = trees.midss_fundus(tmp_path, domains=("Domain1", "Domain5"))
    (root / "Domain1" / "test" / "ROIs" / "mask" / "ndrishtiGS_001.png").unlink()
    found = find(MIDSS_FUNDUS, root, patient_pattern=r"(\d+)$")
    assert found.notes == ("folders that are no domain of the layout were left out: Domain5",)
    assert [case.patient for case in found.cases] == ["002", "001"]
    assert found.cases[1].read()[1] is None


def test_midss_names_faults(tmp_path):
    root = trees.midss_fundus(tmp_path)
    mask = root / "Domain1" / "train" / "ROIs" / "mask" / "gdrishtiGS_002.png"
    trees.save(mask, np.full(trees.SIZE, 127, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"gdrishtiGS_002.png: the mask holds the values 127, but only 0, 128, 255"):
        find(MIDSS_FUNDUS, root).cases[0].read()
    trees.save(mask, np.zeros((10, 20), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"mask/gdrishtiGS_002.png is 20x10 pixels .* is 80x60"):
        find(MIDSS_FUNDUS, root).cases[0].read()
    mask.with_name("lonely.png").touch()
    with pytest.raises(ValueError, match=r"lonely.png is a mask without an image"):
        find(MIDSS_FUNDUS, root)


def test_midss_prostate_counts_cases_anew_in_each_split(tmp_path):
    found = find(MIDSS_PROSTATE, trees.midss_prostate(tmp_path))
    assert facts(found, "patient")[:4] == [
        ("HK", "test_00_00", "test", "test_00"),
        ("HK", "test_00_12", "test", "test_00"),
        ("HK", "train_00_00", "train", "train_00"),
        ("HK", "train_00_12", "train", "train_00"),
    ]
    assert len(found.cases) == 8
    assert found.cases[1].columns == {"source_file": "HK/test/image/00_12.png", "slice_index": 12}
    assert (found.num_channels, found.structures, found.label_values) == (1, {"prostate": [1]}, {"0": 1, "255": 0})
    image, label = found.cases[0].read()
    assert image.shape == trees.SIZE
    assert np.array_equal(label, trees.DISC)


def test_midss_prostate_names_must_hold_a_slice(tmp_path):
    trees.save(trees.midss_prostate(tmp_path) / "UCL" / "test" / "image" / "slice.png", trees.color()[..., 0])
    with pytest.raises(ValueError, match=r"UCL/test/image/slice.png is not named <case>_<slice>"):
        find(MIDSS_PROSTATE, tmp_path)


# Disc and cup


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(0, 39), st.integers(0, 39), st.integers(1, 40), st.integers(1, 40)),
    st.floats(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_the_square_lies_inside_and_holds_what_fits(size, corners, scale):
    height, width = size
    top, left = corners[0] % height, corners[1] % width
    bottom, right = min(top + corners[2], height), min(left + corners[3], width)
    square = square_about(trees.box(top, left, bottom, right, size), scale)
    extent = max(bottom - top, right - left)
    side = min(round(scale * extent), height, width)
    assert (square[2] - square[0], square[3] - square[1]) == (side, side)
    assert square[0] >= 0
    assert square[1] >= 0
    assert square[2] <= width
    assert square[3] <= height
    if side >= extent:
        assert square[0] <= left
        assert square[1] <= top
        assert square[2] >= right
        assert square[3] >= bottom


def test_the_square_is_centered_and_shifted_at_the_border():
    assert square_about(trees.box(20, 30, 40, 46), 1.5) == (23, 15, 53, 45)
    assert square_about(trees.box(0, 70, 20, 80), 1.5) == (50, 0, 80, 30)


def test_cup_outside_the_disc_is_ignored():
    assert np.array_equal(rim_and_cup(trees.DISC, trees.CUP), trees.CLASSES)
    assert rim_and_cup(trees.DISC, trees.CUP).dtype == np.uint8


# Drishti-GS1


@pytest.mark.parametrize(
    ("folders", "diagnoses"),
    [(("ALL", "all"), [None, None]), (("GLAUCOMA", "normal"), ["normal", "glaucoma"]), (("", "."), [None, None])],
)
def test_drishti_is_cut_about_what_all_experts_call_disc(tmp_path, folders, diagnoses):
    found = find(DRISHTI_GS1, trees.drishti(tmp_path / "data", folders).parent, disc_crop=1.5)
    assert facts(found, "patient", "copies") == [
        ("drishti", "drishtiGS_001", "test", "drishtiGS_001", False),
        ("drishti", "drishtiGS_002", "train", "drishtiGS_002", False),
    ]
    assert [case.columns.get("diagnosis") for case in found.cases] == diagnoses
    assert found.cases[0].columns["crop_box"] == "23,15,53,45"
    assert "1.5 times its larger extent" in found.notes[0]
    image, label = found.cases[0].read()
    assert np.array_equal(image, trees.color()[15:45, 23:53])
    assert np.array_equal(label, trees.CLASSES[15:45, 23:53])


def test_drishti_whole_and_in_a_domain_of_another_name(tmp_path):
    found = find(DRISHTI_GS1, trees.drishti(tmp_path), disc_crop=0, domain="india", patient_pattern=r"_(\d+)")
    case = found.cases[0]
    assert (case.domain, case.patient, case.copies, found.notes) == ("india", "001", True, ())
    assert case.columns == {"source_file": "Test/Images/ALL/drishtiGS_001.png"}
    assert np.array_equal(case.read()[1], trees.CLASSES)


def test_drishti_image_in_two_folders_is_one(tmp_path):
    trees.save(trees.drishti(tmp_path) / "Test" / "Images" / "GLAUCOMA" / "drishtiGS_001.png", trees.color())
    found = find(DRISHTI_GS1, tmp_path)
    assert [case.columns.get("diagnosis") for case in found.cases] == ["glaucoma", None]
    assert found.cases[0].source.parent.name == "ALL"


def test_drishti_without_reference_is_whole_and_unlabeled(tmp_path):
    root = trees.drishti(tmp_path)
    for name in ("drishtiGS_001_ODsegSoftmap.png", "drishtiGS_001_cupsegSoftmap.png"):
        (root / "Test" / "Test_GT" / "drishtiGS_001" / "SoftMap" / name).unlink()
    trees.drishti_reference(root, "Training", "drishtiGS_099")
    found = find(DRISHTI_GS1, root)
    case = found.cases[0]
    image, label = case.read()
    assert label is None
    assert case.copies
    assert "crop_box" not in case.columns
    assert image.shape == (*trees.SIZE, 3)
    assert found.notes[1:] == (
        "1 image without a reference",
        "1 reference without an image left out, such as drishtiGS_099",
    )


def test_drishti_names_faults(tmp_path):
    root = trees.drishti(tmp_path)
    folder = root / "Test" / "Test_GT" / "drishtiGS_001" / "SoftMap"
    disc = folder / "drishtiGS_001_ODsegSoftmap.png"
    trees.save(disc, np.full(trees.SIZE, 191, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"001_ODsegSoftmap.png: no pixel is 255"):
        find(DRISHTI_GS1, root).cases[0].read()
    trees.save(disc, np.full(trees.SIZE, 250, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"001_ODsegSoftmap.png: the mask holds the values 250"):
        find(DRISHTI_GS1, root).cases[0].read()
    trees.save(disc, np.full((4, 4), 255, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"001_ODsegSoftmap.png is 4x4 pixels"):
        find(DRISHTI_GS1, root).cases[0].read()
    disc.unlink()
    with pytest.raises(ValueError, match=r"001_cupsegSoftmap.png has no disc beside it for drishtiGS_001"):
        find(DRISHTI_GS1, root)


@pytest.mark.parametrize("crop", [-1, 0.5, float("nan"), float("inf")])
def test_drishti_crop_must_hold_the_disc(tmp_path, crop):
    with pytest.raises(ValueError, match=r"disc_crop must be 0 \(whole images\) or at least 1"):
        find(DRISHTI_GS1, trees.drishti(tmp_path), disc_crop=crop)


def test_drishti_id_in_training_and_test_is_refused(tmp_path):
    trees.save(trees.drishti(tmp_path) / "Test" / "Images" / "ALL" / "drishtiGS_002.png", trees.color())
    with pytest.raises(ValueError, match="has the stem 'drishtiGS_002' twice"):
        find(DRISHTI_GS1, tmp_path)


# RIM-ONE DL


@pytest.mark.parametrize("flat", [False, True])
def test_rimone_releases_are_domains(tmp_path, flat):
    found = find(RIMONE_DL, trees.rimone(tmp_path, flat=flat))
    assert facts(found, "patient") == [
        ("rimone_r1", "r1_Im001", "train", "r1_Im001"),
        ("rimone_r2", "r2_Im002", "test", "r2_Im002"),
        ("rimone_r3", "r3_G-3-R_left_half", "test", "G-3"),
        ("rimone_r3", "r3_N-81-L_left_half", "train", "N-81"),
    ]
    assert [case.columns["diagnosis"] for case in found.cases] == ["normal", "glaucoma", "glaucoma", "normal"]
    assert "randomly" in found.split_rule
    for case in found.cases:
        image, label = case.read()
        assert case.copies
        assert np.array_equal(image, trees.color())
        assert np.array_equal(label, trees.CLASSES)


def test_rimone_partition_is_chosen(tmp_path):
    root = trees.rimone(tmp_path, partitions=("randomly", "by_hospital"))
    splits = {name: find(RIMONE_DL, root, partition=name).cases for name in ("randomly", "by_hospital")}
    assert [case.split for case in splits["randomly"]] == ["train", "test", "test", "train"]
    assert [case.split for case in splits["by_hospital"]] == ["test", "train", "train", "test"]
    assert [case.split for case in find(RIMONE_DL, root).cases] == ["train", "test", "test", "train"]
    with pytest.raises(ValueError, match=r"partition 'by_age' is not in .*; choose from randomly, by_hospital"):
        find(RIMONE_DL, root, partition="by_age")


def test_rimone_reference_is_both_or_none(tmp_path):
    root = trees.rimone(tmp_path)
    reference = root / "RIM-ONE_DL_reference_segmentations" / "normal"
    (reference / "r1_Im001-1-Cup-T.png").unlink()
    with pytest.raises(ValueError, match=r"r1_Im001-1-Disc-T.png has no cup beside it for r1_Im001; add that file"):
        find(RIMONE_DL, root)
    (reference / "r1_Im001-1-Disc-T.png").unlink()
    found = find(RIMONE_DL, root)
    assert found.notes == ("1 image without a reference",)
    assert label_of(found, "r1_Im001") is None
    assert found.cases[0].columns["diagnosis"] == "normal"  # from the folder of the image


def test_rimone_names_faults(tmp_path):
    root = trees.rimone(tmp_path, flat=True)
    cup = root / "RIM-ONE_DL_reference_segmentations" / "normal" / "r1_Im001-1-Cup-T.png"
    trees.save(cup, np.full(trees.SIZE, 1, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"r1_Im001-1-Cup-T.png: the mask holds the values 1, but only 0, 255"):
        find(RIMONE_DL, root).cases[0].read()
    image = trees.save(root / "partitioned_randomly" / "images" / "train" / "Im9.png", trees.color())
    with pytest.raises(ValueError, match=r"Im9.png does not begin with its release"):
        find(RIMONE_DL, root)
    image.rename(image.parents[1] / "test" / "r1_Im001.png")
    with pytest.raises(ValueError, match="has the stem 'r1_Im001' twice"):
        find(RIMONE_DL, root)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("RIM-ONE_DL_reference_segmentations", "no folder RIM-ONE_DL_reference_segmentations, which is an archive of"),
        ("partitioned_randomly/images/test", "images has no folder test_set; the layout is"),
    ],
)
def test_rimone_needs_its_folders(tmp_path, gone, message):
    root = trees.rimone(tmp_path, flat=True)
    (root / gone).rename(root / "elsewhere")
    with pytest.raises(ValueError, match=message):
        find(RIMONE_DL, root)


# Downloads, where they are


@needs_real
def test_real_drishti():
    found = find(DRISHTI_GS1, REAL / "drishti")
    assert Counter(case.split for case in found.cases) == {"train": 50, "test": 51}
    for case in found.cases[::10]:
        image, label = case.read()
        assert image.shape == (*label.shape, 3)
        assert set(np.unique(label)) == {0, 1, 2}
        assert label[[0, -1]].max() == label[:, [0, -1]].max() == 0


@needs_real
def test_real_rimone():
    found = find(RIMONE_DL, REAL / "rimone")
    assert Counter(case.domain for case in found.cases) == {"rimone_r1": 98, "rimone_r2": 250, "rimone_r3": 137}
    assert found.notes == ()
    for case in found.cases[::50]:
        image, label = case.read()
        assert image.shape == (*label.shape, 3)
        assert set(np.unique(label)) == {0, 1, 2}
