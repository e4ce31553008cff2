import json
import os
from pathlib import Path

import numpy as np
import pytest

from dim_hf.data.importers.decathlon import MSD, NNUNET, parse_labels
from tests.volume_trees import AFFINE, SHAPE, by_name, describe, found, mask, picture, refused, unreadable, volume

nibabel = pytest.importorskip("nibabel")

SHARED = Path(os.environ.get("DIM_HF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


# Labels of dataset.json


@pytest.mark.parametrize("labels", [{"background": 0, "RV": 1, "LV": 2}, {"0": "background", "1": "RV", "2": "LV"}])
def test_labels_in_both_orientations(labels, tmp_path):
    parsed = parse_labels(labels, tmp_path)
    assert parsed.id2label == {0: "background", 1: "RV", 2: "LV"}
    assert parsed.structures == {"RV": [1], "LV": [2]}
    assert parsed.label_values == {0: 0, 1: 1, 2: 2}


def test_regions_become_structures_over_exclusive_classes(tmp_path):
    parsed = parse_labels({"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4, "ignore": 5}, tmp_path)
    assert parsed.id2label == {0: "background", 1: "whole_1", 2: "core_2", 3: "enhancing"}
    assert parsed.structures == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    assert parsed.label_values == {0: 0, 1: 1, 2: 2, 4: 3, 5: 255}


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (None, "labels"),
        ({}, "background"),
        ({"background": 0}, "background"),
        ({"cup": 1, "disc": 2}, "background"),
        ({"background": 0, "cup": [0, 1]}, "background"),
        ({"background": 0, "cup": -1}, "'cup'"),
        ({"background": 0, "cup": 1.5}, "'cup'"),
        ({"background": 0, "cup": True}, "'cup'"),
        ({"background": 0, "cup": None}, "'cup'"),
        ({"background": 0, "cup": []}, "'cup'"),
        ({"background": 0, "cup": {"a": 1}}, "'cup'"),
        ({"background": 0, "cup": 1, "ignore": 1}, "ignore"),
        ({"0": "background", "1": "cup", "2": "cup"}, "rename"),
        ({"0": "background", "x": "cup"}, "'cup'"),
        ({"background": 0, "cup": 1e999}, "'cup'"),
    ],
)
def test_illegal_labels_name_file_and_label(labels, part, tmp_path):
    with pytest.raises(ValueError, match=part) as caught:
        parse_labels(labels, tmp_path / "dataset.json")
    assert "dataset.json" in str(caught.value)


# nnU-Net


NNUNET_LABELS = {"background": 0, "disc": [1, 2], "cup": 2, "ignore": 3}


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "Dataset001_Eye"
    describe(
        root, channel_names={"0": "rgb_to_0_1"}, labels=NNUNET_LABELS, numTraining=2, file_ending=".png", name="Eye 1"
    )
    color = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    for folder, name in (("imagesTr", "a"), ("imagesTr", "b_2"), ("imagesTs", "c")):
        picture(root / folder / f"{name}_0000.png", color)
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    picture(root / "labelsTr" / "a.png", values)
    picture(root / "labelsTr" / "b_2.png", values)
    return root


def test_nnunet_pictures(pictures):
    result = found(NNUNET, pictures)
    assert [(case.domain, case.name, case.split, case.copies) for case in result.cases] == [
        ("Eye_1", "a", "", True),
        ("Eye_1", "b_2", "", True),
        ("Eye_1", "c", "", True),
    ]
    assert result.id2label == {0: "background", 1: "disc_1", 2: "cup"}
    assert result.structures == {"disc": [1, 2], "cup": [2]}
    assert result.label_values == {"0": 0, "1": 1, "2": 2, "3": 255}
    assert (result.num_channels, result.spatial_dims) == (3, 2)
    image, label = result.cases[1].read()
    assert image.shape == (3, 4, 3)
    assert label.tolist() == [[0, 1, 2, 255]] * 3
    assert result.cases[2].read()[1] is None
    assert result.cases[0].columns == {"source_file": "imagesTr/a_0000.png"}
    assert found(NNUNET, pictures.parent).cases[0].name == "a"


def test_nnunet_labeled_test_cases_and_folds(pictures):
    picture(pictures / "labelsTs" / "c.png", np.zeros((3, 4), dtype=np.uint8))
    (pictures / "splits_final.json").write_text("[]")
    result = found(NNUNET, pictures, domain="eye", patient_pattern="^(.)")
    assert [(case.domain, case.patient, case.split) for case in result.cases] == [
        ("eye", "a", ""),
        ("eye", "b", ""),
        ("eye", "c", "test"),
    ]
    assert any("splits_final.json" in note for note in result.notes)


def test_nnunet_volumes_of_several_channels(tmp_path):
    describe(tmp_path, channel_names={"0": "T2", "1": "ADC"}, labels={"background": 0, "x": 1}, file_ending=".nii.gz")
    for channel in (0, 1):
        volume(tmp_path / "imagesTr" / f"p1_000{channel}.nii.gz", (channel,))
    mask(tmp_path / "labelsTr" / "p1.nii.gz")
    refused(NNUNET, tmp_path, "0 (T2), 1 (ADC)", "--modality")
    refused(NNUNET, tmp_path, "no channel 2", "ADC", modality=2)
    result = found(NNUNET, tmp_path, modality=1)
    image, label = result.cases[0].read()
    assert (image.array == 1).all()
    assert np.array_equal(label.array.ravel(), np.resize([0, 1], 60))
    assert (result.num_channels, result.spatial_dims, result.cases[0].domain) == (1, 3, tmp_path.name)
    assert result.notes == ("channel 1 (ADC) was read",)
    volume(tmp_path / "imagesTr" / "p2_0000.nii.gz")
    refused(NNUNET, tmp_path, "'p2'", "0001", modality=1)


def test_nnunet_version_1(tmp_path):
    describe(tmp_path, modality={"0": "MRI"}, labels={"0": "background", "1": "x"})
    volume(tmp_path / "imagesTr" / "p_1_0000.nii.gz")
    assert found(NNUNET, tmp_path).cases[0].name == "p_1"


def test_nnunet_errors(pictures):
    picture(pictures / "labelsTr" / "z.png", np.zeros((3, 4), dtype=np.uint8))
    refused(NNUNET, pictures, "labelsTr/z.png", "remove the label")
    (pictures / "labelsTr" / "z.png").unlink()
    picture(pictures / "imagesTr" / "z.png", np.zeros((3, 4), dtype=np.uint8))
    refused(NNUNET, pictures, "imagesTr/z.png", "<case>_0000")
    (pictures / "imagesTr" / "z.png").rename(pictures / "imagesTs" / "a_0000.png")
    refused(NNUNET, pictures, "imagesTs/a_0000.png", "imagesTr/a_0000.png", "rename")
    (pictures / "imagesTs" / "a_0000.png").rename(pictures / "imagesTs" / "a_0000.jpg")
    refused(NNUNET, pictures, "a_0000.jpg", "convert or remove")
    describe(pictures, labels=NNUNET_LABELS, file_ending=".b2nd")
    refused(NNUNET, pictures, "dataset.json", "'.b2nd'", "convert")


def test_nnunet_broken_picture_is_the_error_of_its_case_alone(pictures):
    (pictures / "imagesTr" / "a_0000.png").write_bytes(b"no picture")
    result = found(NNUNET, pictures)
    unreadable(by_name(result)["a"], "a_0000.png")
    assert by_name(result)["b_2"].read()[0].shape == (3, 4, 3)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "[" * 100_000])
def test_dataset_json_that_is_none(tmp_path, text):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    refused(NNUNET, tmp_path, "dataset.json")
    refused(MSD, tmp_path, "dataset.json")


def test_missing_dataset_json(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    refused(NNUNET, tmp_path, tmp_path, "dataset.json")


# Medical Segmentation Decathlon


@pytest.fixture
def msd(tmp_path):
    root = tmp_path / "Task04_Hippocampus"
    describe(
        root,
        name="Hippocampus",
        description="Left and right\nhippocampus",
        licence="CC-BY-SA 4.0",
        tensorImageSize="3D",
        modality={"0": "MRI"},
        labels={"0": "background", "1": "Anterior", "2": "Posterior"},
        training=[
            {"image": "./imagesTr/h_002.nii.gz", "label": "./labelsTr/h_002.nii.gz"},
            {"image": "./imagesTr/h_001.nii.gz", "label": "./labelsTr/h_001.nii.gz"},
        ],
        test=["./imagesTs/h_003.nii.gz"],
    )
    for name in ("imagesTr/h_001", "imagesTr/h_002", "imagesTs/h_003"):
        volume(root / f"{name}.nii.gz")
    for name in ("h_001", "h_002"):
        mask(root / "labelsTr" / f"{name}.nii.gz", (0, 2, 1))
    (root / "imagesTr" / "._h_001.nii.gz").write_bytes(b"litter")
    return root


def test_msd(msd):
    result = found(MSD, msd)
    assert [(case.domain, case.name, case.patient, case.split, case.copies) for case in result.cases] == [
        ("Hippocampus", name, name, "", True) for name in ("h_001", "h_002", "h_003")
    ]
    assert result.id2label == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert result.structures == {"Anterior": [1], "Posterior": [2]}
    assert result.licence == "CC-BY-SA 4.0"
    assert result.origin == "Hippocampus; Left and right hippocampus"
    image, label = result.cases[0].read()
    assert np.array_equal(label.array.ravel(), np.resize([0, 2, 1], 60))
    assert np.allclose(image.affine, AFFINE)
    assert result.cases[2].read()[1] is None


def test_msd_of_four_axes(msd):
    values = json.loads((msd / "dataset.json").read_text())
    describe(msd, **{**values, "modality": {"0": "T2", "1": "ADC"}})
    array = np.stack([np.full(SHAPE, 5), np.full(SHAPE, 6)], axis=-1).astype(np.int16)
    for path in (*(msd / "imagesTr").glob("h*"), *(msd / "imagesTs").glob("h*")):
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    refused(MSD, msd, "0 (T2), 1 (ADC)", "--modality")
    refused(MSD, msd, "no channel 2", modality=2)
    result = found(MSD, msd, modality=1)
    image, label = result.cases[0].read()
    assert (image.array == 6).all()
    assert image.array.shape == label.array.shape == SHAPE
    assert result.notes == ("modality 1 (ADC) was read",)
    assert not result.cases[0].copies
    (msd / "imagesTr" / "h_001.nii.gz").write_bytes(b"no volume")  # its channels cannot be counted
    again = found(MSD, msd, modality=1)
    unreadable(by_name(again)["h_001"], "h_001.nii.gz")
    assert (by_name(again)["h_002"].read()[0].array == 6).all()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret.nii.gz",
        "imagesTr/../../x.nii.gz",
        "..\\x.nii.gz",
        "C:\\x.nii.gz",
        "a\0b",
        3,
        "",
        None,
    ],
)
@pytest.mark.parametrize("key", ["image", "label"])
def test_msd_refuses_paths_that_lead_out(msd, path, key):
    volume(msd.parent / "secret.nii.gz")
    values = json.loads((msd / "dataset.json").read_text())
    values["training"][0][key] = path
    describe(msd, **values)
    if key == "label" and not path:
        assert by_name(found(MSD, msd))["h_002"].read()[1] is None
    else:
        refused(MSD, msd, "dataset.json", "path")


def test_msd_errors(msd):
    values = json.loads((msd / "dataset.json").read_text())
    (msd / "imagesTr" / "h_001.nii.gz").unlink()
    refused(MSD, msd, "h_001.nii.gz", "fetch it, or remove the entry")
    describe(msd, **{**values, "training": {"image": "x"}})
    refused(MSD, msd, "dataset.json", "training must be a list")
    describe(msd, **{**values, "training": values["training"][:1] * 2})
    refused(MSD, msd, "'h_002'", "rename or remove")
    describe(msd, **{**values, "training": ["dataset.json"]})
    refused(MSD, msd, "no volume", "NIfTI")


def test_msd_broken_volume_is_the_error_of_its_case_alone(msd):
    (msd / "imagesTr" / "h_001.nii.gz").write_bytes(b"no volume")
    result = found(MSD, msd)
    unreadable(by_name(result)["h_001"], "h_001.nii.gz")
    assert by_name(result)["h_002"].read()[0].array.shape == SHAPE


# Real volumes, where they are


@pytest.mark.skipif(not (SHARED / "hippocampus").is_dir(), reason="hippocampus is not there: set DIM_HF_TEST_DATA")
def test_real_hippocampus_in_the_msd_layout(tmp_path):
    source = SHARED / "hippocampus" / "vanderbilt"
    names = sorted(path.name for path in (source / "images").iterdir())[:2]
    for folder, inner in (("imagesTr", "images"), ("labelsTr", "masks")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes((source / inner / name).read_bytes())
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    describe(tmp_path, name="Hippocampus", modality={"0": "MRI"}, labels=labels, training=training, test=[])
    for case in found(MSD, tmp_path).cases:
        image, label = case.read()
        assert image.array.shape == label.array.shape
        assert np.unique(label.array).tolist() == [0, 1, 2]
