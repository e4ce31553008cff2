"""Border distances by every search and in adversarial cases, against medpy and distance transforms."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from scipy.ndimage import distance_transform_edt

from dim_hf.metrics import nearest, overlap, separable, surface
from dim_hf.metrics.borders import border, surface_distances
from tests.test_metrics import all_of, blob, cases

medpy = pytest.importorskip("medpy.metric.binary")

DISTANCES = ("hd", "hd95", "asd", "assd")
NEVER = math.inf
SEARCHES = {
    "auto": {},
    "neighbours": {"COSTS": nearest.Costs(further=0, further_start=0)},
    "tree": {"COSTS": nearest.Costs(further=NEVER, lines_start=NEVER), "NEAR": {2: 1, 3: 1}},
    "lines": {"COSTS": nearest.Costs(further=NEVER, tree_query={2: NEVER, 3: NEVER}), "NEAR": {2: 1, 3: 1}},
    "small blocks": {
        "COSTS": nearest.Costs(further=NEVER, tree_query={2: NEVER, 3: NEVER}),
        "NEAR": {2: 1, 3: 1},
        "BLOCK": 16,
        "separable.BLOCK_BYTES": 256,
        "separable.NARROW_REACH": 4,
    },
}


def set_all(patch, settings_of_search):
    for name, value in settings_of_search.items():
        patch.setattr(separable if "." in name else nearest, name.removeprefix("separable."), value)


@pytest.mark.parametrize("settings_of_search", SEARCHES.values(), ids=SEARCHES.keys())
@given(case=cases(max_side=12))
@settings(deadline=None, max_examples=40)
def test_distances_are_medpys_by_every_search(settings_of_search, case):
    prediction, reference, spacing = case
    assume(prediction.any() and reference.any())
    with pytest.MonkeyPatch.context() as patch:
        set_all(patch, settings_of_search)
        ours = all_of(prediction, reference, spacing)
    theirs = [getattr(medpy, name)(prediction, reference, spacing) for name in ("hd", "hd95", "asd", "assd")]
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


# ---- masks that break shortcuts


def mask_of(shape, *places):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def framed(shape, margin):
    return mask_of(shape, tuple(slice(margin, size - margin) for size in shape))


def adversarial(shape):
    """Pairs of masks, by name."""
    first, last = (0,) * len(shape), (-1,) * len(shape)
    middle = tuple(size // 2 for size in shape)
    line, other_line = (slice(None), *middle[1:]), (*middle[:-1], slice(None))
    full, noise = np.ones(shape, bool), np.random.default_rng(0).random(shape)
    checkers = np.indices(shape).sum(axis=0) % 2 == 0
    return {
        "one pixel, the same": (mask_of(shape, middle), mask_of(shape, middle)),
        "opposite corners": (mask_of(shape, first), mask_of(shape, last)),
        "one pixel in a full image": (mask_of(shape, first), full),
        "a hole of one pixel": (full & ~mask_of(shape, middle), full),
        "full and full": (full, full),
        "full and nearly": (full, framed(shape, 1) | mask_of(shape, middle)),
        "crossing lines": (mask_of(shape, line), mask_of(shape, other_line)),
        "a line and its end": (mask_of(shape, line), mask_of(shape, (0, *middle[1:]))),
        "touching halves": (mask_of(shape, slice(None, middle[0])) | mask_of(shape, first), mask_of(shape, middle[0])),
        "first and last row": (mask_of(shape, 0), mask_of(shape, -1)),
        "checkers and their negative": (checkers, ~checkers | mask_of(shape, middle)),
        "noise in a frame": ((noise < 0.3) | mask_of(shape, middle), full & ~framed(shape, 1)),
        "sparse noise": ((noise < 0.01) | mask_of(shape, first), (noise > 0.99) | mask_of(shape, last)),
    }


SHAPES = [(1, 1), (1, 9), (9, 1), (17, 23), (1, 8, 9), (7, 1, 9), (8, 9, 1), (1, 1, 1), (9, 10, 11)]


@pytest.mark.parametrize("name", adversarial((2, 2)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adversarial_masks_have_medpys_values(name, shape):
    prediction, reference = adversarial(shape)[name]
    if not (prediction.any() and reference.any()):
        pytest.skip("one pixel is no room for a hole")
    for spacing in (None, 0.7, tuple([0.3, 1.0, 5.0][: len(shape)])):
        for masks in ((prediction, reference), (reference, prediction)):
            theirs = [getattr(medpy, metric)(*masks, spacing) for metric in DISTANCES]
            assert all_of(*masks, spacing) == pytest.approx(theirs, rel=1e-12, abs=1e-12)
            assert [getattr(surface, metric)(*masks, spacing) for metric in DISTANCES] == all_of(*masks, spacing)
            assert overlap.dice(*masks) == medpy.dc(*masks)
            assert overlap.jaccard(*masks) == medpy.jc(*masks)


# ---- images larger than a block, distances beyond 16 bits, every search on its own account


LARGE = {
    "lobed": lambda shape: (blob(shape, 1, radius=0.45), blob(shape, 2, radius=0.4)),
    "nearly full": lambda shape: (framed(shape, 2), framed(shape, 3)),
    "far apart": lambda shape: (mask_of(shape, 0), mask_of(shape, (slice(-9, -5), slice(3, 9)))),
    "noise": lambda shape: tuple(np.random.default_rng(seed).random(shape) < 0.05 for seed in (0, 1)),
    "noise about a blob": lambda shape: (
        blob(shape, 1) ^ (np.random.default_rng(0).random(shape) < 0.02),
        blob(shape, 1, radius=0.2),
    ),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((300, 330), (1.0, 1.0)), ((300, 330), (0.5, 0.8)), ((90, 70, 24), (1.0,) * 3), ((90, 70, 24), (0.7, 0.7, 3.0))],
    ids=str,
)
def test_large_masks_have_the_distances_of_a_transform_of_the_whole_image(name, shape, spacing):
    prediction, reference = LARGE[name](shape)
    borders = [border(mask) for mask in (prediction, reference)]
    expected = [
        distance_transform_edt(~borders[1 - i], sampling=spacing)[borders[i]]  # in raster order
        for i in (0, 1)
    ]
    for patched in SEARCHES.values():
        if "BLOCK" in patched or (patched.get("COSTS") and len(shape) == 3 and name == "noise"):
            continue  # slow
        with pytest.MonkeyPatch.context() as patch:
            set_all(patch, patched)
            found = surface_distances(prediction, reference, spacing)
        np.testing.assert_allclose(found.to_reference, expected[0], rtol=1e-14)
        np.testing.assert_allclose(found.to_prediction, expected[1], rtol=1e-14)


@pytest.mark.parametrize("search", ["auto", "lines", "small blocks"])
@pytest.mark.parametrize(
    "spacing", [(0.7, 0.7, 3.0), (0.7, 3.0, 0.7), (3.0, 0.7, 0.7), (2.0, 2.0, 0.3), (0.5, 0.8, 3.0)]
)
def test_whichever_axis_differs_distances_are_those_of_a_transform(search, spacing):
    generator = np.random.default_rng(0)
    for density in (0.001, 0.05):
        prediction, reference = (generator.random((26, 23, 20)) < density for _ in range(2))
        prediction[3, 4, 5] = reference[22, 19, 17] = True
        expected = distance_transform_edt(~border(reference), sampling=spacing)[border(prediction)]
        with pytest.MonkeyPatch.context() as patch:
            set_all(patch, SEARCHES[search])
            found = surface_distances(prediction, reference, spacing)
        np.testing.assert_allclose(found.to_reference, expected, rtol=1e-14)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (4.0, 1.0, 1.0), (0.1, 0.1, 10.0)])
def test_margins_hold_all_neighbours_that_are_looked_up(spacing):
    neighbours = nearest._neighbours(spacing)
    margins = np.array(nearest.margins(np.array(spacing)))
    offsets = np.concatenate([group for _, group in neighbours])
    assert (np.abs(offsets) <= margins).all()
    lengths = np.sqrt(((offsets * spacing) ** 2).sum(axis=1))
    assert lengths[0] == 0
    assert (np.diff(lengths) >= 0).all()
    # No offset is left out that is nearer than one of them.
    every = np.stack(np.meshgrid(*[np.arange(-m - 1, m + 2) for m in margins], indexing="ij"), axis=-1).reshape(-1, 3)
    nearer = np.sqrt(((every * spacing) ** 2).sum(axis=1)) <= lengths[-1]
    assert nearer.sum() == len(offsets)


def test_extreme_spacings_do_not_blow_up_the_margins():
    for spacing in ((0.01, 1.0), (1.0, 0.01), (0.01, 0.01, 10.0), (0.01, 10.0, 10.0)):
        assert max(nearest.margins(np.array(spacing))) <= nearest.MARGIN
