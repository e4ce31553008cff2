"""Drift scores: laws of the calibration, and distances against a reference written out by hand."""

import math

import numpy as np
import pytest

from dim_hf.inference.drift import (
    CROSS_FITTED,
    VALIDATION,
    combine_slices,
    conformal_score,
    fit_moments,
    fit_statistics,
    left_out_scores,
    make_folds,
    shrunk,
)

SITES = {"a": 0.0, "b": 4.0}


def draw(generator, count, dims=6, shift=0.0, scale=1.0):
    """Values by part of `count` images of each site, with their sites; dimensions depend on each other."""
    sites = np.repeat(list(SITES), count)
    mixing = np.eye(dims) + 0.5 * np.tri(dims)
    noise = generator.normal(size=(len(sites), dims)) @ mixing.T
    center = np.array([SITES[site] for site in sites])[:, None]
    doubt = generator.normal(0.2, 0.1, (len(sites), 1)) ** 2
    return {"intensity": center + scale * noise + shift, "entropy": noise[:, :1] + shift, "flips": doubt}, list(sites)


def fitted(generator, count=60, **settings):
    values, sites = draw(generator, count)
    patients = [f"p{index // 2}" for index in range(len(sites))]
    return fit_statistics(values, sites, patients, [False] * len(sites), **settings)


def few(values, rows):
    return {name: part[rows] for name, part in values.items()}


# ---- distances


def test_distances_are_mahalanobis_distances_to_the_nearest_site():
    generator = np.random.default_rng(0)
    values, sites = draw(generator, 40)
    part, new = values["intensity"], generator.normal(size=(5, 6)) * 3
    moments = fit_moments(part, sites)
    # By hand: loops, the covariance itself, its inverse.
    centers = [np.mean([row for row, site in zip(part, sites, strict=True) if site == name], axis=0) for name in SITES]
    apart = [row - centers[list(SITES).index(site)] for row, site in zip(part, sites, strict=True)]
    spreads = np.sqrt(sum(row**2 for row in apart) / (len(part) - 2))
    inverse = np.linalg.inv(np.diag(spreads) @ moments.correlation @ np.diag(spreads))
    expected = [min(math.sqrt((row - c) @ inverse @ (row - c) / 6) for c in centers) for row in new]
    np.testing.assert_allclose(moments.distances(new), expected, rtol=1e-9)
    np.testing.assert_allclose(moments.spreads, spreads, rtol=1e-9)


def test_shrinkage_is_that_of_the_paper():
    """Oracle approximating shrinkage, equation 23, with numbers put in by hand: D = 2, n = 10, S = diag(2, 1)."""
    share = ((1 - 2 / 2) * 5 + 9) / ((10 + 1 - 2 / 2) * (5 - 9 / 2))  # 9 / 5, more than all
    assert share > 1
    np.testing.assert_allclose(shrunk(np.diag([2.0, 1.0]), 10), 1.5 * np.eye(2))
    share = 9 / (100 * 0.5)
    expected = (1 - share) * np.diag([2.0, 1.0]) + share * 1.5 * np.eye(2)
    np.testing.assert_allclose(shrunk(np.diag([2.0, 1.0]), 100), expected)


@pytest.mark.parametrize("rows", [3, 200])
def test_correlation_is_positive_definite_whatever_the_number_of_images(rows):
    values = np.random.default_rng(0).normal(size=(rows, 30))
    assert np.linalg.eigvalsh(fit_moments(values, ["a"] * rows).correlation).min() > 1e-5


def test_a_number_that_never_changes_makes_rounding_no_drift():
    values = np.random.default_rng(0).normal(size=(50, 3))
    values[:, 1] = 1.0
    moments = fit_moments(values, ["a"] * 50)
    assert moments.distances([[0, 1 + 1e-7, 0]])[0] == pytest.approx(moments.distances([[0, 1, 0]])[0], abs=1e-3)
    assert moments.distances([[0, 2, 0]])[0] > 100


def test_another_number_of_values_is_refused():
    with pytest.raises(ValueError, match=r"3 values where the site statistics have 6.*train again"):
        fitted(np.random.default_rng(0)).scores({"intensity": np.zeros((1, 3))})


# ---- scores


def test_scores_of_new_images_of_the_seen_sites_are_about_uniform():
    generator = np.random.default_rng(1)
    scores = np.concatenate([fitted(generator).scores(draw(generator, 50)[0]) for _ in range(20)])
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert (scores < share).mean() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(("count", "rate"), [(12, 0.05), (60, 0.05), (60, 0.2)])
def test_false_alarms_on_a_fresh_draw_are_about_as_stated(count, rate):
    generator = np.random.default_rng(2)
    alarms, stated = [], []
    for _ in range(30):
        statistics = fitted(generator, count, wanted_rate=rate)
        alarms += (statistics.scores(draw(generator, 100)[0]) >= statistics.threshold).tolist()
        stated.append(statistics.false_alarm_rate)
    assert np.mean(stated) <= rate + 1e-9
    assert np.mean(alarms) == pytest.approx(np.mean(stated), abs=0.025)


def test_scores_rise_with_the_shift_and_stay_below_one():
    generator = np.random.default_rng(3)
    statistics = fitted(generator)
    values = few(draw(generator, 1)[0], [1])  # of site b, which lies above site a
    shifted = [
        {"intensity": values["intensity"] + shift, "entropy": values["entropy"], "flips": values["flips"]}
        for shift in (5, 10, 20, 40, 1e6)
    ]
    scores = [float(statistics.scores(one)[0]) for one in shifted]
    assert scores == sorted(scores)
    assert len(set(scores[1:])) == 4  # beyond all calibration images the stranger one is still told
    assert scores[-1] < 1
    assert statistics.is_strange(scores[0])


def test_less_disagreement_than_usual_is_not_strange_and_more_is():
    statistics = fitted(np.random.default_rng(4))
    found = statistics.scores({"flips": np.array([[0.0], [1.0]])})
    assert found[0] == 0
    assert found[1] > statistics.threshold


def test_scores_depend_neither_on_the_batch_nor_on_the_order_of_sites_and_images():
    generator = np.random.default_rng(5)
    values, sites = draw(generator, 30)
    patients = [f"p{index}" for index in range(len(sites))]
    new = draw(generator, 4)[0]
    scores = fit_statistics(values, sites, patients, [False] * 60).scores(new)
    order = generator.permutation(60)
    again = fit_statistics(few(values, order), [sites[i] for i in order], [patients[i] for i in order], [False] * 60)
    np.testing.assert_allclose(again.scores(new), scores, atol=1e-12)
    one_by_one = [float(again.scores(few(new, [row]))[0]) for row in range(8)]
    np.testing.assert_allclose(one_by_one, scores, atol=1e-12)


def test_only_parts_that_an_image_has_count():
    generator = np.random.default_rng(6)
    statistics, new = fitted(generator), draw(generator, 3)[0]
    assert statistics.scores({"entropy": new["entropy"]}).shape == (6,)
    more = statistics.scores(new | {"features": np.full((6, 2), math.nan)})
    np.testing.assert_array_equal(more, statistics.scores(new))
    with pytest.raises(ValueError, match="features"):
        statistics.scores({"features": np.zeros((1, 2))})


def test_values_that_are_not_finite_are_strange():
    statistics = fitted(np.random.default_rng(7))
    score = statistics.scores({"intensity": np.full((1, 6), math.nan), "entropy": np.full((1, 1), math.inf)})
    assert statistics.is_strange(float(score[0]))
    assert np.isfinite(score).all()


# ---- calibration


def test_conformal_scores_count_the_calibration_images_that_are_less_far():
    calibration = np.sort(np.random.default_rng(8).normal(size=50) ** 2)
    distances = np.random.default_rng(9).uniform(0, calibration[-1], 20)
    expected = [sum(c < d for c in calibration) / 51 for d in distances]
    np.testing.assert_allclose(conformal_score(calibration, distances), expected)


def test_left_out_scores_are_those_among_the_other_images():
    distances = np.array([2.0, 5.0, 5.0, 1.0, 9.0])
    expected = [conformal_score(np.sort(np.delete(distances, i)), distances[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(left_out_scores(distances), expected)


def test_validation_calibrates_where_it_suffices_for_each_site():
    values, sites = draw(np.random.default_rng(10), 40)
    patients = [f"p{index}" for index in range(80)]
    enough = [index % 2 == 0 for index in range(80)]
    statistics = fit_statistics(values, sites, patients, enough)
    assert (statistics.calibrated_on, statistics.images, dict(statistics.sites)) == (
        VALIDATION,
        40,
        {"a": 20, "b": 20},
    )
    only_a = [own and site == "a" for own, site in zip(enough, sites, strict=True)]
    statistics = fit_statistics(values, sites, patients, only_a)
    assert (statistics.calibrated_on, statistics.images, dict(statistics.sites)) == (
        CROSS_FITTED,
        80,
        {"a": 40, "b": 40},
    )


def test_too_few_images_for_the_wanted_rate_say_so():
    generator = np.random.default_rng(11)
    coarse, fine = fitted(generator, 5), fitted(generator, 10)
    assert coarse.is_coarse
    assert coarse.false_alarm_rate == pytest.approx(1 / 11)
    assert coarse.threshold < 1
    assert not fine.is_coarse
    assert fine.false_alarm_rate <= 0.05


def test_too_few_images_or_patients_are_refused():
    values, sites = draw(np.random.default_rng(12), 3)
    with pytest.raises(ValueError, match=r"6 images.*at least 8"):
        fit_statistics(values, sites, [""] * 6, [False] * 6)
    values, sites = draw(np.random.default_rng(12), 10)
    with pytest.raises(ValueError, match="one patient"):
        fit_statistics(values, ["a"] * 20, ["same"] * 20, [False] * 20)


def test_a_site_of_one_patient_is_known_and_calibrates_nothing():
    """Held out with its only patient, it would be measured from the other sites, as if such distances were usual."""
    generator = np.random.default_rng(14)
    values, sites = draw(generator, 30)
    lone = few(draw(generator, 30)[0], slice(0, 30))
    lone["intensity"] = lone["intensity"] + 40
    values = {name: np.concatenate([part, lone[name]]) for name, part in values.items()}
    sites += ["c"] * 30
    patients = [f"p{index // 3}" for index in range(60)] + ["lone"] * 30
    found = fit_statistics(values, sites, patients, [False] * 90)
    assert found.sites == {"a": 30, "b": 30, "c": 30}
    assert {len(part) for part in found.calibration.values()} == {60}
    strange, _ = draw(generator, 30, shift=15.0)
    assert (found.scores(strange) > found.threshold).mean() > 0.9
    assert (found.scores(lone) > found.threshold).mean() < 0.2
    with pytest.raises(ValueError, match="0 images are of a site with two patients or more"):
        fit_statistics(values, sites, ["one"] * 30 + ["two"] * 30 + ["lone"] * 30, [False] * 90)


def test_images_of_a_patient_stay_in_one_fold_and_unnamed_ones_are_patients():
    sites, patients = ["a"] * 6 + ["b"] * 2, ["p", "p", "q", "q", "", "", "p", "p"]
    folds = make_folds(sites, patients)
    assert folds[0] == folds[1]
    assert folds[2] == folds[3]
    assert folds[6] == folds[7]
    assert len({folds[0], folds[2], folds[4], folds[5], folds[6]}) == 5


def test_leaving_a_patient_out_finds_the_one_that_differs():
    """Its own images would excuse it: the calibration must not know them."""
    values, sites = draw(np.random.default_rng(13), 10)
    values["intensity"][:4] += 50
    patients = ["strange"] * 4 + [f"p{index}" for index in range(16)]
    found = fit_statistics(values, sites, patients, [False] * 20)
    assert np.sort(found.calibration["intensity"])[-4:].min() > 3 * np.sort(found.calibration["intensity"])[-5]


# ---- volumes


def test_half_of_the_slices_make_a_volume_strange():
    assert combine_slices([0.999] * 3 + [0.5] * 7) == 0
    assert combine_slices([0.999] * 5 + [0.5] * 5) == pytest.approx(0.998)
    assert combine_slices([0.4]) == 0.4
    scores = np.random.default_rng(0).uniform(size=11)
    assert combine_slices(scores) == combine_slices(scores[::-1])


@pytest.mark.parametrize("dependence", [0.0, 0.5, 1.0])
def test_volumes_raise_no_more_false_alarms_than_slices_however_these_depend(dependence):
    generator = np.random.default_rng(14)
    shared = generator.uniform(size=(4000, 1)) < dependence
    scores = np.where(shared, generator.uniform(size=(4000, 1)), generator.uniform(size=(4000, 9)))
    assert np.mean([combine_slices(row) >= 0.95 for row in scores]) <= 0.05 + 0.01
