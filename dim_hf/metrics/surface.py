"""Distances between the borders of one predicted and one reference mask, in 2D or 3D.

Every function takes `(prediction, reference, spacing_mm=None)`, masks and spacing as in `dim_hf.metrics.overlap`;
distances are in mm, and in pixels without a spacing. `surface_metrics` computes all of them at once.

Definitions, those of `medpy.metric.binary` (`hd95`, `hd`, `asd`, `assd`), whose values are reproduced:

- The border of a mask is that of `borders.border`; a mask cut by the image's edge has a border there.
- d(a, B) is the distance from the centre of border pixel a to the nearest centre of a border pixel of B.
- `hd95` is the 95th percentile of d over both directions *pooled*. surface-distance and MONAI take the percentile in
  each direction and then the larger one, which as a rule is larger.
- `asd` is directed: the mean of d from the prediction's border to the reference's. `assd` is the mean over both
  directions pooled, which is not the mean of the two directed means.
- `nsd` counts border pixels, each with weight one, as MONAI does by default. surface-distance (arXiv 1809.04430)
  weighs them by the area of the surface element that they stand for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dim_hf.metrics.borders import Borders
from dim_hf.metrics.empty_masks import EmptyPolicy, get_empty_policy, image_diagonal
from dim_hf.metrics.nearest import Distances
from dim_hf.metrics.overlap import Spacing, as_masks, as_spacing

# Room for rounding when a distance is compared with a tolerance: 3 pixels of 0.1 mm are 0.3 mm.
TOLERANCE_SLACK = 1e-9


@dataclass(frozen=True)
class SurfaceMetrics:
    """Border distances of one case, in mm (pixels without a spacing).

    Attributes:
        hd: Hausdorff distance, the largest border distance of either direction.
        hd95: 95th percentile of the border distances of both directions pooled.
        asd: mean border distance from the prediction to the reference (directed).
        assd: mean of the border distances of both directions pooled.
        nsd: share of border pixels within the tolerance, in [0, 1]; None without a tolerance.
        missed: whether the prediction is empty and the reference is not.
        spurious: whether the reference is empty and the prediction is not.
    """

    hd: float
    hd95: float
    asd: float
    assd: float
    nsd: float | None
    missed: bool
    spurious: bool


def _share_within(distances: Distances, tolerance_mm: float | None) -> float | None:
    if tolerance_mm is None:
        return None
    return float(np.count_nonzero(distances <= tolerance_mm * (1 + TOLERANCE_SLACK)) / distances.size)


def _prepare(
    prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None, connectivity: int, policy: EmptyPolicy
) -> tuple[Borders | None, float, bool, bool]:
    """The case, None where a mask is empty; the distance where it is; whether prediction and reference are not."""
    prediction, reference = as_masks(prediction, reference)
    spacing = as_spacing(spacing_mm, prediction.ndim)
    predicted, referenced = bool(prediction.any()), bool(reference.any())
    if predicted and referenced:
        return Borders.of(prediction, reference, spacing, connectivity), 0.0, True, True
    if not predicted and not referenced:
        return None, 0.0, False, False
    distance = image_diagonal(prediction.shape, spacing) if policy.distance is None else policy.distance
    return None, distance, predicted, referenced


def surface_metrics(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Spacing | None = None,
    *,
    tolerance_mm: float | None = None,
    connectivity: int = 1,
    empty_policy: str = "worst",
) -> SurfaceMetrics:
    """All distances of one case from one search in each direction.

    Args:
        prediction: predicted mask, (H, W) or (D, H, W).
        reference: reference mask of the same shape.
        spacing_mm: size of a pixel in mm; None gives all distances in pixels.
        tolerance_mm: tolerance of the NSD, in the unit of the distances, at least 0; None leaves the NSD out.
        connectivity: see `borders.border`; medpy's default is 1.
        empty_policy: a key of `empty_masks.EMPTY_POLICIES`: the distances where exactly one of the masks is empty.

    Returns:
        The record; `missed` and `spurious` tell under every policy whether a mask was empty.

    Raises:
        ValueError: for an unknown policy, a tolerance that is negative or not finite, a connectivity out of range, and
            see `as_masks` and `as_spacing`.

    Two pixels 2 mm apart:

    >>> surface_metrics([[1, 0, 0]], [[0, 0, 1]], spacing_mm=(1.0, 1.0)).hd95
    2.0
    """
    policy = get_empty_policy(empty_policy)
    if tolerance_mm is not None and not 0 <= tolerance_mm < np.inf:
        raise ValueError(f"tolerance_mm is {tolerance_mm!r}; it must be a finite number of mm, at least 0")
    case, distance, predicted, referenced = _prepare(prediction, reference, spacing_mm, connectivity, policy)
    if case is not None:
        found = case.distances()
        pooled = found.pooled
        values = (pooled.max(), np.percentile(pooled, 95), found.to_reference.mean(), pooled.mean())
        share = _share_within(pooled, tolerance_mm)
    else:
        values, share = (distance,) * 4, policy.nsd if predicted or referenced else 1.0
    hd, hd95, asd, assd = (float(value) for value in values)
    nsd = None if tolerance_mm is None else share
    return SurfaceMetrics(hd, hd95, asd, assd, nsd, missed=referenced > predicted, spurious=predicted > referenced)


def _one_distance(measure: Callable[[Borders], np.floating], *case: Any, empty_policy: str) -> float:
    found, distance, *_ = _prepare(*case, get_empty_policy(empty_policy))
    return distance if found is None else float(measure(found))


def hd(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Spacing | None = None,
    *,
    connectivity: int = 1,
    empty_policy: str = "worst",
) -> float:
    """Hausdorff distance: the largest border distance of either direction. medpy: `hd`.

    Args:
        prediction: predicted mask, (H, W) or (D, H, W).
        reference: reference mask of the same shape.
        spacing_mm: size of a pixel in mm.
        connectivity: see `borders.border`.
        empty_policy: a key of `empty_masks.EMPTY_POLICIES`.

    Returns:
        The distance in mm; in pixels without a spacing.

    Raises:
        ValueError: see `surface_metrics`.
    """
    case = (prediction, reference, spacing_mm, connectivity)
    return _one_distance(lambda case: case.distances().pooled.max(), *case, empty_policy=empty_policy)


def hd95(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Spacing | None = None,
    *,
    connectivity: int = 1,
    empty_policy: str = "worst",
) -> float:
    """95th percentile of the border distances of both directions pooled. medpy: `hd95`.

    Args:
        prediction: predicted mask, (H, W) or (D, H, W).
        reference: reference mask of the same shape.
        spacing_mm: size of a pixel in mm.
        connectivity: see `borders.border`.
        empty_policy: a key of `empty_masks.EMPTY_POLICIES`.

    Returns:
        The distance in mm; in pixels without a spacing.

    Raises:
        ValueError: see `surface_metrics`.
    """
    case = (prediction, reference, spacing_mm, connectivity)
    return _one_distance(lambda case: np.percentile(case.distances().pooled, 95), *case, empty_policy=empty_policy)


def asd(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Spacing | None = None,
    *,
    connectivity: int = 1,
    empty_policy: str = "worst",
) -> float:
    """Mean border distance from the prediction to the reference, directed. medpy: `asd`.

    Args:
        prediction: predicted mask, (H, W) or (D, H, W).
        reference: reference mask of the same shape.
        spacing_mm: size of a pixel in mm.
        connectivity: see `borders.border`.
        empty_policy: a key of `empty_masks.EMPTY_POLICIES`.

    Returns:
        The distance in mm; in pixels without a spacing.

    Raises:
        ValueError: see `surface_metrics`.
    """
    case = (prediction, reference, spacing_mm, connectivity)
    return _one_distance(lambda case: case.to_reference().mean(), *case, empty_policy=empty_policy)


def assd(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Spacing | None = None,
    *,
    connectivity: int = 1,
    empty_policy: str = "worst",
) -> float:
    """Mean of the border distances of both directions pooled. medpy: `assd`.

    Args:
        prediction: predicted mask, (H, W) or (D, H, W).
        reference: reference mask of the same shape.
        spacing_mm: size of a pixel in mm.
        connectivity: see `borders.border`.
        empty_policy: a key of `empty_masks.EMPTY_POLICIES`.

    Returns:
        The distance in mm; in pixels without a spacing.

    Raises:
        ValueError: see `surface_metrics`.
    """
    case = (prediction, reference, spacing_mm, connectivity)
    return _one_distance(lambda case: case.distances().pooled.mean(), *case, empty_policy=empty_policy)


def nsd(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Spacing | None = None,
    *,
    tolerance_mm: float,
    connectivity: int = 1,
    empty_policy: str = "worst",
) -> float:
    """Normalised surface distance: share of the border pixels of both masks within the tolerance of the other border.

    (|{a ∈ ∂P: d(a, ∂R) ≤ τ}| + |{b ∈ ∂R: d(b, ∂P) ≤ τ}|) / (|∂P| + |∂R|), after arXiv 1809.04430, with border pixels
    in the place of surface elements. A distance equal to τ up to rounding counts as within.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: size of a pixel in mm.
        tolerance_mm: τ in mm (in pixels without a spacing), at least 0.
        connectivity: see `borders.border`.
        empty_policy: a key of `empty_masks.EMPTY_POLICIES`.

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: see `surface_metrics`.
    """
    if tolerance_mm is None:
        raise ValueError("tolerance_mm is None; pass the tolerance in mm")
    options = {"connectivity": connectivity, "empty_policy": empty_policy, "tolerance_mm": tolerance_mm}
    share = surface_metrics(prediction, reference, spacing_mm, **options).nsd
    assert share is not None
    return share
