"""Folders, manifests and the command: what is taken, what is skipped, what broken and hostile files do."""

import csv
import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from dim_hf.cli import main
from dim_hf.data.images import read_mask
from dim_hf.data.volumes.volume import Volume, write_nifti
from dim_hf.inference.folder_prediction import OutputError, predict_folder
from dim_hf.inference.inputs import find_cases, safe_target
from dim_hf.inference.measurements import CUP_TO_DISC
from dim_hf.models import DimImageProcessor
from tests.inference_samples import bands, predictor, scan
from tests.test_data_volume_dicom import UID, write_series
from tests.tiny import tiny_model

TOP = 255


def picture(path, seed=0, size=(20, 24)):
    array = scan(np.random.default_rng(seed), size, np.uint8, TOP)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path)
    return array


def predict(tmp_path, source=None, **options):
    return predict_folder(predictor(top=TOP, **options), source or tmp_path / "in", tmp_path / "out")


def masks(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files if path.suffix not in (".json", ".csv"))


def measurements(folder):
    with (folder / "measurements.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "mask"),
    [("a.png", "a.png"), ("a.PNG", "a.png"), ("a.tif", "a.tif"), ("a.tiff", "a.tiff"), ("a.bmp", "a.png")],
)
def test_masks_of_pictures_are_pictures_of_class_ids(tmp_path, name, mask):
    array = picture(tmp_path / "in" / name)
    predict(tmp_path, probabilities=True, uncertainty="entropy")
    assert masks(tmp_path / "out") == sorted([mask, "a.prob0.png", "a.prob1.png", "a.prob2.png", "a.uncertainty.png"])
    assert np.array_equal(read_mask(tmp_path / "out" / mask), bands(array, TOP))
    shares = [read_mask(tmp_path / "out" / f"a.prob{index}.png") for index in range(3)]
    assert shares[0].dtype == np.uint16
    assert np.array_equal(np.argmax(shares, axis=0), bands(array, TOP))
    assert abs(np.sum(shares, axis=0, dtype=int) - 65535).max() <= 2
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels["id2label"] == {"0": "background", "1": "rim", "2": "cup"}
    assert labels["structures"] == {"disc": [1, 2], "cup": [2]}


def test_a_jpeg_gives_a_png_of_its_size(tmp_path):
    picture(tmp_path / "in" / "a.jpg")
    predict(tmp_path)
    mask = read_mask(tmp_path / "out" / "a.png")
    assert mask.shape == (20, 24)
    assert mask.max() <= 2


def test_sixteen_bits_and_turned_pictures_are_decoded_as_in_training(tmp_path):
    array = scan(np.random.default_rng(0), (20, 24), np.uint16, TOP)
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(array).save(tmp_path / "in" / "a.png")
    turned = PIL.Image.fromarray(array.astype(np.uint8))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "in" / "b.png", exif=exif)
    predict(tmp_path)
    assert np.array_equal(read_mask(tmp_path / "out" / "a.png"), bands(array, TOP))
    assert np.array_equal(read_mask(tmp_path / "out" / "b.png"), np.rot90(bands(array, TOP), -1))


def test_a_tree_is_mirrored_without_masks_litter_and_the_output_itself(tmp_path):
    root = tmp_path / "in"
    for name in ("b.png", "site/images/a.png", "site/images/deep/a.png", "site/masks/a.png", ".hidden/a.png"):
        picture(root / name)
    (root / "readme.txt").write_text("x")
    for _ in range(2):
        summary = predict_folder(predictor(top=TOP), root, root / "out")
        assert masks(root / "out") == ["b.png", "site/images/a.png", "site/images/deep/a.png"]
        assert summary.ignored == 2
    assert (summary.predicted, summary.skipped) == (0, 3)


def test_volumes_pictures_and_series_of_one_tree(tmp_path):
    root = tmp_path / "in"
    volume = Volume(scan(np.random.default_rng(0), (6, 7, 4), np.int16, TOP), np.diag([1, 2, 3, 1.0]))
    picture(root / "a.png")
    write_nifti(volume, root / "b.nii.gz")
    for number in (1, 2):
        array = scan(np.random.default_rng(number), (6, 5, 4), np.int16, TOP)
        files = write_series(root / "ct", array, series=f"{UID}1.{number}")
        for file in files:
            file.rename(file.with_name(f"{number}_{file.name}"))
    (root / "ct" / "cut.dcm").write_bytes(bytes(128) + b"DICM" + b"x")
    summary = predict(tmp_path)
    assert [name for name, _ in summary.failed] == ["ct/cut.dcm"]
    assert masks(tmp_path / "out") == ["a.png", "b.nii.gz", f"ct_{UID}1.1.nii.gz", f"ct_{UID}1.2.nii.gz"]
    rows = [row for row in measurements(tmp_path / "out") if row["structure"] == "disc" and row["image"] == "b.nii.gz"]
    voxels = int((bands(volume.array, TOP) > 0).sum())
    assert [(row["unit"], int(row["pixels"]), float(row["value"])) for row in rows] == [
        ("ml", voxels, pytest.approx(voxels * 6 / 1000))
    ]


def test_a_manifest_says_names_and_spacing(tmp_path):
    picture(tmp_path / "in" / "scans" / "x.png")
    picture(tmp_path / "in" / "scans" / "y.png", seed=1)
    lines = ['scans/x.png,one,x,"[0.5, 0.25]"', "scans/y.png,two,sub/y,", "scans/gone.png,two,gone,"]
    (tmp_path / "in" / "manifest.csv").write_text("\n".join(["image,domain,name,spacing_mm", *lines]))
    summary = predict(tmp_path)
    assert masks(tmp_path / "out") == ["one/x.png", "two/sub/y.png"]
    assert summary.failed == [("two/gone", f"{tmp_path / 'in' / 'scans' / 'gone.png'} is missing; correct the path")]
    found = {(row["image"], row["structure"], row["quantity"]): row["unit"] for row in measurements(tmp_path / "out")}
    assert found["one/x", "disc", "area"] == "mm2"
    assert found["two/sub/y", "disc", "area"] == "px"
    assert found["one/x", "cup", CUP_TO_DISC] == ""


def test_broken_files_stop_nothing_and_are_named(tmp_path):
    good = {name: picture(tmp_path / "in" / name, seed) for seed, name in enumerate(["a.png", "c.png", "e.png"])}
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    (tmp_path / "in" / "d.nii.gz").write_bytes(b"no volume")
    (tmp_path / "in" / "f.png").symlink_to(tmp_path / "nowhere")
    nan = np.full((20, 24), np.nan, np.float32)
    PIL.Image.fromarray(nan).save(tmp_path / "in" / "g.tiff")  # spoils the batch of the others
    summary = predict(tmp_path)
    assert [name for name, _ in summary.failed] == [str(tmp_path / "in" / "f.png"), "b.png", "d.nii.gz", "g.tiff"]
    assert all(str(tmp_path / "in" / name.split("/")[-1]) in said for name, said in summary.failed)
    for name, array in good.items():
        assert np.array_equal(read_mask(tmp_path / "out" / name), bands(array, TOP))
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(record["failed"]) == 4
    picture(tmp_path / "in" / "b.png")
    again = predict(tmp_path)
    assert (again.predicted, again.skipped, len(again.failed)) == (1, 3, 3)


def test_what_runs_out_of_memory_stops_nothing(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    write_nifti(Volume(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "in" / "c.nii")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("dim_hf.inference.predictor.Predictor.predict_volume", full)
    summary = predict(tmp_path)
    assert summary.predicted == 2
    assert "not enough memory" in summary.failed[0][1]


def test_no_image_is_overwritten(tmp_path):
    before = picture(tmp_path / "in" / "a.png")
    with pytest.raises(ValueError, match="holds the input"):
        predict_folder(predictor(top=TOP), tmp_path / "in", tmp_path / "in")
    with pytest.raises(ValueError, match="holds the input"):
        predict_folder(predictor(top=TOP), tmp_path / "in" / "a.png", tmp_path / "in")
    picture(tmp_path / "out" / "a.png")
    with pytest.raises(ValueError, match="holds files that are no predictions"):
        predict(tmp_path)
    assert np.array_equal(read_mask(tmp_path / "in" / "a.png"), before)


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path, monkeypatch):
    picture(tmp_path / "in" / "a.png")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dim_hf.inference.outputs.write_png", full)
    with pytest.raises(
        OutputError, match=r"a\.png cannot be written to .* \(No space left on device\); free the disk"
    ):
        predict(tmp_path)
    assert masks(tmp_path / "out") == []


@pytest.mark.parametrize(
    "name",
    ["=1+1.png", "a\x1b[2J.png", "<script>.png", "a b.png", "-rf.png", "ä.png", "x" * 240 + ".png", "'.png"],
)
def test_hostile_names_stay_below_the_output(tmp_path, name):
    array = picture(tmp_path / "in" / "site" / name)
    summary = predict(tmp_path)
    assert summary.failed == []
    (mask,) = masks(tmp_path / "out")
    assert mask.isprintable()
    assert len(mask) < 200
    assert np.array_equal(read_mask(tmp_path / "out" / mask), bands(array, TOP))
    for row in measurements(tmp_path / "out"):
        assert row["image"].isprintable()


def test_names_of_a_manifest_cannot_leave_the_output(tmp_path):
    picture(tmp_path / "in" / "x.png")
    names = ["../../up", "/etc/passwd", "..", "a/../../b", "=2+2", "C:\\windows\\x"]
    with (tmp_path / "in" / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "domain", "name"])
        writer.writerows(["x.png", "../evil", name] for name in names)
    summary = predict(tmp_path)
    assert (summary.predicted, summary.failed) == (len(names), [])
    assert len(masks(tmp_path / "out")) == len(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_names_that_would_be_one_mask_are_kept_apart(tmp_path):
    for seed, name in enumerate(["a.png", "a.jpg", "A.tif", "a.prob1.png"]):
        picture(tmp_path / "in" / name, seed)
    predict(tmp_path, probabilities=True)
    found = masks(tmp_path / "out")
    assert len(found) == len({name.casefold() for name in found}) == 4 * 4
    assert predict(tmp_path, probabilities=True).skipped == 4


def test_links_are_followed_within_the_folder_only(tmp_path):
    picture(tmp_path / "in" / "a" / "x.png")
    picture(tmp_path / "secret" / "y.png")
    (tmp_path / "in" / "out_of").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "a" / "circle").symlink_to(tmp_path / "in")
    found = find_cases(tmp_path / "in")
    assert [case.name for case in found.cases] == ["a/x.png"]
    assert len(found.faults) == 2


def test_a_name_that_is_no_text_stops_nothing(tmp_path):
    picture(tmp_path / "in" / "a.png")
    try:
        (tmp_path / "in" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes text only")
    summary = predict(tmp_path)
    assert summary.predicted == 1
    assert "rename it" in summary.failed[0][1]


def test_safe_targets_are_plain():
    assert safe_target(["site", "case_1.a"]) == "site/case_1.a"
    for parts in (["..", ".."], ["/", "x"], ["a\0b"], [".."]):
        target = safe_target(parts)
        assert ".." not in target.split("/")
        assert not target.startswith("/")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(id2label={0: "background", 1: "\x1b[2J=cup"}).save_pretrained(folder)
    DimImageProcessor(num_channels=1, size=32).save_pretrained(folder)
    return str(folder)


def run(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments), "--no-progress", "--device", "cpu"])


def test_the_command_says_by_its_code_what_happened(tmp_path, saved):
    picture(tmp_path / "in" / "a.png")
    done = run(saved, tmp_path / "in", tmp_path / "out", "--flips", "--largest_component", "--uncertainty", "flips")
    assert done.exit_code == 0, done.output
    assert "1 predicted, 0 skipped (complete), 0 failed" in done.output
    (tmp_path / "in" / "b\x1b[2J.png").write_bytes(b"broken")
    done = run(saved, tmp_path / "in", tmp_path / "out", "--json")
    assert done.exit_code == 3
    summary = json.loads(done.stdout)
    assert (summary["predicted"], summary["skipped"], len(summary["failed"])) == (1, 0, 1)
    done = run(saved, tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 3
    assert "0 predicted, 1 skipped" in done.output
    assert "\x1b" not in done.output
    assert "\x1b" not in (tmp_path / "out" / "measurements.csv").read_text()
    for arguments, code in (
        ((saved, tmp_path / "nothing", tmp_path / "o"), 1),
        ((tmp_path, tmp_path / "in", tmp_path / "o"), 1),
        ((saved, tmp_path / "in", tmp_path / "in"), 1),
        ((saved, tmp_path / "in", tmp_path / "o", "--plane", "oblique"), 2),
        ((saved, tmp_path / "in", tmp_path / "o", "--uncertainty", "teacher-student"), 1),
    ):
        done = run(*arguments)
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        assert not (tmp_path / "o").exists() or shutil.rmtree(tmp_path / "o") is None


def test_an_empty_folder_is_no_success(tmp_path, saved):
    (tmp_path / "in").mkdir()
    done = run(saved, tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 1
    assert "holds nothing to predict" in done.output
