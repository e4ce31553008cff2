import dataclasses
import math

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import scipy.stats
import torch

from dim_hf.augmentations.intensity import FUNDUS_STRONG, MICROSCOPY_STRONG, MRI_STRONG, StrongView
from dim_hf.augmentations.seeds import sample_seeds
from tests.augmentation_samples import SEEDS, SHAPES, assert_share, some_images

STILL = StrongView(gamma_probability=0, contrast_probability=0, brightness_probability=0, blur_probability=0)
EVERYTHING_STRONG = StrongView(
    gamma_probability=1,
    contrast_probability=1,
    brightness_probability=1,
    channel_probability=0.5,
    bias_probability=1,
    blur_probability=1,
    noise_probability=1,
    grey_probability=0.5,
)


@pytest.mark.parametrize("shape", SHAPES)
def test_untouched_images_come_back_bit_for_bit(shape):
    images = some_images(shape)
    kept = images.clone()
    same = STILL.apply(images, STILL.draw(SEEDS, 3, len(shape)))
    assert torch.equal(same, images)
    changed = EVERYTHING_STRONG.apply(images, EVERYTHING_STRONG.draw(SEEDS, 3, len(shape)))
    assert torch.equal(images, kept)
    assert (changed != images).flatten(1).any(1).all()
    half = StrongView(
        gamma_probability=0.2, contrast_probability=0.2, brightness_probability=0.2, blur_probability=0.2
    )
    draws = half.draw(SEEDS, 3, len(shape))
    drawn = (draws.gamma != 1).any(1) | (draws.contrast != 1).any(1) | (draws.brightness != 0).any(1)
    drawn |= draws.blur_sigma > 0
    views = half.apply(images, draws)
    assert 0 < drawn.sum() < 8
    for i in range(8):
        assert torch.equal(views[i], images[i]) != bool(drawn[i])


def test_tone_by_hand():
    images = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 1, 2, 2) * 4 - 2  # -2, -1, 0, 2
    draws = STILL.draw([0], 1)
    draws.gamma[:] = 2.0  # 0, 1/16, 1/4, 1 of the range
    curved = STILL.apply(images, draws)
    torch.testing.assert_close(curved.flatten(), torch.tensor([-2.0, -1.75, -1.0, 2.0]))
    draws = STILL.draw([0], 1)
    draws.contrast[:], draws.brightness[:] = 2.0, 0.25  # twice as far from the mean -0.25, and a quarter of 4 up
    toned = STILL.apply(images, draws)
    torch.testing.assert_close(toned.flatten(), torch.tensor([-2.75, -0.75, 1.25, 5.25]))
    clamped = dataclasses.replace(STILL, clamp=True).apply(images, draws)
    torch.testing.assert_close(clamped.flatten(), torch.tensor([-2.0, -0.75, 1.25, 2.0]))


def test_channels_apart_or_as_one_image():
    images = torch.tensor([[0.0, 1.0], [0.0, 0.5]]).reshape(1, 2, 1, 2)
    draws = STILL.draw([0], 2)
    draws.gamma[:], draws.contrast[:] = 0.5, 0.5
    # As one: curve 0, 1 and 0, √½; contrast about the common mean. Apart: 0, 1 and 0, ½ are kept by the curve.
    one = torch.tensor([[0.0, 1.0], [0.0, math.sqrt(0.5)]])
    torch.testing.assert_close(STILL.apply(images, draws).reshape(2, 2), (one + one.mean()) / 2)
    draws.by_channel[:] = True
    torch.testing.assert_close(STILL.apply(images, draws).reshape(2, 2), torch.tensor([[0.25, 0.75], [0.125, 0.375]]))


def test_saturation_is_that_of_the_whole_image():
    images = torch.tensor([[0.0, 1.0], [0.25, 0.5]]).reshape(1, 2, 1, 2)
    draws = STILL.draw([0], 2)
    view = dataclasses.replace(STILL, clamp=True)
    for shift, expected in ((0.4, [[0.4, 1.0], [0.65, 0.9]]), (-0.4, [[0.0, 0.6], [0.0, 0.1]])):
        draws.brightness[:] = shift
        torch.testing.assert_close(view.apply(images, draws).reshape(2, 2), torch.tensor(expected))


def test_draws_are_shared_between_channels_or_not():
    draws = dataclasses.replace(EVERYTHING_STRONG, channel_probability=0.5).draw(SEEDS, 3)
    for values in (draws.gamma, draws.contrast, draws.brightness):
        assert torch.equal((values != values[:, :1]).any(1), draws.by_channel)
    assert 0 < draws.by_channel.sum() < 8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clamp", [False, True])
def test_views_do_not_depend_on_the_scale_of_intensities(shape, clamp):
    view = dataclasses.replace(EVERYTHING_STRONG, clamp=clamp)
    images = some_images(shape).double()
    draws = view.draw(SEEDS, 3, len(shape))
    torch.testing.assert_close(view.apply(images * 7 - 3, draws), view.apply(images, draws) * 7 - 3)


def test_tone_and_grey_work_pixel_by_pixel():
    view = dataclasses.replace(EVERYTHING_STRONG, bias_probability=0, blur_probability=0, noise_probability=0)
    images = some_images((12, 10)).double()
    draws = view.draw(SEEDS, 3)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    shuffled = images.flatten(2)[:, :, order].reshape(images.shape)
    expected = view.apply(images, draws).flatten(2)[:, :, order].reshape(images.shape)
    torch.testing.assert_close(view.apply(shuffled, draws), expected)


@pytest.mark.parametrize("axes", [(-1, -2, -3), (-1, -2), (-1,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_blur_against_scipy(shape, axes):
    view = dataclasses.replace(STILL, blur_probability=1, blur_sigma=(0.3, 2.0), blur_axes=axes)
    images = some_images(shape, 3)
    draws = view.draw(SEEDS[:3], 3, len(shape))
    blurred = view.apply(images, draws)
    here = [axis for axis in axes if -axis <= len(shape)]
    for i in range(3):
        expected = scipy.ndimage.gaussian_filter(
            images[i].double().numpy(), float(draws.blur_sigma[i]), radius=6, mode="nearest", axes=here
        )
        np.testing.assert_allclose(blurred[i], expected, atol=1e-6)


@pytest.mark.parametrize(("side", "factor"), [(64, 1.0), (128, 2.0), (32, 0.5)])
def test_a_blur_meant_for_a_side_grows_with_the_image(side, factor):
    view = dataclasses.replace(STILL, blur_probability=1, blur_sigma=(0.5, 2.0), blur_side=64)
    images = torch.rand(2, 1, side, side // 2, generator=torch.Generator().manual_seed(0))
    draws = view.draw([3, 4], 1)
    for image, sigma, blurred in zip(images, draws.blur_sigma, view.apply(images, draws), strict=True):
        wanted = scipy.ndimage.gaussian_filter(
            image[0].double().numpy(), factor * float(sigma), radius=int(6 * factor), mode="nearest"
        )
        np.testing.assert_allclose(blurred[0], wanted, atol=1e-6)


def test_noise_has_the_drawn_width_and_hangs_on_the_seed():
    view = dataclasses.replace(STILL, noise_probability=1, noise_std=(0.05, 0.1))
    images = torch.zeros(8, 1, 64, 64)
    images[:, :, 0, 0] = 10.0
    draws = view.draw(SEEDS, 1)
    added = view.apply(images, draws) - images
    widths = added.flatten(1).std(1)
    torch.testing.assert_close(widths, 10 * draws.noise_std.float(), rtol=0.06, atol=0)
    assert torch.equal(view.apply(images, draws) - images, added)
    assert abs(np.corrcoef(added.flatten(1).numpy())[np.triu_indices(8, 1)]).max() < 4.5 / 64


def test_bias_field_is_smooth_and_bounded():
    view = dataclasses.replace(STILL, bias_probability=1, bias_strength=0.3)
    images = torch.ones(8, 2, 32, 32)
    images[:, :, 0, 0] = 0.0
    field = view.apply(images, view.draw(SEEDS, 2))
    assert torch.equal(field[:, 0], field[:, 1])
    inner = field[:, 0, 1:, 1:].log()
    assert inner.abs().max() <= 0.3
    assert (inner.flatten(1).std(1) > 0.01).all()
    assert inner.diff(dim=1).abs().max() < 0.05


def test_grey_is_the_luma_in_every_channel():
    view = dataclasses.replace(STILL, grey_probability=1)
    images = some_images((8, 8)).double()
    grey = view.apply(images, view.draw(SEEDS, 3))
    expected = (images * torch.tensor([0.299, 0.587, 0.114]).double().reshape(3, 1, 1)).sum(1)
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("view", [EVERYTHING_STRONG, FUNDUS_STRONG, MICROSCOPY_STRONG, MRI_STRONG])
@pytest.mark.parametrize("value", [0.0, -1.3, 0.7])
def test_constant_images_stay_finite_and_constant(view, value):
    images = torch.full((8, 3, 16, 16), value)
    torch.testing.assert_close(view.apply(images, view.draw(SEEDS, 3)), images)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_strong_view_is_the_same_alone_and_in_any_batch(shape, layout):
    images = some_images(shape)
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last if len(shape) == 2 else torch.channels_last_3d)
    together = EVERYTHING_STRONG.apply(images, EVERYTHING_STRONG.draw(SEEDS, 3, len(shape)))
    assert together.dtype == torch.float32
    assert together.stride() == images.stride()
    for i, seed in enumerate(SEEDS):
        draws = EVERYTHING_STRONG.draw([seed], 3, len(shape))
        alone = EVERYTHING_STRONG.apply(images[i : i + 1].contiguous(), draws)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=2e-6)


def test_distribution_of_strong_draws():
    view = dataclasses.replace(
        FUNDUS_STRONG,
        bias_probability=0.1,
        noise_probability=0.3,
        channel_probability=0.7,
        gamma_probability=0.4,
        contrast_probability=0.75,
    )
    draws = view.draw(sample_seeds(0, "test", range(2000)), 3)
    shares = {
        0.4: draws.gamma[:, 0] != 1,
        0.75: draws.contrast[:, 0] != 1,
        0.8: draws.brightness[:, 0] != 0,
        0.7: draws.by_channel,
        0.1: draws.bias.flatten(1).ne(0).any(1),
        0.2: draws.grey,
        0.5: draws.blur_sigma > 0,
        0.3: draws.noise_std > 0,
    }
    for probability, drawn in shares.items():
        assert_share(drawn, probability)
    together = np.corrcoef(torch.stack(list(shares.values())).numpy())
    assert np.abs(together[np.triu_indices(8, 1)]).max() < 4.5 / math.sqrt(2000)
    curved = shares[0.4]
    logs = draws.gamma[curved, 0].log2().numpy()
    assert scipy.stats.kstest(logs, "uniform", (-1.0, 2.0)).pvalue > 1e-4
    sigma = draws.blur_sigma[draws.blur_sigma > 0].numpy()
    assert scipy.stats.kstest(sigma, "uniform", (0.1, 1.9)).pvalue > 1e-4
    assert len(draws.noise_seeds.unique()) == 2000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", (0.0, 2.0)),
        ("gamma_probability", -1),
        ("contrast", (-1.0, 1.0)),
        ("brightness", (0.0, math.inf)),
        ("channel_probability", 1.5),
        ("bias_strength", -0.1),
        ("bias_points", 2),
        ("grey_probability", math.nan),
        ("blur_sigma", (-0.1, 2.0)),
        ("blur_axes", (1,)),
        ("blur_side", 0),
        ("noise_std", (0.0, 2.0)),
    ],
)
def test_settings_outside_their_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"StrongView\.{field} "):
        StrongView(**{field: value})


def test_draws_for_images_of_another_kind():
    with pytest.raises(ValueError, match="spatial_dims"):
        StrongView().draw(SEEDS, 3, 4)
    with pytest.raises(ValueError, match=r"grey_probability is 0\.2, .* found 1;"):
        FUNDUS_STRONG.draw(SEEDS, 1)


def test_images_that_do_not_fit_the_draws():
    images = some_images((8, 8))
    view = StrongView()
    draws = view.draw(SEEDS, 3)
    wrong = (
        (images[:3], "8 samples"),
        (images[:, :1], "3 channels"),
        (images[..., None], "spatial"),
        (images.half(), "float32"),
    )
    for batch, message in wrong:
        with pytest.raises(ValueError, match=message):
            view.apply(batch, draws)


def test_inversion_exchanges_bright_and_dark_within_the_range():
    view = StrongView(
        gamma_probability=0, contrast_probability=0, brightness_probability=0, blur_probability=0, invert_probability=1
    )
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 - 1
    draws = view.draw([1, 2, 3, 4], 3)
    inverted = view.apply(images, draws)
    axes = (1, 2, 3)
    assert torch.allclose(inverted.amin(axes), images.amin(axes))
    assert torch.allclose(inverted.amax(axes), images.amax(axes))
    assert torch.allclose(view.apply(inverted, draws), images, atol=1e-6)
    assert not draws.invert.logical_not().any()


def test_inversion_then_gamma_stays_finite_in_float32():
    """Rounding may put an inverted pixel a hair below the minimum, where a power has no value."""
    images = torch.rand(64, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.7 + 0.1
    view = StrongView(gamma_probability=1, invert_probability=1, channel_probability=0.5)
    seeds = list(range(64))
    assert torch.isfinite(view.apply(images, view.draw(seeds, 1))).all()
    assert torch.isfinite(MICROSCOPY_STRONG.apply(images, MICROSCOPY_STRONG.draw(seeds, 1))).all()
