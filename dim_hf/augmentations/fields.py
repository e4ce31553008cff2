"""Fields: smooth functions over an image from a coarse grid of control points, in 2D and 3D alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

MINIMUM_CONTROL_POINTS = 4


def cubic_basis(length: int, points: int) -> Tensor:
    """Evaluates the uniform cubic B-splines of `points` control points at the centers of `length` pixels.

    Returns:
        (length, points), float64. Rows are non-negative and sum to 1, so a field never leaves the range of its
        control values.
    """
    position = (torch.arange(length, dtype=torch.float64) + 0.5) * ((points - 3) / length)
    distance = (position[:, None] + 1.0 - torch.arange(points, dtype=torch.float64)).abs()
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = (2.0 - distance).clamp(min=0.0) ** 3 / 6.0
    return torch.where(distance < 1.0, near, far)


def smooth_field(control: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    """Interpolates control points by uniform cubic B-splines, one axis after the other.

    Args:
        control: (N, *g), values of the g >= 4 control points along each axis, float64.
        shape: Spatial shape S of the field.
        like: A tensor of the type and on the device that the field shall have.

    Returns:
        (N, *S).
    """
    assert control.ndim == len(shape) + 1
    # In float64, where the device has it: the order of a matrix product's sums varies with the size of the batch, and
    # that is lost in the rounding to float32.
    precise = like.dtype if like.device.type == "mps" else torch.float64
    field = control.to(precise).to(like.device)
    for length in shape:
        basis = cubic_basis(length, field.shape[1]).to(precise).to(like.device)
        # Each product takes the first spatial axis away and appends it at the end, now of full length.
        field = torch.tensordot(field, basis, dims=([1], [1]))
    return field.to(like.dtype)
