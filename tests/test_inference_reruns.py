"""Runs into a folder that holds masks already: what is skipped, predicted anew, kept and refused."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from dim_hf.data.images import read_mask
from dim_hf.data.locks import hold, release
from dim_hf.data.volumes.volume import read_volume
from tests.inference_samples import Bands, bands, scan
from tests.test_data_volume_dicom import write_series
from tests.test_inference_folders import TOP, masks, measurements, picture, predict


def test_a_rerun_does_what_is_missing_or_has_changed_and_nothing_else(tmp_path):
    for seed, name in enumerate(["a.png", "b.png", "c.png"]):
        picture(tmp_path / "in" / name, seed)
    runs = [predict(tmp_path)]
    first = measurements(tmp_path / "out")
    stamps = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in masks(tmp_path / "out")}
    runs.append(predict(tmp_path, batch_size=2))  # the same masks
    assert stamps == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in masks(tmp_path / "out")}
    assert measurements(tmp_path / "out") == first
    array = picture(tmp_path / "in" / "b.png", seed=9)
    (tmp_path / "out" / "c.png").unlink()
    runs.append(predict(tmp_path))
    assert np.array_equal(read_mask(tmp_path / "out" / "b.png"), bands(array, TOP))
    runs.append(predict(tmp_path, uncertainty="entropy"))
    runs.append(predict(tmp_path, uncertainty="entropy", network=Bands(sharpness=100.0)))
    (tmp_path / "out" / "predictions.json").write_text("{damaged")
    runs.append(predict(tmp_path))
    assert [(run.predicted, run.skipped) for run in runs] == [(3, 0), (0, 3), (2, 1), (3, 0), (3, 0), (3, 0)]


@pytest.mark.parametrize("header", ["a.mhd", "a.nhdr"])
def test_a_changed_file_of_voxels_beside_its_header_is_noticed(tmp_path, header):
    import SimpleITK

    (tmp_path / "in").mkdir()

    def write(seed):
        array = scan(np.random.default_rng(seed), (4, 5, 6), np.uint8, TOP)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(tmp_path / "in" / header))
        return array

    write(0)
    assert predict(tmp_path).predicted == 1
    assert predict(tmp_path).skipped == 1
    text = (tmp_path / "in" / header).read_bytes()
    status = (tmp_path / "in" / header).stat()
    (tmp_path / "in" / "a.raw").write_bytes(np.asfortranarray(array := write(1)).tobytes(order="F"))
    (tmp_path / "in" / header).write_bytes(text)
    os.utime(tmp_path / "in" / header, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert predict(tmp_path).predicted == 1
    assert np.array_equal(read_volume(tmp_path / "out" / header).array, bands(array, TOP))


def test_a_run_that_was_killed_leaves_whole_files_only(tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)
    write, seen = PIL.Image.Image.save, []

    def killed(self, path, **options):
        seen.append(path)
        if len(seen) == 2:
            with open(path, "wb") as file:
                file.write(b"half")
            raise KeyboardInterrupt
        write(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PIL.Image.Image, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(tmp_path)
    assert masks(tmp_path / "out") == ["a.png"]
    (tmp_path / "out" / ".writing").mkdir()
    (tmp_path / "out" / ".writing" / "x.png").write_bytes(b"of a run that was killed")
    summary = predict(tmp_path)
    assert (summary.predicted, summary.skipped) == (2, 1)
    assert masks(tmp_path / "out") == ["a.png", "b.png", "c.png"]


def test_several_inputs_in_one_folder_are_all_measured(tmp_path):
    for seed, name in enumerate(["a.png", "b.png", "c.png"]):
        picture(tmp_path / "in" / name, seed)
        predict(tmp_path, tmp_path / "in" / name)
    assert [row["image"] for row in measurements(tmp_path / "out") if row["quantity"] == "area"] == [
        "c.png", "c.png", "a.png", "a.png", "b.png", "b.png",
    ]  # fmt: skip
    (tmp_path / "out" / "a.png").unlink()
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    record["cases"]["b.png"]["measurements"] = [{"edited": 1}]
    (tmp_path / "out" / "predictions.json").write_text(json.dumps(record))
    assert predict(tmp_path, tmp_path / "in" / "c.png").skipped == 1
    assert {row["image"] for row in measurements(tmp_path / "out")} == {"c.png"}
    predict(tmp_path, tmp_path / "in" / "a.png", network=Bands(sharpness=100.0))
    assert {row["image"] for row in measurements(tmp_path / "out")} == {"a.png"}, "of another model"


@pytest.mark.parametrize("other", ["y/a.png", "y/a.jpg", "y/A.png"])
def test_a_mask_of_another_image_is_not_replaced(tmp_path, other):
    picture(tmp_path / "x" / "a.png")
    picture(tmp_path / other, seed=1)
    predict(tmp_path, tmp_path / "x" / "a.png")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for source in (tmp_path / other, (tmp_path / other).parent):
        with pytest.raises(
            ValueError, match=r"out/[aA]\.png is the mask of .*x/a\.png, and that of .*give another"
        ) as said:
            predict(tmp_path, source)
        assert other in str(said.value)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    picture(tmp_path / "x" / "a.png", seed=2)
    assert predict(tmp_path, tmp_path / "x").predicted == 1, "the same image, changed"


def test_the_same_source_is_known_by_any_way_that_leads_there(tmp_path, monkeypatch):
    picture(tmp_path / "in" / "deep" / "a.png")
    write_series(tmp_path / "in" / "ct", scan(np.random.default_rng(0), (6, 5, 4), np.int16, TOP))
    predict(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in" / "deep")
    for source in ("../../in", "..", tmp_path / "link", tmp_path / "in" / "deep" / ".."):
        summary = predict(tmp_path, source)
        assert (summary.predicted, summary.skipped) == (0, 2)


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    picture(tmp_path / "in" / "a.png")
    predict(tmp_path)
    lock = hold(tmp_path / "out" / ".predict.lock")
    try:
        with pytest.raises(ValueError, match="another dim-hf predict"):
            predict(tmp_path)
    finally:
        release(lock, tmp_path / "out" / ".predict.lock")
