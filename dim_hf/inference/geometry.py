"""Volumes as networks saw them in training, and their predictions back on the grid of the file, voxel for voxel."""

from collections.abc import Sequence

import numpy as np

from dim_hf.data.volumes.header import require
from dim_hf.data.volumes.slices import cut_slices, stack_slices
from dim_hf.data.volumes.volume import Volume, resample_back


def cut_some(volume: Volume, plane: str, axis: int, start: int, stop: int, dtype: np.dtype) -> list[np.ndarray]:
    """Slices `start` to `stop` in the radiological view of `cut_slices`, without a copy of the others.

    Args:
        volume: The volume.
        plane: One of `slices.PLANES`.
        axis: From `slices.slice_axis` for that plane.
        start: First slice.
        stop: The one after the last.
        dtype: From `slices.slice_dtype`.

    Returns:
        Arrays (H, W).
    """
    # The view depends on the affine, which a part shares with the whole, and on axes of one voxel: a part of one slice
    # is cut across the same axis.
    part = Volume(volume.array[_along(axis, start, stop)], volume.affine)
    return [piece.pixels.astype(dtype, copy=False) for piece in cut_slices(part, plane)]


def place_some(target: np.ndarray, slices: Sequence[np.ndarray], affine: np.ndarray, axis: int, start: int) -> None:
    """Write predicted slices to their places: the inverse of `cut_some`.

    Args:
        target: (X, Y, Z), written to.
        slices: Arrays (H, W) in the view of `cut_slices`, from slice `start` on.
        affine: (4, 4) of the volume.
        axis: As for `cut_some`.
        start: First slice.
    """
    numbered = dict(enumerate(slices))
    part = stack_slices(numbered, slice_axis=axis, affine=affine, num_slices=len(numbered))
    target[_along(axis, start, start + len(numbered))] = part.array


def depth_first(volume: Volume) -> np.ndarray:
    """Voxels as 3D networks are trained: brought to the closest RAS+ orientation, axes reversed to (D, H, W)."""
    orientations = require("nibabel.orientations")
    turned = orientations.apply_orientation(volume.array, orientations.io_orientation(volume.affine))
    return np.ascontiguousarray(turned.T)


def as_stored(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The exact inverse of `depth_first`.

    Args:
        array: (D, H, W).
        affine: (4, 4) of the volume as it is stored.

    Returns:
        (X, Y, Z), axes as stored.
    """
    orientations = require("nibabel.orientations")
    canonical = np.array([(0, 1), (1, 1), (2, 1)])
    back = orientations.ornt_transform(canonical, orientations.io_orientation(affine))
    return np.ascontiguousarray(orientations.apply_orientation(array.T, back))


def classes_on_grid(
    probabilities: np.ndarray, seen: Volume, volume: Volume, dtype: np.dtype | type, *, keep: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes of a volume from the probabilities found on it resampled, class by class for the sake of memory.

    Args:
        probabilities: (K, *S), on the grid of `seen`.
        seen: The resampled volume, from `volume.resample`.
        volume: The volume as it was.
        dtype: Of the labels.
        keep: Return the probabilities, too.

    Returns:
        The most probable class (X, Y, Z) on the grid of `volume`, and the probabilities (K, X, Y, Z) there or None.
    """
    shape = volume.array.shape
    labels, best = np.zeros(shape, dtype, order="F"), np.full(shape, -np.inf, np.float32, order="F")
    kept = np.empty((len(probabilities), *shape), np.float32) if keep else None
    for index, part in enumerate(probabilities):
        found = resample_back(Volume(part, seen.affine), volume).array
        better = found > best
        labels[better], best[better] = index, found[better]
        if kept is not None:
            kept[index] = found
    return labels, kept


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return tuple(slice(start, stop) if number == axis else slice(None) for number in range(3))
