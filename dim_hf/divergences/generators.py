"""The f-divergences: generator f, derivative f' and conjugate f* of each, in one table."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ElementwiseFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """One f-divergence: elementwise functions that keep shape and dtype.

    Attributes:
        name: Key in `F_DIVERGENCES`.
        generator: f(t), t > 0, convex with f(1) = 0.
        derivative: f'(t), a subgradient where f has a kink.
        conjugate: f*(u) = sup over t ≥ 0 of (ut - f(t)); None where it is not elementary.
        conjugate_domain: Open interval (lowest, highest) of u in which f*(u) is finite.
        activation: From a critic's output v, an estimate of log(dP/dQ), into that domain; None stands for f'(exp(v)).
    """

    name: str
    generator: ElementwiseFunction
    derivative: ElementwiseFunction
    conjugate: ElementwiseFunction | None
    conjugate_domain: tuple[float, float]
    activation: ElementwiseFunction | None = None


def alpha_divergence(alpha: float) -> FDivergence:
    """Return the α-divergence, f(t) = (t^α - αt + α - 1) / (α(α - 1)).

    Half of `pearson_chi2` at α = 2, twice `squared_hellinger` at ½, half of `neyman_chi2` at -1; its limits are `kl`
    (α → 1) and `reverse_kl` (α → 0). Swapping P and Q replaces α by 1 - α. The conjugate's base 1 + (α - 1)u must be
    positive: for α < 1 this ends its domain at 1/(1 - α); for α > 1 the supremum for lower u is at t = 0, -1/α.

    Args:
        alpha: Order, -4 ≤ α ≤ 5, not within 0.01 of 0 or 1.

    Raises:
        ValueError: If `alpha` is near 0 or 1, where the formula is 0/0, or so large that (p/q)^α may leave float32.

    Examples:
        >>> alpha_divergence(2.0).generator(torch.tensor([1.0, 3.0]))
        tensor([0., 2.])
    """
    if not -4 <= alpha <= 5 or min(abs(alpha), abs(alpha - 1)) < 0.01:
        raise ValueError(
            f"alpha must be in [-4, 5] and not within 0.01 of 0 or 1, got {alpha}: the formula is 0/0 at these two; "
            "take their limits instead, the f-divergences 'reverse_kl' (alpha = 0) and 'kl' (alpha = 1)"
        )

    def conjugate(u: Tensor) -> Tensor:
        base = (1 + (alpha - 1) * u).clamp_min(torch.finfo(u.dtype).tiny)
        return (base ** (alpha / (alpha - 1)) - 1) / alpha

    return FDivergence(
        "alpha",
        generator=lambda t: (torch.expm1(alpha * t.log()) / alpha - (t - 1)) / (alpha - 1),
        derivative=lambda t: torch.expm1((alpha - 1) * t.log()) / (alpha - 1),
        conjugate=conjugate,
        conjugate_domain=(-math.inf, math.inf if alpha > 1 else 1 / (1 - alpha)),
    )


_REALS, _TO_ONE = (-math.inf, math.inf), (-math.inf, 1.0)
F_DIVERGENCES: dict[str, FDivergence] = {
    row.name: row
    for row in (  # name, f, f', f*, domain of f*
        # t log t
        FDivergence("kl", lambda t: torch.xlogy(t, t), lambda t: 1 + t.log(), lambda u: (u - 1).exp(), _REALS),
        # -log t
        FDivergence("reverse_kl", lambda t: -t.log(), lambda t: -1 / t, lambda u: -1 - (-u).log(), (-math.inf, 0.0)),
        # ½ [t log t - (1 + t) log((1 + t)/2)], so that D ≤ log 2
        FDivergence(
            "jensen_shannon",
            lambda t: (torch.xlogy(t, t) - (1 + t) * ((1 + t) / 2).log()) / 2,
            lambda t: (2 * t / (1 + t)).log() / 2,
            lambda u: -(2 - (2 * u).exp()).log() / 2,
            (-math.inf, math.log(2) / 2),
        ),
        # (t - 1)²; below u = -2 the supremum is at t = 0
        FDivergence(
            "pearson_chi2", lambda t: (t - 1) ** 2, lambda t: 2 * t - 2, lambda u: (u / 2 + 1).relu() ** 2 - 1, _REALS
        ),
        # (1 - t)² / t
        FDivergence(
            "neyman_chi2", lambda t: (1 - t) ** 2 / t, lambda t: 1 - t**-2, lambda u: 2 - 2 * (1 - u).sqrt(), _TO_ONE
        ),
        # (√t - 1)², so that D ≤ 2
        FDivergence(
            "squared_hellinger", lambda t: (t.sqrt() - 1) ** 2, lambda t: 1 - t.rsqrt(), lambda u: u / (1 - u), _TO_ONE
        ),
        # ½ |t - 1|, so that D ≤ 1; below u = -½ the supremum is at t = 0; activation of f-GAN, Table 2
        FDivergence(
            "total_variation",
            lambda t: (t - 1).abs() / 2,
            lambda t: (t - 1).sign() / 2,
            lambda u: u.clamp_min(-0.5),
            (-math.inf, 0.5),
            activation=lambda v: v.tanh() / 2,
        ),
        # (t - 1) log t; the conjugate needs the Lambert W function
        FDivergence("jeffreys", lambda t: (t - 1) * t.log(), lambda t: t.log() + 1 - 1 / t, None, _REALS),
        alpha_divergence(0.5),
    )
}
"""The f-divergences by name: `kl` is KL(P||Q), `reverse_kl` KL(Q||P), `jeffreys` their sum."""


def get_f_divergence(name: str, alpha: float | None = None) -> FDivergence:
    """Return an f-divergence by its name, a key of `F_DIVERGENCES`.

    Args:
        name: Which one.
        alpha: Order of the α-divergence (default 0.5); only with ``name="alpha"``.

    Raises:
        ValueError: If the name is unknown, `alpha` given with another one, or refused by `alpha_divergence`.

    Examples:
        >>> get_f_divergence("pearson_chi2").generator(torch.tensor(3.0))
        tensor(4.)
    """
    if name not in F_DIVERGENCES:
        raise ValueError(f"unknown f_divergence {name!r}; choose one of: {', '.join(F_DIVERGENCES)}")
    if alpha is None:
        return F_DIVERGENCES[name]
    if name != "alpha":
        raise ValueError(f"alpha={alpha} is an argument of f_divergence 'alpha', not of {name!r}; leave it out")
    return alpha_divergence(alpha)
