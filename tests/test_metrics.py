"""Overlap and surface metrics against medpy, brute force, cases checked on paper, and laws."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, generate_binary_structure

from dim_hf.metrics import overlap, surface
from dim_hf.metrics.borders import border, surface_distances
from dim_hf.metrics.empty_masks import EMPTY_POLICIES, image_diagonal

medpy = pytest.importorskip("medpy.metric.binary")

SPACINGS = st.sampled_from([0.1, 0.5, 0.7, 1.0, 1.3, 3.0, 10.0])


@st.composite
def cases(draw, max_side=9, ndims=(2, 3)):
    """Two masks of equal shape and a spacing: noise of any density, thin shapes, masks at the image's edge."""
    ndim = draw(st.sampled_from(ndims))
    shape = tuple(draw(st.lists(st.integers(1, max_side), min_size=ndim, max_size=ndim)))
    masks = []
    for _ in range(2):
        kind = draw(st.sampled_from(["any", "box", "noise"]))
        if kind == "any":
            mask = draw(arrays(np.bool_, shape))
        elif kind == "box":
            mask = np.zeros(shape, bool)
            starts = [draw(st.integers(0, size - 1)) for size in shape]
            mask[tuple(slice(a, draw(st.integers(a + 1, size))) for a, size in zip(starts, shape, strict=True))] = True
        else:
            generator = np.random.default_rng(draw(st.integers(0, 2**32)))
            mask = generator.random(shape) < draw(st.floats(0.02, 0.98))
        masks.append(mask)
    spacing = draw(st.one_of(st.none(), st.tuples(*[SPACINGS] * ndim)))
    return masks[0], masks[1], spacing


def blob(shape, seed, radius=0.3, roughness=0.3):
    """A lobed mask about the image's centre."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), [size / 12 for size in shape])
    grids = np.ogrid[tuple(slice(0, size) for size in shape)]
    squares = sum(((grid - size / 2) / (radius * size)) ** 2 for grid, size in zip(grids, shape, strict=True))
    return squares + roughness * field / field.std() <= 1


def brute_force(prediction, reference, spacing):
    """Border pixels by looking at each neighbour, and all pairs of distances."""

    def border_points(mask):
        points = []
        for index in np.argwhere(mask):
            neighbours = [index + sign * unit for unit in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
            inside = [bool((n >= 0).all() and (n < mask.shape).all() and mask[tuple(n)]) for n in neighbours]
            if not all(inside):
                points.append(index * np.asarray(spacing))
        return np.array(points)

    a, b = border_points(prediction), border_points(reference)
    pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return pairs.min(axis=1), pairs.min(axis=0)


def all_of(prediction, reference, spacing=None, **options):
    found = surface.surface_metrics(prediction, reference, spacing, **options)
    return [found.hd, found.hd95, found.asd, found.assd]


# ---- against medpy


@given(cases())
@settings(deadline=None, max_examples=80)
def test_overlap_is_medpys(case):
    prediction, reference, spacing = case
    assume(prediction.any() or reference.any())  # medpy divides 0 by 0 for two empty masks
    assert overlap.dice(prediction, reference, spacing) == medpy.dc(prediction, reference)
    assert overlap.jaccard(prediction, reference, spacing) == medpy.jc(prediction, reference)
    if prediction.any() and reference.any():
        assert overlap.precision(prediction, reference) == medpy.precision(prediction, reference)
        assert overlap.recall(prediction, reference) == medpy.recall(prediction, reference)
        assert overlap.relative_volume_difference(prediction, reference) == medpy.ravd(prediction, reference)


@given(case=cases(max_side=6), data=st.data())
@settings(deadline=None, max_examples=35)
def test_distances_are_medpys_for_every_connectivity(case, data):
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    connectivity = data.draw(st.integers(1, prediction.ndim))
    theirs = [
        getattr(medpy, name)(prediction, reference, spacing, connectivity) for name in ("hd", "hd95", "asd", "assd")
    ]
    assert all_of(prediction, reference, spacing, connectivity=connectivity) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("shape", [(96, 80), (24, 40, 36)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smooth_masks_have_medpys_values_bit_for_bit(shape, seed):
    prediction, reference = blob(shape, seed), blob(shape, seed + 100, radius=0.25)
    theirs = [getattr(medpy, name)(prediction, reference) for name in ("hd", "hd95", "asd", "assd")]
    assert all_of(prediction, reference) == theirs
    functions = (surface.hd, surface.hd95, surface.asd, surface.assd)
    assert [function(prediction, reference) for function in functions] == theirs


# ---- against brute force


@given(cases(max_side=6))
@settings(deadline=None, max_examples=40)
@example((np.array([[True]]), np.array([[True]]), None))
def test_distances_are_those_of_all_pairs(case):
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    found = surface_distances(prediction, reference, spacing)
    there, back = brute_force(prediction, reference, spacing or (1.0,) * prediction.ndim)
    np.testing.assert_allclose(found.to_reference, there, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.to_prediction, back, rtol=1e-12, atol=1e-12)


@given(cases(max_side=6), st.sampled_from([0.0, 0.5, 1.0, 1.5, 4.0]))
@settings(deadline=None, max_examples=35)
def test_nsd_is_the_share_of_all_pairs_within_the_tolerance(case, tolerance):
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    pooled = np.concatenate(brute_force(prediction, reference, spacing or (1.0,) * prediction.ndim))
    expected = (pooled <= tolerance + 1e-8).mean()
    assert surface.nsd(prediction, reference, spacing, tolerance_mm=tolerance) == expected


@given(cases())
@settings(deadline=None, max_examples=40)
def test_cropping_to_the_joint_box_changes_nothing(case):
    """Distance transforms of the whole image, with a margin, at the borders found in the whole image."""
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    prediction, reference = np.pad(prediction, 3), np.pad(reference, 3)
    borders = [border(mask) for mask in (prediction, reference)]
    there, back = (
        distance_transform_edt(~borders[1 - i], sampling=spacing or (1.0,) * prediction.ndim)[borders[i]]
        for i in (0, 1)
    )
    found = surface_distances(prediction, reference, spacing)
    np.testing.assert_allclose(found.to_reference, there, rtol=1e-12)
    np.testing.assert_allclose(found.to_prediction, back, rtol=1e-12)


# ---- on paper


def test_two_pixels_2_mm_apart():
    prediction, reference = np.zeros((3, 5), bool), np.zeros((3, 5), bool)
    prediction[1, 1] = reference[1, 3] = True
    assert all_of(prediction, reference, (7.0, 1.0)) == [2.0] * 4
    assert all_of(prediction, reference, (7.0, 0.5)) == [1.0] * 4
    assert surface.nsd(prediction, reference, (7.0, 1.0), tolerance_mm=2.0) == 1.0
    assert surface.nsd(prediction, reference, (7.0, 1.0), tolerance_mm=1.9) == 0.0
    assert overlap.dice(prediction, reference) == 0.0


def test_diagonal_neighbours_in_3d_by_pythagoras():
    prediction, reference = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    prediction[0, 0, 0] = reference[1, 1, 1] = True
    assert surface.hd(prediction, reference, (2.0, 3.0, 6.0)) == 7.0


def test_the_directed_mean_and_the_pooled_one_differ():
    """One pixel against a row of three whose first is the same pixel: 0 there; 0, 1, 2 back."""
    prediction, reference = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    prediction[0, 0] = True
    reference[0, :3] = True
    assert surface.asd(prediction, reference) == 0.0
    assert surface.asd(reference, prediction) == 1.0
    assert surface.assd(prediction, reference) == 0.75  # (0 + 0 + 1 + 2) / 4
    assert surface.hd95(prediction, reference) == pytest.approx(1.85)  # 0, 0, 1, 2 at rank 0.95 * 3 = 2.85
    assert surface.hd(prediction, reference) == 2.0
    assert surface.nsd(prediction, reference, tolerance_mm=1.0) == 0.75


def test_a_square_inside_a_square():
    """3 × 3 in 5 × 5: 8 border pixels at distance 1, and back 12 at 1 and the 4 corners at √2."""
    reference = np.ones((5, 5), bool)
    prediction = np.zeros((5, 5), bool)
    prediction[1:4, 1:4] = True
    assert surface.asd(prediction, reference) == 1.0
    assert surface.assd(prediction, reference) == pytest.approx((20 + 4 * math.sqrt(2)) / 24)
    assert surface.hd(prediction, reference) == math.sqrt(2)
    assert overlap.dice(prediction, reference) == 18 / 34
    assert overlap.jaccard(prediction, reference) == 9 / 25
    assert overlap.volume_difference(prediction, reference, (2.0, 0.5)) == -16.0
    assert overlap.relative_volume_difference(prediction, reference) == -16 / 25
    assert overlap.precision(prediction, reference) == 1.0
    assert overlap.recall(prediction, reference) == 9 / 25


def test_the_edge_of_the_image_is_a_border():
    found = border(np.ones((3, 4), bool))
    assert found.sum() == 10
    assert not found[1, 1:3].any()


def test_connectivity_counts_diagonal_neighbours():
    mask = generate_binary_structure(2, 1)
    assert border(mask, 1).sum() == 4
    assert border(mask, 2).sum() == 5


def test_a_tolerance_of_whole_pixels_is_met_in_spite_of_rounding():
    prediction, reference = np.eye(1, 4, dtype=bool), np.eye(1, 4, 3, dtype=bool)
    assert surface.hd(prediction, reference, 0.1) > 0.3  # 3 * 0.1 in floating point
    assert surface.nsd(prediction, reference, 0.1, tolerance_mm=0.3) == 1.0


# ---- laws


@given(cases(), st.data())
@settings(deadline=None, max_examples=35)
def test_axes_mirrors_and_shifts_change_nothing(case, data):
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    order = data.draw(st.permutations(range(prediction.ndim)))
    axis = data.draw(st.integers(0, prediction.ndim - 1))
    margins = [(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))) for _ in order]
    spacing = spacing or (1.0,) * prediction.ndim

    def moved(mask):
        return np.pad(np.flip(np.transpose(mask, order), axis), margins)

    before = all_of(prediction, reference, spacing)
    after = all_of(moved(prediction), moved(reference), [spacing[i] for i in order])
    assert after == pytest.approx(before, rel=1e-12)


@given(cases(), st.sampled_from([0.25, 3.0]))
@settings(deadline=None, max_examples=35)
def test_distances_scale_with_the_spacing(case, factor):
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    spacing = np.asarray(spacing or (1.0,) * prediction.ndim)
    scaled = all_of(prediction, reference, spacing * factor)
    assert scaled == pytest.approx([factor * value for value in all_of(prediction, reference, spacing)], rel=1e-9)
    volume = overlap.volume_difference(prediction, reference, spacing)
    scaled = overlap.volume_difference(prediction, reference, spacing * factor)
    assert scaled == pytest.approx(volume * factor**prediction.ndim)


@given(cases())
@settings(deadline=None, max_examples=35)
def test_symmetry_identity_and_order(case):
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    there = surface.surface_metrics(prediction, reference, spacing, tolerance_mm=1.0)
    back = surface.surface_metrics(reference, prediction, spacing, tolerance_mm=1.0)
    assert (there.hd, there.nsd) == (back.hd, back.nsd)
    assert (there.hd95, there.assd) == pytest.approx((back.hd95, back.assd), rel=1e-12)
    assert there.hd95 <= there.hd <= image_diagonal(prediction.shape, spacing)
    assert min(there.asd, back.asd) <= there.assd * (1 + 1e-12)
    assert there.assd <= max(there.asd, back.asd) * (1 + 1e-12)
    assert all_of(prediction, prediction, spacing) == [0.0] * 4
    found = overlap.overlap_metrics(prediction, reference)
    assert found.dice == pytest.approx(2 * found.jaccard / (1 + found.jaccard))
    assert overlap.volume_difference(prediction, reference) == -overlap.volume_difference(reference, prediction)


def test_dilating_by_n_pixels_moves_the_border_by_n():
    reference = blob((64, 64), 4, roughness=0.0)
    cross = generate_binary_structure(2, 1)
    values = [surface.hd(binary_dilation(reference, cross, n), reference) for n in (1, 2, 3)]
    assert values == [1.0, 2.0, 3.0]


def test_one_spacing_for_all_axes_is_that_spacing_on_each():
    prediction, reference = blob((20, 24), 1), blob((20, 24), 2)
    assert all_of(prediction, reference, 0.5) == all_of(prediction, reference, (0.5, 0.5))


# ---- empty masks

FULL, EMPTY = np.ones((3, 4), bool), np.zeros((3, 4), bool)


@pytest.mark.parametrize("policy", EMPTY_POLICIES)
def test_two_empty_masks_are_perfect_under_every_policy(policy):
    found = surface.surface_metrics(EMPTY, EMPTY, tolerance_mm=1.0, empty_policy=policy)
    assert [found.hd, found.hd95, found.asd, found.assd, found.nsd] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert not found.missed
    assert not found.spurious
    assert overlap.dice(EMPTY, EMPTY) == overlap.jaccard(EMPTY, EMPTY) == 1.0
    assert overlap.volume_difference(EMPTY, EMPTY) == overlap.relative_volume_difference(EMPTY, EMPTY) == 0.0


@pytest.mark.parametrize(
    ("policy", "distance", "share"),
    [("worst", 10.0, 0.0), ("nan", math.nan, math.nan), ("legacy-100", 100.0, 0.0), ("legacy-0", 0.0, 0.0)],
)
@pytest.mark.parametrize(("prediction", "reference"), [(EMPTY, FULL), (FULL, EMPTY)], ids=["missed", "spurious"])
def test_one_empty_mask_is_scored_by_the_policy_and_counted(policy, distance, share, prediction, reference):
    options = {"spacing_mm": (2.0, 2.0), "empty_policy": policy}  # the image is 6 mm by 8 mm
    found = surface.surface_metrics(prediction, reference, tolerance_mm=1.0, **options)
    assert [found.hd, found.hd95, found.asd, found.assd] == pytest.approx([distance] * 4, nan_ok=True)
    assert found.nsd == pytest.approx(share, nan_ok=True)
    assert surface.hd95(prediction, reference, **options) == pytest.approx(distance, nan_ok=True)
    assert found.missed is overlap.missed(prediction, reference) is bool(reference.any())
    assert found.spurious is overlap.spurious(prediction, reference) is bool(prediction.any())
    assert overlap.dice(prediction, reference) == 0.0


def test_the_policy_does_not_touch_cases_with_both_masks():
    prediction, reference = blob((20, 24), 1), blob((20, 24), 2)
    values = {tuple(all_of(prediction, reference, empty_policy=policy)) for policy in EMPTY_POLICIES}
    assert len(values) == 1


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.ones((3, 4), bool), np.ones((4, 3), bool)), r"shape \(3, 4\) and reference \(4, 3\)"),
        ((np.ones(3, bool), np.ones(3, bool)), "prediction has shape"),
        ((FULL, np.ones((0, 4), bool)), "holds no pixels"),
        ((np.full((3, 4), 2), FULL), "prediction holds the value 2"),
        ((FULL, np.full((3, 4), np.nan)), "reference holds values that are not finite"),
        ((FULL, np.full((3, 4), "a")), "reference has type"),
        ((FULL, FULL, (1.0,)), "2D mask"),
        ((FULL, FULL, (1.0, 1.0, 1.0)), "2D mask"),
        ((FULL, FULL, (1.0, 0.0)), "positive"),
        ((FULL, FULL, -1.0), "positive"),
        ((FULL, FULL, (1.0, math.nan)), "positive"),
        ((FULL, FULL, (math.inf, 1.0)), "positive"),
        ((FULL, FULL, "1 mm"), "spacing_mm is '1 mm'"),
    ],
)
@pytest.mark.parametrize("function", [overlap.dice, overlap.volume_difference, surface.hd95, surface.asd])
def test_bad_masks_and_spacings_are_named(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        function(*arguments)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf, None])
def test_bad_tolerances(tolerance):
    with pytest.raises(ValueError, match="tolerance_mm is"):
        surface.nsd(FULL, FULL, tolerance_mm=tolerance)


@pytest.mark.parametrize("connectivity", [0, 3, 1.5])
def test_bad_connectivities(connectivity):
    with pytest.raises(ValueError, match="connectivity is"):
        surface.hd(FULL, FULL, connectivity=connectivity)


def test_unknown_policies_and_empty_masks_without_one():
    with pytest.raises(ValueError, match="worst, nan, legacy-100, legacy-0"):
        surface.hd(FULL, FULL, empty_policy="best")
    with pytest.raises(ValueError, match="reference is empty"):
        surface_distances(FULL, EMPTY)


def test_masks_of_zeros_and_ones_of_any_type_are_taken_and_left_as_they_are():
    prediction, reference = blob((20, 24), 1), blob((20, 24), 2)
    kept = prediction.copy()
    for kind in (np.uint8, np.uint16, np.int64, np.float32):
        assert all_of(prediction.astype(kind), reference.astype(kind)) == all_of(prediction, reference)
    np.testing.assert_array_equal(prediction, kept)
