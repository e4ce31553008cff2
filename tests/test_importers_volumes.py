import hashlib

import numpy as np
import pytest

from dim_hf.data.importers.dicom import DICOM
from dim_hf.data.importers.volume_folders import PROMISE12, SAML
from dim_hf.data.volumes.locales import kept_locale
from tests.volume_trees import AFFINE, SHAPE, by_name, found, mask, refused, unreadable, volume

sitk = pytest.importorskip("SimpleITK")
pytest.importorskip("nibabel")


def metaimage(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.array(values, dtype=np.int16), SHAPE)
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((0.5, 0.5, 3))
    sitk.WriteImage(image, str(path))
    return array


# SAML


@pytest.fixture
def saml(tmp_path):
    volume(tmp_path / "RUNMC" / "Case00.nii.gz", range(60))
    mask(tmp_path / "RUNMC" / "Case00_Segmentation.nii.gz", (0, 1, 2))
    volume(tmp_path / "BIDMC" / "Case01.nii")
    mask(tmp_path / "BIDMC" / "Case01_segmentation.nii")
    volume(tmp_path / "BIDMC" / "Case00.nii.gz")
    (tmp_path / "BIDMC" / "._Case00.nii.gz").write_bytes(b"litter")
    (tmp_path / "readme.txt").write_text("not a volume")
    return tmp_path


def test_saml_sites_zones_and_masks_in_any_spelling(saml):
    result = found(SAML, saml)
    assert [(case.domain, case.name, case.patient, case.split) for case in result.cases] == [
        ("BIDMC", "Case00", "Case00", ""),
        ("BIDMC", "Case01", "Case01", ""),
        ("RUNMC", "Case00", "Case00", ""),
    ]
    assert (result.id2label, result.structures) == ({0: "background", 1: "prostate"}, {"prostate": [1]})
    assert result.label_values == {"0": 0, "1": 1, "2": 1}
    assert (result.num_channels, result.spatial_dims) == (1, 3)
    assert [case.read()[1] is None for case in result.cases] == [True, False, False]
    image, label = result.cases[2].read()
    assert np.array_equal(image.array, np.arange(60).reshape(SHAPE))
    assert np.array_equal(label.array.ravel(), np.resize([0, 1, 1], 60))
    assert label.array.dtype == np.uint8
    for part in (image, label):
        assert np.allclose(part.affine, AFFINE)
    assert all(case.copies for case in result.cases)
    assert result.cases[0].columns == {"source_file": "BIDMC/Case00.nii.gz"}


def test_saml_keeps_the_geometry_of_the_mask_for_the_writer_to_compare(tmp_path):
    volume(tmp_path / "UCL" / "Case00.nii.gz")
    mask(tmp_path / "UCL" / "Case00_segmentation.nii.gz", affine=np.eye(4))
    assert np.array_equal(found(SAML, tmp_path).cases[0].read()[1].affine, np.eye(4))


def test_saml_single_site_needs_a_name(saml):
    refused(SAML, saml / "RUNMC", "Case00", "--domain")
    assert found(SAML, saml / "RUNMC", domain="HK").cases[0].domain == "HK"


def test_saml_patient_pattern(saml):
    result = found(SAML, saml, patient_pattern=r"Case(\d+)")
    assert [case.patient for case in result.cases] == ["00", "01", "00"]


def test_saml_errors(saml):
    mask(saml / "RUNMC" / "Case07_segmentation.nii.gz")
    refused(SAML, saml, "Case07_segmentation.nii.gz", "remove the mask")
    volume(saml / "RUNMC" / "Case07.nii.gz")
    mask(saml / "RUNMC" / "Case07_segmentation.nii.gz", (0, 3))
    unreadable(found(SAML, saml).cases[-1], "Case07_segmentation.nii.gz", "3")
    volume(saml / "RUNMC" / "case07.nii")
    refused(SAML, saml, "case07.nii", "rename or remove")
    (saml / "empty").mkdir()
    refused(SAML, saml / "empty", "holds no volumes", "<site>/CaseXX.nii.gz")


# PROMISE12


def test_promise12_parts_and_test_cases_of_equal_number(tmp_path):
    array = metaimage(tmp_path / "TrainingData_Part1" / "Case00.mhd", range(60))
    metaimage(tmp_path / "TrainingData_Part1" / "Case00_segmentation.mhd", (0, 1))
    metaimage(tmp_path / "TrainingData_Part2" / "Case26.mhd", (3,))
    metaimage(tmp_path / "TrainingData_Part2" / "Case26_segmentation.mhd", (1, 0))
    metaimage(tmp_path / "TestData" / "Case00.mhd", (4,))
    result = found(PROMISE12, tmp_path)
    assert [(case.domain, case.name, case.patient, case.split) for case in result.cases] == [
        ("promise12", "Case00", "Case00", ""),
        ("promise12", "Case26", "Case26", ""),
        ("promise12", "test_Case00", "test_Case00", ""),
    ]
    assert "1 test cases have no mask" in result.notes[0]
    image, label = result.cases[0].read()
    assert np.array_equal(image.array, array)
    assert image.spacing_mm == (0.5, 0.5, 3)
    assert np.array_equal(label.array.ravel(), np.resize([0, 1], 60))
    assert result.cases[2].read()[1] is None
    assert not result.cases[0].copies


def test_promise12_flat_and_test_masks(tmp_path):
    metaimage(tmp_path / "Case00.mhd", (3,))
    metaimage(tmp_path / "test" / "Case00.mhd", (3,))
    metaimage(tmp_path / "test" / "Case00_segmentation.mhd", (0, 1))
    result = found(PROMISE12, tmp_path, domain="site", patient_pattern=r"Case(\d+)")
    assert [(case.domain, case.patient, case.split) for case in result.cases] == [
        ("site", "00", ""),
        ("site", "test_00", "test"),
    ]
    metaimage(tmp_path / "part" / "Case00.mhd", (3,))
    refused(PROMISE12, tmp_path, "part/Case00.mhd", "'Case00'", "rename or remove")


# DICOM


@kept_locale()
def series(folder, patient="PAT1", number="1", uid="1.2.3.1", count=3, **tags):
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    named = {"modality": "0008|0060", "image_type": "0008|0008", "manufacturer": "0008|0070", "tesla": "0018|0087"}
    for k in range(count):
        image = sitk.GetImageFromArray(np.full((1, 4, 5), k, np.int16))
        image.SetSpacing((1, 2, 3))
        values = {
            "0010|0020": patient,
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0011": number,
            "0020|0032": f"0\\0\\{3 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0008|0018": f"{uid}.{k + 1}",
            "0008|0060": "MR",
            **{named[name]: value for name, value in tags.items()},
        }
        for tag, value in values.items():
            image.SetMetaData(tag, value)
        # The slices lie against the order of their names.
        writer.SetFileName(str(folder / f"im{count - k}"))
        writer.Execute(image)


def pseudonym(patient):
    return "p" + hashlib.sha256(patient.encode()).hexdigest()[:12]


def test_dicom_series_of_two_sites(tmp_path):
    series(tmp_path / "b" / "DOE^JANE" / "s1", manufacturer="Maker", tesla="3")
    series(tmp_path / "b" / "DOE^JANE" / "s1 again", uid="1.2.3.2")
    series(tmp_path / "a" / "s1", patient="PAT2", number="", uid="1.2.3.3")
    series(tmp_path / "a" / "anonymous7" / "s1", patient="", number="4", uid="1.2.3.4")
    series(tmp_path / "a" / "scout", uid="1.2.3.5", image_type="ORIGINAL\\PRIMARY\\LOCALIZER")
    series(tmp_path / "a" / "mask", uid="1.2.3.6", modality="SEG")
    (tmp_path / "a" / "DICOMDIR").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    result = found(DICOM, tmp_path)
    first, second = pseudonym("PAT1"), pseudonym("PAT2")
    assert [(case.domain, case.name, case.patient) for case in result.cases] == sorted(
        [
            ("a", "anonymous7_4", "anonymous7"),
            ("a", f"{second}_0", second),
            ("b", f"{first}_1", first),
            ("b", f"{first}_1-2", first),
        ]
    )
    case = by_name(result)[f"{first}_1"]
    assert case.columns == {"modality": "MR", "manufacturer": "Maker", "magnetic_field_strength": "3"}
    written = [(c.domain, c.patient, c.name, c.split, dict(c.columns)) for c in result.cases]
    assert not any(secret in str((written, result.notes)) for secret in ("JANE", "PAT1", "PAT2", "1.2.3"))
    assert any("guessed" in note for note in result.notes)
    assert "2 series are localizers or no images and were left out" in result.notes
    image, label = case.read()
    assert label is None
    assert image.spacing_mm == (1, 2, 3)
    assert image.array.shape == (5, 4, 3)
    assert image.array[0, 0].tolist() == [0, 1, 2]
    assert (result.spatial_dims, result.num_channels, result.label_values) == (3, 1, {})


def test_dicom_single_domain(tmp_path):
    series(tmp_path / "s1")
    series(tmp_path / "s2", number="2", uid="1.2.3.2")
    assert {case.domain for case in found(DICOM, tmp_path).cases} == {"dicom"}
    assert {case.domain for case in found(DICOM, tmp_path / "s1").cases} == {"dicom"}
    series(tmp_path / "s3", patient="PAT3", number="3", uid="1.2.3.3")
    assert {case.domain for case in found(DICOM, tmp_path).cases} == {"s1", "s2", "s3"}
    result = found(DICOM, tmp_path, domain="clinic", patient_pattern=r"(s\d)", class_names=["background", "tumor"])
    assert [(case.domain, case.patient) for case in result.cases] == [("clinic", s) for s in ("s1", "s2", "s3")]
    assert (result.id2label, result.structures) == ({0: "background", 1: "tumor"}, {"tumor": [1]})


def test_dicom_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    refused(DICOM, tmp_path, tmp_path, "no DICOM image series", "<domain>")
    series(tmp_path / "a" / "s1")
    series(tmp_path / "b" / "s1")
    refused(DICOM, tmp_path, "folders a and b", "1.2.3.1", "remove the copy")
