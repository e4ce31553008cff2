"""f-divergences between the predictions on labeled and on unlabeled images.

``D_f(P || Q) = E_Q[f(dP/dQ)]``, f convex on t > 0, f(1) = 0; P is the labeled and Q the unlabeled side. Estimators:

- ``marginal``: P and Q are the mean class probabilities over batch and pixels; closed form.
- ``regional``: the same in each cell of a grid over the image, averaged over the cells; closed form.
- ``variational``: a critic T on every pixel's class probabilities raises ``E_P[T] - E_Q[f*(T)]``, a lower bound of the
  divergence between the distributions of those probabilities (Nguyen, Wainwright and Jordan, arXiv 0809.0853; f-GAN,
  arXiv 1606.00709; f-DAL, arXiv 2106.11344), which by the data-processing inequality is never below the marginal one.

That DiM (arXiv 2411.12350) minimises an f-divergence between labeled and unlabeled predictions is the paper's; these
estimators are our reconstruction, as its formulas were not available.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ESTIMATORS = ("marginal", "regional", "variational")

# A mean probability below one pixel in a million is noise. The floor bounds p/q by 1e6, so that value and gradient of
# every divergence stay finite in float32 however extreme the logits are.
PROBABILITY_FLOOR = 1e-6

# exp(-12) is fifty times float32's spacing at 1: nearer to the end of its domain a conjugate loses its digits.
LOG_RATIO_LIMIT = 6.0

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


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def closed_form(
    f_divergence: FDivergence, log_p: Tensor, log_q: Tensor, probability_floor: float = PROBABILITY_FLOOR
) -> Tensor:
    """Return D_f(P || Q) = Σ_k q_k f(p_k / q_k) of categorical distributions.

    P and Q are first mixed with the uniform distribution, p_k → (1 - Kε) p_k + ε with ε = `probability_floor`. This
    bounds p/q, is smooth, still gives 0 exactly where P = Q, and by joint convexity never raises the divergence. With
    ε = 0 it is the textbook's, infinite or nan where a probability underflows.

    Args:
        f_divergence: Which divergence.
        log_p: (..., K) log-probabilities of P, normalised; -inf is allowed.
        log_q: (..., K) log-probabilities of Q.
        probability_floor: ε, the least probability of a class, in [0, 1/K).

    Returns:
        (...) divergences in nats, 0 where P = Q up to rounding; float32, or float64 where an input is.

    Raises:
        ValueError: If the numbers of classes differ, or `probability_floor` is out of range.

    Examples:
        >>> log_p, log_q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> print(f"{closed_form(F_DIVERGENCES['total_variation'], log_p, log_q).item():.4f}")
        0.2500
    """
    num_labels = log_p.shape[-1]
    if log_q.shape[-1] != num_labels:
        raise ValueError(f"log_p has {num_labels} classes, log_q has {log_q.shape[-1]}; both need the same classes")
    kept = 1 - num_labels * probability_floor
    if not 0 < kept <= 1:
        raise ValueError(f"probability_floor must be in [0, 1/{num_labels}), got {probability_floor}")
    p, q = (kept * _at_least_float32(log).exp() + probability_floor for log in (log_p, log_q))
    return (q * f_divergence.generator(p / q)).sum(-1)


def _check_regional(logits: Tensor, grid_size: int, mask: Tensor | None) -> None:
    shape = tuple(logits.shape)
    if len(shape) < 3:
        raise ValueError(f"logits must have shape (N, K, *S) with a spatial axis or more, got {shape}")
    if not 1 <= grid_size <= min(shape[2:]):
        raise ValueError(f"grid_size must be from 1 to the shortest side of the logits, {shape[2:]}; got {grid_size}")
    pixels = (shape[0], *shape[2:])
    if mask is not None and mask.shape != pixels:
        raise ValueError(f"the logits need a mask of shape {pixels}, got {tuple(mask.shape)}; resize it")


def regional_mass(logits: Tensor, grid_size: int = 1, mask: Tensor | None = None) -> Tensor:
    """Sum the class probabilities over the batch and the pixels of each cell of a grid.

    The result is additive: the masses of micro-batches, or of processes, add up to the mass of the whole batch before
    a divergence is taken of it. A row's sum is the number (with a mask: the weight) of the cell's pixels.

    Args:
        logits: (N, K, *S), any floating type, any number of spatial axes.
        grid_size: G; each spatial axis is cut into G parts whose lengths differ by at most one pixel.
        mask: (N, *S), boolean or non-negative weights; 0 leaves a pixel out.

    Returns:
        (G^len(S), K), cells in row-major order, float32 or float64, ≥ 0.

    Raises:
        ValueError: If a shape or `grid_size` does not fit.

    Examples:
        >>> regional_mass(torch.zeros(3, 2, 4, 6), grid_size=2)[0]
        tensor([9., 9.])
    """
    _check_regional(logits, grid_size, mask)
    probabilities = _at_least_float32(logits).softmax(dim=1)
    if mask is not None:
        probabilities = probabilities * mask.unsqueeze(1).to(probabilities.dtype)
    mass = probabilities.sum(0)
    # Each round takes the first remaining axis away and appends its G parts: (K, H, W) -> (K, W, G) -> (K, G, G).
    for _ in logits.shape[2:]:
        mass = torch.stack([part.sum(1) for part in mass.tensor_split(grid_size, dim=1)], dim=-1)
    return mass.flatten(1).T


def _mass_to_log_probabilities(mass: Tensor) -> Tensor:
    mass = mass + (mass.sum(-1, keepdim=True) == 0)  # an empty cell becomes uniform
    # A class whose mass underflows counts with the smallest normal number, for a finite logarithm and gradient.
    return mass.clamp_min(torch.finfo(mass.dtype).tiny).log() - mass.sum(-1, keepdim=True).log()


def regional_log_probabilities(logits: Tensor, grid_size: int = 1, mask: Tensor | None = None) -> Tensor:
    """Return the log of the mean class probabilities over batch and pixels, in each cell of a grid.

    Arguments and errors are those of `regional_mass`.

    Returns:
        (G^len(S), K) log-probabilities, float32 or float64; uniform where a cell has no pixel left.

    Examples:
        >>> regional_log_probabilities(torch.zeros(2, 4, 8, 8), grid_size=2).exp()[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return _mass_to_log_probabilities(regional_mass(logits, grid_size, mask))


def divergence_between_masses(labeled_mass: Tensor, unlabeled_mass: Tensor, f_divergence: FDivergence) -> Tensor:
    """Average D_f(P || Q) over the cells that hold pixels on both sides; 0 if there is none.

    Args:
        labeled_mass: (cells, K), P, from `regional_mass`.
        unlabeled_mass: (cells, K), Q.
        f_divergence: Which divergence.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> mass = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
        >>> print(f"{divergence_between_masses(mass, mass.flip(1), F_DIVERGENCES['total_variation']).item():.4f}")
        1.0000
    """
    if labeled_mass.shape != unlabeled_mass.shape:
        shapes = f"{tuple(labeled_mass.shape)} and {tuple(unlabeled_mass.shape)}"
        raise ValueError(f"labeled and unlabeled (cells, classes) are {shapes}; both need one grid, classes and axes")
    log_p, log_q = _mass_to_log_probabilities(labeled_mass), _mass_to_log_probabilities(unlabeled_mass)
    filled = (labeled_mass.sum(-1) > 0) & (unlabeled_mass.sum(-1) > 0)
    # A product, not a selection: nan in the logits stays nan in the loss.
    return (closed_form(f_divergence, log_p, log_q) * filled).sum() / filled.sum().clamp_min(1)


def divergence_between(
    labeled_logits: Tensor,
    unlabeled_logits: Tensor,
    f_divergence: FDivergence,
    grid_size: int = 1,
    labeled_mask: Tensor | None = None,
    unlabeled_mask: Tensor | None = None,
) -> Tensor:
    """Return D_f(P || Q), P from labeled and Q from unlabeled logits: the `marginal` and `regional` estimators.

    Args:
        labeled_logits: (N, K, *S).
        unlabeled_logits: (N', K, *S'), as many spatial axes; their sizes may differ.
        f_divergence: Which divergence.
        grid_size: G; 1 is the `marginal` estimator, more the `regional` one.
        labeled_mask: (N, *S), boolean or non-negative weights; 0 leaves a pixel out.
        unlabeled_mask: (N', *S').

    Returns:
        Scalar, float32 or float64: the mean over the cells that hold pixels on both sides, 0 if there is none.

    Raises:
        ValueError: If shapes or `grid_size` do not fit.

    Examples:
        >>> logits = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
        >>> print(f"{divergence_between(logits, -logits, F_DIVERGENCES['total_variation']).item():.4f}")
        0.7616
    """
    mass_p = regional_mass(labeled_logits, grid_size, labeled_mask)
    return divergence_between_masses(mass_p, regional_mass(unlabeled_logits, grid_size, unlabeled_mask), f_divergence)


def _conjugate_of(f_divergence: FDivergence) -> ElementwiseFunction:
    if f_divergence.conjugate is None:
        raise ValueError(
            f"the variational estimator needs a conjugate, which f_divergence {f_divergence.name!r} lacks; choose "
            "another, such as 'kl' or 'jensen_shannon', or the estimator 'marginal' or 'regional'"
        )
    return f_divergence.conjugate


class Critic(nn.Module):
    """Critic T of the variational bound: a small network applied to each pixel's class probabilities.

    Its input is softmax(logits): logits are defined up to a constant only, log-probabilities have no lower bound. Its
    output v estimates log(dP/dQ), is held softly within ± `LOG_RATIO_LIMIT`, and becomes T = f'(exp(v)), the optimal
    critic's form: the activation of f-GAN, Table 2, for reverse KL and Jensen-Shannon, up to a shift for KL, up to the
    scale of v for Neyman χ² and Hellinger. Total variation's step is smoothed as there, to ½ tanh(v).

    Args:
        num_labels: K.
        f_divergence: Which divergence; its conjugate must be known.
        hidden_size: Width of the two hidden layers.
        seed: Of the initial weights, which leave torch's global random state untouched.

    Raises:
        ValueError: If the divergence has no conjugate, or logits of another shape are given.

    Examples:
        >>> critic = Critic(num_labels=3, f_divergence=F_DIVERGENCES["jensen_shannon"])
        >>> critic(torch.zeros(2, 3, 4, 5)).shape, critic(torch.zeros(2, 3, 4, 5, 6)).shape
        (torch.Size([2, 4, 5]), torch.Size([2, 4, 5, 6]))
    """

    def __init__(self, num_labels: int, f_divergence: FDivergence, hidden_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        _conjugate_of(f_divergence)
        self.num_labels = num_labels
        self.f_divergence = f_divergence
        sizes = (num_labels, hidden_size, hidden_size, 1)
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, *pair) for pair in pairwise(sizes))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, logits: Tensor) -> Tensor:
        """Return T (N, *S) of logits (N, K, *S), in the conjugate's domain and the weights' type (autocast or not)."""
        if logits.ndim < 2 or logits.shape[1] != self.num_labels:
            raise ValueError(f"logits must have shape (N, {self.num_labels}, *S), got {tuple(logits.shape)}")
        with torch.autocast(logits.device.type, enabled=False):
            hidden = logits.to(self.layers[0].weight.dtype).softmax(1).movedim(1, -1)
            for layer in self.layers[:-1]:
                hidden = F.silu(layer(hidden))
            log_ratio = LOG_RATIO_LIMIT * torch.tanh(self.layers[-1](hidden).squeeze(-1) / LOG_RATIO_LIMIT)
            activation = self.f_divergence.activation or (lambda v: self.f_divergence.derivative(v.exp()))
            return activation(log_ratio)


def variational_lower_bound(f_divergence: FDivergence, critic_p: Tensor, critic_q: Tensor) -> Tensor:
    """Return E_P[T] - E_Q[f*(T)], a scalar that no T raises above D_f(P || Q) (Nguyen, Wainwright and Jordan).

    T = f'(dP/dQ) reaches it; a poor T may go below 0. The critic is trained to raise, the student to lower it.

    Args:
        f_divergence: Which divergence; its conjugate must be known.
        critic_p: T on samples of P (labeled), in the conjugate's domain; ``critic(logits)[mask]`` leaves pixels out.
        critic_q: T on samples of Q (unlabeled).

    Raises:
        ValueError: If the divergence has no conjugate, or a side has no sample.

    Examples:
        >>> variational_lower_bound(F_DIVERGENCES["pearson_chi2"], torch.zeros(4), torch.zeros(4))
        tensor(0.)
    """
    conjugate = _conjugate_of(f_divergence)
    if not critic_p.numel() or not critic_q.numel():
        raise ValueError("the variational bound needs a pixel or more on both sides; a mask left none")
    return _at_least_float32(critic_p).mean() - conjugate(_at_least_float32(critic_q)).mean()
