"""Volumes with their geometry: read, written, turned and resampled."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dim_hf.data.limits import MAX_VOXELS, check_shape
from dim_hf.data.volumes import dicom, itk, nifti
from dim_hf.data.volumes.header import VolumeHeader, check_affine, check_dtype, require

__all__ = [
    "VOLUME_EXTENSIONS",
    "Volume",
    "VolumeHeader",
    "canonical",
    "find_dicom_series",
    "is_volume_file",
    "read_dicom_series",
    "read_header",
    "read_volume",
    "resample",
    "resample_back",
    "same_grid",
    "volume_stem",
    "write_nifti",
]

VOLUME_EXTENSIONS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
_NIFTI_EXTENSIONS = (".nii", ".nii.gz")


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie.

    Attributes:
        array: (X, Y, Z), any real dtype; its axes are in the order of the affine's columns.
        affine: (4, 4) float64, voxel index (i, j, k, 1) to RAS+ mm, as in NIfTI.

    Raises:
        ValueError: If the array has not three axes, is empty or not real, or the affine is no (4, 4) matrix, not
            finite or singular.
    """

    array: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or self.array.size == 0:
            raise ValueError(f"a volume has three axes and at least one voxel, got the shape {self.array.shape}")
        check_dtype(self.array.dtype, "the volume")
        object.__setattr__(self, "affine", check_affine(self.affine, "the volume"))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighboring voxels along each axis of the array, in mm."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Side of the patient that each axis of the array points to most nearly, e.g. "RAS" or "LPI"."""
        return "".join(require("nibabel").aff2axcodes(self.affine))


def volume_stem(path: str | os.PathLike) -> str:
    """Name of a file without its extension, which may be of two parts.

    >>> volume_stem("site/case.nii.gz")
    'case'
    """
    name = Path(path).name
    extension = _extension(path)
    return name[: -len(extension)] if extension else Path(path).stem


def is_volume_file(path: str | os.PathLike) -> bool:
    """Whether the name ends with one of `VOLUME_EXTENSIONS`."""
    return bool(_extension(path))


def read_header(path: str | os.PathLike) -> VolumeHeader:
    """Read the header of a volume file, and no voxel.

    Args:
        path: A file with one of `VOLUME_EXTENSIONS`.

    Raises:
        ValueError: As `read_volume` does, but for the number of voxels and channels.
        ImportError: If the extra `volumes` is not installed.
    """
    path = _existing(path)
    return (nifti.read_nifti_header if _is_nifti(path) else itk.read_itk_header)(path)


def read_volume(path: str | os.PathLike, *, max_voxels: int = MAX_VOXELS, channel: int | None = None) -> Volume:
    """Read a volume file.

    Axes of length 1 after the third are left out, and a 2D image is a volume of one slice. Integers stay integers
    unless the file has a slope or intercept, which is applied and gives floats. A NIfTI file in meters or microns is
    brought to mm. NaN and infinities are kept.

    Args:
        path: A file with one of `VOLUME_EXTENSIONS`. Whether a NIfTI file is packed is seen by its content.
        max_voxels: Largest allowed number of voxels over all channels, checked before anything is allocated.
        channel: Channel or time point that is taken from a file of several.

    Raises:
        ValueError: If the file is missing, damaged, too large or shorter than its header promises, has no real
            numbers, a singular or invalid affine, more than one channel and none is chosen, or if a header names its
            data file outside its own folder.
        ImportError: If the extra `volumes` is not installed.
    """
    path = _existing(path)
    read = nifti.read_nifti if _is_nifti(path) else itk.read_itk
    return Volume(*read(path, channel, max_voxels))


def write_nifti(volume: Volume, path: str | os.PathLike) -> None:
    """Write a volume as NIfTI, the same bytes for the same volume.

    uint8, int8, int16, uint16, int32 and float32 are kept; booleans become uint8, other floats float32, other
    integers int32. The affine is written as sform, and as qform unless it is sheared.

    Args:
        volume: The volume.
        path: Ends with `.nii` or `.nii.gz`.

    Raises:
        ValueError: If the name ends otherwise, an integer does not fit 32 bits, or an extent is beyond 32,767.
        ImportError: If the extra `volumes` is not installed.
    """
    if not _is_nifti(path):
        raise ValueError(f"{path} must end with {' or '.join(_NIFTI_EXTENSIONS)}")
    nifti.write_nifti_file(volume.array, volume.affine, Path(path))


def canonical(volume: Volume) -> Volume:
    """Flip and permute the axes so that they point as closely as possible to right, anterior and superior.

    The affine follows: every voxel stays at its place in the patient, and no value changes.
    """
    orientations = require("nibabel.orientations")
    turn = orientations.io_orientation(volume.affine)
    array = orientations.apply_orientation(volume.array, turn)
    return Volume(array, volume.affine @ orientations.inv_ornt_aff(turn, volume.array.shape))


def same_grid(a: Volume | VolumeHeader, b: Volume | VolumeHeader, tolerance_mm: float = 1e-2) -> str | None:
    """Whether two volumes have their voxels at the same places; channels are ignored.

    Args:
        a: A volume or header.
        b: Another one.
        tolerance_mm: Largest allowed distance of corresponding corners of the two grids.

    Returns:
        None if they have, else a sentence on the difference, without a file's name and without a full stop.
    """
    shapes = _shape(a), _shape(b)
    if shapes[0] != shapes[1]:
        return f"the shapes {shapes[0]} and {shapes[1]} differ"
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*((-0.5, n - 0.5) for n in shapes[0]))])
    offset = float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())
    if offset <= tolerance_mm:
        return None
    return f"the corners of the two grids lie up to {offset:.4g} mm apart (allowed are {tolerance_mm:g} mm)"


def resample(volume: Volume, spacing_mm: Sequence[float], *, is_label: bool) -> Volume:
    """Bring a volume to another spacing.

    The first voxel and the directions of the axes stay, so that an image and its label map remain aligned. The new
    grid holds all voxels whose centers lie within the old one.

    Args:
        volume: The volume.
        spacing_mm: New distance of voxels along each axis of the array, in mm.
        is_label: Take the nearest voxel, so that no value is invented and the dtype stays (booleans become uint8);
            otherwise interpolate linearly, which gives float32.

    Returns:
        The resampled volume; `volume` itself if it has that spacing.

    Raises:
        ValueError: If a spacing is not above 0, or the new volume is too large.
        ImportError: If the extra `volumes` is not installed.
    """
    new = np.array(spacing_mm, dtype=np.float64)
    if new.shape != (3,) or not (np.isfinite(new) & (new > 0)).all():
        raise ValueError(f"spacing_mm is {spacing_mm}; give three distances above 0 mm")
    old = np.array(volume.spacing_mm)
    if np.allclose(old, new, rtol=1e-5, atol=0):
        return volume
    # The small term keeps a center on the old grid's border, where rounding decides, out of the new grid.
    shape = [int(np.floor((n - 0.5) * s - 1e-6)) + 1 for n, s in zip(volume.array.shape, old / new, strict=True)]
    check_shape(shape, MAX_VOXELS, f"the volume at a spacing of {new.tolist()} mm")
    affine = volume.affine.copy()
    affine[:3, :3] *= new / old
    return Volume(_resampled(volume, shape, new / old, is_label), affine)


def resample_back(volume: Volume, grid: Volume) -> Volume:
    """Bring what was found on a resampled volume back to the grid that this was resampled from.

    Args:
        volume: Values on the grid that `resample` gave, such as probabilities.
        grid: The volume that was resampled.

    Returns:
        Values on the voxels of `grid`, interpolated linearly, float32.
    """
    factor = np.array(grid.spacing_mm) / np.array(volume.spacing_mm)
    # The last voxels of `grid` may lie beyond the last resampled ones; there only the value of the border is repeated.
    padded = Volume(np.pad(volume.array, (0, 1), mode="edge"), volume.affine)
    return Volume(_resampled(padded, list(grid.array.shape), factor, is_label=False), grid.affine)


def along_axes(values: Sequence[float], affine: np.ndarray) -> tuple[float, float, float]:
    """Values for left-right, back-front and foot-head in the order of an array's axes.

    Args:
        values: One for each of the patient's axes x, y, z.
        affine: (4, 4) of the array.

    Example:
        >>> along_axes((1.0, 2.0, 3.0), np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]))
        (2.0, 3.0, 1.0)
    """
    axes = require("nibabel.orientations").io_orientation(affine)[:, 0].astype(int)
    first, second, third = (float(values[axis]) for axis in axes)
    return first, second, third


def reoriented(volume: Volume, affine: np.ndarray) -> Volume:
    """The volume stored along the axes of another one: axes are flipped and permuted, no voxel is changed."""
    orientations = require("nibabel.orientations")
    here, there = (orientations.io_orientation(matrix) for matrix in (volume.affine, affine))
    turn = orientations.ornt_transform(here, there)
    moved = volume.affine @ orientations.inv_ornt_aff(turn, volume.array.shape)
    return Volume(np.ascontiguousarray(orientations.apply_orientation(volume.array, turn)), moved)


def _resampled(volume: Volume, shape: list[int], factor: np.ndarray, is_label: bool) -> np.ndarray:
    sitk = require("SimpleITK")
    dtype = volume.array.dtype
    if dtype == np.bool_:
        dtype = np.dtype(np.uint8)
    elif dtype == np.float16:
        dtype = np.dtype(np.float32)
    # In voxels of the old grid, where directions and origin play no part.
    image = sitk.GetImageFromArray(volume.array.T.astype(dtype, copy=False))
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize(shape)
    filter_.SetOutputSpacing(factor.tolist())
    filter_.SetInterpolator(sitk.sitkNearestNeighbor if is_label else sitk.sitkLinear)
    filter_.SetUseNearestNeighborExtrapolator(True)
    filter_.SetOutputPixelType(image.GetPixelID() if is_label else sitk.sitkFloat32)
    return sitk.GetArrayFromImage(filter_.Execute(image)).T


def find_dicom_series(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """Find the DICOM series below a folder; other files are ignored.

    Returns:
        Series instance UID -> its files, sorted along the normal of the slices (by name if they cannot be), sorted
        by UID. A series may be spread over several folders.

    Raises:
        ValueError: If `folder` is no folder, holds too many files, or a link that leads out of it.
        ImportError: If the extra `volumes` is not installed.
    """
    return dicom.find_series(Path(folder))


def read_dicom_series(files: Sequence[str | os.PathLike], *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read the slices of one DICOM series as a volume, rescaled as their slope and intercept say.

    Args:
        files: The files, in any order.
        max_voxels: Largest allowed number of voxels, checked before a pixel is read.

    Returns:
        Array (columns, rows, slices), the slices in ascending order along their normal.

    Raises:
        ValueError: If a file is no DICOM image, holds several frames or color, or lacks its position; if the slices
            are of different series, sizes, spacings or directions, lie at the same place, are unevenly spaced (one
            is missing) or shifted against each other; or if there are too many voxels.
        ImportError: If the extra `volumes` is not installed.
    """
    return Volume(*dicom.read_series([Path(file) for file in files], max_voxels))


def _extension(path: str | os.PathLike) -> str:
    name = Path(path).name.lower()
    return max((end for end in VOLUME_EXTENSIONS if name.endswith(end)), key=len, default="")


def _is_nifti(path: str | os.PathLike) -> bool:
    return _extension(path) in _NIFTI_EXTENSIONS


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not is_volume_file(path):
        raise ValueError(f"{path} is no volume file ({', '.join(VOLUME_EXTENSIONS)}); convert it or correct the path")
    if not path.is_file():
        raise ValueError(f"{path} is missing or no file; correct the path")
    return path


def _shape(volume: Volume | VolumeHeader) -> tuple[int, ...]:
    shape = volume.array.shape if isinstance(volume, Volume) else volume.shape
    return tuple(shape[:3])
