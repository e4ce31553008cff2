"""Distances between the borders of one predicted and one reference mask, in 2D or 3D.

Every function takes `(prediction, reference, spacing_mm=None)`, masks and spacing as in `dim_hf.metrics.overlap`;
distances are in mm, and in pixels without a spacing. `surface_metrics` computes all of them at once.

Definitions, those of `medpy.metric.binary` (`hd95`, `hd`, `asd`, `assd`), whose values are reproduced:

- The border of a mask is what an erosion with the cross-shaped neighbourhood (`connectivity=1`) takes away. What lies
  outside the image counts as background, so that a mask cut by the image's edge has a border there.
- d(a, B) is the distance from the centre of border pixel a to the nearest centre of a border pixel of B.
- `hd95` is the 95th percentile of d over both directions *pooled*. surface-distance and MONAI take the percentile in
  each direction and then the larger one, which as a rule is larger.
- `asd` is directed: the mean of d from the prediction's border to the reference's. `assd` is the mean over both
  directions pooled, which is not the mean of the two directed means.
- `nsd` counts border pixels, each with weight one, as MONAI does by default. surface-distance (arXiv 1809.04430)
  weighs them by the area of the surface element that they stand for.

Cropping: all border pixels of both masks lie in the joint bounding box, so the distances inside of it are exact.
Outside of the box there is no foreground, so the border at its edge is the border in the whole image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dim_hf.metrics.empty_masks import EmptyPolicy, get_empty_policy, image_diagonal
from dim_hf.metrics.nearest import Distances, border_distances, margins
from dim_hf.metrics.overlap import Mask, Spacing, as_masks, as_spacing

# Room for rounding when a distance is compared with a tolerance: 3 pixels of 0.1 mm are 0.3 mm.
TOLERANCE_SLACK = 1e-9


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from each border pixel of one mask to the border of the other, in mm (pixels without a spacing).

    Attributes:
        to_reference: (number of border pixels of the prediction,).
        to_prediction: (number of border pixels of the reference,).
    """

    to_reference: Distances
    to_prediction: Distances

    @property
    def pooled(self) -> Distances:
        """Both directions, one after the other."""
        return np.concatenate([self.to_reference, self.to_prediction])


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


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    axes = range(mask.ndim)
    box = []
    for axis in axes:
        # Each axis looks only at what the axes before it have left.
        occupied = np.flatnonzero(mask[tuple(box)].any(axis=tuple(other for other in axes if other != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


@lru_cache(maxsize=256)
def _places(shape: tuple[int, ...], connectivity: int) -> list[int]:
    """How far the neighbours that differ in 1 to `connectivity` axes lie ahead in the flattened image."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    offsets = (offset for offset in product((-1, 0, 1), repeat=len(shape)) if np.count_nonzero(offset) <= connectivity)
    places = (sum(step * stride for step, stride in zip(offset, strides, strict=True)) for offset in offsets)
    return [place for place in places if place > 0]


def border(mask: ArrayLike, connectivity: int = 1) -> Mask:
    """Pixels of a mask that have a neighbour outside of it; beyond the edge of the image all is outside.

    Args:
        mask: (H, W) or (D, H, W), boolean.
        connectivity: number of axes, 1 to all, in which neighbours may differ; 1 is 4 neighbours in 2D and 6 in 3D.

    Returns:
        Boolean array of the same shape.

    Raises:
        ValueError: if `connectivity` is out of range.
    """
    mask = np.asarray(mask, dtype=np.bool_)
    if connectivity not in range(1, mask.ndim + 1):
        raise ValueError(f"connectivity is {connectivity!r}; choose 1 to {mask.ndim} for a {mask.ndim}D mask")
    if min(mask.shape) < 3:
        return mask.copy()
    pixels = mask.ravel()
    inner = pixels.copy()
    for place in _places(mask.shape, connectivity):  # and as far behind
        inner[place:] &= pixels[:-place]
        inner[:-place] &= pixels[place:]
    inner = inner.reshape(mask.shape)
    # At the edge the places lead around it to other lines, and to what lies outside.
    for axis in range(mask.ndim):
        np.moveaxis(inner, axis, 0)[[0, -1]] = False
    return np.greater(mask, inner, out=inner)


@dataclass(frozen=True)
class _Case:
    """Borders of two masks that are not empty, in their joint bounding box with margins."""

    prediction: Mask
    reference: Mask
    spacing: Distances

    @classmethod
    def of(cls, prediction: Mask, reference: Mask, spacing: Distances, connectivity: int) -> "_Case":
        box = _bounding_box(prediction | reference)
        around = margins(spacing)
        shape = [side.stop - side.start + 2 * margin for side, margin in zip(box, around, strict=True)]
        inside = tuple(slice(margin, size - margin) for size, margin in zip(shape, around, strict=True))
        borders = []
        for mask in (prediction, reference):
            framed = np.zeros(shape, np.bool_)
            framed[inside] = mask[box]
            borders.append(border(framed, connectivity))
        return cls(*borders, spacing)

    def to_reference(self) -> Distances:
        return border_distances(self.prediction, self.reference, self.spacing)

    def distances(self) -> SurfaceDistances:
        there = self.to_reference()
        return SurfaceDistances(there, border_distances(self.reference, self.prediction, self.spacing))


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None, *, connectivity: int = 1
) -> SurfaceDistances:
    """Distances from each border pixel of one mask to the border of the other, for both directions.

    Args:
        prediction: predicted mask, (H, W) or (D, H, W), not empty.
        reference: reference mask of the same shape, not empty.
        spacing_mm: size of a pixel in mm.
        connectivity: see `border`.

    Returns:
        The distances in raster order of the border pixels, in mm; in pixels without a spacing.

    Raises:
        ValueError: if a mask is empty, and see `as_masks`, `as_spacing` and `border`.
    """
    prediction, reference = as_masks(prediction, reference)
    spacing = as_spacing(spacing_mm, prediction.ndim)
    for mask, name in ((prediction, "prediction"), (reference, "reference")):
        if not mask.any():
            raise ValueError(f"{name} is empty and has no border; surface_metrics scores it by an empty_policy")
    return _Case.of(prediction, reference, spacing, connectivity).distances()


def _share_within(distances: Distances, tolerance_mm: float | None) -> float | None:
    if tolerance_mm is None:
        return None
    return float(np.count_nonzero(distances <= tolerance_mm * (1 + TOLERANCE_SLACK)) / distances.size)


def _prepare(
    prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None, connectivity: int, policy: EmptyPolicy
) -> tuple[_Case | None, float, bool, bool]:
    """The case, None where a mask is empty; the distance where it is; whether prediction and reference are not."""
    prediction, reference = as_masks(prediction, reference)
    spacing = as_spacing(spacing_mm, prediction.ndim)
    predicted, referenced = bool(prediction.any()), bool(reference.any())
    if predicted and referenced:
        return _Case.of(prediction, reference, spacing, connectivity), 0.0, True, True
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
        connectivity: see `border`; medpy's default is 1.
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


def _one_distance(measure: Callable[[_Case], np.floating], *case: Any, empty_policy: str) -> float:
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
        connectivity: see `border`.
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
        connectivity: see `border`.
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
        connectivity: see `border`.
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
        connectivity: see `border`.
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
        connectivity: see `border`.
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
