"""Volumes cut into slices as radiologists view them, and put together again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dim_hf.data.volumes.header import check_affine, require
from dim_hf.data.volumes.volume import Volume

PLANES = ("axial", "coronal", "sagittal", "auto")
_PLANE_NOTE = "volumes cut into slices, plane: "
_ANISOTROPY = 1.5
# World axis (0: left-right, 1: posterior-anterior, 2: inferior-superior) across a plane.
_WORLD_AXES = {"axial": 2, "coronal": 1, "sagittal": 0}


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of a volume.

    Attributes:
        pixels: (H, W), the dtype of the volume, in the view of `cut_slices`.
        slice_index: Index along the cut axis of the volume's array.
        slice_axis: The cut axis of the volume's array.
        spacing_mm: Distance of neighboring rows, then of neighboring columns.
    """

    pixels: np.ndarray
    slice_index: int
    slice_axis: int
    spacing_mm: tuple[float, float]


def plane_note(plane: str) -> str:
    """What an import notes of the slices that it cut, for `plane_in`."""
    return f"{_PLANE_NOTE}{plane}"


def plane_in(notes: Iterable[str]) -> str | None:
    """The plane of a data set's slices, by the notes of its imports; None where they state none, or several.

    >>> plane_in(["saml: volumes cut into slices, plane: coronal", "msd: volumes cut into slices, plane: coronal"])
    'coronal'
    """
    stated = {note.partition(_PLANE_NOTE)[2] for note in notes if _PLANE_NOTE in note}
    return stated.pop() if len(stated) == 1 and stated <= set(PLANES) else None


def slice_dtype(array: np.ndarray) -> np.dtype:
    """Type in which `dim-hf import --slices` stores the slices of a volume: 8 or 16 bits without loss, or float32.

    The image processor scales by the type, so a slice must come in the one that the training saw.

    Args:
        array: The whole volume, of any real type.
    """
    if array.dtype in (np.uint8, np.bool_):
        return np.dtype(np.uint8)
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max:
        return np.dtype(np.uint16)
    return np.dtype(np.float32)


@dataclass(frozen=True)
class _View:
    """How a slice is shown: which of the array's axes are its rows and columns, and which of them are flipped."""

    row_axis: int
    column_axis: int
    flips: tuple[int, ...]  # of the slice's axes 0 and 1


def slice_axis(volume: Volume, plane: str) -> int:
    """Axis of the volume's array along which the slices of a plane lie.

    Args:
        volume: The volume; of an oblique one the nearest axis is taken.
        plane: One of `PLANES`; "auto" cuts across an axis of one voxel; without one, across that of the coarsest
            spacing if that is at least 1.5 times the finest, and axially otherwise.

    Returns:
        0, 1 or 2.

    Raises:
        ValueError: If the plane is unknown.
    """
    if plane not in PLANES:
        raise ValueError(f"plane is {plane!r}; choose one of {', '.join(PLANES)}")
    world = _world_axes(volume.affine)[0]
    if plane != "auto":
        return world.index(_WORLD_AXES[plane])
    # A single slice is one image: cut along it, it would fall into strips one pixel high.
    choice = [axis for axis in range(3) if volume.array.shape[axis] == 1] or [0, 1, 2]
    spacing = [volume.spacing_mm[axis] for axis in choice]
    # Equal spacings up to rounding: the axis that comes first in `PLANES`, however the volume is stored.
    coarsest = [axis for axis, length in zip(choice, spacing, strict=True) if length >= max(spacing) * (1 - 1e-3)]
    if max(spacing) < _ANISOTROPY * min(spacing) * (1 - 1e-6):
        coarsest = choice
    return max(coarsest, key=lambda axis: world[axis])


def cut_slices(volume: Volume, plane: str) -> list[Slice]:
    """Cut a volume into all slices of a plane, in the radiological view.

    Axial: the first row is anterior and the first column the patient's right. Coronal: the first row is superior
    and the first column the patient's right. Sagittal: the first row is superior and the first column anterior.
    However the volume is stored, the same anatomy gives the same pixels. No value is changed or interpolated; of an
    oblique volume the view is the nearest one.

    Args:
        volume: The volume.
        plane: One of `PLANES`, see `slice_axis`.

    Returns:
        The slices, ascending by index.

    Raises:
        ValueError: If the plane is unknown.
    """
    axis = slice_axis(volume, plane)
    view = _view(volume.affine, axis)
    spacing = (volume.spacing_mm[view.row_axis], volume.spacing_mm[view.column_axis])
    shown = np.flip(volume.array.transpose(axis, view.row_axis, view.column_axis), [flip + 1 for flip in view.flips])
    return [Slice(pixels, index, axis, spacing) for index, pixels in enumerate(np.ascontiguousarray(shown))]


def stack_slices(
    pixels: Mapping[int, np.ndarray], *, slice_axis: int, affine: np.ndarray | Sequence[float], num_slices: int
) -> Volume:
    """Put slices together, the exact inverse of `cut_slices`.

    Args:
        pixels: Slice index -> (H, W) in the view of `cut_slices`; other values, e.g. predictions, may stand at the
            places of the pixels.
        slice_axis: As in the slices.
        affine: (4, 4) of the volume that was cut, or its 16 numbers row by row.
        num_slices: Number of slices of that volume.

    Returns:
        The volume, in the orientation in which it was stored.

    Raises:
        ValueError: If a slice is missing or surplus, shapes or dtypes differ, or the axis or affine is invalid.
    """
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis is {slice_axis}; it is 0, 1 or 2")
    affine = check_affine(np.reshape(affine, (4, 4)) if np.size(affine) == 16 else affine, "the stack of slices")
    _check_complete(pixels, num_slices)
    view = _view(affine, slice_axis)
    shown = np.flip(np.stack([pixels[index] for index in range(num_slices)]), [flip + 1 for flip in view.flips])
    order = (slice_axis, view.row_axis, view.column_axis)
    return Volume(np.ascontiguousarray(shown.transpose(np.argsort(order))), affine)


def _check_complete(pixels: Mapping[int, np.ndarray], num_slices: int) -> None:
    missing = sorted(set(range(num_slices)) - set(pixels))
    surplus = sorted(set(pixels) - set(range(num_slices)))
    if missing or surplus or num_slices < 1:
        raise ValueError(
            f"of {num_slices} slices {len(missing)} are missing {missing[:5]} and {len(surplus)} are surplus "
            f"{surplus[:5]}; give every slice of the volume once"
        )
    kinds = {(np.shape(array), np.asarray(array).dtype.name) for array in pixels.values()}
    if len(kinds) > 1 or len(next(iter(kinds))[0]) != 2:
        raise ValueError(f"the slices must have one shape (H, W) and one dtype, got {sorted(kinds)[:3]}")


def _world_axes(affine: np.ndarray) -> tuple[list[int], list[int]]:
    """World axis and sign (1 or -1) that each axis of the array is nearest to."""
    nearest = require("nibabel.orientations").io_orientation(affine)
    return [int(axis) for axis in nearest[:, 0]], [int(sign) for sign in nearest[:, 1]]


def _view(affine: np.ndarray, axis: int) -> _View:
    world, sign = _world_axes(affine)
    # In all three planes rows run along the later of the two world axes, and both run against it: from anterior or
    # superior to posterior or inferior, and from right or anterior to left or posterior.
    row_axis, column_axis = sorted({0, 1, 2} - {axis}, key=lambda other: -world[other])
    flips = tuple(number for number, other in enumerate((row_axis, column_axis)) if sign[other] > 0)
    return _View(row_axis, column_axis, flips)
