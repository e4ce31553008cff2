"""Intervals over patients and paired comparisons: laws, coverage by simulation, scipy as a reference."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dim_hf.metrics import resampling
from dim_hf.metrics.resampling import count_clusters, mean_of_resampled, resample_means
from dim_hf.metrics.statistics import (
    bootstrap_mean,
    bootstrap_mean_of_groups,
    compare_paired,
    compare_paired_groups,
)

NAN = math.nan
SCORES = st.floats(0, 1).map(lambda value: round(value, 3))
CASES = st.lists(st.tuples(SCORES | st.just(NAN), SCORES | st.just(NAN), st.sampled_from(["", "p", "q", "r", "s"])))


def same(one, other):
    """Equal in every number, NaN where NaN."""
    return np.testing.assert_array_equal(astuple(one), astuple(other))


def columns(cases):
    return [list(column) for column in zip(*cases, strict=True)] if cases else [[], [], []]


# ---- means


def test_moments_are_those_of_the_cases_and_clusters_are_counted():
    interval = bootstrap_mean([0.2, 0.4, NAN, 0.9, NAN], ["a", "a", "a", "b", "c"])
    assert interval.mean == pytest.approx(0.5)
    assert interval.sd == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    assert (interval.cases, interval.clusters) == (3, 2)
    # Two clusters have three resamples: (a, a), (a, b) or (b, a), (b, b); the extreme ones have probability 1/4 each.
    assert (interval.low, interval.high) == pytest.approx((0.3, 0.9))


def test_what_is_undefined_is_nan():
    same(bootstrap_mean([]), bootstrap_mean([NAN, NAN], ["a", "b"]))
    assert astuple(bootstrap_mean([]))[4:] == (0, 0)
    assert all(math.isnan(value) for value in astuple(bootstrap_mean([]))[:4])
    single = bootstrap_mean([0.25, 0.75], ["a", "a"])
    assert single.mean == 0.5
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    assert math.isnan(bootstrap_mean([0.5]).sd)


@given(CASES, st.randoms())
@settings(deadline=None, max_examples=40)
def test_the_order_of_cases_changes_nothing(cases, random):
    mixed = random.sample(cases, len(cases))
    (a, b, patients), (c, d, others) = columns(cases), columns(mixed)
    for clusters, shuffled in ((patients, others), (None, None)):
        same(bootstrap_mean(a, clusters, resamples=50), bootstrap_mean(c, shuffled, resamples=50))
        one, other = compare_paired(a, b, clusters, resamples=50), compare_paired(c, d, shuffled, resamples=50)
        same(one.difference, other.difference)
        np.testing.assert_array_equal(astuple(one)[1:], astuple(other)[1:])


@given(st.lists(SCORES, min_size=2), st.floats(-5, 5), st.floats(0.1, 5))
@settings(deadline=None, max_examples=40)
def test_shift_and_scale_go_through(values, shift, scale):
    plain = bootstrap_mean(values, resamples=50)
    moved = bootstrap_mean(scale * np.array(values) + shift, resamples=50)
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(plain, name) + shift, abs=1e-9)
    assert moved.sd == pytest.approx(scale * plain.sd, abs=1e-9)
    assert min(values) - 1e-12 <= plain.low <= plain.high <= max(values) + 1e-12


def test_seeds_decide_and_blocks_do_not(monkeypatch):
    values, patients = np.linspace(0, 1, 30) ** 2, [f"p{i // 3}" for i in range(30)]
    whole = bootstrap_mean(values, patients, seed=3)
    assert whole == bootstrap_mean(values, patients, seed=3)
    assert whole != bootstrap_mean(values, patients, seed=4)
    monkeypatch.setattr(resampling, "BLOCK", 70)
    assert astuple(bootstrap_mean(values, patients, seed=3)) == pytest.approx(astuple(whole), rel=1e-12)


def test_unnamed_clusters_stand_alone():
    values = [0.1, 0.5, 0.3, 0.9]
    assert bootstrap_mean(values, ["", None, "", ""]) == bootstrap_mean(values)
    assert bootstrap_mean(values, ["", None, "a", "a"]).clusters == 3
    assert count_clusters(["", None, "a", "a", 7]) == 4


def test_without_clusters_it_is_the_interval_of_scipy():
    values = np.random.default_rng(5).beta(8, 2, size=60)
    mine = bootstrap_mean(values, resamples=6000)
    reference = stats.bootstrap((values,), np.mean, n_resamples=6000, method="percentile", rng=1).confidence_interval
    error = values.std() / math.sqrt(60)
    assert (mine.low, mine.high) == pytest.approx(tuple(reference), abs=0.1 * error)


def test_clusters_of_one_case_each_are_no_clusters():
    # With names in the order of the values, the order of the resampled rows is the same as without names.
    values = np.sort(np.random.default_rng(0).normal(size=25))
    assert bootstrap_mean(values, [f"{i:02d}" for i in range(25)]) == bootstrap_mean(values)


def test_doubled_cases_of_each_patient_add_no_certainty():
    values = np.random.default_rng(0).normal(size=25)
    patients = [f"p{i}" for i in range(25)]
    once, twice = bootstrap_mean(values, patients), bootstrap_mean([*values, *values], patients * 2)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert bootstrap_mean([*values, *values]).high < once.high


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = {"patients": 0, "cases": 0}
    patients = np.repeat(np.arange(40), 4)
    for seed in range(300):
        # Cases of a patient share most of their variation: the naive interval over cases is too narrow.
        values = np.repeat(generator.gamma(4, size=40), 4) + 0.5 * generator.normal(size=160)
        for name, clusters in (("patients", patients), ("cases", None)):
            interval = bootstrap_mean(values, clusters, resamples=400, seed=seed)
            covered[name] += interval.low <= 4 <= interval.high
    assert 0.90 <= covered["patients"] / 300 <= 0.98
    assert covered["cases"] / 300 < 0.8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": [1.0, math.inf]}, "infinite"),
        ({"values": [[1.0], [2.0]]}, "one value a case"),
        ({"clusters": ["a"]}, "2 values and 1 clusters"),
        ({"level": 95}, "level is 95"),
        ({"resamples": 0}, "resamples is 0"),
    ],
)
def test_bad_arguments_of_means_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_mean(**({"values": [1.0, 2.0]} | change))


# ---- several columns, several groups


def test_columns_are_resampled_together():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(40, 1))
    both = resample_means(np.hstack([values, -values, np.full((40, 1), NAN)]), resamples=200)
    # A column and its negative in the same resamples: their mean is 0 in each.
    np.testing.assert_allclose(both.replicates[:, 0], -both.replicates[:, 1])
    assert astuple(both.intervals()[0]) == pytest.approx(astuple(bootstrap_mean(values[:, 0], resamples=200)))
    assert math.isnan(both.intervals()[2].mean)
    np.testing.assert_allclose(mean_of_resampled([both, both]).replicates, both.replicates)
    with pytest.raises(ValueError, match="a row a case"):
        resample_means([1.0, 2.0])


def test_groups_have_equal_weights():
    generator = np.random.default_rng(0)
    large, small = generator.normal(1.0, 0.01, size=400), generator.normal(0.0, 0.01, size=4)
    interval = bootstrap_mean_of_groups([(large, None), (small, None)])
    assert interval.mean == pytest.approx((large.mean() + small.mean()) / 2)
    assert interval.sd == pytest.approx(np.std([large.mean(), small.mean()], ddof=1))
    assert (interval.cases, interval.clusters) == (404, 404)
    # The small group's uncertainty is half of the whole's, and the distance between the groups has no part in it.
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.low < 0.02


def test_independent_groups_have_the_variance_of_a_mean_of_means():
    generator = np.random.default_rng(1)
    groups = [(generator.normal(size=100), None) for _ in range(4)]
    width = np.subtract(*[astuple(bootstrap_mean_of_groups(groups))[i] for i in (3, 2)])
    error = math.sqrt(sum(values.var() / 100 for values, _ in groups)) / 4
    assert width == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_empty_groups_are_left_out_and_single_patients_have_no_interval():
    values = [0.5, 0.7, 0.9]
    assert bootstrap_mean_of_groups([(values, None), ([NAN], None)]).mean == pytest.approx(0.7)
    assert bootstrap_mean_of_groups([(values, None), ([], None)]).low < 0.7
    alone = bootstrap_mean_of_groups([(values, None), ([0.1, 0.3], ["a", "a"])])
    assert alone.mean == pytest.approx(0.45)
    assert math.isnan(alone.low)
    assert math.isnan(bootstrap_mean_of_groups([]).mean)


# ---- paired comparisons


@given(CASES, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_exchanging_the_methods_changes_signs_only(cases, named, higher):
    a, b, patients = columns(cases)
    clusters = patients if named else None
    options = {"higher_is_better": higher, "resamples": 50}
    forth, back = compare_paired(a, b, clusters, **options), compare_paired(b, a, clusters, **options)
    mirrored = (-back.difference.mean, back.difference.sd, -back.difference.high, -back.difference.low)
    np.testing.assert_array_equal(astuple(forth.difference)[:4], mirrored)
    assert (forth.better, forth.worse, forth.equal) == (back.worse, back.better, back.equal)
    assert forth.pairs == forth.better + forth.worse + forth.equal == forth.difference.clusters
    assert forth.undefined + forth.difference.cases == len(cases)
    np.testing.assert_array_equal(forth.p_value, back.p_value)


@pytest.mark.parametrize("patients", [None, ["p", "p", "q", "r"]])
def test_no_difference_is_certain(patients):
    values = [0.2, 0.4, 0.6, 1.0]
    comparison = compare_paired(values, values, patients)
    assert astuple(comparison.difference)[:4] == (0.0, 0.0, 0.0, 0.0)
    assert (comparison.p_value, comparison.better, comparison.worse) == (1.0, 0, 0)
    assert comparison.equal == comparison.pairs == (3 if patients else 4)


def test_the_interval_is_that_of_the_differences():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, 50))
    patients = [f"{i // 2:02d}" for i in range(50)]
    comparison, alone = compare_paired(a, b, patients), bootstrap_mean(a - b, patients)
    assert astuple(comparison.difference) == pytest.approx(astuple(alone))


@pytest.mark.parametrize("number", [6, 20, 80])
def test_the_test_is_that_of_scipy_on_the_means_of_patients(number):
    generator = np.random.default_rng(number)
    a, b = generator.normal(0.3, 1, size=(number, 3)), generator.normal(size=(number, 3))
    comparison = compare_paired(a.ravel(), b.ravel(), np.repeat(np.arange(number), 3))
    expected = stats.wilcoxon(a.mean(axis=1), b.mean(axis=1), correction=True).pvalue
    assert comparison.p_value == pytest.approx(expected)
    assert comparison.pairs == number
    assert comparison.better == (a.mean(axis=1) > b.mean(axis=1)).sum()


def test_p_values_that_can_be_counted_on_paper():
    # Of 2⁶ equally likely signs two outcomes are as extreme as "all positive"; ranks do not matter for it.
    assert compare_paired([1, 2, 3, 4, 5, 6], [0] * 6).p_value == pytest.approx(2 / 64)
    assert compare_paired([1] * 6, [0] * 6).p_value == pytest.approx(2 / 64)
    # Zeros are dropped: three differences of one sign are left, 2 of 2³ outcomes.
    assert compare_paired([1, 2, 3, 0, 0, 0], [0] * 6).p_value == pytest.approx(2 / 8)
    assert math.isnan(compare_paired([1, 2, 3, 4, 5], [0] * 5).p_value)
    assert compare_paired([1.0] * 5, [1.0] * 5).p_value == 1.0
    # Many cases of five patients are still five observations.
    assert math.isnan(compare_paired(np.arange(50.0), [0] * 50, np.arange(50) % 5).p_value)


def test_rounding_errors_are_ties_and_zeros():
    comparison = compare_paired([0.1 + 0.2, 0.3 - 0.1, 0.4], [0.3, 0.2, 0.1])
    assert (comparison.better, comparison.equal) == (1, 2)


def test_under_the_null_p_values_are_as_small_as_they_say():
    generator = np.random.default_rng(0)
    values = [
        compare_paired(*generator.normal(size=(2, 24)), np.repeat(np.arange(12), 2), resamples=2).p_value
        for _ in range(200)
    ]
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.035)


def test_lower_is_better_for_distances():
    comparison = compare_paired([3.0, 1.0, NAN, 2.0], [4.0, 2.0, 1.0, 1.0], higher_is_better=False)
    assert (comparison.better, comparison.worse, comparison.undefined) == (2, 1, 1)
    assert comparison.difference.mean == pytest.approx(-1 / 3)


def test_groups_of_pairs_have_equal_weights_and_pool_their_patients():
    generator = np.random.default_rng(0)
    groups = [(generator.normal(1, 0.1, size=n), np.zeros(n), None) for n in (50, 5)]
    groups.append(([NAN], [0.5], ["a"]))
    comparison = compare_paired_groups(groups)
    assert comparison.difference.mean == pytest.approx((groups[0][0].mean() + groups[1][0].mean()) / 2)
    assert (comparison.pairs, comparison.better, comparison.undefined) == (55, 55, 1)
    pooled = np.concatenate([groups[0][0], groups[1][0]])
    assert comparison.p_value == pytest.approx(stats.wilcoxon(pooled, correction=True).pvalue)
    back = compare_paired_groups([(b, a, clusters) for a, b, clusters in groups])
    assert (back.difference.low, back.difference.high) == (-comparison.difference.high, -comparison.difference.low)
    assert compare_paired_groups([]).pairs == 0


def test_bad_pairs_are_named():
    with pytest.raises(ValueError, match="A has 2 cases and B 1"):
        compare_paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="infinite"):
        compare_paired([math.inf], [math.inf])
