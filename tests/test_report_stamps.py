"""What a report must say of its numbers: nothing to score by, test images in the selection, unequal steps."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from dim_hf.diagnostics.figures import _AGREEMENT
from dim_hf.evaluation.result import SELECTED_ON_TEST
from dim_hf.metrics import figures, report
from dim_hf.metrics.cases import score_case
from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES, site_table
from dim_hf.trainer.comparison import Outcome, format_summary, stamp_of, write_summary
from dim_hf.trainer.job import run_job
from dim_hf.trainer.job_arguments import parse_job
from examples.ablation import main as ablation
from tests.test_job import write_config

FUNDUS = {"disc": [1, 2], "cup": [2]}
REFERENCE = np.array([[0, 1, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]])
TEST_LEGACY = "best mean_dice on TEST images (test-legacy)"


def test_a_reference_of_ignored_pixels_has_no_score_and_raises_no_mean():
    ignored = np.full_like(REFERENCE, 255)
    for prediction in (REFERENCE, np.zeros_like(REFERENCE)):
        rows = score_case(prediction, ignored, FUNDUS, (1, 1), domain="A", name="ignored", tolerance_mm=1.0)
        for row in rows:
            assert all(math.isnan(getattr(row, name)) for name in report.MEANS)
            assert (row.missed, row.spurious, row.undefined, row.nsd_tolerance) == (False, False, True, 1.0)
    poor = score_case(np.zeros_like(REFERENCE), REFERENCE, FUNDUS, (1, 1), domain="A", name="1", tolerance_mm=1.0)
    alone, together = site_table(poor).row("A", "cup"), site_table([*poor, *rows]).row("A", "cup")
    assert together.means["dice"] == alone.means["dice"] == 0.0
    assert together.means["hd95"] == alone.means["hd95"]
    assert (together.cases, together.undefined, together.missed) == (2, 1, 1)
    assert not score_case(REFERENCE, np.where(REFERENCE == 0, 255, REFERENCE), FUNDUS)[0].undefined


def test_names_of_means_are_refused_by_themselves():
    report.check_names(["A"], ["disc"])
    with pytest.raises(ValueError, match=r"a domain .* name of a mean in every table, 'mean of sites'"):
        report.check_names(["A", MEAN_OF_SITES])
    with pytest.raises(ValueError, match=r"a structure .* name of a mean in every table, 'all structures'"):
        report.check_names(["A"], [ALL_STRUCTURES])


# ---- test images in the selection


def test_curves_of_test_images_say_so_and_names_stay_as_they_are(tmp_path):
    log = [{"step": step, "eval_camera_a_dice": 0.5} for step in (1, 2)]
    drawn = figures.curves(log, tmp_path / "c.svg", figures.TEST_LEGACY_PANELS).read_text(encoding="utf-8")
    assert "Dice on TEST images" in drawn
    assert "Validation" not in drawn
    assert "camera_a" in drawn
    assert "Validation Dice" in figures.curves(log, tmp_path / "c.svg").read_text(encoding="utf-8")


def test_the_agreement_of_a_diagnosis_keeps_names_and_colors_apart(tmp_path):
    log = [
        {"step": step, "as logged in training": 0.9, "pixels of site": 0.8, "pixels of site_b": 0.7} for step in (1, 2)
    ]
    drawn = figures.curves(log, tmp_path / "a.svg", _AGREEMENT).read_text(encoding="utf-8")
    for name in ("as logged in training", ">site<", "site_b"):
        assert name in drawn
    assert all(drawn.lower().count(color.lower()) for color in figures.COLORS[:2])
    assert figures.COLORS[2].lower() not in drawn.lower()


def test_a_run_that_chose_on_test_images_is_stamped_and_so_is_what_starts_from_it(tmp_path):
    legacy, warm, plain = (str(tmp_path / name) for name in ("legacy", "warm", "plain"))
    short = {"max_steps": 1, "eval_steps": 1, "save_steps": 1}
    words = ["--output_dir", legacy, "--select", "test-legacy"]
    run_job(parse_job(write_config(tmp_path, **short), words))
    assert SELECTED_ON_TEST in (tmp_path / "legacy" / "table.md").read_text(encoding="utf-8")

    words = ["--output_dir", warm, "--model_name_or_path", legacy]
    run_job(parse_job(write_config(tmp_path, **short), words))
    training = json.loads((tmp_path / "warm" / "results.json").read_text(encoding="utf-8"))["training"]
    assert training["started_from"] == {
        "model": legacy, "scored_model": "teacher", "selected": TEST_LEGACY, "step": 1, "labeled_images": 4,
    }  # fmt: skip
    assert training["selected"] == f"best mean_dice on validation, started from {legacy} ({TEST_LEGACY})"
    table = (tmp_path / "warm" / "table.md").read_text(encoding="utf-8")
    assert SELECTED_ON_TEST in table
    assert f"Started from {legacy}: {TEST_LEGACY}, trained on 4 labeled images." in table
    assert json.loads((tmp_path / "warm" / "dim_training.json").read_text(encoding="utf-8")) == training

    (tmp_path / "legacy" / "dim_training.json").write_text("{")  # damaged: known to be a run, and no more
    (tmp_path / "legacy" / "results.json").unlink()
    run_job(parse_job(write_config(tmp_path, **short), ["--output_dir", plain, "--model_name_or_path", legacy]))
    training = json.loads((tmp_path / "plain" / "results.json").read_text(encoding="utf-8"))["training"]
    assert training["started_from"] == {"model": legacy, "selected": "unknown"}
    assert SELECTED_ON_TEST not in (tmp_path / "plain" / "table.md").read_text(encoding="utf-8")


# ---- comparisons of settings


def outcome(setting, selected="last step", images=4, peak=None):
    cost = {"seconds_per_step": 0.1, "images_per_second": 40.0, "peak_memory_gib": peak}
    training = {"per_device_train_batch_size": images, "gradient_accumulation_steps": 1}
    results = {"training": {"selected": selected}, "cost": cost, "job": {"training": training}}
    cases = score_case(REFERENCE, REFERENCE, FUNDUS, domain="A", name="1")
    return Outcome(setting, 0, cases, results | {"environment": {"processes": 2}})


def test_a_summary_carries_the_stamp_of_any_of_its_runs(tmp_path):
    outcomes = [outcome("supervised"), outcome("dim", TEST_LEGACY)]
    assert format_summary(outcomes).strip().endswith(f"dim: {SELECTED_ON_TEST}")
    assert stamp_of(outcomes[:1]) == ""
    assert SELECTED_ON_TEST not in format_summary(outcomes[:1])
    write_summary(outcomes, tmp_path / "summary.csv")
    with open(tmp_path / "summary.csv", newline="") as file:
        chosen = {(row["setting"], row["selected"]) for row in csv.DictReader(file)}
    assert chosen == {("supervised", "last step"), ("dim", TEST_LEGACY)}


def test_a_summary_says_what_its_costs_hold_and_which_settings_see_fewer_images():
    text = format_summary([outcome("supervised", images=2), outcome("dim")])
    assert "Images a step differ, as there are fewer labels than images a step: supervised 4, dim 8." in text
    assert "validation included" in text
    assert "| 40.0 | – |" in text
    assert "Images a step" not in format_summary([outcome("supervised"), outcome("dim", peak=1.0)])


def test_the_figure_of_an_ablation_is_stamped(tmp_path, monkeypatch):
    outcomes = [outcome("supervised"), replace(outcome("dim", TEST_LEGACY), seed=1)]
    monkeypatch.setattr("dim_hf.trainer.comparison.run_settings", lambda *_: outcomes)
    notes = []
    monkeypatch.setattr("dim_hf.metrics.report_figures.seed_bars", lambda *_, note: notes.append(note))
    done = CliRunner().invoke(ablation, ["--config", str(write_config(tmp_path)), "--output_dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert notes == [f"dim: {SELECTED_ON_TEST}"]
    assert SELECTED_ON_TEST in (tmp_path / "summary.md").read_text(encoding="utf-8")
