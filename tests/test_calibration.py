"""Calibration by bins against a plain loop, and the laws of its sums."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.metrics.calibration import Reliability


def softmax(generator, classes, shape, dtype=np.float64):
    scores = np.exp(2 * generator.normal(size=(classes, *shape)))
    return (scores / scores.sum(axis=0)).astype(dtype)


def expected_calibration_error(probabilities, labels, bins, ignore_index=255):
    """The definition, pixel by pixel and bin by bin."""
    pixels = probabilities.reshape(len(probabilities), -1).T
    kept = [(p.max(), p.argmax() == y) for p, y in zip(pixels, labels.ravel(), strict=True) if y != ignore_index]
    error = 0.0
    for m in range(bins):
        inside = [(c, right) for c, right in kept if m / bins < c <= (m + 1) / bins]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            error += len(inside) / len(kept) * abs(accuracy - confidence)
    return error


def gather(images, bins=15, **options):
    reliability = Reliability(bins)
    for probabilities, labels in images:
        reliability.update(probabilities, labels, **options)
    return reliability


def images(seed, number=3, classes=3, shape=(6, 7)):
    generator = np.random.default_rng(seed)
    return [
        (softmax(generator, classes, shape), generator.choice([*range(classes), 255], size=shape))
        for _ in range(number)
    ]


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 20), st.sampled_from([(5,), (4, 5), (2, 3, 4)]))
@settings(deadline=None, max_examples=30)
def test_the_error_is_its_definition(seed, classes, bins, shape):
    (case,) = images(seed, 1, classes, shape)
    found = gather([case], bins).expected_calibration_error
    expected = expected_calibration_error(*case, bins) if (case[1] != 255).any() else math.nan
    assert found == pytest.approx(expected, nan_ok=True)


def test_bins_that_can_be_counted_on_paper():
    # Confidences 0.5 (right), 0.75 (right), 0.75 (wrong), 1 (right); bins are closed above.
    probabilities = np.array([[0.5, 0.75, 0.25, 1.0], [0.5, 0.25, 0.75, 0.0]])
    reliability = gather([(probabilities, np.array([0, 0, 0, 0]))], bins=4)
    assert reliability.counts.tolist() == [0, 1, 2, 1]
    np.testing.assert_allclose(reliability.confidence, [math.nan, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(reliability.accuracy, [math.nan, 1.0, 0.5, 1.0])
    assert reliability.expected_calibration_error == pytest.approx((0.5 + 2 * 0.25 + 0) / 4)
    assert reliability.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]


@given(st.integers(0, 1000), st.permutations(range(4)), st.integers(0, 4))
@settings(deadline=None, max_examples=30)
def test_parts_merge_to_the_whole_in_any_order(seed, order, cut):
    cases = images(seed, 4)
    whole = gather(cases)
    mixed = [cases[i] for i in order]
    merged = gather(mixed[:cut]) + gather(mixed[cut:])
    assert merged.counts.tolist() == whole.counts.tolist()
    np.testing.assert_allclose(merged.confidence, whole.confidence)
    np.testing.assert_allclose(merged.accuracy, whole.accuracy)
    assert merged.expected_calibration_error == pytest.approx(whole.expected_calibration_error)


def test_merging_changes_neither_part():
    one, other = gather(images(0)), gather(images(1))
    before = one.counts
    (one + other).update(*images(2)[0])
    one.counts[:] = 0
    assert one.counts.tolist() == before.tolist()


def test_ignored_pixels_do_not_count():
    probabilities, labels = images(0, 1)[0]
    kept = labels != 255
    assert 0 < kept.sum() < kept.size
    broken = np.where(kept, probabilities, math.nan)
    whole, part = gather([(broken, labels)]), gather([(probabilities[:, kept], labels[kept])])
    assert whole.counts.sum() == kept.sum()
    assert whole.expected_calibration_error == part.expected_calibration_error
    other = np.where(kept, labels, 9)
    assert gather([(probabilities, other)], ignore_index=9).counts.tolist() == whole.counts.tolist()


def test_calibrated_labels_have_a_small_error_and_overconfident_ones_a_large():
    generator = np.random.default_rng(0)
    probabilities = softmax(generator, 3, (40_000,))
    labels = (probabilities.cumsum(axis=0) < generator.random(40_000)).sum(axis=0)
    assert gather([(probabilities, labels)]).expected_calibration_error < 0.01
    sharper = probabilities**3 / (probabilities**3).sum(axis=0)
    assert gather([(sharper, labels)]).expected_calibration_error > 0.1


def test_half_precision_is_good_enough():
    generator = np.random.default_rng(0)
    probabilities, labels = softmax(generator, 4, (30, 30)), generator.integers(0, 4, size=(30, 30))
    exact, rounded = (gather([(probabilities.astype(kind), labels)]) for kind in (np.float64, np.float16))
    assert rounded.expected_calibration_error == pytest.approx(exact.expected_calibration_error, abs=2e-3)


def test_nothing_has_no_error():
    reliability = Reliability()
    reliability.update(np.full((2, 3, 3), 0.5), np.full((3, 3), 255))
    assert math.isnan(reliability.expected_calibration_error)
    assert np.isnan(reliability.accuracy).all()
    assert (reliability.num_bins, reliability.counts.sum()) == (15, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probabilities": np.full((2, 3), 5.0)}, "softmax of the logits"),
        ({"probabilities": np.array([[1.5] * 3, [-0.5] * 3])}, "softmax of the logits"),
        ({"probabilities": np.full((2, 3), math.nan)}, "softmax of the logits"),
        ({"probabilities": np.full((1, 3), 1.0)}, "K >= 2"),
        ({"probabilities": np.ones((2, 3), int)}, "int64"),
        ({"labels": np.zeros((3, 3), int)}, r"labels of shape \(3,\)"),
        ({"labels": np.zeros(3)}, "float64"),
        ({"labels": np.array([0, 1, 2])}, "class 2 and there are 2 classes"),
        ({"labels": np.array([0, -1, 1])}, "class -1"),
        ({"labels": np.array([0, 255, 1]), "ignore_index": None}, "class 255"),
    ],
)
def test_bad_images_are_named(change, words):
    good = {"probabilities": np.full((2, 3), 0.5), "labels": np.zeros(3, int)}
    with pytest.raises(ValueError, match=words):
        Reliability().update(**(good | change))


def test_bad_bins_are_named():
    for bins in (0, 1.5, True):
        with pytest.raises(ValueError, match="num_bins"):
            Reliability(bins)
    with pytest.raises(ValueError, match="10 and 15"):
        Reliability(10) + Reliability(15)
    with pytest.raises(TypeError):
        Reliability() + 1
