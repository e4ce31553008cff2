"""Limits of agreement, and the figures of an evaluation: for any names, for nothing, and with the same bytes."""

import math
import statistics
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.metrics.agreement import (
    finite_pairs,
    limits_of_agreement,
    vertical_extent,
    vertical_ratio,
    volume_pairs,
    volume_unit,
)
from dim_hf.metrics.calibration import Reliability
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.figure_style import CROWD, NAME_LENGTH, short
from dim_hf.metrics.report_figures import bland_altman, box_plots, ratio_agreement, reliability_diagram, seed_bars

NAN = math.nan
HOSTILE = ["$\\frac{", "_hidden", "<script>&", "a\x01b\nc", "医院", "x" * 80, ""]


def result(domain="A", name="1", structure="disc", dice=0.5, predicted=4.0, referenced=4.0, **others):
    base = CaseResult(
        domain=domain, patient="p", name=name, structure=structure, dice=dice, jaccard=dice / (2 - dice), hd95=1.0,
        hd=1.0, asd=0.5, assd=0.5, nsd=NAN, volume_difference=predicted - referenced, prediction_volume=predicted,
        reference_volume=referenced, missed=predicted == 0 < referenced, spurious=referenced == 0 < predicted,
        unit="mm", empty_policy="worst",
    )  # fmt: skip
    return replace(base, **others)


def spread(domains=("A", "B"), cases=6, **others):
    return [
        result(domain, str(i), dice=0.6 + 0.05 * i, predicted=1000.0 + 90 * i * (-1) ** i, referenced=1000.0, **others)
        for domain in domains
        for i in range(cases)
    ]


def calibrated(confidence=0.8, right=8, wrong=2):
    bins = Reliability()
    bins.update(np.tile([[confidence], [1 - confidence]], right + wrong), np.array([0] * right + [1] * wrong))
    return bins


def texts(path):
    """What an SVG says; it must be XML."""
    return [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]


# ---- agreement

numbers = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12), numbers)
@settings(deadline=None)
def test_limits_of_agreement_are_those_of_the_differences(pairs, shift):
    predicted, referenced = map(list, zip(*pairs, strict=True))
    found = limits_of_agreement(predicted, referenced)
    differences = [a - b for a, b in pairs]
    sd = statistics.stdev(differences)
    assert found.cases == len(pairs)
    assert found.bias == pytest.approx(statistics.fmean(differences), abs=1e-9)
    assert found.sd == pytest.approx(sd, abs=1e-7)
    assert found.upper - found.bias == pytest.approx(1.96 * sd, abs=1e-6)
    swapped = limits_of_agreement(referenced, predicted)
    assert (swapped.lower, swapped.upper) == pytest.approx((-found.upper, -found.lower))
    moved = limits_of_agreement([a + shift for a in predicted], referenced)
    assert (moved.bias, moved.sd) == pytest.approx((found.bias + shift, found.sd), abs=1e-7)


def test_undefined_pairs_are_left_out_and_few_have_no_limits():
    assert limits_of_agreement([1, NAN, 3, math.inf], [0, 0, 1, 0]).cases == 2
    one = limits_of_agreement([3.0], [1.0])
    assert (one.cases, one.bias) == (1, 2.0)
    assert math.isnan(one.sd)
    assert math.isnan(one.upper)
    assert math.isnan(limits_of_agreement([], []).bias)
    assert finite_pairs([]).shape == (0, 2)
    with pytest.raises(ValueError, match="pass pairs"):
        limits_of_agreement([1.0], [1.0, 2.0])


def test_volumes_of_nothing_in_both_masks_are_no_measurement():
    cases = [result(name="a"), result(name="b", predicted=0.0), result(name="c", predicted=0.0, referenced=0.0)]
    assert volume_pairs(cases, "disc") == {"A": [(4.0, 4.0), (0.0, 4.0)]}
    assert volume_pairs(cases, "cup") == {}


def test_units_of_volumes():
    assert [volume_unit("px", dims)[0] for dims in (2, 3, None)] == ["pixels", "voxels", "pixels"]
    assert [volume_unit("mm", dims) for dims in (2, 3, None)] == [("mm²", 1), ("mL", 1e-3), ("mm² or mm³", 1)]


# ---- figures

DRAW = {
    "box": lambda path, names: box_plots(spread(names), path),
    "bland_altman": lambda path, names: bland_altman(spread(names), path, "disc"),
    "ratios": lambda path, names: ratio_agreement({name: [(0.5, 0.4), (0.6, 0.7)] for name in names}, path),
    "reliability": lambda path, names: reliability_diagram({name: calibrated() for name in names}, path),
    "seeds": lambda path, names: seed_bars({name: {name: [0.7, 0.8]} for name in names}, path),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_names_are_drawn_as_they_are(draw, tmp_path, recwarn):
    said = texts(draw(tmp_path / "figure.svg", HOSTILE))
    for name in HOSTILE:
        assert any(short(name) in text for text in said), name
    assert not recwarn.list


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_equal_numbers_give_equal_bytes(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    one, other = (draw(tmp_path / folder / "figure.svg", ["A", "B"]).read_bytes() for folder in "ab")
    assert one == other
    assert dict(matplotlib.rcParams) == before


def test_a_pdf_has_no_date(tmp_path):
    assert b"CreationDate" not in DRAW["seeds"](tmp_path / "figure.pdf", ["A"]).read_bytes()


def test_names_are_cut_to_one_line():
    assert len(short("x" * 80)) == NAME_LENGTH
    assert short("a\x01b\nc\udc80") == "a?b c?"
    assert short(" ") == "(no name)"


def test_nothing_constant_and_single_values_are_drawn(tmp_path):
    path = tmp_path / "figure.svg"
    for draw in (
        lambda: box_plots([], path),
        lambda: bland_altman([], path, "disc"),
        lambda: bland_altman([result(predicted=0.0, referenced=0.0)], path, "disc"),
        lambda: ratio_agreement({}, path),
        lambda: ratio_agreement({"A": [(NAN, 0.5)]}, path),
    ):
        assert "no case to draw" in texts(draw())
    assert "no pixel to draw" in texts(reliability_diagram({"A": Reliability()}, path))
    box_plots([result(dice=NAN)], path)
    box_plots([result()] * 3, path)
    box_plots([result()], path, "volume_difference")
    for predicted in ([5.0], [5.0] * 3, [NAN, 5.0]):
        said = texts(bland_altman([result(name=str(i), predicted=v) for i, v in enumerate(predicted)], path, "disc"))
        assert "mean" in said
        assert "+1.96 SD" not in said
    seed_bars({"one": {"A": [0.5]}, "none": {"A": [NAN], "B": []}}, path)


def test_cases_that_are_undefined_missed_or_spurious_are_told(tmp_path):
    cases = [
        result(name="a"), result(name="b", hd95=NAN), result(name="c", dice=0.0, predicted=0.0, hd95=NAN),
        result(domain="B", name="d", dice=0.0, referenced=0.0),
    ]  # fmt: skip
    said = texts(box_plots(cases, tmp_path / "hd95.svg", "hd95"))
    assert {"3 cases, 2 undefined", "1 case", "HD95 (mm)", "spurious: reference empty"} <= set(said)
    assert "missed: prediction empty" not in said
    assert "missed: prediction empty" in texts(box_plots(cases, tmp_path / "dice.svg"))


def test_bland_altman_says_the_mean_difference_and_its_limits(tmp_path):
    cases = [result(name=str(i), predicted=p, referenced=2000.0) for i, p in enumerate((3000.0, 5000.0, 7000.0))]
    said = texts(bland_altman(cases, tmp_path / "figure.svg", "disc", spatial_dims=3))
    assert {"+3.0", "+6.9", "−0.9", "prediction − reference (mL)"} <= set(said)  # 3 ± 1.96 · 2 mL


def test_reliability_tells_the_calibration_error(tmp_path):
    said = texts(reliability_diagram({"A": calibrated(0.9, right=5, wrong=5)}, tmp_path / "figure.svg"))
    assert "A, ECE 0.400" in said


def test_many_cases_stay_small(tmp_path):
    values = np.random.default_rng(0).uniform(0.5, 1, 3 * CROWD)
    cases = [result(name=str(i), dice=float(v), predicted=float(v)) for i, v in enumerate(values)]
    assert box_plots(cases, tmp_path / "box.svg").stat().st_size < 110_000
    assert bland_altman(cases, tmp_path / "pairs.svg", "disc").stat().st_size < 110_000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda path: box_plots([], path, "accuracy"), "metric is 'accuracy'; choose one of dice"),
        (lambda path: box_plots([result(), result(name="2", unit="px")], path), "different units: mm, px"),
        (lambda path: bland_altman([result(), result(name="2", unit="px")], path, "disc"), "different units"),
        (lambda path: bland_altman([result()], path, "cup"), "structure is 'cup'; the cases have disc"),
        (lambda path: seed_bars({"a": {}}, path), "scores has no setting with a domain"),
        (lambda path: seed_bars({"a": {"A": [1.0]}}, path, "accuracy"), "metric is 'accuracy'"),
    ],
)
def test_errors_of_users(draw, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


# ---- ratios of extents


def test_specks_do_not_change_the_cup_to_disc_ratio():
    cup, disc = np.zeros((2, 100, 100), bool)
    disc[20:70, 30:80] = cup[30:55, 40:60] = True
    assert vertical_ratio(cup, disc) == 0.5
    for mask in (cup, disc):
        mask[0, 0] = mask[99, 99] = True
    assert vertical_ratio(cup, disc) == 0.5


def test_extents_of_empty_joined_and_equal_parts():
    nothing = np.zeros((4, 4), bool)
    assert vertical_extent(nothing) == 0
    assert vertical_ratio(np.eye(4), nothing) is None
    assert vertical_ratio(nothing, np.eye(4)) == 0.0
    assert vertical_extent(np.eye(4)) == 4  # corners touch
    for array in ([[1, 1, 0, 1], [0, 0, 0, 1]], [[1, 0, 1, 1], [1, 0, 0, 0]]):
        assert vertical_extent(array) == 2  # of two parts of two pixels, wherever they lie


def test_a_note_stands_under_the_bars(tmp_path):
    path = seed_bars({"a": {"A": [0.5]}}, tmp_path / "s.svg", note="Chosen on test images.")
    assert "Chosen on test images." in path.read_text()


def test_a_difference_that_rounds_to_nothing_has_no_minus(tmp_path):
    pairs = {"A": [(0.5, 0.5001), (0.7, 0.7001)]}
    text = ratio_agreement(pairs, tmp_path / "r.svg").read_text()
    assert ">+0.000<" in text
    assert ">−0.000<" not in text
