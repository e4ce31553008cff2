import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import torch

from dim_hf.augmentations.seeds import sample_seeds
from dim_hf.augmentations.structures import StructureDraws, StructureWarp, nested_pair
from tests.augmentation_samples import SEEDS, assert_share, select, some_images

OUTER, INNER = (1, 2), (2,)
ALWAYS = StructureWarp(probability=1)


def nested_balls(shape, inner_radius, inner_center=None, outer_radius=0.7, count=1):
    """An inner ball within an outer one in the middle; lengths in half sides, as an ellipsoid of pixels."""
    axes = [(2 * np.arange(side) + 1) / side - 1 for side in shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    center = np.zeros(len(shape)) if inner_center is None else np.array(inner_center)
    labels = (np.linalg.norm(places, axis=-1) < outer_radius).astype(np.int64)
    labels[np.linalg.norm(places - center, axis=-1) < inner_radius] = 2
    return torch.from_numpy(labels).expand(count, *shape).clone(), places


def drawn(size, shift, count=1):
    dims = len(shift)
    return StructureDraws(
        torch.ones(count, dtype=torch.bool),
        torch.full((count,), size, dtype=torch.float64),
        torch.tensor(shift, dtype=torch.float64).expand(count, dims),
    )


@pytest.mark.parametrize(("shape", "tolerance"), [((128, 96), 0.02), ((40, 48, 44), 0.04)])
@pytest.mark.parametrize(("size", "shift"), [(0.3, 0.0), (0.3, 0.3), (0.7, 0.1), (0.5, -0.25)])
def test_the_border_lies_at_the_drawn_share_of_each_ray(shape, tolerance, size, shift):
    # In the middle, so that the map is a ball's radial scaling when nothing shifts, and its law is known otherwise:
    # on the ray to a border point b, the inner border lies at new center + size * (b - new center).
    masks, places = nested_balls(shape, 0.35)
    images = torch.rand(1, 1, *shape)
    offset = [0.0] * len(shape)
    offset[-1] = shift
    _, moved = StructureWarp(scale=(0.1, 10)).apply(images, masks, drawn(size, offset), OUTER, INNER)
    # Of all rays from c to the unit ball, shrunk towards c by the size: a ball of that radius about (1 - size) c.
    center, radius = 0.7 * (1 - size) * np.array(offset), 0.7 * size
    expected = np.linalg.norm(places - center, axis=-1) < radius
    found = moved[0].numpy() == 2
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 1 - 2 * tolerance
    volume = found.sum() / found.size * 2 ** len(shape)
    ball = math.pi * radius**2 if len(shape) == 2 else 4 / 3 * math.pi * radius**3
    assert (volume / ball) ** (1 / len(shape)) == pytest.approx(1, abs=tolerance)
    assert (moved.bool() != masks.bool()).float().mean() < 0.01  # the outer one stays


def test_an_inner_ball_away_from_the_middle():
    masks, places = nested_balls((128, 128), 0.21, inner_center=(0.2, -0.15))
    images = torch.rand(1, 1, 128, 128)
    old_size = math.sqrt((masks == 2).sum().item() / (masks > 0).sum().item())
    _, moved = ALWAYS.apply(images, masks, drawn(old_size, (0.0, 0.0)), OUTER, INNER)
    assert (moved != masks).float().mean() < 0.002  # neither moved nor resized: the map is the identity
    _, moved = StructureWarp(scale=(0.1, 10)).apply(images, masks, drawn(2 * old_size, (0.0, 0.0)), OUTER, INNER)
    found = places[moved[0].numpy() == 2]
    assert math.sqrt(len(found) / (masks == 2).sum().item()) == pytest.approx(2, rel=0.1)
    assert np.sign(found.mean(0)).tolist() == [1, -1]


@pytest.mark.parametrize(("drawn_size", "factor"), [(0.05, 0.5), (0.9, 1.5)])
def test_the_factor_is_held_within_its_range(drawn_size, factor):
    masks, _ = nested_balls((128, 128), 0.28)
    _, moved = StructureWarp(scale=(0.5, 1.5)).apply(
        torch.rand(1, 1, 128, 128), masks, drawn(drawn_size, (0.0, 0.0)), OUTER, INNER
    )
    assert ((moved == 2).sum() / (masks == 2).sum()).sqrt().item() == pytest.approx(factor, rel=0.03)


def test_centers_stay_inside_the_outer_structure():
    """An inner ball at the edge: without a hold, rays would begin beyond the ellipsoid, and the map would fold."""
    masks, places = nested_balls((128, 128), 0.15, inner_center=(0.5, 0.0))
    ramp = torch.from_numpy(places[..., 0]).float()[None, None]
    moved, moved_masks = ALWAYS.apply(ramp, masks, drawn(0.4, (0.25, 0.0)), OUTER, INNER)
    assert (moved[0, 0, :, 64].diff() > -1e-6).all()
    assert (moved_masks == 2).any()


@pytest.mark.parametrize(("pixels", "moves"), [(15, False), (16, True)])
def test_an_inner_structure_of_fewer_than_16_pixels_has_no_size(pixels, moves):
    masks = torch.zeros(1, 32, 32, dtype=torch.long)
    masks[0, 4:28, 4:28] = 1
    rows, columns = torch.arange(pixels) // 4 + 14, torch.arange(pixels) % 4 + 14
    masks[0, rows, columns] = 2
    _, moved = ALWAYS.apply(torch.rand(1, 1, 32, 32), masks, drawn(0.6, (0.0, 0.0)), OUTER, INNER)
    assert torch.equal(moved, masks) != moves


def test_double_precision_is_kept():
    masks, _ = nested_balls((64, 64), 0.3)
    images = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    fine, _ = ALWAYS.apply(images, masks, drawn(0.6, (0.1, 0.0)), OUTER, INNER)
    coarse, _ = ALWAYS.apply(images.float(), masks, drawn(0.6, (0.1, 0.0)), OUTER, INNER)
    assert fine.dtype == torch.float64
    assert 0 < (fine - coarse).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(64, 56), (20, 24, 22)])
def test_image_and_mask_move_together(shape):
    masks, _ = nested_balls(shape, 0.3, count=8)
    images = torch.stack([masks == value for value in (0, 1, 2)], dim=1).float()
    moved, moved_masks = ALWAYS.apply(images, masks, ALWAYS.draw(SEEDS, len(shape)), OUTER, INNER)
    sure = moved.amax(1) > 0.999
    assert sure.float().mean() > 0.5
    assert torch.equal(moved.argmax(1)[sure], moved_masks[sure])
    assert not torch.equal(moved_masks, masks)


def test_nothing_outside_the_outer_structure_moves():
    masks, places = nested_balls((64, 64), 0.3, count=8)
    images = some_images((64, 64))
    moved, moved_masks = ALWAYS.apply(images, masks, ALWAYS.draw(SEEDS), OUTER, INNER)
    outside = torch.from_numpy(np.linalg.norm(places, axis=-1) > 0.75)
    torch.testing.assert_close(moved[..., outside], images[..., outside], atol=1e-4, rtol=0)
    assert torch.equal(moved_masks[..., outside], masks[..., outside])


def test_nothing_folds():
    masks, _ = nested_balls((96, 96), 0.3, count=8)
    axes = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    moved, _ = ALWAYS.apply(
        torch.stack(axes).expand(8, 2, 96, 96).contiguous(), masks, ALWAYS.draw(SEEDS), OUTER, INNER
    )
    # The area that a pixel's square covers in the input keeps its sign.
    down, across = moved.diff(dim=2)[..., :-1], moved.diff(dim=3)[:, :, :-1]
    assert (down[:, 0] * across[:, 1] - down[:, 1] * across[:, 0] > -1e-6).all()


def test_a_warp_is_the_same_alone_and_in_any_batch():
    masks, _ = nested_balls((40, 36), 0.3, count=8)
    images = some_images((40, 36))
    together, together_masks = ALWAYS.apply(images, masks, ALWAYS.draw(SEEDS), OUTER, INNER)
    for i, seed in enumerate(SEEDS):
        alone, alone_mask = ALWAYS.apply(images[i : i + 1], masks[i : i + 1], ALWAYS.draw([seed]), OUTER, INNER)
        assert torch.equal(alone[0], together[i])
        assert torch.equal(alone_mask[0], together_masks[i])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_samples_that_are_not_drawn_or_have_no_inner_structure_stay_bit_for_bit(layout):
    masks, _ = nested_balls((32, 32), 0.3, count=4)
    masks[1] = (masks[1] > 0).long()  # no inner structure
    masks[2][masks[2] > 0] = 2  # it fills the outer one
    masks[3] = 0  # neither
    images = some_images((32, 32), 4).to(memory_format=layout)
    draws = dataclasses.replace(ALWAYS.draw(SEEDS[:4]), warped=torch.tensor([False, True, True, True]))
    original = images.clone()
    moved, moved_masks = ALWAYS.apply(images, masks, draws, OUTER, INNER)
    assert torch.equal(moved, original)
    assert torch.equal(moved_masks, masks)
    assert moved.stride() == images.stride()
    changed, _ = ALWAYS.apply(images, masks, dataclasses.replace(draws, warped=~draws.warped), OUTER, INNER)
    assert not torch.equal(changed[0], images[0])
    assert torch.equal(changed[1:], images[1:])
    assert torch.equal(images, original)


def test_ignored_pixels_stay_ignored():
    masks, _ = nested_balls((48, 48), 0.3)
    masks[0, 22:26, 22:26] = 255
    _, moved = ALWAYS.apply(some_images((48, 48), 1), masks, drawn(0.7, (0.0, 0.0)), OUTER, INNER)
    assert set(moved.unique().tolist()) == {0, 1, 2, 255}


def test_distribution_of_draws():
    warp = StructureWarp(size=(0.2, 0.8), shift=0.3, probability=0.4)
    draws = warp.draw(sample_seeds(0, "test", range(2000)), 3)
    assert_share(draws.warped, 0.4)
    assert scipy.stats.kstest(draws.size.numpy(), "uniform", (0.2, 0.6)).pvalue > 1e-4
    assert scipy.stats.kstest(draws.shift.flatten().numpy(), "uniform", (-0.3, 0.6)).pvalue > 1e-4
    assert torch.equal(select(draws, slice(5, 6)).size, warp.draw(sample_seeds(0, "test", [5]), 3).size)


def test_innermost_pair():
    assert nested_pair({"a": [1]}) is None
    assert nested_pair({"a": [1], "b": [2, 3]}) is None
    assert nested_pair({"whole": [1, 2, 3], "core": [2, 3], "heart": [3]}) == ((2, 3), (3,))
    assert nested_pair({"heart": [3], "whole": [3, 1, 2]}) == ((1, 2, 3), (3,))
    with pytest.raises(ValueError, match="tell which one"):
        nested_pair({"cup": [2], "rim": [1], "disc": [1, 2]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probability", 1.1),
        ("probability", math.nan),
        ("size", (0.5, 0.4)),
        ("size", (0.01, 0.5)),
        ("size", (0.1, 1.0)),
        ("scale", (0.0, 1.0)),
        ("shift", 0.7),
        ("shift", math.nan),
    ],
)
def test_settings_outside_their_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"StructureWarp\.{field} "):
        StructureWarp(**{field: value})


def test_images_that_do_not_fit_the_draws():
    masks, _ = nested_balls((16, 16), 0.3, count=8)
    with pytest.raises(ValueError, match="3 samples"):
        ALWAYS.apply(some_images((16, 16)), masks, ALWAYS.draw(SEEDS[:3]), OUTER, INNER)
    with pytest.raises(ValueError, match="masks must have shape"):
        ALWAYS.apply(some_images((16, 16)), masks[:, :8], ALWAYS.draw(SEEDS), OUTER, INNER)
