"""f-divergence between the predictions on the domains' images: what the divergence term of DiM is to bring down.

Each domain is described by the mean class probabilities of its images, over the whole image (`marginal`) or in each
cell of a grid (`regional`), the closed-form estimators of `dim_hf.divergences`. That anatomy differs between hospitals
raises the divergence as a poor model does: it is read against another model's on the same images, and against that
between two halves of one domain, which is what sampling alone makes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dim_hf.diagnostics.objective import resized_logits
from dim_hf.divergences import divergence_between_masses, get_f_divergence, regional_mass

Progress = Callable[[], object]


@dataclass(frozen=True)
class DomainMass:
    """Summed class probabilities of a domain's images, in two halves that share no patient.

    Attributes:
        halves: two (cells, K) masses; the second is zero where there is one patient only.
        images: how many images are in both.
    """

    halves: tuple[Tensor, Tensor]
    images: int

    @property
    def total(self) -> Tensor:
        """(cells, K), of all images."""
        return self.halves[0] + self.halves[1]


@dataclass(frozen=True)
class DomainDivergences:
    """Divergences of one f under one estimator.

    Attributes:
        f_divergence: name of f.
        estimator: "marginal" or "regional".
        domains: the names, in order.
        matrix: D_f(P_row ‖ P_column) in nats, floats ≥ 0, rows and columns in the order of `domains`; 0 on the
            diagonal.
        within: D_f between the two halves of each domain, None where it has one patient only. Each half has half the
            images, so this is more than the noise in the matrix.
        mean: mean of the matrix off its diagonal; None for a single domain.
    """

    f_divergence: str
    estimator: str
    domains: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    within: tuple[float | None, ...]
    mean: float | None


@torch.no_grad()
def domain_mass(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Sequence[int]]],
    grid_size: int,
    progress: Progress = lambda: None,
) -> DomainMass:
    """Sum a model's class probabilities on a domain's images.

    Args:
        model: in evaluation mode.
        batches: `pixel_values` (N, C, *S), on the model's device, and the half, 0 or 1, that each image belongs to.
        grid_size: G, cells along each axis.
        progress: called after each batch.

    Returns:
        The masses, on the CPU. Each image weighs the same, whatever its size.

    Raises:
        ValueError: if there is no image, or `grid_size` does not fit them.
    """
    sums: list[Tensor | None] = [None, None]
    images = 0
    for pixel_values, belongs in batches:
        logits = resized_logits(model, pixel_values, pixel_values.shape[2:])
        for image, half in zip(logits, belongs, strict=True):
            mass = regional_mass(image.unsqueeze(0), grid_size).double().cpu()
            mass = mass / mass.sum()
            before = sums[half]
            sums[half] = mass if before is None else before + mass
        images += len(pixel_values)
        progress()
    found = [mass for mass in sums if mass is not None]
    if not found:
        raise ValueError("there is no image to predict on; give each domain at least one")
    first, second = (torch.zeros_like(found[0]) if mass is None else mass for mass in sums)
    return DomainMass((first, second), images)


def _marginal(mass: Tensor) -> Tensor:
    return mass.sum(0, keepdim=True)


_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"marginal": _marginal, "regional": lambda mass: mass}


def divergences_between_domains(masses: Mapping[str, DomainMass], names: Sequence[str]) -> list[DomainDivergences]:
    """Divergence of each pair of domains, for each f and both estimators.

    Args:
        masses: by domain, from `domain_mass` with one grid.
        names: f-divergences, keys of `dim_hf.divergences.F_DIVERGENCES`.

    Raises:
        ValueError: for an unknown f-divergence, or masses of different grids or classes.
    """
    rows = []
    for name in names:
        f_divergence = get_f_divergence(name)
        for estimator, arrange in _ESTIMATORS.items():

            def between(first: Tensor, second: Tensor, arrange: Callable = arrange, f: object = f_divergence) -> float:
                # Rounding can leave -1e-17 where two are equal.
                return max(0.0, divergence_between_masses(arrange(first), arrange(second), f).item())

            totals = [mass.total for mass in masses.values()]
            matrix = tuple(tuple(0.0 if p is q else between(p, q) for q in totals) for p in totals)
            within = tuple(
                between(*mass.halves) if all(half.sum() > 0 for half in mass.halves) else None
                for mass in masses.values()
            )
            others = len(totals) * (len(totals) - 1)
            mean = sum(map(sum, matrix)) / others if others else None
            rows.append(DomainDivergences(name, estimator, tuple(masses), matrix, within, mean))
    return rows
