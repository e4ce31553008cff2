"""Overlap and volume of one predicted and one reference mask, in 2D or 3D.

Every function takes `(prediction, reference, spacing_mm=None)`. Masks are boolean arrays of equal shape, (H, W) or
(D, H, W); arrays of other types are accepted as long as they hold only 0 and 1. `spacing_mm` is the size of a pixel
in mm, one number an axis in the order of the array's axes, or one number for all axes; without it every length is in
pixels. The overlap ratios do not depend on it.

Where medpy is defined, the values are those of `medpy.metric.binary` (`dc`, `jc`, `precision`, `recall`, `ravd`).
Two empty masks agree perfectly: Dice and Jaccard are 1 and the volume differences are 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]
Spacing = float | Sequence[float] | NDArray[np.floating]


def _as_mask(mask: ArrayLike, name: str) -> Mask:
    array = np.asarray(mask)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} has shape {array.shape}; pass one case, (H, W) or (D, H, W)")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, which holds no pixels")
    if array.dtype == np.bool_:
        return array
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name} has type {array.dtype}; pass a boolean mask")
    if np.issubdtype(array.dtype, np.unsignedinteger) and array.max() <= 1:
        return array.view(np.bool_) if array.itemsize == 1 else array.astype(np.bool_)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite; pass a boolean mask")
    mask = array != 0
    if not np.array_equal(array, mask):
        found = array[mask & (array != 1)].flat[0]
        raise ValueError(f"{name} holds the value {found}; pass a boolean mask of one structure, such as labels == 1")
    return mask


def as_masks(prediction: ArrayLike, reference: ArrayLike) -> tuple[Mask, Mask]:
    """Checks the two masks of one case and returns them as boolean arrays of equal shape, (H, W) or (D, H, W).

    Args:
        prediction: predicted mask, boolean or of values 0 and 1.
        reference: reference mask of the same shape.

    Returns:
        Both masks as boolean arrays; boolean input is not copied.

    Raises:
        ValueError: if the shapes differ, are not 2D or 3D or hold no pixels, or if a mask is not of 0 and 1.
    """
    prediction, reference = _as_mask(prediction, "prediction"), _as_mask(reference, "reference")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape} and reference {reference.shape}; resample one to the other"
        )
    return prediction, reference


def as_spacing(spacing_mm: Spacing | None, ndim: int) -> NDArray[np.float64]:
    """Checks the pixel spacing and returns it as one number an axis.

    Args:
        spacing_mm: size of a pixel in mm: one number for all axes, or one an axis in array order; None is 1 for each.
        ndim: number of axes, 2 or 3.

    Returns:
        Array of shape (ndim,), float64, positive.

    Raises:
        ValueError: if the number of values is not 1 or `ndim`, or a value is not a positive finite number.
    """
    if spacing_mm is None:
        return np.ones(ndim)
    try:
        spacing = np.asarray(spacing_mm, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"spacing_mm is {spacing_mm!r}; pass {ndim} numbers in mm") from error
    if spacing.ndim == 0:
        spacing = np.full(ndim, spacing)
    if spacing.shape != (ndim,):
        raise ValueError(f"spacing_mm is {spacing_mm!r} for a {ndim}D mask; pass {ndim} numbers in mm, one an axis")
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ValueError(f"spacing_mm is {spacing_mm!r}; every value must be a positive finite number of mm")
    return spacing


def _counts(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None) -> tuple[int, int, int]:
    """Pixels of the checked masks: in both, in the prediction, in the reference."""
    prediction, reference = as_masks(prediction, reference)
    if spacing_mm is not None:
        as_spacing(spacing_mm, prediction.ndim)
    return _count(prediction, reference)


def _count(prediction: Mask, reference: Mask) -> tuple[int, int, int]:
    both = int(np.count_nonzero(prediction & reference))
    return both, int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))


def _dice(both: int, predicted: int, referenced: int) -> float:
    return _ratio(2.0 * both, predicted + referenced, empty=1.0)


def _jaccard(both: int, predicted: int, referenced: int) -> float:
    return _ratio(float(both), predicted + referenced - both, empty=1.0)


def _ratio(numerator: float, denominator: float, empty: float) -> float:
    return numerator / denominator if denominator else empty


@dataclass(frozen=True)
class OverlapMetrics:
    """Overlap and volumes of one case.

    Attributes:
        dice: 2|P ∩ R| / (|P| + |R|), in [0, 1].
        jaccard: |P ∩ R| / |P ∪ R|, in [0, 1].
        precision: |P ∩ R| / |P|, in [0, 1].
        recall: |P ∩ R| / |R|, in [0, 1].
        prediction_volume: |P| in mm³ (3D) or mm² (2D); in pixels without a spacing.
        reference_volume: |R| in the same unit.
        volume_difference: |P| - |R| in the same unit; positive where the prediction is too large.
        relative_volume_difference: (|P| - |R|) / |R|; NaN where only the reference is empty.
        missed: whether the prediction is empty and the reference is not.
        spurious: whether the reference is empty and the prediction is not.
    """

    dice: float
    jaccard: float
    precision: float
    recall: float
    prediction_volume: float
    reference_volume: float
    volume_difference: float
    relative_volume_difference: float
    missed: bool
    spurious: bool


def overlap_metrics(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> OverlapMetrics:
    """All of this module for one case, from one pass over the masks.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: size of a pixel in mm.

    Returns:
        The record.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    prediction, reference = as_masks(prediction, reference)
    pixel = float(as_spacing(spacing_mm, prediction.ndim).prod())
    counts = both, predicted, referenced = _count(prediction, reference)
    return OverlapMetrics(
        dice=_dice(*counts),
        jaccard=_jaccard(*counts),
        precision=_ratio(float(both), predicted, empty=float(referenced == 0)),
        recall=_ratio(float(both), referenced, empty=float(predicted == 0)),
        prediction_volume=predicted * pixel,
        reference_volume=referenced * pixel,
        volume_difference=(predicted - referenced) * pixel,
        relative_volume_difference=_ratio(
            float(predicted - referenced), referenced, empty=float("nan") if predicted else 0.0
        ),
        missed=referenced > 0 and predicted == 0,
        spurious=predicted > 0 and referenced == 0,
    )


def dice(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> float:
    """Dice coefficient 2|P ∩ R| / (|P| + |R|) in [0, 1]; 1 where both masks are empty. medpy: `dc`.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: checked only; the value does not depend on it.

    Returns:
        The coefficient.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.

    >>> dice([[1, 1, 0]], [[0, 1, 1]])
    0.5
    """
    return _dice(*_counts(prediction, reference, spacing_mm))


def jaccard(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> float:
    """Jaccard index |P ∩ R| / |P ∪ R| in [0, 1]; 1 where both masks are empty. medpy: `jc`.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: checked only; the value does not depend on it.

    Returns:
        The index.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    return _jaccard(*_counts(prediction, reference, spacing_mm))


def precision(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> float:
    """Share of the prediction that lies in the reference, |P ∩ R| / |P|, in [0, 1]. medpy: `precision`.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: checked only; the value does not depend on it.

    Returns:
        The share; of an empty prediction 1 where the reference is empty too, else 0.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    return overlap_metrics(prediction, reference, spacing_mm).precision


def recall(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> float:
    """Share of the reference that was found (sensitivity), |P ∩ R| / |R|, in [0, 1]. medpy: `recall`.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: checked only; the value does not depend on it.

    Returns:
        The share; of an empty reference 1 where the prediction is empty too, else 0.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    return overlap_metrics(prediction, reference, spacing_mm).recall


def volume_difference(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> float:
    """Signed |P| - |R|: mm³ in 3D, mm² in 2D, pixels without a spacing; positive where P is too large.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: size of a pixel in mm.

    Returns:
        The difference.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    return overlap_metrics(prediction, reference, spacing_mm).volume_difference


def relative_volume_difference(
    prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None
) -> float:
    """Signed difference of volumes relative to the reference, (|P| - |R|) / |R|, no unit. medpy: `ravd`.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: checked only; the value does not depend on it.

    Returns:
        The ratio, at least -1; of an empty reference 0 where the prediction is empty too, else NaN.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    return overlap_metrics(prediction, reference, spacing_mm).relative_volume_difference


def missed(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> bool:
    """Whether the reference holds the structure and the prediction holds nothing of it.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: checked only; the value does not depend on it.

    Returns:
        True for a missed structure.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    return overlap_metrics(prediction, reference, spacing_mm).missed


def spurious(prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None) -> bool:
    """Whether the prediction holds the structure and the reference holds nothing of it.

    Args:
        prediction: predicted mask P, (H, W) or (D, H, W).
        reference: reference mask R of the same shape.
        spacing_mm: checked only; the value does not depend on it.

    Returns:
        True for a spurious structure.

    Raises:
        ValueError: see `as_masks` and `as_spacing`.
    """
    return overlap_metrics(prediction, reference, spacing_mm).spurious
