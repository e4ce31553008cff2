"""Drift scores from a run's end to its predictions, its evaluation and its push."""

import csv
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from dim_hf.cli import main
from dim_hf.data.volumes.volume import Volume
from dim_hf.hub.run_folder import file_sha256, read_finished_run
from dim_hf.hub.staging import stage
from dim_hf.hub.statements import completed
from dim_hf.inference.drift import combine_slices
from dim_hf.inference.drift_file import STATISTICS_FILE, read_statistics
from dim_hf.inference.drift_fitting import fit_site_statistics
from dim_hf.inference.folder_prediction import predict_folder
from dim_hf.inference.geometry import cut_some
from dim_hf.inference.options import PredictionOptions
from dim_hf.inference.predictor import Picture, Predictor
from dim_hf.inference.sliding import in_windows
from dim_hf.models import DimImageProcessor
from tests.hub_runs import SAID, make_run
from tests.test_drift_parts import Rows
from tests.tiny import TinyImages, tiny_model

SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def statistics():
    return fit_site_statistics(tiny_model(), [Rows(40)], other=tiny_model(1))


def predictor(statistics, network=None, other=None, **options):
    processor = DimImageProcessor(num_channels=1, size=SIZE)
    found = PredictionOptions(**options)
    return Predictor(network or tiny_model(), processor, found, other=other, statistics=statistics)


def pictures(count, seed=9, shift=0.0):
    samples = TinyImages(count, seed=seed, shift=shift).samples
    return [Picture((255 * one["pixel_values"][0].clamp(0, 1)).byte().numpy()) for one in samples]


def test_without_statistics_nothing_is_said_of_drift():
    found = predictor(None).predict_pictures(pictures(1))[0]
    assert (found.drift, found.review) == (None, None)


def test_seen_images_are_seldom_flagged_and_strange_ones_always(statistics):
    usual, strange = (predictor(statistics).predict_pictures(pictures(20, shift=s)) for s in (0.0, 0.6))
    assert np.mean([found.review for found in usual]) <= 0.25
    assert all(found.review for found in strange)
    assert all(0 <= found.drift < 1 and isinstance(found.drift, float) for found in (*usual, *strange))
    assert all(found.review == (found.drift >= statistics.threshold) for found in (*usual, *strange))


def test_scores_cost_no_pass_and_do_not_depend_on_the_batch(statistics):
    network, passes = tiny_model(), []
    network.register_forward_hook(lambda *_: passes.append(1))
    shown = pictures(6, shift=0.1)
    together = [found.drift for found in predictor(statistics, network, batch_size=6).predict_pictures(shown)]
    assert len(passes) == 1
    alone = [predictor(statistics).predict_pictures([one])[0].drift for one in shown]
    # Rounding may move an image past one calibration image of the 40.
    np.testing.assert_allclose(together, alone, atol=1.5 / 41)


def test_masks_are_the_same_with_and_without_statistics(statistics):
    with_scores, without = (predictor(given, flips=True).predict_pictures(pictures(3)) for given in (statistics, None))
    for one, other in zip(with_scores, without, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("options", [{"flips": True}, {"uncertainty": "teacher-student"}, {"uncertainty": "flips"}])
def test_disagreement_takes_part_where_a_prediction_measures_it(statistics, options):
    seen = []
    watched = predictor(statistics, other=tiny_model(1), **options)
    inner = type(statistics).scores
    object.__setattr__(statistics, "scores", lambda values: (seen.append(set(values)), inner(statistics, values))[1])
    try:
        watched.predict_pictures(pictures(2))
    finally:
        object.__delattr__(statistics, "scores")
    kind = "teacher_student" if "teacher-student" in options.values() else "flips"
    assert seen == [{"intensity", "features", "entropy", kind}]


def test_a_volumes_score_is_combined_from_its_slices(statistics):
    slices = [picture.array for picture in pictures(5, shift=0.15)]
    volume = Volume(np.stack(slices, axis=2), np.diag([-1.0, -1.0, 3.0, 1.0]))
    found = predictor(statistics, plane="axial", batch_size=2).predict_volume(volume)
    cuts = cut_some(volume, "axial", 2, 0, 5, volume.array.dtype)
    alone = predictor(statistics).predict_pictures([Picture(np.ascontiguousarray(part)) for part in cuts])
    assert found.drift == pytest.approx(combine_slices([one.drift for one in alone]), abs=0.08)
    assert found.review == statistics.is_strange(found.drift)


def test_features_of_windows_are_left_out():
    """They are those of parts of the image, and the calibration saw whole ones."""
    pytest.importorskip("monai")

    class Meter:
        features = 0

        def see_features(self, states, count):
            self.features += 1

    network = tiny_model(spatial_dims=3).eval()
    for size, expected in ((16, 1), (24, 0)):
        meter = Meter()
        with torch.inference_mode():
            in_windows(network, (16,) * 3, 0.5, 4, meter)(torch.rand(1, 1, size, size, size))
        assert meter.features == expected


def test_statistics_of_another_model_are_refused_with_what_to_do(statistics):
    other = predictor(statistics, tiny_model(hidden_sizes=[8, 24]))
    with pytest.raises(ValueError, match=r"those of another model; train again, or remove the file"):
        other.predict_pictures(pictures(1))


# ---- folders and the command


def scans(folder, count=3, shift=0.0):
    folder.mkdir(exist_ok=True)
    for index, picture in enumerate(pictures(count, seed=3, shift=shift)):
        PIL.Image.fromarray(picture.array).save(folder / f"shift{shift:g}_{index}.png")


def test_a_folders_files_hold_score_and_flag(statistics, tmp_path):
    scans(tmp_path / "in")
    scans(tmp_path / "in", 2, shift=0.6)
    summary = predict_folder(predictor(statistics), tmp_path / "in", tmp_path / "out")
    flagged = [name for name in summary.flagged if "0.6" in name]
    assert len(flagged) == 2
    assert (summary.false_alarm_rate, summary.is_bound) == (statistics.false_alarm_rate, statistics.is_bound)
    cases = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    assert {name: entry["review"] for name, entry in cases.items()} == {
        name: name in summary.flagged for name in cases
    }
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["image"]: line["drift"] for line in lines} == {n: str(entry["drift"]) for n, entry in cases.items()}
    assert {line["image"] for line in lines if line["review"] == "True"} == set(summary.flagged)
    again = predict_folder(predictor(statistics), tmp_path / "in", tmp_path / "out")
    assert (again.predicted, again.skipped, again.flagged) == (0, 5, summary.flagged)


def test_several_inputs_in_one_folder_keep_score_and_flag(statistics, tmp_path):
    scans(tmp_path / "a", 2, shift=0.6)
    scans(tmp_path / "b", 2)
    strange = predict_folder(predictor(statistics), tmp_path / "a", tmp_path / "out").flagged
    usual = predict_folder(predictor(statistics), tmp_path / "b", tmp_path / "out").flagged
    assert len(strange) == 2
    assert not set(strange) & set(usual)
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["image"] for line in lines if line["review"] == "True"} == {*strange, *usual}
    assert len({line["image"] for line in lines}) == 4


def test_other_statistics_predict_anew(statistics, tmp_path):
    scans(tmp_path / "in")
    assert predict_folder(predictor(None), tmp_path / "in", tmp_path / "out").flagged is None
    header = (tmp_path / "out" / "measurements.csv").read_text().splitlines()[0]
    assert "drift" not in header
    found = predict_folder(predictor(statistics), tmp_path / "in", tmp_path / "out")
    assert (found.predicted, found.skipped) == (3, 0)


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def test_a_run_writes_statistics_of_the_sites_it_saw(run):
    found = read_statistics(run / STATISTICS_FILE)
    assert set(found.sites) == {"camera_a", "camera_b", "camera_c", "camera_d"}
    assert set(found.calibration) == {"intensity", "features", "entropy", "flips", "teacher_student"}
    results = json.loads((run / "results.json").read_text())
    assert results["sha256"][STATISTICS_FILE] == file_sha256(run / STATISTICS_FILE)
    split = results["split"]
    assert sum(found.sites.values()) == sum(split[name]["images"] for name in ("labeled", "unlabeled", "validation"))


def test_a_push_takes_the_statistics_along_and_refuses_damaged_ones(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    finished = read_finished_run(copy)
    (tmp_path / "staged").mkdir()
    stage(finished, completed(SAID, finished), "org/name", tmp_path / "staged", keep_names=False, token=None)
    assert (tmp_path / "staged" / STATISTICS_FILE).read_bytes() == (copy / STATISTICS_FILE).read_bytes()
    results = json.loads((tmp_path / "staged" / "results.json").read_text())
    assert results["sha256"][STATISTICS_FILE] == file_sha256(copy / STATISTICS_FILE)
    (copy / STATISTICS_FILE).write_text("{}")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=STATISTICS_FILE):
        stage(finished, completed(SAID, finished), "org/name", tmp_path / "other", keep_names=False, token=None)


def test_commands_say_what_is_to_be_reviewed(run, tmp_path):
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "noise.png")
    words = ["predict", str(run), str(tmp_path / "noise.png"), str(tmp_path / "out"), "--no-progress"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    assert "1 of 1 to review: unlike the images of the sites that the model saw" in found.output
    assert "would be flagged on average over the sites; cross-fitted: no bound)" in found.output
    assert "noise" in found.output
    told = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (told["skipped"], len(told["flagged"]), told["false_alarm_rate"] <= 0.05) == (1, 1, True)
    words = ["evaluate", str(run), "phantom:fundus", "--no-progress", "--output-dir", str(tmp_path / "evaluation")]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    assert "AUC for bad cases" in found.output
    assert "camera_a (seen)" in found.output
    with (tmp_path / "evaluation" / "cases.csv").open(newline="") as file:
        assert all(0 <= float(line["drift_score"]) < 1 for line in csv.DictReader(file))


def test_a_run_that_is_too_small_goes_without(tmp_path, caplog):
    small = {"num_labeled": 2, "num_validation": 2, "phantom_images_per_domain": 8, "consistency_weight": 0}
    run = make_run(tmp_path / "run", **small, divergence_weight=0, rho=0)
    assert not (run / STATISTICS_FILE).exists()
    assert (run / "results.json").exists()
    assert "no statistics of the seen sites" in caplog.text
