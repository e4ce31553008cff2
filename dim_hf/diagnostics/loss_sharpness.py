"""Sharpness: how much the loss rises in a small ball around the weights, in its worst and in a random direction.

The worst rise is what SAM minimises (arXiv 2010.01412, eq. 1), max over ‖ε‖ ≤ ρ of L(θ + ε) - L(θ). What is found is
a LOWER BOUND of it: the highest of the points tried, which are SAM's own first-order step, projected gradient ascent
that goes on from it, and the random directions. Radii are in the units of the weights, so that numbers compare models
of one architecture trained alike; the adaptive ball (ASAM, arXiv 2102.11600) does not change when a layer is scaled up
and the next one down.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dim_hf.diagnostics.objective import Objective
from dim_hf.sharpness import global_norm

Progress = Callable[[], object]


@dataclass(frozen=True)
class Sharpness:
    """How the loss rises around the weights; rises are differences of losses, so they have no unit.

    Attributes:
        rho: radius ρ of the ball.
        adaptive: whether the ball is ASAM's.
        loss: L(θ).
        sam_rise: L(θ + ε) - L(θ) for SAM's own one-step ε; can be negative where that step overshoots.
        worst_rise: the largest rise found in the ball, ≥ 0: a lower bound of the worst.
        random_mean: mean rise over random directions of length ρ.
        random_sd: its standard deviation over the directions (n - 1).
        ascent_steps: steps of the ascent after SAM's.
        random_directions: how many were drawn.
    """

    rho: float
    adaptive: bool
    loss: float
    sam_rise: float
    worst_rise: float
    random_mean: float
    random_sd: float
    ascent_steps: int
    random_directions: int


@dataclass(frozen=True)
class _Ball:
    """The ball {T u: ‖u‖ ≤ ρ}, with T = 1 (SAM) or T = |θ| + η (ASAM); points are given by u."""

    rho: float
    scales: list[Tensor] | None

    def scaled(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors) if self.scales is None else list(torch._foreach_mul(list(tensors), self.scales))

    def on_sphere(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same direction at length ρ."""
        return list(torch._foreach_mul(list(tensors), self.rho / global_norm(tensors).item()))

    def step(self, point: Sequence[Tensor], slope: Sequence[Tensor], length: float) -> list[Tensor]:
        """Go `length` along `slope`, then back onto the ball if that led out of it."""
        moved = torch._foreach_add(list(point), list(slope), alpha=length / global_norm(slope).item())
        return list(moved) if global_norm(moved) <= self.rho else self.on_sphere(moved)


def random_vector(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Independent standard normal numbers in the shapes of the weights; drawn on the CPU, so equal on every device."""
    return [torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in parameters]


def measure_sharpness(
    objective: Objective,
    rho: float = 0.05,
    *,
    ascent_steps: int = 4,
    random_directions: int = 8,
    adaptive: bool = False,
    eta: float = 0.01,
    seed: int = 0,
    progress: Progress = lambda: None,
) -> Sharpness:
    """Measure the rise of the loss in the ball of radius ρ; the weights are back, bit for bit, afterwards.

    Args:
        objective: the loss.
        rho: radius ρ > 0.
        ascent_steps: steps of projected gradient ascent after SAM's own, each half a radius long; ≥ 0.
        random_directions: directions drawn uniformly, ≥ 2.
        adaptive: ASAM's ball, ρ relative to the weights.
        eta: η > 0 of ASAM.
        seed: of the random directions.
        progress: called once for each random direction and each point of the ascent.

    Raises:
        ValueError: if an argument is out of range, or the loss at the weights is not finite.
    """
    _check_arguments(rho, eta, ascent_steps, random_directions)
    weights = [parameter.detach() for parameter in objective.parameters]
    ball = _Ball(rho, list(torch._foreach_add(torch._foreach_abs(weights), eta)) if adaptive else None)
    loss, gradient = objective.value_and_gradient()
    _check_loss(loss)
    generator = torch.Generator().manual_seed(seed)
    random_rises = []
    for _ in range(random_directions):
        direction = ball.on_sphere(random_vector(weights, generator))
        random_rises.append(objective.value_at(ball.scaled(direction)) - loss)
        progress()
    slope = ball.scaled(gradient)
    # SAM does not move from a point without a slope; the ascent then needs some other direction.
    sloped = bool(global_norm(slope) > 0)
    start = ball.on_sphere(slope if sloped else random_vector(weights, generator))
    rises = [value - loss for value in _ascent(objective, ball, start, ascent_steps, progress)]
    return Sharpness(
        rho=rho,
        adaptive=adaptive,
        loss=loss,
        sam_rise=rises[0] if sloped else 0.0,
        worst_rise=max(0.0, *rises, *random_rises),
        random_mean=statistics.fmean(random_rises),
        random_sd=statistics.stdev(random_rises),
        ascent_steps=ascent_steps,
        random_directions=random_directions,
    )


def _check_arguments(rho: float, eta: float, ascent_steps: int, random_directions: int) -> None:
    if not (rho > 0 and math.isfinite(rho)) or ascent_steps < 0 or random_directions < 2 or not eta > 0:
        raise ValueError(
            "rho and eta must be positive, ascent_steps at least 0 and random_directions at least 2; got "
            f"{rho}, {eta}, {ascent_steps} and {random_directions}"
        )


def _check_loss(loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(f"the loss at the model's weights is {loss}; look at its weights and at the images")


def _ascent(objective: Objective, ball: _Ball, point: list[Tensor], steps: int, progress: Progress) -> list[float]:
    """Losses at the start and after each step of projected gradient ascent."""
    values = []
    for _ in range(steps):
        value, gradient = objective.value_and_gradient_at(ball.scaled(point))
        values.append(value)
        progress()
        slope = ball.scaled(gradient)
        norm = global_norm(slope)
        if not (torch.isfinite(norm) and norm > 0):
            return values
        point = ball.step(point, slope, ball.rho / 2)
    values.append(objective.value_at(ball.scaled(point)))
    progress()
    return values
