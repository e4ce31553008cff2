"""The loss along a line and over a plane through the weights, in filter-normalised random directions.

Source: Li et al., Visualizing the Loss Landscape of Neural Nets, arXiv 1712.09913, section 4: each filter of a random
direction gets the norm of the filter it moves, and biases and normalisation weights stay, so that 1 on the axes means
"as large as the weights" in every layer and pictures of differently scaled networks can be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dim_hf.diagnostics.loss_sharpness import random_vector
from dim_hf.diagnostics.objective import Objective

Progress = Callable[[], object]


@dataclass(frozen=True)
class Landscape:
    """Losses around the weights.

    Attributes:
        seed: of the directions.
        line_at: (n,) positions along the first direction, 0 being the weights.
        line: (n,) losses there.
        plane_at: (m,) positions along either direction; empty where no plane was asked for.
        plane: (m, m) losses; rows go along the second direction, columns along the first.
    """

    seed: int
    line_at: np.ndarray
    line: np.ndarray
    plane_at: np.ndarray
    plane: np.ndarray


def filter_normalized_direction(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction, each slice along a weight's first axis scaled to the norm of that slice of the weight.

    Args:
        parameters: weights. Of a convolution the slices are its filters; of a transposed one those of an input
            channel. Tensors of less than two axes (biases, normalisation) get zero.
        generator: of the normal numbers.

    Returns:
        One tensor for each weight.
    """
    direction = random_vector(parameters, generator)
    return [
        _like_filters(d, p.detach()) if p.dim() > 1 else torch.zeros_like(d)
        for d, p in zip(direction, parameters, strict=True)
    ]


def _like_filters(direction: Tensor, weight: Tensor) -> Tensor:
    norms, wanted = (t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1)) for t in (direction, weight))
    return direction * (wanted / norms.clamp_min(torch.finfo(norms.dtype).tiny))


def explore_landscape(
    objective: Objective,
    *,
    line_points: int = 21,
    plane_points: int = 9,
    extent: float = 0.5,
    seed: int = 0,
    progress: Progress = lambda: None,
) -> Landscape:
    """Take the loss at even positions from -extent to extent; the weights are back, bit for bit, afterwards.

    Models of one architecture are moved by the same normal numbers under one seed.

    Args:
        objective: the loss.
        line_points: positions on the line, odd so that the weights themselves are among them, ≥ 3.
        plane_points: positions on either axis of the plane, odd, ≥ 3, or 0 for no plane.
        extent: largest position, > 0; 1 moves every filter by its own norm.
        seed: of the two directions.
        progress: called after each loss.

    Raises:
        ValueError: if an argument is out of range.
    """
    counts = [line_points] + [plane_points] * (plane_points != 0)
    if not extent > 0 or min(counts) < 3 or not all(count % 2 for count in counts):
        raise ValueError(
            "line_points and plane_points must be odd and at least 3 (plane_points may be 0) and extent positive, "
            f"got {line_points}, {plane_points} and {extent}"
        )
    generator = torch.Generator().manual_seed(seed)
    first, second = (filter_normalized_direction(objective.parameters, generator) for _ in range(2))

    def loss(a: float, b: float) -> float:
        moved = torch._foreach_add(torch._foreach_mul(first, a), second, alpha=b)
        value = objective.value_at(moved)
        progress()
        return value

    line_at = np.linspace(-extent, extent, line_points)
    plane_at = np.linspace(-extent, extent, plane_points)
    line = np.array([loss(a, 0.0) for a in line_at.tolist()])
    plane = [[loss(a, b) for a in plane_at.tolist()] for b in plane_at.tolist()]
    return Landscape(seed, line_at, line, plane_at, np.array(plane).reshape(plane_points, plane_points))
