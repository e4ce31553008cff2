from dataclasses import replace

import numpy as np
import pytest

from dim_hf.data.description import NO_SPACING_NOTE
from dim_hf.data.importers.cases import ImportOptions
from dim_hf.data.importers.h5 import SSL4MIS_H5, find_h5
from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.importers.writer import WriteOptions
from dim_hf.data.sources import load_source
from tests.volume_trees import SHAPE, found, refused, unreadable

h5py = pytest.importorskip("h5py")


# HDF5


@pytest.mark.parametrize("plane", [None, "auto"])
def test_no_spacing_is_invented(la, tmp_path, plane):
    write = WriteOptions(plane=plane, spacing_mm=(1.4, 1.4, 10))
    job = ImportJob("ssl4mis-h5", la / "2018LA_Seg_Training Set", tmp_path / "out", write=write)
    with pytest.raises(ValueError, match=r"mri_norm2\.h5 does not state its spacing.*--spacing-mm.*leave it out"):
        import_dataset(job, progress=False)
    assert not (tmp_path / "out").exists()
    source = load_source(str(import_dataset(replace(job, write=WriteOptions(plane=plane)), progress=False)))
    assert not any(source.rows["spacing_mm"])
    assert any(NO_SPACING_NOTE in note for note in source.description.notes)


def h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")


@pytest.fixture
def la(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("C", "A", "B", "D"):
        image = rng.normal(size=SHAPE).astype(np.float32)
        h5(tmp_path / "2018LA_Seg_Training Set" / name / "mri_norm2.h5", image=image, label=(image > 0).astype("u1"))
    (tmp_path / "train.list").write_text("C\nA/mri_norm2.h5\r\n\nX\n")
    (tmp_path / "test.list").write_text("B\n")
    return tmp_path


@pytest.mark.parametrize("folder", [".", "2018LA_Seg_Training Set"])
def test_left_atrium_takes_splits_and_order_from_the_lists(la, folder):
    result = found(SSL4MIS_H5, la / folder)
    assert [(c.domain, c.name, c.patient, c.split, c.columns.get("labeled_order")) for c in result.cases] == [
        ("la2018", "A", "A", "train", 1),
        ("la2018", "B", "B", "test", None),
        ("la2018", "C", "C", "train", 0),
        ("la2018", "D", "D", "", None),
    ]
    assert (result.id2label, result.structures) == ({0: "background", 1: "left_atrium"}, {"left_atrium": [1]})
    assert (result.num_channels, result.spatial_dims, result.label_values) == (1, 3, {"0": 0, "1": 1})
    assert result.split_rule == "as test.list, train.list say"
    assert any("1 names in the lists" in note and "X" in note for note in result.notes)
    assert any("1 of 4 cases" in note for note in result.notes)
    assert any("spacing" in note for note in result.notes)
    image, label = result.cases[0].read()
    assert (image.array.shape, image.array.dtype, label.array.dtype) == (SHAPE, np.float32, np.uint8)
    assert np.array_equal(image.array > 0, label.array == 1)
    assert np.array_equal(image.affine, np.eye(4))


def test_case_in_two_lists_is_refused(la):
    (la / "test.list").write_text("C\n")
    refused(SSL4MIS_H5, la, "train.list", "test.list", "'C'", "remove")
    (la / "test.list").write_bytes(b"\xff\xfe")
    refused(SSL4MIS_H5, la, "test.list", "UTF-8")
    (la / "test.list").write_text("B\n")
    (la / "2018LA_Seg_Training Set" / "train.list").write_text("A")
    refused(SSL4MIS_H5, la, "train.list", "keep the list that counts")


@pytest.fixture
def acdc(tmp_path):
    root = tmp_path / "ACDC"
    for patient in ("patient001", "patient002"):
        image = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
        label = (image % 4).astype(np.uint8)
        h5(root / "data" / f"{patient}_frame01.h5", image=image, label=label)
        for z in (0, 1):
            h5(root / "data" / "slices" / f"{patient}_frame01_slice_{z + 1}.h5", image=image[z], label=label[z])
    (root / "train_slices.list").write_text("patient002_frame01_slice_2\npatient002_frame01_slice_1\n")
    (root / "val.list").write_text("patient001_frame01\n")
    return root


@pytest.mark.parametrize("folder", [".", "data", "data/slices"])
def test_acdc_slices_come_first(acdc, folder):
    result = found(SSL4MIS_H5, acdc / folder)
    columns = ("volume", "slice_index", "labeled_order")
    assert [(c.name, c.patient, c.split, *map(c.columns.get, columns)) for c in result.cases] == [
        ("patient001_frame01_slice_1", "patient001", "validation", "patient001_frame01", 0, None),
        ("patient001_frame01_slice_2", "patient001", "validation", "patient001_frame01", 1, None),
        ("patient002_frame01_slice_1", "patient002", "train", "patient002_frame01", 0, 1),
        ("patient002_frame01_slice_2", "patient002", "train", "patient002_frame01", 1, 0),
    ]
    assert result.id2label == {0: "background", 1: "RV", 2: "MYO", 3: "LV"}
    assert result.structures == {"RV": [1], "MYO": [2], "LV": [3]}
    assert result.spatial_dims == 2
    assert any("2 volumes" in note for note in result.notes) == (folder != "data/slices")
    image, label = result.cases[1].read()
    assert image.dtype == np.float32
    assert image.tolist() == np.arange(12, 24).reshape(3, 4).tolist()
    assert np.array_equal(label, image % 4)


def test_acdc_volumes_have_their_slices_last(acdc):
    result = found(SSL4MIS_H5, acdc, partition="volumes")
    assert [(case.name, case.split) for case in result.cases] == [
        ("patient001_frame01", "validation"),
        ("patient002_frame01", ""),
    ]
    image, label = result.cases[0].read()
    assert image.array.shape == label.array.shape == (4, 3, 2)
    assert image.array[3, 0, 1] == 15
    refused(SSL4MIS_H5, acdc, "slices or volumes", partition="both")
    refused(SSL4MIS_H5, acdc / "data" / "slices", "holds no volumes", partition="volumes")


def test_h5_files_of_no_or_two_collections(la, acdc, tmp_path):
    refused(SSL4MIS_H5, tmp_path, "mri_norm2.h5", "patient001", "one collection")
    h5(acdc / "data" / "other.h5", image=np.zeros(SHAPE))
    refused(SSL4MIS_H5, acdc, "other.h5", "rename or remove")
    (tmp_path / "empty").mkdir()
    refused(SSL4MIS_H5, tmp_path / "empty", "no .h5 file", "mri_norm2.h5")


def _external(path, good):
    with h5py.File(path, "w") as file:
        file["image"] = h5py.ExternalLink(str(good), "image")


def _soft(path, good):
    with h5py.File(path, "w") as file:
        file["image"] = h5py.SoftLink("/other")


def _virtual(path, good):
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="f4")
    layout[:] = h5py.VirtualSource(str(good), "image", shape=SHAPE)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("image", layout)


def _external_storage(path, good):
    with h5py.File(path, "w") as file:
        file.create_dataset("image", SHAPE, "u1", external=[(str(good), 0, 60)])


def _huge(path, good):
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (2**20, 2**20, 2), "f4", chunks=(1, 64, 2))


def _huge_chunk(path, good):
    with h5py.File(path, "w") as file:
        file.create_dataset("image", SHAPE, "u1", maxshape=(None,) * 3, chunks=(2**10, 2**10, 2**11))


def _strings(path, good):
    with h5py.File(path, "w") as file:
        file.create_dataset("image", SHAPE, h5py.string_dtype())


def _group(path, good):
    with h5py.File(path, "w") as file:
        file.create_group("image")


def _truncated(path, good):
    path.write_bytes(good.read_bytes()[:-200])


def _not_h5(path, good):
    path.write_bytes(b"nothing of the kind")


HOSTILE = {
    _external: "is a link",
    _soft: "is a link",
    _virtual: "other files",
    _external_storage: "other files",
    _huge: "too large",
    _huge_chunk: "too large",
    _strings: "values of type object",
    _group: "no array",
    _truncated: "HDF5",
    _not_h5: "HDF5",
    lambda path, good: h5(path, label=np.zeros(SHAPE)): "no dataset 'image'",
    lambda path, good: h5(path, image=np.zeros((2, 3))): "shape (2, 3)",
    lambda path, good: h5(path, image=np.zeros(SHAPE), label=np.zeros((5, 4, 3))): "must be equal",
    lambda path, good: h5(path, image=np.zeros(SHAPE), label=np.full(SHAPE, 2)): "2",
}


@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_h5_is_refused_by_name(tmp_path, make):
    good = tmp_path / "good.bin"
    h5(good, image=np.zeros(SHAPE, np.float32))
    path = tmp_path / "LA" / "case" / "mri_norm2.h5"
    path.parent.mkdir(parents=True)
    make(path, good)
    unreadable(found(SSL4MIS_H5, tmp_path / "LA").cases[0], path, HOSTILE[make])


def test_unlabeled_h5(tmp_path):
    h5(tmp_path / "case" / "mri_norm2.h5", image=np.zeros(SHAPE, np.float16))
    result = found(SSL4MIS_H5, tmp_path)
    image, label = result.cases[0].read()
    assert (image.array.dtype, label) == (np.float32, None)
    assert "no list" in result.split_rule


def test_an_array_that_is_promised_and_not_stored_is_refused(tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    with h5py.File(folder / "mri_norm2.h5", "w") as file:
        file.create_dataset("image", (512, 512, 64), "float32", chunks=(64, 64, 8), fillvalue=1.0)
    (case,) = find_h5(tmp_path, ImportOptions()).cases
    with pytest.raises(ValueError, match=r"mri_norm2\.h5.*stores 0 bytes"):
        case.read()
