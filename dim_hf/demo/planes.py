"""Volumes on a screen: grey values, and slices of the three planes as radiologists view them."""

from collections.abc import Sequence

import numpy as np

from dim_hf.data.volumes.header import require
from dim_hf.data.volumes.volume import Volume, canonical

PLANES = ("axial", "coronal", "sagittal")
EDGES = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}
"""Sides of the patient at the left, right, upper and lower edge of a plane's slices."""

_WINDOW_PERCENTILES = (0.5, 99.5)
_WINDOW_VOXELS = 2**18  # a sample of this size gives the percentiles
_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis of the patient across a plane


def grey_window(array: np.ndarray) -> tuple[float, float]:
    """Values shown as black and as white: nearly the smallest and nearly the largest, so that outliers cost nothing.

    Args:
        array: Any real numbers, finite.
    """
    step = max(1, array.size // _WINDOW_VOXELS)
    # A step that shares no factor with the extents, lest the sample be a few columns of the volume.
    while step > 1 and any(np.gcd(step, extent) > 1 for extent in array.shape):
        step += 1
    sample = array.ravel(order="K")[::step]
    low, high = (float(value) for value in np.percentile(sample, _WINDOW_PERCENTILES))
    return (low, high) if high > low else (low, low + max(1.0, abs(low)))


def as_grey(array: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Values as uint8 from black to white, plane by plane, so that little memory is needed beside the result.

    Args:
        array: (X, Y, Z) or (H, W) real numbers.
        window: From `grey_window`.
    """
    low, high = window
    grey = np.empty(array.shape, np.uint8, order="F")
    for plane in range(array.shape[-1]):
        values = array[..., plane].astype(np.float32)
        grey[..., plane] = (np.clip(values, low, high) - low) * (255 / (high - low)) + 0.5
    return grey


def patient_order(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The array with its axes turned to right, front and head, as nearly as the affine allows; no voxel is copied.

    Args:
        array: (X, Y, Z), as stored.
        affine: (4, 4), voxel index to RAS+ mm.

    Returns:
        (R, A, S), a view.
    """
    return canonical(Volume(array, affine)).array


def patient_spacing(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance in mm of neighboring voxels to the right, front and head, of an array in `patient_order`."""
    order = np.argsort(require("nibabel.orientations").io_orientation(affine)[:, 0])
    right, front, head = np.linalg.norm(affine[:3, :3], axis=0)[order]
    return float(right), float(front), float(head)


def cut(array: np.ndarray, plane: str, position: int) -> np.ndarray:
    """One slice in the radiological view.

    Axial slices show the patient from below (anterior on top, the patient's right on the left), coronal ones from the
    front, sagittal ones with anterior on the left. See `slices.cut_slices`.

    Args:
        array: (R, A, S) in `patient_order`.
        plane: One of `PLANES`.
        position: From 0; counts towards head, front, or the patient's right.

    Returns:
        (H, W), a view.

    Raises:
        ValueError: If there is no such slice.
    """
    axis = _ACROSS[plane]
    if not 0 <= position < array.shape[axis]:
        raise ValueError(f"there is no {plane} slice {position}; choose one of 0..{array.shape[axis] - 1}")
    # Rows fall from head or front, columns from right or front.
    return array[(slice(None),) * axis + (position,)][::-1, ::-1].T


def plane_spacing(spacing_mm: Sequence[float], plane: str) -> tuple[float, float]:
    """Distance of neighboring rows, then of neighboring columns, of the slices of `cut`, in mm.

    Args:
        spacing_mm: From `patient_spacing`.
        plane: One of `PLANES`.

    >>> plane_spacing((1.0, 2.0, 3.0), "sagittal")
    (3.0, 2.0)
    """
    columns, rows = (length for axis, length in enumerate(spacing_mm) if axis != _ACROSS[plane])
    return rows, columns


def slice_count(array: np.ndarray, plane: str) -> int:
    """Number of slices of an array in `patient_order`."""
    return array.shape[_ACROSS[plane]]


def fullest_slice(labels: np.ndarray, plane: str) -> int:
    """Position of the slice with the most voxels of any structure; the middle one where there are none.

    Args:
        labels: (R, A, S) in `patient_order`.
        plane: One of `PLANES`.
    """
    axis = _ACROSS[plane]
    counts = np.count_nonzero(labels, axis=tuple(other for other in range(3) if other != axis))
    return int(counts.argmax()) if counts.any() else labels.shape[axis] // 2
