import dataclasses
import math

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import scipy.stats
import torch

from dim_hf.augmentations.fields import cubic_basis, smooth_field
from dim_hf.augmentations.geometry import WeakDraws, WeakView
from dim_hf.augmentations.seeds import sample_seeds, uniforms
from tests.augmentation_samples import SEEDS, SHAPES, assert_share, select, some_images, some_masks

EVERYTHING_WEAK = WeakView(zoom_probability=1, rotation_probability=1, elastic_probability=1)


def test_seeds_depend_on_seed_stream_and_position_alone():
    seeds = sample_seeds(3, "labeled", [5, 9, 5])
    assert seeds[0] == seeds[2] == sample_seeds(3, "labeled", np.array([5]))[0]
    others = [sample_seeds(4, "labeled", [5]), sample_seeds(3, "unlabeled", [5]), [seeds[1]]]
    assert all(other[0] != seeds[0] for other in others)
    assert sample_seeds(1, "1/a", [1]) != sample_seeds(1, "1", [1])


def test_seeds_are_well_mixed():
    seeds = np.array(sample_seeds(0, "labeled", range(4000)), dtype=np.int64)
    assert len(set(seeds)) == 4000
    assert seeds.min() >= 0
    bits = (seeds[:, None] >> np.arange(63)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / math.sqrt(4000)
    neighbors = np.corrcoef(bits[:-1].ravel(), bits[1:].ravel())[0, 1]
    assert abs(neighbors) < 4.5 / math.sqrt(bits.size)


def test_uniforms_are_uniform_and_unrelated_between_purposes():
    seeds = sample_seeds(0, "labeled", range(3000))
    first, second = uniforms(seeds, "one", 1, 1)
    other = uniforms(seeds, "two", 1)[0]
    for values in (first, second, other):
        assert scipy.stats.kstest(values[:, 0].numpy(), "uniform").pvalue > 1e-4
    for pair in ((first, second), (first, other)):
        assert abs(np.corrcoef(*(values[:, 0].numpy() for values in pair))[0, 1]) < 4.5 / math.sqrt(3000)


# fields


def scipy_basis(length, points):
    knots = np.arange(points + 4) - 3.0
    places = (np.arange(length) + 0.5) * (points - 3) / length
    return scipy.interpolate.BSpline.design_matrix(places, knots, 3).toarray()


@pytest.mark.parametrize(("length", "points"), [(32, 4), (17, 7), (3, 5)])
def test_basis_is_the_cubic_b_spline(length, points):
    np.testing.assert_allclose(cubic_basis(length, points).numpy(), scipy_basis(length, points), atol=1e-12)


def test_smooth_field_in_3d_against_a_dense_sum():
    control = torch.randn((2, 4, 5, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bases = [scipy_basis(length, points) for length, points in ((7, 4), (8, 5), (9, 6))]
    expected = np.einsum("nabc,xa,yb,zc->nxyz", control.numpy(), *bases)
    field = smooth_field(control, (7, 8, 9), torch.zeros(1))
    assert field.dtype == torch.float32
    np.testing.assert_allclose(field.numpy(), expected, atol=1e-6)


# weak view


def reference_view(image, draws, order, mode):
    """Resamples one channel of one sample with scipy, coordinates spelled out in pixels."""
    shape = image.shape
    pixels = np.stack(np.meshgrid(*[np.arange(s) - (s - 1) / 2 for s in shape], indexing="ij"))
    for axis, control in enumerate(draws.elastic[0].numpy()):
        letters = "abc"[: len(shape)]
        bases = [scipy_basis(s, control.shape[0]) for s in shape]
        terms = ",".join(f"{new}{old}" for new, old in zip("xyz", letters, strict=False))
        field = np.einsum(f"{letters},{terms}->{'xyz'[: len(shape)]}", control, *bases)
        pixels[axis] += field * shape[axis]
    angle = float(draws.angle[0])
    row, col = pixels[-2].copy(), pixels[-1].copy()
    pixels[-2] = math.cos(angle) * row + math.sin(angle) * col
    pixels[-1] = -math.sin(angle) * row + math.cos(angle) * col
    for axis, side in enumerate(shape):
        zoom, shift = float(draws.zoom[0, axis]), float(draws.shift[0, axis])
        pixels[axis] = pixels[axis] / zoom + shift * side / 2 + (side - 1) / 2
    moved = scipy.ndimage.map_coordinates(image, pixels, order=order, mode=mode)
    return np.flip(moved, [axis for axis in range(len(shape)) if draws.flip[0, axis]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("padding", "mode"), [("reflection", "reflect"), ("border", "nearest")])
def test_weak_view_against_scipy(shape, padding, mode):
    view = dataclasses.replace(EVERYTHING_WEAK, padding=padding, flip_axes=(-1, -2))
    images, masks = some_images(shape, 3, 1).double(), some_masks(shape, 3)
    draws = view.draw(SEEDS[:3], len(shape))
    moved, moved_masks = view.apply(images, masks, draws)
    for i in range(3):
        one = select(draws, slice(i, i + 1))
        np.testing.assert_allclose(moved[i, 0], reference_view(images[i, 0].numpy(), one, 1, mode), atol=1e-9)
        # Half-way ties round differently; away from them the nearest neighbor is the same.
        expected = reference_view(masks[i].double().numpy(), one, 0, mode)
        assert (moved_masks[i].numpy() == expected).mean() > 0.99


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_against_scipy_rotate(shape):
    images = some_images(shape, 2, 1)
    draws = WeakDraws.identity(2, len(shape))
    draws.angle[1] = math.radians(20.0)
    moved, _ = WeakView().apply(images, None, draws)
    expected = scipy.ndimage.rotate(images[1, 0].numpy(), 20.0, (-1, -2), reshape=False, order=1, mode="reflect")
    assert torch.equal(moved[0], images[0])
    np.testing.assert_allclose(moved[1, 0], expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(16, 16), (4, 16, 16)])
def test_quarter_turn(shape):
    images, masks = some_images(shape, 2), some_masks(shape, 2)
    draws = WeakDraws.identity(2, len(shape))
    draws.angle[:] = math.pi / 2
    moved, moved_masks = WeakView().apply(images, masks, draws)
    torch.testing.assert_close(moved, torch.rot90(images, 1, (-2, -1)), atol=1e-5, rtol=0)
    assert torch.equal(moved_masks, torch.rot90(masks, 1, (-2, -1)))


def test_zoom_by_two_of_a_quarter():
    # The upper left quarter of a 4 x 4 image, twice as large: on paper, pixel 0.25 to the left of the first is the
    # first, 0.25 to the right is a quarter of the way to the second.
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    draws = WeakDraws.identity(1)
    draws.zoom[:], draws.shift[:] = 2.0, -0.5
    moved, _ = WeakView().apply(images, None, draws)
    along = torch.tensor([0.0, 0.25, 0.75, 1.25])
    torch.testing.assert_close(moved[0, 0], 4 * along[:, None] + along)


@pytest.mark.parametrize("shape", SHAPES)
def test_zoomed_crops_stay_inside_the_image(shape):
    only = {"rotation_probability": 0, "elastic_probability": 0, "zoom_probability": 1}
    draws = WeakView(**only).draw(SEEDS, len(shape))
    assert (draws.shift.abs() <= 1 - 1 / draws.zoom).all()
    images = some_images(shape)
    views = [WeakView(**only, padding=padding).apply(images, None, draws)[0] for padding in ("reflection", "border")]
    torch.testing.assert_close(*views, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_identity_and_flips_are_exact(shape, layout):
    images, masks = some_images(shape, 4), some_masks(shape, 4)
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last if len(shape) == 2 else torch.channels_last_3d)
    if layout == "strided":
        images = some_images((*shape[:-1], 2 * shape[-1]), 4)[..., ::2]
    original, original_masks = images.clone(), masks.clone()
    draws = WeakDraws.identity(4, len(shape))
    draws.flip[1, -1] = draws.flip[2, 0] = True
    draws.flip[3] = True
    moved, moved_masks = WeakView().apply(images, masks, draws)
    everything = list(range(-len(shape), 0))
    for i, axes in enumerate(([], [-1], [-len(shape)], everything)):
        assert torch.equal(moved[i], original[i].flip(axes))
        assert torch.equal(moved_masks[i], original_masks[i].flip(axes))
    assert torch.equal(images, original)
    assert torch.equal(masks, original_masks)
    assert layout == "strided" or moved.stride() == images.stride()


def test_a_flip_joins_a_warp():
    images = some_images((24, 20))
    draws = EVERYTHING_WEAK.draw(SEEDS)
    draws.flip[:] = False
    straight, _ = EVERYTHING_WEAK.apply(images, None, draws)
    draws.flip[:, 1] = True
    flipped, _ = EVERYTHING_WEAK.apply(images, None, draws)
    assert torch.equal(flipped, straight.flip(-1))


@pytest.mark.parametrize("shape", [(48, 40), (12, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_image_and_mask_move_together(shape, dtype):
    masks = some_masks(shape).to(dtype)
    images = torch.stack([masks == value for value in (0, 1, 2, 255)], dim=1).float()
    moved, moved_masks = EVERYTHING_WEAK.apply(images, masks, EVERYTHING_WEAK.draw(SEEDS, len(shape)))
    assert moved_masks.dtype == dtype
    assert set(moved_masks.unique().tolist()) == {0, 1, 2, 255}
    sure = moved.amax(1) > 0.999
    assert sure.float().mean() > 0.3
    values = torch.tensor([0, 1, 2, 255])[moved.argmax(1)]
    assert torch.equal(values[sure], moved_masks[sure].long())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weak_view_is_the_same_alone_and_in_any_batch(shape):
    images, masks = some_images(shape), some_masks(shape)
    view = WeakView(flip_axes=(-1, -2))
    together, together_masks = view.apply(images, masks, view.draw(SEEDS, len(shape)))
    backward, backward_masks = view.apply(images.flip(0), masks.flip(0), view.draw(SEEDS[::-1], len(shape)))
    assert torch.equal(backward.flip(0), together)
    assert torch.equal(backward_masks.flip(0), together_masks)
    for i, seed in enumerate(SEEDS):
        alone, alone_mask = view.apply(images[i : i + 1], masks[i : i + 1], view.draw([seed], len(shape)))
        assert torch.equal(alone[0], together[i])
        assert torch.equal(alone_mask[0], together_masks[i])
    assert not torch.equal(together, images)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_distribution_of_weak_draws(spatial_dims):
    view = WeakView(zoom_probability=0.3, rotation_probability=0.6, flip_probability=0.2, elastic_probability=0.4)
    draws = view.draw(sample_seeds(0, "test", range(2000)), spatial_dims)
    turned, zoomed = draws.angle != 0, (draws.zoom != 1).any(1)
    bent = draws.elastic.flatten(1).ne(0).any(1)
    assert_share(zoomed, 0.3)
    assert_share(turned, 0.6)
    assert_share(bent, 0.4)
    assert_share(draws.flip[:, -1], 0.2)
    assert_share(zoomed & turned, 0.18)
    assert not draws.flip[:, :-1].any()
    assert scipy.stats.kstest(draws.angle[turned].numpy(), "uniform", (-math.pi / 9, math.pi * 2 / 9)).pvalue > 1e-4
    assert scipy.stats.kstest(draws.zoom[zoomed].flatten().numpy(), "uniform", (1.0, 0.5)).pvalue > 1e-4
    control = draws.elastic[bent].flatten()[:5000]
    assert scipy.stats.kstest(control.numpy(), "uniform", (-0.05, 0.1)).pvalue > 1e-4


def test_a_changed_probability_moves_no_other_draw():
    first = WeakView().draw(SEEDS)
    second = WeakView(zoom_probability=0.0, flip_probability=1.0).draw(SEEDS)
    assert torch.equal(first.angle, second.angle)
    assert torch.equal(first.elastic, second.elastic)


def test_elastic_deformation_does_not_fold():
    view = WeakView(elastic_probability=1)
    draws = view.draw(SEEDS)
    field = smooth_field(draws.elastic.flatten(0, 1), (64, 64), torch.zeros(1))
    assert field.abs().max() <= view.elastic_shift
    slope = torch.stack([field.diff(dim=axis).abs().max() * 64 for axis in (1, 2)])
    assert (slope <= 2 * view.elastic_shift * (view.elastic_points - 3)).all()


def test_constant_images_stay_constant():
    images = torch.full((8, 3, 16, 16), 0.7)
    moved, none = EVERYTHING_WEAK.apply(images, None, EVERYTHING_WEAK.draw(SEEDS))
    assert none is None
    torch.testing.assert_close(moved, images)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("zoom", (1.5, 1.0)),
        ("zoom", (0.0, 1.0)),
        ("zoom_probability", 1.1),
        ("rotation_degrees", -1.0),
        ("rotation_probability", -0.1),
        ("flip_axes", (0,)),
        ("flip_axes", (-1, -1)),
        ("flip_probability", math.nan),
        ("elastic_shift", 0.6),
        ("elastic_points", 3),
        ("elastic_probability", 2),
        ("padding", "zeros"),
    ],
)
def test_settings_outside_their_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"WeakView\.{field} "):
        WeakView(**{field: value})


def test_draws_for_images_of_another_kind():
    with pytest.raises(ValueError, match="spatial_dims"):
        WeakView().draw(SEEDS, 1)
    with pytest.raises(ValueError, match="flip_axes"):
        WeakView(flip_axes=(-3,)).draw(SEEDS, 2)


def test_images_that_do_not_fit_the_draws():
    images, masks = some_images((8, 8)), some_masks((8, 8))
    view = WeakView()
    draws = view.draw(SEEDS)
    for batch, message in ((images[:3], "8 samples"), (images[..., None], "spatial"), (images.half(), "float32")):
        with pytest.raises(ValueError, match=message):
            view.apply(batch, None, draws)
    with pytest.raises(ValueError, match="masks must have shape"):
        view.apply(images, masks[:, :4], draws)
    with pytest.raises(ValueError, match="integer class ids"):
        view.apply(images, masks.float(), draws)
