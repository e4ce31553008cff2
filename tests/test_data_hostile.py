"""Files of strangers that would fill the memory: the doctor refuses them as every other reader does."""

import gzip
import struct
import threading
import tracemalloc

import datasets
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dim_hf.data.checks import find_faults
from dim_hf.data.doctor.reading import FaultError, read_content
from dim_hf.data.hub.load import _check_extent
from dim_hf.data.images import read_mask, read_picture
from dim_hf.data.limits import ByteBudget
from dim_hf.data.manifest import read_manifest
from dim_hf.data.parallel import parallel_map
from dim_hf.data.parquet import check_parquet
from dim_hf.data.volumes.volume import read_volume
from tests.doctor_samples import rows_of

VOX_OFFSET, MAGIC_BYTES = 108, 348


def faults(path, feature):
    rows = rows_of([(str(path), None, "site", "p", "n", "")], feature)
    return [str(fault) for fault in find_faults(rows, 2, progress=False)]


def traced_peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_pages_of_a_tiff_are_not_passed_over(tmp_path):
    pages = [Image.fromarray(np.full((8, 10), value, np.uint8)) for value in (1, 2, 3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    (found,) = faults(tmp_path / "pages.tif", datasets.Image())
    assert "the file holds 3 pages or frames; save each" in found


def test_a_tiff_that_is_decoded_wrongly_is_a_fault(tmp_path):
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / "odd.tif", tiffinfo={274: 6})
    (found,) = faults(tmp_path / "odd.tif", datasets.Image())
    assert "orientation 6" in found


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
def test_extensions_of_a_nifti_header_are_not_read(tmp_path, name):
    """A header may promise a gigabyte of them, and a few kilobytes of gzip hold as much."""
    size = 2**27
    content = bytearray(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    struct.pack_into("<f", content, VOX_OFFSET, size)
    content[MAGIC_BYTES : MAGIC_BYTES + 4] = b"\x01\0\0\0"
    content += struct.pack("<ii", size - MAGIC_BYTES, 6)
    whole = bytes(content) + bytes(size)
    (tmp_path / name).write_bytes(gzip.compress(whole, 1) if name.endswith("gz") else whole)
    del whole
    found = []
    assert traced_peak(lambda: found.extend(faults(tmp_path / name, datasets.Nifti()))) < 2**25
    assert "damaged NIfTI header" in found[0]


def test_embedded_volumes_are_held_to_the_same(tmp_path):
    content = nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)).to_bytes()
    for given in (content, gzip.compress(content)):
        read = read_content(datasets.Nifti(), {"bytes": given, "path": "a.nii"}, "image", 24)
        assert read.array.shape == (2, 3, 4)
        assert np.array_equal(read.affine, np.eye(4))
        with pytest.raises(FaultError, match=r"the file is too large \(2 x 3 x 4, the limit is 23 pixels\)$"):
            read_content(datasets.Nifti(), {"bytes": given, "path": "a.nii"}, "image", 23)
        with pytest.raises(FaultError, match="cut short") as caught:
            read_content(datasets.Nifti(), {"bytes": given[:-9], "path": "a.nii"}, "image", 24)
        assert caught.value.code == "truncated-file"
    second = nibabel.Nifti2Image(np.ones((2, 3, 4), np.float32), np.eye(4)).to_bytes()
    with pytest.raises(FaultError, match="NIfTI-2"):
        read_content(datasets.Nifti(), {"bytes": second, "path": "a.nii"}, "image", 24)


def test_a_name_that_is_wrong_about_packing_is_a_fault_since_training_could_not_read_it(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
    (found,) = faults(tmp_path / "a.nii", datasets.Nifti())
    assert "rename it" in found


def test_a_spacing_of_zero_places_no_voxel(tmp_path):
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), None)
    content = bytearray(image.to_bytes())
    struct.pack_into("<f", content, 76 + 8, 0.0)
    struct.pack_into("<hh", content, 252, 0, 0)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(FaultError) as caught:
        read_content(datasets.Nifti(), {"bytes": None, "path": str(tmp_path / "a.nii")}, "image", 24)
    assert caught.value.code == "invalid-affine"


def test_memory_that_is_not_there_is_no_damage(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / "a.png")

    def full(*_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(MemoryError):
        read_picture(tmp_path / "a.png")
    (found,) = faults(tmp_path / "a.png", datasets.Image())
    assert "not enough memory" in found


class TestByteBudget:
    def test_tasks_wait_until_there_is_room(self):
        budget, steps = ByteBudget(10), []
        first, second = threading.Event(), threading.Event()

        def hold():
            with budget.task():
                budget.charge(6)
                first.set()
                second.wait(10)
                steps.append("first ends")

        def wait():
            first.wait(10)
            with budget.task():
                second.set()
                budget.charge(5)
                steps.append("second goes on")

        threads = [threading.Thread(target=target) for target in (hold, wait)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert steps == ["first ends", "second goes on"]

    def test_two_that_wait_for_each_other_go_on_one_after_the_other(self):
        budget, both, most = ByteBudget(10), threading.Barrier(3), []
        lock, held = threading.Lock(), [0]

        def count(number):
            with lock:
                held[0] += number
                most.append(held[0])

        def work():
            with budget.task():
                budget.charge(3)
                count(3)
                both.wait(10)
                budget.charge(9)
                count(9)
                count(-12)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert max(most) == 18

    def test_a_file_beyond_the_budget_is_read_alone_and_nothing_stays_behind(self):
        budget = ByteBudget(10)

        def broken():
            with budget.task():
                budget.charge(1000)
                raise ValueError("broken")

        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                broken()
        budget.charge(10**9)  # no task: nothing is counted
        with budget.task():
            budget.charge(10)

    def test_processes_take_turns_with_what_is_beyond_their_share(self):
        budget = ByteBudget(10)
        budget.lock = threading.Lock()
        with budget.task():
            budget.charge(10)
            assert not budget.lock.locked()
            budget.charge(1)
            budget.charge(1)
            assert budget.lock.locked()
        assert not budget.lock.locked()


@pytest.mark.parametrize("kind", ["picture", "mask", "volume"])
def test_every_reader_says_what_it_needs(tmp_path, monkeypatch, kind):
    budget = ByteBudget(2**20)
    charged = []
    monkeypatch.setattr(budget, "charge", charged.append)
    for module in ("images", "volumes.nifti"):
        monkeypatch.setattr(f"dim_hf.data.{module}.READING", budget)
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / "a.png")
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)), tmp_path / "a.nii")
    read = {"picture": (read_picture, "a.png"), "mask": (read_mask, "a.png"), "volume": (read_volume, "a.nii")}[kind]
    read[0](tmp_path / read[1])
    assert charged == [{"picture": 320, "mask": 320, "volume": 96}[kind]]


def test_a_budget_is_given_back_after_each_item(monkeypatch):
    budget = ByteBudget(100)
    monkeypatch.setattr("dim_hf.data.parallel.READING", budget)
    assert parallel_map(lambda _: budget.charge(60), range(50), description="", unit="", progress=False) == [None] * 50


def bomb(path, rows=200_000, flat=False):
    """A few kilobytes of parquet whose rows take 20 GB."""
    columns = {"image": b"x" * 100_000, "domain": "d" * 1000}
    shared = {
        name: pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
        for name, value in columns.items()
    }
    if not flat:
        shared["image"] = pa.StructArray.from_arrays([shared["image"], pa.nulls(rows, pa.string())], ["bytes", "path"])
    pq.write_table(pa.table(shared), path)
    return path


def test_parquet_that_says_one_thing_a_million_times_is_not_unpacked(tmp_path):
    path = bomb(tmp_path / "a.parquet")
    assert path.stat().st_size < 2**17
    flat = bomb(tmp_path / "flat.parquet", flat=True)
    for check in (lambda: read_manifest(flat), lambda: _check_extent([path]), lambda: _check_extent([flat])):
        with pytest.raises(ValueError, match=r"unpacks to [0-9]+ bytes or more.*fewer rows or shorter values"):
            check()
    with pytest.raises(ValueError, match="has 200000 rows, more than the limit of 199999"):
        check_parquet([path], max_rows=199_999, max_bytes=2**40)
    check_parquet([path], max_rows=200_000, max_bytes=2**40)
    with pytest.raises(ValueError, match="has 400000 rows"):
        check_parquet([path, path], max_rows=200_000, max_bytes=2**40)


def test_sizes_of_parquet_are_those_of_its_values(tmp_path):
    table = pa.table({
        "text": ["ab", None, "abc", "ab"],
        "plain": [1, 2, 3, 4],
        "half": np.ones(4, np.float16),
        "lists": [["x"], ["x", "xyz"], [], None],
        "struct": [{"a": "1234567", "b": 1.0}] * 4,
        "map": pa.array([[("key", "value")]] * 4, pa.map_(pa.string(), pa.string())),
    })  # fmt: skip
    expected = 7 + 4 * 8 + 4 * 2 + 5 + 4 * (7 + 8) + 4 * 8
    for index, options in enumerate(({}, {"use_dictionary": False}, {"row_group_size": 1}, {"compression": "gzip"})):
        path = tmp_path / f"{index}.parquet"
        pq.write_table(table, path, **options)
        if options != {"use_dictionary": False}:
            with pytest.raises(ValueError, match=f"unpacks to {expected} bytes or more"):
                check_parquet([path], max_rows=4, max_bytes=expected - 1)
            check_parquet([path], max_rows=4, max_bytes=expected)


def test_a_manifest_of_parquet_says_what_one_of_csv_says(tmp_path):
    lines = ["Image , domain,label,split,note", " a.png ,site ,, train, b c ", "b.png,site,  ,,"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    columns = list(zip(*(line.split(",") for line in lines), strict=True))
    for dictionary in (True, False):
        table = pa.table({name: list(values) for name, *values in columns})
        pq.write_table(table, tmp_path / "manifest.parquet", use_dictionary=dictionary)
        rows = [
            read_manifest(tmp_path / name).with_format("arrow")[:] for name in ("manifest.csv", "manifest.parquet")
        ]
        assert rows[0].equals(rows[1])


def test_nested_columns_of_a_manifest_are_refused(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"], "domain": ["a"], "tags": [["x"]]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="tags holds values of the type list"):
        read_manifest(tmp_path / "a.parquet")
