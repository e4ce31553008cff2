"""The largest eigenvalue and the trace of the loss's Hessian, from Hessian-vector products alone."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dim_hf.diagnostics.loss_sharpness import random_vector
from dim_hf.diagnostics.objective import Objective
from dim_hf.sharpness import global_norm

Progress = Callable[[], object]


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue found by iteration.

    Attributes:
        value: λ, the Rayleigh quotient vᵀHv of the last unit vector v.
        residual: ‖Hv - λv‖; an eigenvalue lies within this distance of λ, since H is symmetric.
        iterations: Hessian-vector products taken.
        converged: whether λ came to rest; otherwise it is a lower bound of the largest eigenvalue.
    """

    value: float
    residual: float
    iterations: int
    converged: bool


def largest_eigenvalue(
    objective: Objective,
    *,
    tolerance: float = 1e-2,
    max_iterations: int = 30,
    seed: int = 0,
    progress: Progress = lambda: None,
) -> Eigenvalue:
    """Largest (most positive) eigenvalue of the Hessian, by power iteration.

    Power iteration finds the eigenvalue of largest magnitude. If that is a negative one, λ₋, the iteration is repeated
    on H - λ₋ I, whose eigenvalues are all ≥ 0 and whose largest one belongs to the largest of H.

    Args:
        objective: the loss; the Hessian is taken at its weights.
        tolerance: relative change of the value, twice in a row, at which it counts as found, > 0.
        max_iterations: most Hessian-vector products of each of the two iterations, ≥ 1.
        seed: of the first vector.
        progress: called after each product.

    Raises:
        ValueError: if an argument is out of range.
        SecondDerivativeError: if an operation of the model cannot be differentiated twice.
        ArithmeticError: if a product is not finite.
    """
    if not tolerance > 0 or max_iterations < 1:
        raise ValueError(f"tolerance must be > 0 and max_iterations >= 1, got {tolerance} and {max_iterations}")
    first = _power_iteration(objective, 0.0, tolerance, max_iterations, seed, progress)
    if first.value >= 0:
        return first
    second = _power_iteration(objective, first.value, tolerance, max_iterations, seed + 1, progress)
    return Eigenvalue(second.value, second.residual, first.iterations + second.iterations, second.converged)


def _power_iteration(
    objective: Objective, shift: float, tolerance: float, max_iterations: int, seed: int, progress: Progress
) -> Eigenvalue:
    """Power iteration on H - shift I; the result belongs to H itself."""
    vector = _unit(random_vector(objective.parameters, torch.Generator().manual_seed(seed)))
    value, residual, still = math.nan, math.nan, 0
    for iteration in range(1, max_iterations + 1):
        product = objective.hessian_vector_product(vector)
        progress()
        before, value = value, _dot(vector, product)
        residual = global_norm(torch._foreach_add(product, vector, alpha=-value)).item()
        if not math.isfinite(value) or not math.isfinite(residual):
            raise ArithmeticError("a Hessian-vector product is not finite; look at the model's weights and images")
        # One small change may be an accident at the start, where the quotient hardly moves.
        still = still + 1 if abs(value - before) <= tolerance * abs(value - shift) else 0
        moved = torch._foreach_add(product, vector, alpha=-shift)
        if still >= 2 or global_norm(moved) == 0:
            return Eigenvalue(value, residual, iteration, True)
        vector = _unit(moved)
    return Eigenvalue(value, residual, max_iterations, False)


def hessian_trace(
    objective: Objective, *, probes: int = 8, seed: int = 0, progress: Progress = lambda: None
) -> tuple[float, float]:
    """Trace of the Hessian by Hutchinson's estimator, the mean of zᵀHz over z of independent signs.

    Source: Hutchinson, Communications in Statistics 19(2), 1990.

    Args:
        objective: the loss.
        probes: vectors z, ≥ 2.
        seed: of the signs.
        progress: called after each product.

    Returns:
        The estimate and its standard error.

    Raises:
        ValueError: if `probes` is out of range.
        SecondDerivativeError: if an operation of the model cannot be differentiated twice.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(probes):
        signs = [(2.0 * (z >= 0) - 1.0).to(z.dtype) for z in random_vector(objective.parameters, generator)]
        values.append(_dot(signs, objective.hessian_vector_product(signs)))
        progress()
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(probes)


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return math.fsum((a.double() * b.double()).sum().item() for a, b in zip(first, second, strict=True))


def _unit(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(torch._foreach_mul(list(tensors), 1 / global_norm(tensors).item()))
