"""Filters: Gaussian blur, white noise and the loss of color, with a setting for each sample of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dim_hf.augmentations.ranges import column

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int, axes: Sequence[int]) -> Tensor:
    """Blurs each image with its own Gaussian, one axis after the other; the border pixel goes on outside.

    Args:
        images: (N, C, *S).
        sigma: (N,), standard deviations in pixels; 0 leaves an image as it is.
        radius: Pixels to either side at which the kernel ends; the kernel sums to 1.
        axes: Axes to blur, counted from the last.

    Returns:
        (N, C, *S).
    """
    if radius == 0:
        return images
    distance = torch.arange(radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (distance / sigma.double()[:, None].clamp(min=1e-3)) ** 2)
    kernel = kernel / (2.0 * kernel.sum(1, keepdim=True) - 1.0)
    weights = column(kernel, images).unsqueeze(2).unbind(1)
    for axis in axes:
        length = images.shape[axis]
        first = [images.narrow(axis, 0, 1)] * radius
        last = [images.narrow(axis, length - 1, 1)] * radius
        padded = torch.cat([*first, images, *last], axis)
        images = images * weights[0]
        pair = torch.empty_like(images)
        for step in range(1, radius + 1):
            before, after = padded.narrow(axis, radius - step, length), padded.narrow(axis, radius + step, length)
            images += torch.add(before, after, out=pair).mul_(weights[step])
    return images


def noise(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """White Gaussian noise of the images' shape, type and device, from a seed for each image, made on the CPU."""
    shape = images.shape[1:]
    parts = [torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=images.dtype) for seed in seeds]
    return torch.stack(parts).to(images.device)


def to_grey(images: Tensor) -> Tensor:
    """Replaces red, green and blue (N, 3, *S) by their luma, three times over."""
    red, green, blue = images.unbind(1)
    luma = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return luma.unsqueeze(1).expand_as(images)
