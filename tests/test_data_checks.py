import zlib
from pathlib import Path

import datasets
import nibabel
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dim_hf.data.checks import Fault, check_rows, find_faults, refuse_faults
from dim_hf.data.doctor.intake import Intake
from dim_hf.data.rows import COLUMNS, is_present, row_features


def rows_of(pairs, feature=None):
    values = [(image, label, "d", f"p{i}", f"n{i}", "") for i, (image, label) in enumerate(pairs)]
    table = dict(zip(COLUMNS, map(list, zip(*values, strict=True)), strict=True))
    return datasets.Dataset.from_dict(table, features=row_features(feature or datasets.Image()))


def write(path, array):
    Image.fromarray(array).save(path)
    return str(path)


@pytest.fixture
def pair(tmp_path):
    image = write(tmp_path / "image.png", np.arange(240, dtype=np.uint8).reshape(8, 10, 3))
    mask = write(tmp_path / "mask.png", np.eye(8, 10, dtype=np.uint8))
    return image, mask


def messages(rows, num_labels=2, **kwargs):
    return [str(fault) for fault in find_faults(rows, num_labels, progress=False, **kwargs)]


def test_good_rows_pass(pair, tmp_path):
    ignored = write(tmp_path / "ignored.png", np.tile(np.array([0, 1, 255], np.uint8), (8, 1)))
    grey = write(tmp_path / "grey.tif", np.zeros((8, 3), np.float32))
    check_rows(rows_of([pair, (pair[0], None), (grey, ignored)]), 2, progress=False)


def test_missing_truncated_and_foreign_files(pair, tmp_path):
    image, mask = pair
    truncated = tmp_path / "truncated.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    write(truncated, noise)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    text = tmp_path / "text.png"
    text.write_text("hello")
    empty = tmp_path / "empty.png"
    empty.touch()
    found = messages(
        rows_of([(str(tmp_path / "gone.png"), mask), (str(truncated), None), (image, str(text)), (str(empty), None)])
    )
    assert len(found) == 4
    assert found[0].startswith(f"{tmp_path}/gone.png: the file does not exist. Fix: restore")
    for path, message in zip((truncated, text, empty), found[1:], strict=True):
        assert message.startswith(f"{path}: cannot be read")
        assert "Fix: copy the file again" in message


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((8, 10), 2, np.uint8), r"values 2 outside 0..1 \(or 255 to ignore\)"),
        (np.arange(80, dtype=np.uint8).reshape(8, 10), r"values 2, 3, 4, 5, 6, ... outside"),
        (np.zeros((8, 12), np.uint8), r"mask has shape \(8, 12\), but its image \(8, 10, 3\)"),
        (np.zeros((8, 10, 3), np.uint8), "the mask has 3 channels"),
        (np.full((8, 10), 300, np.uint16), "values 300 outside"),
        (np.full((8, 10), 0.5, np.float32), r"no integers \(0.5\)"),
        (np.full((8, 10), np.nan, np.float32), r"no integers \(nan\)"),
    ],
)
def test_faulty_masks(pair, tmp_path, mask, message):
    path = write(tmp_path / "faulty.tif", mask)
    (found,) = messages(rows_of([(pair[0], path), pair]))
    assert found.startswith(path)
    with pytest.raises(ValueError, match=message):
        check_rows(rows_of([(pair[0], path), pair]), 2, progress=False)


def test_ignored_value_may_be_forbidden_or_another(pair, tmp_path):
    path = write(tmp_path / "ignored.png", np.tile(np.array([1, 255], np.uint8), (8, 5)))
    rows = rows_of([(pair[0], path)])
    assert messages(rows) == []
    assert "values 255 outside 0..1. Fix" in messages(rows, ignore_index=None)[0]
    assert "values 255 outside 0..1 (or 9 to ignore)" in messages(rows, ignore_index=9)[0]


def test_masks_of_0_and_255_alone_are_a_fault(pair, tmp_path):
    path = write(tmp_path / "binary.png", np.tile(np.array([0, 255], np.uint8), (8, 5)))
    (found,) = messages(rows_of([(pair[0], path), (pair[0], path)]))
    assert "hold only 0 and 255" in found
    assert messages(rows_of([(pair[0], path), pair])) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_pixels(tmp_path, value):
    array = np.zeros((8, 10), np.float32)
    array[1, 2] = value
    (found,) = messages(rows_of([(write(tmp_path / "float.tif", array), None)]))
    assert "1 of 80 pixels are NaN or infinite" in found


def test_large_images_are_refused_by_their_header(pair, tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (200, 100)).save(path)
    header = bytearray(path.read_bytes())
    (found,) = messages(rows_of([(str(path), None)]), max_pixels=19_999)
    assert "too large (200 x 100, the limit is 19999 pixels)" in found
    # 60 000 x 60 000 in the header alone: nothing of it may be decoded.
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    path.write_bytes(header)
    (found,) = messages(rows_of([(str(path), None)]))
    assert "too large" in found


def test_an_image_turned_by_its_tag_is_measured_as_it_is_decoded(tmp_path):
    image = Image.fromarray(np.zeros((8, 10), np.uint8))
    tags = image.getexif()
    tags[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=tags)
    upright = write(tmp_path / "upright.png", np.ones((10, 8), np.uint8))
    rows = rows_of([(str(tmp_path / "turned.jpg"), upright)])
    assert rows[0]["image"].size == rows[0]["label"].size
    assert messages(rows) == []


def test_only_ten_faults_are_listed_with_the_total(pair, tmp_path):
    rows = rows_of([(str(tmp_path / f"gone{i}.png"), None) for i in range(13)] + [pair])
    with pytest.raises(ValueError, match="the check of 14 rows found 13 faults") as caught:
        check_rows(rows, 2, progress=False)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert "gone0.png" in lines[1]
    assert lines[-1] == "  ... and 3 more"


def test_one_row_may_have_several_faults(pair, tmp_path):
    path = write(tmp_path / "faulty.png", np.full((8, 12), 2, np.uint8))
    assert len(messages(rows_of([(pair[0], path)]))) == 2


def test_embedded_files_are_checked_too(pair):
    image, mask = (Path(path).read_bytes() for path in pair)
    good = {"bytes": image, "path": "image.png"}
    rows = rows_of([(good, {"bytes": mask, "path": None}), ({"bytes": image[:50], "path": "image.png"}, None)])
    (found,) = messages(rows)
    assert found.startswith("d/n1 (image), image.png: cannot be read")


def test_what_a_processor_does_not_take_is_a_fault(tmp_path):
    arrays = {
        "grey.png": np.full((8, 10), 200, np.uint8),
        "deep.png": np.full((8, 10), 60_000, np.uint16),
        "deep32.tif": np.full((8, 10), 60_000, np.int32),
        "unit.tif": np.linspace(0, 1.0005, 80, dtype=np.float32).reshape(8, 10),
        "signed.tif": np.full((8, 10), -7, np.int32),
        "beyond.tif": np.linspace(0, 2, 80, dtype=np.float32).reshape(8, 10),
    }
    rows = rows_of([(write(tmp_path / name, array), None) for name, array in arrays.items()])
    assert messages(rows) == []
    signed, beyond = messages(rows, intake=Intake(default_range=True))
    assert signed.startswith(f"{tmp_path}/signed.tif: image 'n4' of domain 'd' is of int32 with values in [-7, -7]")
    assert beyond.startswith(f"{tmp_path}/beyond.tif: image 'n5' of domain 'd' is of float32 with values in [0, 2]")
    assert "--intensity" in beyond
    wide = messages(rows, intake=Intake(eight_bits=True))
    assert ["more than 8 bits a channel (PIL mode" in text for text in wide] == [True] * 5
    with pytest.raises(ValueError, match="found 2 faults"):
        check_rows(rows, 2, intake=Intake(default_range=True), progress=False)
    volumes = rows_of([(np.full((3, 4, 5), -1000, np.int16), None)], datasets.Array3D((3, 4, 5), "int16"))
    (text,) = messages(volumes, intake=Intake(default_range=True))
    assert "image 'n0' of domain 'd' is of int64 with values in [-1000, -1000]" in text  # as `datasets` reads arrays


def test_volumes_as_arrays():
    volume = np.zeros((3, 4, 5), np.float32)
    broken = volume.copy()
    broken[0, 0, 0] = np.nan
    label = np.ones((3, 4, 5), np.float32)
    feature = datasets.Array3D((None, 4, 5), "float32")
    pairs = [(volume, label), (volume, None), (broken, None), (volume, 4 * label), (volume, label[:2])]
    found = messages(rows_of(pairs, feature))
    assert len(found) == 3
    assert found[0].startswith("d/n2 (image): 1 of 60 pixels are NaN")
    assert found[1].startswith("d/n3 (label): the mask has the values 4 outside")
    assert found[2].startswith("d/n4 (label): the mask has shape (2, 4, 5), but its image (3, 4, 5)")


def test_nifti_volumes(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for name, value in (("image", 3.5), ("good", 1), ("bad", 7)):
        volume = nibabel.Nifti1Image(np.full((3, 4, 5), value, np.float32), np.eye(4))
        nibabel.save(volume, tmp_path / f"{name}.nii.gz")
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((30_000, 30_000, 30_000))
    (tmp_path / "huge.nii").write_bytes(huge.binaryblock + bytes(4))
    names = [("image", "good"), ("image", "bad"), ("huge", None)]
    pairs = [tuple(name and str(next(tmp_path.glob(f"{name}.*"))) for name in pair) for pair in names]
    found = messages(rows_of(pairs, datasets.Nifti()))
    assert len(found) == 2
    assert "bad.nii.gz: the mask has the values 7 outside" in found[0]
    assert "huge.nii: the file is too large (30000 x 30000 x 30000" in found[1]


def test_rows_without_image_column_or_classes_are_refused(pair):
    with pytest.raises(ValueError, match=r"lack the columns \['image'\]"):
        check_rows(datasets.Dataset.from_dict({"picture": [1]}), 2)
    with pytest.raises(ValueError, match="num_labels must be at least 1"):
        check_rows(rows_of([pair]), 0)


def test_a_row_without_an_image_is_a_fault(pair):
    (found,) = messages(rows_of([(None, None), pair]))
    assert found.startswith("d/n0 (image): the row has no image")


def test_presence_is_found_through_a_selection_and_in_batches(pair):
    # A null inside the struct, as a parquet file of another writer may have it.
    files = pa.array(
        [{"path": pair[1], "bytes": None}, None, {"path": None, "bytes": b"0"}, {"path": None, "bytes": None}]
    )
    rows = datasets.Dataset(pa.table({"label": files})).cast_column("label", datasets.Image())
    assert is_present(rows, "label", batch_size=3).tolist() == [True, False, True, False]
    assert is_present(rows.select([1, 0, 2]), "label").tolist() == [False, True, True]
    assert is_present(rows, "mask").tolist() == [False] * 4


def test_volumes_have_a_limit_of_their_own_and_must_lie_with_their_masks(tmp_path):
    for name, shift in (("image", 0), ("same", 0), ("apart", 1)):
        affine = np.diag([1.0, 1.0, 3.0, 1.0]) + shift * np.eye(4, k=3)
        nibabel.save(nibabel.Nifti1Image(np.ones((6, 5, 4), np.uint8), affine), tmp_path / f"{name}.nii.gz")
    paths = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "same", "apart")}

    def faults(label, **limits):
        table = {"image": [paths["image"]], "label": [paths[label]], "domain": ["a"], "patient": ["p"]}
        table |= {"name": ["n"], "split": [""]}
        rows = datasets.Dataset.from_dict(table, features=row_features(datasets.Nifti()))
        return [str(fault) for fault in find_faults(rows, 2, progress=False, **limits)]

    assert faults("same", max_pixels=1) == []
    assert "too large" in faults("same", max_voxels=119)[0]
    (apart,) = faults("apart")
    assert "apart.nii.gz" in apart
    assert "copy the affine" in apart


class TestShares:
    """Processes of a distributed run that share the work."""

    def test_find_together_what_one_finds(self, pair, tmp_path):
        files = [(pair[0] if number % 3 else str(tmp_path / f"gone{number}.png"), pair[1]) for number in range(7)]
        rows = rows_of(files)
        shares = [messages(rows, rank=rank, world_size=3) for rank in range(3)]
        assert sorted(text for share in shares for text in share) == sorted(messages(rows))
        assert [len(share) for share in shares] == [3, 0, 0]

    def test_do_not_take_their_own_masks_for_all_of_a_domain(self, pair, tmp_path):
        binary = write(tmp_path / "binary.png", np.tile(np.array([0, 255], np.uint8), (8, 5)))
        rows = rows_of([(pair[0], binary), pair, (pair[0], binary), (pair[0], None)])
        assert messages(rows, rank=0, world_size=2) == []
        rows = rows_of([(pair[0], binary)] * 4)
        assert all("hold only 0 and 255" in messages(rows, rank=rank, world_size=2)[0] for rank in range(2))

    @pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
    def test_are_numbered_from_0(self, pair, rank, world_size):
        with pytest.raises(ValueError, match="rank must be in 0"):
            check_rows(rows_of([pair]), 2, rank=rank, world_size=world_size)

    def test_may_refuse_what_all_of_them_found(self):
        refuse_faults([], 3)
        with pytest.raises(ValueError, match=r"^the check of 3 rows found 1 fault:\n  1\. a: b\. Fix: c$"):
            refuse_faults([Fault("a", "b", "c")], 3)
