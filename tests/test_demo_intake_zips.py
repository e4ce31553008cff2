"""Zips meant to harm, and one that holds a DICOM series."""

import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from dim_hf.data.volumes.volume import same_grid
from dim_hf.demo.intake import check_volume, load_volume, unpack_dicom_zip
from tests.test_data_volume_dicom import UID, truth, write_series, write_slice
from tests.test_demo_intake import ARRAY, SETTINGS, damage, nifti_file, read_or_refused, refusal


def zipped(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def series_zip(tmp_path, name="series.zip", count=9):
    array = np.random.default_rng(1).integers(0, 500, (12, 10, count)).astype(np.int16)
    files = write_series(tmp_path / "slices", array)
    return zipped(tmp_path / name, [(f"study/{file.name}", file.read_bytes()) for file in files]), array


def test_a_dicom_zip_is_read_where_its_tags_say(tmp_path):
    path, array = series_zip(tmp_path)
    assert check_volume(path, SETTINGS) == path
    volume = load_volume(path, tmp_path / "unpacked", SETTINGS)
    assert np.array_equal(volume.array, array)
    assert same_grid(volume, truth(array), 1e-4) is None


def test_other_files_beside_the_slices_do_no_harm(tmp_path):
    path, array = series_zip(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("study/readme.html", "<script>alert(1)</script>")
        archive.writestr("__MACOSX/study/._1.dcm", b"x")
        archive.writestr("empty/", b"")
    assert np.array_equal(load_volume(path, tmp_path / "unpacked", SETTINGS).array, array)


@pytest.mark.parametrize("name", ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "C:\\evil.dcm", "..\\evil"])
def test_entries_outside_the_folder_are_refused(tmp_path, name):
    path = zipped(tmp_path / "slip.zip", [("fine.dcm", b"x"), (name, b"x")])
    assert "outside" in refusal(unpack_dicom_zip, path, tmp_path / "in" / "side", SETTINGS)
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("kind", [0o120777, 0o020666, 0o010666])
def test_links_and_devices_are_refused(tmp_path, kind):
    entry = zipfile.ZipInfo("link.dcm")
    entry.external_attr = kind << 16
    path = zipped(tmp_path / "link.zip", [(entry, "/etc/passwd")])
    assert "is a link or device" in refusal(unpack_dicom_zip, path, tmp_path / "in", SETTINGS)


@pytest.mark.parametrize("name", ["more.zip", "a/more.TAR", "a.dcm.gz", "x.7z", "x.rar"])
def test_archives_within_are_refused(tmp_path, name):
    path = zipped(tmp_path / "nested.zip", [("a.dcm", b"x"), (name, b"PK\x03\x04")])
    assert "another archive" in refusal(check_volume, path, SETTINGS)


def test_passwords_are_refused(tmp_path):
    path = zipped(tmp_path / "secret.zip", [("a.dcm", b"x")])
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(unpack_dicom_zip, path, tmp_path / "in", SETTINGS)


def test_many_entries_are_refused_before_the_table_is_read(tmp_path, monkeypatch):
    path = zipped(tmp_path / "many.zip", [(f"{number}", b"") for number in range(2001)])
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "more than 2000 entries" in refusal(check_volume, path, SETTINGS)


def test_a_table_that_lies_about_its_length_is_counted_all_the_same(tmp_path, monkeypatch):
    path = zipped(tmp_path / "liar.zip", [(f"{number}", b"") for number in range(50)])
    content = bytearray(path.read_bytes())
    struct.pack_into("<HH", content, len(content) - 14, 1, 1)
    path.write_bytes(content)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "more than 40" in refusal(check_volume, path, replace(SETTINGS, max_zip_entries=40))


def test_bombs_are_refused_by_what_they_promise(tmp_path):
    large = bytes(2**20)
    path = zipped(tmp_path / "bomb.zip", [(f"{number}.dcm", large) for number in range(100)])
    assert path.stat().st_size < 2**18
    assert "times its own size" in refusal(unpack_dicom_zip, path, tmp_path / "in", SETTINGS)
    small = replace(SETTINGS, max_unpacked_bytes=2**22)
    path = zipped(tmp_path / "large.zip", [(f"{number}.dcm", large) for number in range(5)], zipfile.ZIP_STORED)
    assert f"limit {2**22}" in refusal(unpack_dicom_zip, path, tmp_path / "in", small)
    assert not (tmp_path / "in").exists()


def test_an_entry_larger_than_its_promise_is_refused(tmp_path):
    path = zipped(tmp_path / "liar.zip", [("a.dcm", bytes(2**20))])
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 10)
    path.write_bytes(content)
    refusal(unpack_dicom_zip, path, tmp_path / "in", SETTINGS)
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("kept", [30, 200, -30])
def test_cut_zips_are_refused(tmp_path, kept):
    path, _ = series_zip(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "pack it again" in refusal(check_volume, path, SETTINGS)


def test_zips_without_a_series_say_what_is_asked_for(tmp_path):
    path = zipped(tmp_path / "empty.zip", [])
    assert "holds no files" in refusal(check_volume, path, SETTINGS)
    volume = nifti_file(tmp_path / "a.nii.gz").read_bytes()
    path = zipped(tmp_path / "nifti.zip", [("a.nii.gz", volume), ("x.html", b"<script>")])
    assert "holds no DICOM slices" in refusal(load_volume, path, tmp_path / "in", SETTINGS)


def test_several_series_are_counted(tmp_path):
    write_series(tmp_path / "slices" / "a", ARRAY)
    write_series(tmp_path / "slices" / "b", ARRAY[:, :, :3], series=UID + "1.2")
    files = sorted((tmp_path / "slices").rglob("*.dcm"))
    path = zipped(tmp_path / "two.zip", [(f"{n}.dcm", file.read_bytes()) for n, file in enumerate(files)])
    assert "2 DICOM series (of 9, 3 slices)" in refusal(load_volume, path, tmp_path / "in", SETTINGS)


def test_slices_are_held_to_the_limits_of_volumes(tmp_path):
    path, _ = series_zip(tmp_path)
    small = replace(SETTINGS, max_voxels=1000)
    assert "too large" in refusal(load_volume, path, tmp_path / "in", small)
    file = write_slice(tmp_path / "one.dcm", np.zeros((5, 400), np.int16), 0)
    path = zipped(tmp_path / "one.zip", [("1.dcm", file.read_bytes())])
    assert "8 to 2048" in refusal(load_volume, path, tmp_path / "in2", SETTINGS)


def test_a_missing_slice_is_named_by_its_entry(tmp_path):
    files = write_series(tmp_path / "slices", ARRAY, skip=(4,))
    path = zipped(tmp_path / "gap.zip", [(f"study/{file.name}", file.read_bytes()) for file in files])
    said = refusal(load_volume, path, tmp_path / "in", SETTINGS)
    assert said.startswith("study/")
    assert "copy the whole series again" in said


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("start", [0, 0.5, 0.95])
def test_damaged_zips_are_refused_or_read_and_nothing_else(tmp_path, seed, start):
    path, _ = series_zip(tmp_path)
    start = int(start * path.stat().st_size)
    damage(path, np.random.default_rng(seed), start, start + 600)
    found = read_or_refused(load_volume, path, tmp_path / "in", SETTINGS)
    assert str(tmp_path) not in found if isinstance(found, str) else found.array.ndim == 3
