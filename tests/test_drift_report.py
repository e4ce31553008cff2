"""How well the drift score finds bad cases: the AUC, and where the evaluation shows it."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from dim_hf.evaluation.drift_report import ALL_CASES, BAD_DICE, drift_rows, drift_table, format_drift
from dim_hf.evaluation.files import format_result, read_evaluation, write_evaluation
from dim_hf.evaluation.html_report import render_html_report
from dim_hf.evaluation.result import Drift
from dim_hf.metrics.cases import score_case
from dim_hf.metrics.detection import detection_auc

from .report_samples import FUNDUS, evaluation, fundus_cases

NAMES = {0: "background", 1: "rim", 2: "cup"}


def test_auc_is_that_of_the_rank_test():
    generator = np.random.default_rng(0)
    scores, bad = generator.integers(0, 8, 60) / 8, generator.uniform(size=60) < 0.4  # with equal scores
    expected = mannwhitneyu(scores[bad], scores[~bad]).statistic / (bad.sum() * (~bad).sum())
    assert detection_auc(scores, bad, [""] * 60).mean == pytest.approx(expected)


def test_interval_is_that_of_resampled_patients_one_by_one():
    generator = np.random.default_rng(1)
    patients = [f"p{index // 3}" for index in range(30)]
    bad = generator.uniform(size=30) < 0.5
    scores = bad + generator.normal(size=30)
    found = detection_auc(scores, bad, patients, resamples=3000)
    areas = []
    for _ in range(3000):
        drawn = [f"p{index}" for index in generator.integers(0, 10, 10)]
        rows = [index for name in drawn for index, patient in enumerate(patients) if patient == name]
        high, low = scores[rows][bad[rows]], scores[rows][~bad[rows]]
        if len(high) and len(low):
            areas.append((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=0.03)
    assert found.clusters == 10


def test_auc_of_one_kind_is_not_defined_and_of_one_patient_has_no_interval():
    assert math.isnan(detection_auc([0.1, 0.2], [False, False], ["a", "b"]).mean)
    assert math.isnan(detection_auc([], [], []).mean)
    one = detection_auc([0.1, 0.2, 0.3], [False, False, True], ["a", "b", "c"])
    assert (one.mean, math.isnan(one.low)) == (1, True)
    with pytest.raises(ValueError, match="finite"):
        detection_auc([math.nan], [True], ["a"])


def test_order_of_the_cases_does_not_matter():
    generator = np.random.default_rng(2)
    scores, bad = generator.uniform(size=20), generator.uniform(size=20) < 0.5
    order = generator.permutation(20)
    patients = [f"p{index // 2}" for index in range(20)]
    again = detection_auc(scores[order], bad[order], [patients[i] for i in order])
    assert again.mean == detection_auc(scores, bad, patients).mean


# ---- the report


def sample(find_bad=True):
    """Evaluations in which some cases of the first two sites are bad, and the score finds them or says nothing."""
    items, rows = fundus_cases(cases=8, domains={"seen site": 0.02, "new | site": 0.02, "third": 0.02}, size=64)
    changed, scores = [], {}
    for number, (domain, patient, name, image, reference, prediction) in enumerate(items):
        is_bad = domain != "third" and number % 4 < 2
        prediction = np.roll(prediction, 20, axis=0) if is_bad else prediction
        changed.append((domain, patient, name, image, reference, prediction))
        scores[domain, name] = 0.9 + 0.05 * is_bad + number / 1000 if find_bad else 0.5
    rows = [
        row
        for domain, patient, name, _, reference, prediction in changed
        for row in score_case(prediction, reference, FUNDUS, None, domain=domain, patient=patient, name=name)
    ]
    drift = Drift(scores, 0.95, 0.05, ("seen site",), "40 validation images", is_bound=True)
    return replace(evaluation(changed, rows, FUNDUS, NAMES), drift=drift)


def test_rows_count_flags_and_bad_cases_of_each_site():
    seen, new, third, together = drift_rows(sample())
    assert [row.domain for row in (seen, new, third, together)] == ["seen site", "new | site", "third", ALL_CASES]
    assert [row.seen for row in (seen, new, third, together)] == [True, False, False, None]
    assert (seen.cases, seen.bad, seen.flagged, seen.found) == (8, 4, 4, 4)
    assert seen.auc.mean == new.auc.mean == 1
    assert math.isnan(third.auc.mean)
    assert (together.cases, together.bad) == (24, 8)
    assert all(row.auc.mean == 0.5 for row in drift_rows(sample(find_bad=False))[:2])


def test_unseen_sites_are_told_from_seen_ones_by_the_rank_of_their_scores():
    result = sample()
    *sites, together = drift_rows(result)
    unseen = [value for (domain, _), value in result.drift.scores.items() if domain != "seen site"]
    seen = [value for (domain, _), value in result.drift.scores.items() if domain == "seen site"]
    expected = mannwhitneyu(unseen, seen).statistic / (len(unseen) * len(seen))
    assert together.unseen_auc.mean == pytest.approx(expected)
    assert all(row.unseen_auc is None for row in sites)
    assert f"AUC for telling unseen sites from seen ones: {expected:.2f}" in format_result(result)
    all_seen = replace(result, drift=replace(result.drift, seen_sites=("seen site", "new | site", "third")))
    assert drift_rows(all_seen)[-1].unseen_auc is None


def test_nothing_is_said_without_statistics():
    without = replace(sample(), drift=None)
    assert drift_rows(without) == drift_table(without) == format_drift(without) == []


def test_text_and_page_show_the_rows_and_say_what_is_not_defined():
    result = sample()
    text = format_result(result)
    assert "| new \\| site (unseen) | " in text
    assert f"Bad: mean Dice below {BAD_DICE}" in text
    assert "none or all of the cases are bad" in text
    assert "calibrated on 40 validation images" in text
    page = render_html_report(result)
    assert "Flag for review" in page
    assert "Of these to review" in page
    assert "new | site" in page


def test_a_bound_is_promised_only_where_validation_images_calibrate():
    result = sample()
    assert "which at most 5.0 % of new images of the seen sites reach (split conformal; calibrated on 40" in (
        format_result(result)
    )
    fitted = format_result(replace(result, drift=replace(result.drift, is_bound=False)))
    assert "which about 5.0 % of new images of the seen sites reach on average over the sites" in fitted
    assert "(cross-fitted: no bound; calibrated on" in fitted
    assert "at most 5.0 %" not in fitted
    assert "split conformal" not in fitted


def test_files_hold_score_flag_and_rows(tmp_path):
    result = sample()
    first, *rest = result.drift.scores
    result = replace(result, drift=replace(result.drift, scores={key: result.drift.scores[key] for key in rest}))
    write_evaluation(result, tmp_path)
    with (tmp_path / "cases.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        score = result.drift.scores.get((line["domain"], line["name"]))
        expected = ("", "") if score is None else (str(score), str(score >= 0.95))
        assert (line["drift_score"], line["review"]) == expected
    assert (lines[0]["domain"], lines[0]["name"], lines[0]["review"]) == (*first, "")
    assert list(map(repr, read_evaluation(tmp_path).cases)) == list(map(repr, result.cases))
    facts = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert [row["domain"] for row in facts["drift"]] == ["seen site", "new | site", "third", ALL_CASES]
    assert facts["drift"][2]["auc"]["mean"] is None
