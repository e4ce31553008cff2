"""The strong view: changes of intensity only, so labels stay where they are, pixel for pixel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dim_hf.augmentations.fields import MINIMUM_CONTROL_POINTS, smooth_field
from dim_hf.augmentations.filters import gaussian_blur, noise, to_grey
from dim_hf.augmentations.ranges import (
    check_probability,
    check_range,
    column,
    where_drawn,
    within,
    within_log,
)
from dim_hf.augmentations.seeds import uniforms


@dataclass(frozen=True, eq=False)
class StrongDraws:
    """What was drawn for the strong view of N samples with C channels; tensors on the CPU.

    Attributes:
        gamma: (N, C), exponent; 1 changes nothing.
        contrast: (N, C), factor about the mean; 1 changes nothing.
        brightness: (N, C), shift as a fraction of the image's range; 0 changes nothing.
        by_channel: (N,), whether each channel is an image of its own for the three above (its range, its mean).
        bias: (N, *g), logarithm of the bias field at its control points; 0 changes nothing.
        grey: (N,), whether the colors are dropped.
        blur_sigma: (N,), standard deviation of the blur in pixels (of an image of `StrongView.blur_side`); 0: none.
        noise_std: (N,), standard deviation of the noise as a fraction of the image's range; 0 changes nothing.
        noise_seeds: (N,), int64, what the noise is made from.
        invert: (N,), whether bright and dark are exchanged.
    """

    gamma: Tensor
    contrast: Tensor
    brightness: Tensor
    by_channel: Tensor
    bias: Tensor
    grey: Tensor
    blur_sigma: Tensor
    noise_std: Tensor
    noise_seeds: Tensor
    invert: Tensor


@dataclass(frozen=True)
class StrongView:
    """Ranges and probabilities of the strong view, for images of any scale ([0, 1], z-scored, ...).

    In the order of application: inversion, gamma, contrast, brightness, bias field, grey, blur, noise. What depends
    on a scale is relative to the range (maximum - minimum) of the image as it came in.

    Attributes:
        gamma: Range of the exponent applied to the image mapped to [0, 1] by its minimum and maximum; drawn evenly on
            the logarithmic scale, in [0.1, 10].
        gamma_probability: Probability of the change of gamma, in [0, 1].
        contrast: Range of the factor about the mean, in [0, 10].
        contrast_probability: Probability of the change of contrast.
        brightness: Range of the shift, as a fraction of the image's range, in [-1, 1].
        brightness_probability: Probability of the shift.
        channel_probability: Probability that gamma, contrast and brightness are drawn for each channel by itself (a
            camera's color rendering) and not once for all channels. A channel is then treated as an image of its own.
        clamp: Whether gamma, contrast and brightness saturate at the image's old minimum and maximum, as a camera
            does.
        bias_strength: Largest logarithm of the smooth multiplicative field of a magnetic resonance coil, in [0, 2];
            0.3 is a factor of 0.74 to 1.35. The image's minimum is the level that is not scaled.
        bias_points: Control points of the field along each axis, at least 4.
        bias_probability: Probability of the field.
        grey_probability: Probability that the colors are dropped; only for 3 channels.
        blur_sigma: Range of the Gaussian's standard deviation in pixels, in [0, 20].
        blur_side: Longer side, in pixels, of the images that `blur_sigma` is meant for, at least 1: larger ones are
            blurred more in proportion, so that as little is seen at every resolution. None takes `blur_sigma` as it
            is. The side is that of the last two axes.
        blur_axes: Axes that are blurred, counted from the last; those that an image lacks are skipped. Leave out -3
            where slices are thick.
        blur_probability: Probability of the blur.
        noise_std: Range of the white Gaussian noise's standard deviation as a fraction of the range, in [0, 1].
        noise_probability: Probability of the noise.
        invert_probability: Probability that bright and dark are exchanged, as between fluorescence and stained tissue.

    Raises:
        ValueError: If a field is outside its legal values.
    """

    gamma: tuple[float, float] = (0.5, 2.0)
    gamma_probability: float = 0.5
    contrast: tuple[float, float] = (0.5, 1.5)
    contrast_probability: float = 0.5
    brightness: tuple[float, float] = (-0.2, 0.2)
    brightness_probability: float = 0.5
    channel_probability: float = 0.0
    clamp: bool = False
    bias_strength: float = 0.3
    bias_points: int = 4
    bias_probability: float = 0.0
    grey_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_side: int | None = None
    blur_axes: tuple[int, ...] = (-1, -2, -3)
    blur_probability: float = 0.5
    noise_std: tuple[float, float] = (0.0, 0.1)
    noise_probability: float = 0.0
    invert_probability: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.endswith("_probability"):
                check_probability("StrongView", field.name, getattr(self, field.name))
        check_range("StrongView", "gamma", self.gamma, 0.1, 10.0)
        check_range("StrongView", "contrast", self.contrast, 0.0, 10.0)
        check_range("StrongView", "brightness", self.brightness, -1.0, 1.0)
        check_range("StrongView", "blur_sigma", self.blur_sigma, 0.0, 20.0)
        check_range("StrongView", "noise_std", self.noise_std, 0.0, 1.0)
        if not 0.0 <= self.bias_strength <= 2.0:
            raise ValueError(f"StrongView.bias_strength must lie in [0, 2], found {self.bias_strength!r}")
        if self.bias_points < MINIMUM_CONTROL_POINTS:
            raise ValueError(f"StrongView.bias_points must be at least 4, found {self.bias_points!r}")
        if self.blur_side is not None and not 1 <= self.blur_side < math.inf:
            raise ValueError(f"StrongView.blur_side must be None or at least 1 pixel, found {self.blur_side!r}")
        if len(set(self.blur_axes)) != len(self.blur_axes) or not set(self.blur_axes) <= {-1, -2, -3}:
            raise ValueError(f"StrongView.blur_axes must be different axes among -1, -2, -3, found {self.blur_axes!r}")

    def draw(self, seeds: Sequence[int], channels: int, spatial_dims: int = 2) -> StrongDraws:
        """Draws the strong view of each sample from its seed alone.

        Args:
            seeds: One seed for each of the N samples, see `sample_seeds`.
            channels: Channels C of the images.
            spatial_dims: 2 for images, 3 for volumes.

        Returns:
            The draws, on the CPU.

        Raises:
            ValueError: If `spatial_dims` is neither 2 nor 3, or colors are to be dropped of images without.
        """
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims!r}")
        if self.grey_probability > 0 and channels != 3:
            raise ValueError(
                f"StrongView.grey_probability is {self.grey_probability!r}, but only images of 3 channels have colors "
                f"to drop, found {channels}; set it to 0"
            )
        grid = [self.bias_points] * spatial_dims
        gates, widths, seeded, gamma, contrast, brightness, bias, invert = uniforms(
            seeds, "strong view", 8, 2, 1, channels, channels, channels, math.prod(grid), 1
        )
        one, two, three, four, five, six, seven, eight = gates.split(1, dim=1)
        by_channel = one < self.channel_probability
        # Channels that share their draws take those of the first.
        gamma, contrast, brightness = (
            torch.where(by_channel, values, values[:, :1]) for values in (gamma, contrast, brightness)
        )
        bias = within(bias, (-self.bias_strength, self.bias_strength)).unflatten(1, grid)
        sigma, std = within(widths[:, 0], self.blur_sigma), within(widths[:, 1], self.noise_std)
        return StrongDraws(
            gamma=where_drawn(two, self.gamma_probability, within_log(gamma, self.gamma), 1.0),
            contrast=where_drawn(three, self.contrast_probability, within(contrast, self.contrast), 1.0),
            brightness=where_drawn(four, self.brightness_probability, within(brightness, self.brightness), 0.0),
            by_channel=by_channel[:, 0],
            bias=where_drawn(five, self.bias_probability, bias, 0.0),
            grey=six[:, 0] < self.grey_probability,
            blur_sigma=where_drawn(seven, self.blur_probability, sigma, 0.0),
            noise_std=where_drawn(eight, self.noise_probability, std, 0.0),
            noise_seeds=(seeded[:, 0] * 2.0**53).long(),
            invert=invert[:, 0] < self.invert_probability,
        )

    def apply(self, images: Tensor, draws: StrongDraws) -> Tensor:
        """Changes the intensities of a batch; images that a step does not touch pass through it bit for bit.

        A sample's result does not depend on the rest of the batch, up to the rounding of the last digit. Constant
        images stay finite.

        Args:
            images: (N, C, *S), float32 or float64, any scale.
            draws: The draws of these N samples.

        Returns:
            New images of the same shape, type and memory format.

        Raises:
            ValueError: If shapes or types do not fit.
        """
        _check(images, draws)
        changed = _invert(images, draws.invert)
        low, high = _extent(changed)
        steps = (
            ((draws.gamma != 1).any(1), _gamma),
            ((draws.contrast != 1).any(1) | (draws.brightness != 0).any(1), self._contrast_and_brightness),
            (draws.bias.flatten(1).ne(0).any(1), _bias),
            (draws.grey, _grey),
            (draws.blur_sigma > 0, self._blur),
            (draws.noise_std > 0, _noise),
        )
        for touched, step in steps:
            samples = touched.nonzero()[:, 0]
            if len(samples):
                index = samples.to(images.device)
                part = step(changed.index_select(0, index), draws, samples, low[index], high[index])
                changed.index_copy_(0, index, part)
        return changed

    def _contrast_and_brightness(
        self, images: Tensor, draws: StrongDraws, samples: Tensor, low: Tensor, high: Tensor
    ) -> Tensor:
        by_channel = column(draws.by_channel[samples], images) > 0
        # In float64 the order of the summation, which varies with the size of the batch, is lost in the rounding.
        # Apple's devices have no float64.
        precise = images.dtype if images.device.type == "mps" else torch.float64
        means = images.mean(tuple(range(2, images.ndim)), keepdim=True, dtype=precise)
        means = torch.where(by_channel, means, means.mean(1, keepdim=True)).to(images.dtype)
        factor = column(draws.contrast[samples], images)
        _, extent = _base_and_extent(low, high, by_channel)
        offset = means * (1.0 - factor) + column(draws.brightness[samples], images) * extent
        images = images.mul_(factor).add_(offset)
        if self.clamp:  # four times as fast as clamp_ with tensors
            torch.maximum(images, low.amin(1, keepdim=True), out=images)
            torch.minimum(images, high.amax(1, keepdim=True), out=images)
        return images

    def _blur(self, images: Tensor, draws: StrongDraws, samples: Tensor, _low: Tensor, _high: Tensor) -> Tensor:
        # One radius for whatever was drawn, so a sample's blur does not depend on the widest one of its batch.
        axes = tuple(axis for axis in self.blur_axes if -axis <= images.ndim - 2)
        scale = max(images.shape[-2:]) / self.blur_side if self.blur_side else 1.0
        return gaussian_blur(
            images, scale * draws.blur_sigma[samples], math.ceil(3.0 * scale * self.blur_sigma[1]), axes
        )


def _check(images: Tensor, draws: StrongDraws) -> None:
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64, found {images.dtype}; convert them first")
    count, channels = draws.gamma.shape
    spatial_dims = draws.bias.ndim - 1
    if images.ndim != spatial_dims + 2 or images.shape[:2] != (count, channels):
        raise ValueError(
            f"images of shape {tuple(images.shape)} do not fit draws of {count} samples with {channels} channels and "
            f"{spatial_dims} spatial axes; expected (N, C, *S)"
        )


def _extent(images: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each channel, (N, C, 1, ...)."""
    axes = tuple(range(2, images.ndim))
    return images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)


def _base_and_extent(low: Tensor, high: Tensor, by_channel: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and range of what is treated as one image: each channel, or all of them together; (N, C, 1, ...)."""
    low = torch.where(by_channel, low, low.amin(1, keepdim=True))
    high = torch.where(by_channel, high, high.amax(1, keepdim=True))
    return low, high - low


def _invert(images: Tensor, invert: Tensor) -> Tensor:
    """A copy in which the chosen images are mirrored at the middle of their range; colors become complements."""
    changed = images.clone()
    index = invert.nonzero()[:, 0].to(images.device)
    if len(index):
        part = images.index_select(0, index)
        low, high = _extent(part)
        changed.index_copy_(0, index, low.amin(1, keepdim=True) + high.amax(1, keepdim=True) - part)
    return changed


def _gamma(images: Tensor, draws: StrongDraws, samples: Tensor, low: Tensor, high: Tensor) -> Tensor:
    base, extent = _base_and_extent(low, high, column(draws.by_channel[samples], images) > 0)
    safe = torch.where(extent > 0, extent, torch.ones_like(extent))
    # x^γ = exp(γ log x): twice as fast as a power on a processor, and 0^γ = exp(-inf) = 0 as it should be.
    unit = images.sub_(base).div_(safe)
    return unit.log_().mul_(column(draws.gamma[samples], images)).exp_().mul_(extent).add_(base)


def _bias(images: Tensor, draws: StrongDraws, samples: Tensor, low: Tensor, _high: Tensor) -> Tensor:
    base = low.amin(1, keepdim=True)
    field = smooth_field(draws.bias[samples], images.shape[2:], images).exp_().unsqueeze(1)
    return images.sub_(base).mul_(field).add_(base)


def _grey(images: Tensor, _draws: StrongDraws, _samples: Tensor, _low: Tensor, _high: Tensor) -> Tensor:
    return to_grey(images)


def _noise(images: Tensor, draws: StrongDraws, samples: Tensor, low: Tensor, high: Tensor) -> Tensor:
    extent = high.amax(1, keepdim=True) - low.amin(1, keepdim=True)
    scale = column(draws.noise_std[samples], images) * extent
    return images.add_(noise(images, draws.noise_seeds[samples].tolist()).mul_(scale))


FUNDUS_STRONG = StrongView(
    gamma_probability=0.5,
    contrast_probability=0.8,
    brightness_probability=0.8,
    channel_probability=0.8,
    clamp=True,
    grey_probability=0.2,
    blur_side=64,
)
"""Color photographs of several cameras: color rendering by channel, saturation, blur up to 1/32 of the side."""

MRI_STRONG = StrongView(
    contrast=(0.1, 2.0),
    contrast_probability=0.8,
    brightness=(-0.3, 0.3),
    brightness_probability=0.8,
    bias_probability=0.5,
    noise_std=(0.0, 0.05),
    noise_probability=0.2,
)
"""Magnetic resonance of several scanners: contrast x0.1-2 as in the benchmark (MiDSS), bias field, blur, noise."""

MICROSCOPY_STRONG = StrongView(
    contrast_probability=0.8,
    brightness_probability=0.8,
    noise_std=(0.0, 0.05),
    noise_probability=0.2,
    invert_probability=0.5,
)
"""Microscopes and stains: nuclei are bright on dark in fluorescence, dark on bright in stained tissue."""
