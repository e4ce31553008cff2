"""Closed-form estimators: divergences between distributions over the classes, and the class masses behind them."""

import torch
from torch import Tensor

from dim_hf.divergences.generators import FDivergence

# A mean probability below one pixel in a million is noise. The floor bounds p/q by 1e6, so that value and gradient of
# every divergence stay finite in float32 however extreme the logits are.
PROBABILITY_FLOOR = 1e-6


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is in float64."""
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
        >>> from dim_hf.divergences import F_DIVERGENCES
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
    p, q = (kept * at_least_float32(log).exp() + probability_floor for log in (log_p, log_q))
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
    probabilities = at_least_float32(logits).softmax(dim=1)
    if mask is not None:
        probabilities = probabilities * mask.unsqueeze(1).to(probabilities.dtype)
    mass = probabilities.sum(0)
    # Each round takes the first remaining axis away and appends its G parts: (K, H, W) -> (K, W, G) -> (K, G, G).
    for _ in logits.shape[2:]:
        mass = torch.stack([part.sum(1) for part in mass.tensor_split(grid_size, dim=1)], dim=-1)
    return mass.flatten(1).T


def conditional_mass(logits: Tensor) -> Tensor:
    """Sum the class probabilities over batch and pixels, once for each class: weighted by the probability of it.

    Row k is Σ p_k p over all pixels, p_k taken as a weight without gradient: what the network says where it says k.
    A divergence between these rows of labeled and unlabeled images does not see how often a class occurs, which truly
    differs between sites; it asks for predictions that are as sharp, and confused with the same classes. Ours;
    matching given the predicted class is known from domain adaptation (CDAN, arXiv 1705.10667). Additive over
    micro-batches and processes as `regional_mass` is.

    Args:
        logits: (N, K, *S), any floating type, any number of spatial axes.

    Returns:
        (K, K), predicted class by class, float32 or float64, ≥ 0.

    Raises:
        ValueError: If there is no spatial axis.

    Examples:
        >>> conditional_mass(torch.zeros(3, 2, 4, 6))
        tensor([[18., 18.],
                [18., 18.]])
    """
    _check_regional(logits, 1, None)
    probabilities = at_least_float32(logits).softmax(dim=1).transpose(0, 1).flatten(1)
    # Autocast would multiply in half precision: the sums are over all pixels of a batch.
    with torch.autocast(logits.device.type, enabled=False):
        return probabilities.detach() @ probabilities.T


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
        labeled_mass: (cells, K), P, from `regional_mass` or `conditional_mass`.
        unlabeled_mass: (cells, K), Q.
        f_divergence: Which divergence.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> from dim_hf.divergences import F_DIVERGENCES
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
        >>> from dim_hf.divergences import F_DIVERGENCES
        >>> logits = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
        >>> print(f"{divergence_between(logits, -logits, F_DIVERGENCES['total_variation']).item():.4f}")
        0.7616
    """
    mass_p = regional_mass(labeled_logits, grid_size, labeled_mask)
    return divergence_between_masses(mass_p, regional_mass(unlabeled_logits, grid_size, unlabeled_mask), f_divergence)
