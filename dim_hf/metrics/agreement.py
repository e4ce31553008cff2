"""How far predicted volumes, areas and ratios are from their references."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim_hf.metrics.cases import CaseResult

LIMITS = 1.96  # standard deviations that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Agreement:
    """How far predictions are from their references.

    Attributes:
        cases: number of pairs in which both are defined.
        bias: mean of prediction minus reference; NaN without a pair.
        sd: standard deviation of the differences, with n - 1; NaN for fewer than two pairs.
        lower: lower 95 % limit of agreement, bias - 1.96 sd.
        upper: upper one.
    """

    cases: int
    bias: float
    sd: float
    lower: float
    upper: float


def limits_of_agreement(predictions: ArrayLike, references: ArrayLike) -> Agreement:
    """Mean difference and 95 % limits of agreement.

    After J. M. Bland and D. G. Altman, "Statistical methods for assessing agreement between two methods of clinical
    measurement", Lancet 327 (1986) 307-310. The limits take the differences as normal and the pairs as independent.

    Args:
        predictions: one measurement a case, (N,).
        references: the other one, (N,), in the same unit; pairs with a value that is not finite are left out.

    Returns:
        The agreement, in the unit of the measurements.

    Raises:
        ValueError: if the two differ in length.

    >>> agreement = limits_of_agreement([2.0, 4.0, 6.0], [1.0, 1.0, 1.0])
    >>> agreement.bias, agreement.sd, round(agreement.upper, 2)
    (3.0, 2.0, 6.92)
    """
    predicted, referenced = np.asarray(predictions, float), np.asarray(references, float)
    if predicted.shape != referenced.shape or predicted.ndim != 1:
        raise ValueError(f"predictions and references are {predicted.shape} and {referenced.shape}; pass pairs, (N,)")
    difference = predicted - referenced
    difference = difference[np.isfinite(difference)]
    bias = float(difference.mean()) if difference.size else math.nan
    sd = float(difference.std(ddof=1)) if difference.size > 1 else math.nan
    return Agreement(int(difference.size), bias, sd, bias - LIMITS * sd, bias + LIMITS * sd)


def finite_pairs(pairs: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    """The pairs in which both values are finite.

    Args:
        pairs: prediction and reference; may be none.

    Returns:
        (N, 2).

    >>> finite_pairs([(1.0, 2.0), (float("nan"), 2.0)])
    array([[1., 2.]])
    """
    array = np.array(list(pairs), float).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]


def vertical_extent(mask: ArrayLike) -> int:
    """Rows from the top to the bottom of a mask's largest connected part, so that specks elsewhere do not count.

    Args:
        mask: (H, W) boolean. Pixels that touch by a side or a corner are connected.

    Returns:
        Number of rows; 0 for an empty mask. Of parts of the same size the tallest counts.

    >>> vertical_extent([[1, 0, 0], [0, 0, 1], [0, 0, 1]])
    2
    """
    from scipy.ndimage import find_objects, label

    parts, count = label(np.asarray(mask, bool), structure=np.ones((3, 3)))
    if not count:
        return 0
    sizes = np.bincount(parts.ravel())[1:]
    extents = [rows.stop - rows.start for rows, _ in find_objects(parts)]
    return max(extent for extent, size in zip(extents, sizes, strict=True) if size == sizes.max())


def vertical_ratio(inner: ArrayLike, outer: ArrayLike) -> float | None:
    """Vertical extent of one structure by that of another, such as the vertical cup-to-disc ratio.

    Args:
        inner: (H, W) boolean mask, of the cup.
        outer: (H, W) boolean mask, of the disc (with the cup in it).

    Returns:
        The ratio of their `vertical_extent`, from 0; None where the outer mask is empty.

    >>> vertical_ratio([[0], [1], [0]], [[1], [1], [0]])
    0.5
    """
    height = vertical_extent(outer)
    return vertical_extent(inner) / height if height else None


def volume_unit(unit: str, spatial_dims: int | None) -> tuple[str, float]:
    """How volumes and areas are written: a unit for readers, and the factor that brings `CaseResult`'s to it.

    Args:
        unit: of the distances, "mm" or "px".
        spatial_dims: 2 for areas, 3 for volumes, None where it is not known.

    Returns:
        Unit and factor.

    >>> volume_unit("mm", 3)
    ('mL', 0.001)
    """
    known = {("mm", 2): ("mm²", 1.0), ("mm", 3): ("mL", 1e-3), ("px", 2): ("pixels", 1.0), ("px", 3): ("voxels", 1.0)}
    return known.get((unit, spatial_dims), ("mm² or mm³", 1.0) if unit == "mm" else ("pixels", 1.0))


def volume_pairs(cases: Iterable[CaseResult], structure: str) -> dict[str, list[tuple[float, float]]]:
    """Predicted and reference volumes (or areas) of a structure by domain, without cases where both are empty.

    Where neither mask has the structure there is nothing to measure; such pairs would only narrow the limits.

    Args:
        cases: rows of `score_case`.
        structure: name of the structure.

    Returns:
        Pairs by domain in the unit of the cases; a domain may have none.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if case.structure == structure:
            own = pairs.setdefault(case.domain, [])
            if case.prediction_volume or case.reference_volume:
                own.append((case.prediction_volume, case.reference_volume))
    return pairs
