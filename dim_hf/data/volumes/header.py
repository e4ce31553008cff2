"""What is known of a volume before its voxels are read, and what is refused at once."""

import importlib
import os
from dataclasses import dataclass
from types import ModuleType

import numpy as np


class PlaceError(ValueError):
    """A volume does not say where its voxels lie."""


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """Header of a volume file.

    Attributes:
        shape: (X, Y, Z), or (X, Y, Z, C) for C > 1 channels or time points.
        dtype: Type of the stored values, before a slope of the file is applied.
        affine: (4, 4) float64, voxel index (i, j, k, 1) to RAS+ mm.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray


def require(module: str) -> ModuleType:
    """A module of the extra `volumes`.

    Raises:
        ImportError: With the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"volumes need {module}; install it with: pip install dim-hf[volumes]") from error


def check_affine(affine: np.ndarray, file: str | os.PathLike) -> np.ndarray:
    """The affine as float64 (4, 4), or an error.

    Args:
        affine: (4, 4), voxel index to mm.
        file: Named in the message.

    Raises:
        PlaceError: If it has another shape, is not finite, has a zero spacing or is singular.
    """
    affine = np.array(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise PlaceError(f"{file} has no valid affine ({affine.tolist()}); set its orientation and spacing again")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the directions, since that of the affine also shrinks with the voxels.
    if not (spacing > 0).all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-4:
        raise PlaceError(
            f"{file} has a singular affine (spacing {spacing.tolist()} mm, axes {affine[:3, :3].tolist()}); "
            "set its orientation and spacing again"
        )
    return affine


def check_dtype(dtype: np.dtype, file: str | os.PathLike) -> np.dtype:
    """The dtype in native byte order, or an error.

    Raises:
        ValueError: If it is no boolean, integer or float of at most 64 bits.
    """
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{file} has values of type {dtype}; convert it to one real number a voxel")
    return dtype.newbyteorder("=")


def spatial_shape(shape: tuple[int, ...], file: str | os.PathLike) -> tuple[int, ...]:
    """(X, Y, Z) or (X, Y, Z, C): 2D becomes one slice, axes of length 1 after the third are left out.

    Raises:
        ValueError: If there is another number of axes.
    """
    kept = tuple(shape[:3]) + tuple(extent for extent in shape[3:] if extent != 1)
    if len(kept) == 2:
        kept = (*kept, 1)
    if len(kept) not in (3, 4):
        raise ValueError(f"{file} has the shape {tuple(shape)}; convert it to a volume of 3 axes")
    return kept


def check_channel(shape: tuple[int, ...], channel: int | None, file: str | os.PathLike) -> int:
    """Number of the channel that is read, 0 for a volume of 3 axes.

    Raises:
        ValueError: If the volume has channels and none is chosen, or one that it does not have.
    """
    count = shape[3] if len(shape) == 4 else 1
    if channel is None:
        if count > 1:
            raise ValueError(f"{file} has the shape {shape}: {count} channels or time points; choose one of them")
        return 0
    if not 0 <= channel < count:
        raise ValueError(f"{file} has no channel {channel} (its shape is {shape}); choose one of 0..{count - 1}")
    return channel
