"""Ranges: checks of the views' settings, and uniform numbers mapped into them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def check_probability(owner: str, name: str, value: float) -> None:
    """Refuses a probability outside [0, 1].

    Raises:
        ValueError: If it is; the message names the field.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{owner}.{name} is a probability and must lie in [0, 1], found {value!r}")


def check_range(owner: str, name: str, value: tuple[float, float], lowest: float, highest: float) -> None:
    """Refuses a range that is not a pair low <= high within [lowest, highest].

    Raises:
        ValueError: If it is not; the message names the field.
    """
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest or not all(map(math.isfinite, value)):
        raise ValueError(
            f"{owner}.{name} must be a pair (low, high) with {lowest:g} <= low <= high <= {highest:g}, found {value!r}"
        )


def within(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    """Maps numbers in [0, 1) into [low, high), evenly."""
    low, high = limits
    return low + uniform * (high - low)


def within_log(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    """Maps numbers in [0, 1) into [low, high), evenly on the logarithmic scale: halving is as likely as doubling."""
    low, high = limits
    return one_by_one(math.exp, within(uniform, (math.log(low), math.log(high))))


def one_by_one(function: Callable[[float], float], values: Tensor) -> Tensor:
    """Applies a scalar function to a few draws; a vectorised kernel may round by a number's place in the batch."""
    return torch.tensor([function(value) for value in values.flatten().tolist()], dtype=values.dtype).view_as(values)


def where_drawn(gate: Tensor, probability: float, values: Tensor, neutral: float) -> Tensor:
    """Keeps a sample's values (N, ...) where its gate (N, 1) falls below the probability, else the neutral value."""
    drawn = (gate < probability).reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(drawn, values, torch.full_like(values, neutral))


def column(values: Tensor, images: Tensor) -> Tensor:
    """Gives drawn values (N,) or (N, C) the type and device of the images and trailing axes of 1, (N, [C,] 1, ...)."""
    values = values.to(images.dtype).to(images.device)  # in this order: some devices lack float64
    return values.reshape(*values.shape, *[1] * (images.ndim - values.ndim))
