"""Series of DICOM slices, read by SimpleITK (GDCM) after their geometry was checked."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.data.archives import walk
from dim_hf.data.limits import READING, check_shape
from dim_hf.data.volumes.header import check_affine, check_dtype, require
from dim_hf.data.volumes.itk import LPS_TO_RAS
from dim_hf.data.volumes.locales import kept_locale

_FRAMES, _SAMPLES, _SERIES = "0028|0008", "0028|0002", "0020|000e"
_SLICE_DISTANCE, _THICKNESS = "0018|0088", "0018|0050"
_POSITION, _DIRECTIONS = "0020|0032", "0020|0037"
_MOST_BYTES = 4  # of a rescaled voxel
_TOLERANCE = 0.02  # of the distance of two slices


@dataclass(frozen=True)
class _SliceFile:
    path: Path
    series: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]  # of neighbors along a row, along a column
    thickness: float
    position: np.ndarray  # LPS mm
    directions: np.ndarray  # (2, 3): along a row, along a column
    pixel_id: int

    @property
    def normal(self) -> np.ndarray:
        normal = np.cross(*self.directions)
        return normal / max(float(np.linalg.norm(normal)), 1e-12)


@kept_locale()
def find_series(folder: Path) -> dict[str, list[Path]]:
    """See `volumes.find_dicom_series`."""
    sitk = require("SimpleITK")
    reader = sitk.ImageSeriesReader
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it warns of every folder without DICOM files
    found: dict[str, list[Path]] = {}
    for directory in sorted({path.parent for path in walk(folder)}):
        for uid in reader.GetGDCMSeriesIDs(str(directory)):
            names = reader.GetGDCMSeriesFileNames(str(directory), uid)
            found.setdefault(uid, []).extend(Path(name) for name in names)
    return {uid: _in_slice_order(found[uid]) for uid in sorted(found)}


@kept_locale()
def read_series(files: Sequence[Path], max_voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """See `volumes.read_dicom_series`; gives voxels (X, Y, Z) and affine (4, 4)."""
    sitk = require("SimpleITK")
    if not files:
        raise ValueError("a DICOM series needs at least one file; give its files")
    slices = _sorted([_read_slice(Path(file)) for file in files])
    first = slices[0]
    _check_alike(slices)
    check_shape((*first.size[:2], len(slices)), max_voxels, first.path)
    READING.charge(math.prod(first.size[:2]) * len(slices) * _MOST_BYTES)
    step = _step(slices)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(part.path) for part in slices])
    if len({part.pixel_id for part in slices}) > 1:
        # Else the type of the first slice would cut off what the rescaling of another one needs.
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise ValueError(f"{first.path.parent}: a slice of the series cannot be decoded; copy it again") from error
    check_dtype(array.dtype, first.path)
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[0]
    affine[:3, 1] = first.directions[1] * first.spacing[1]
    affine[:3, 2] = first.normal * step
    affine[:3, 3] = first.position
    return array.T, check_affine(LPS_TO_RAS @ affine, first.path)


def _read_slice(path: Path) -> _SliceFile:
    sitk = require("SimpleITK")
    if not path.is_file():
        raise ValueError(f"{path} is missing or no file; correct the path")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path} is no DICOM image that can be read; copy it again or remove it") from error
    tags = {key: reader.GetMetaData(key).strip(" \0") for key in reader.GetMetaDataKeys()}
    size = reader.GetSize()
    if int(tags.get(_FRAMES) or 1) > 1 or math.prod(size[2:]) > 1:
        raise ValueError(f"{path} holds several frames; convert it to NIfTI first, e.g. with dcm2niix")
    if int(tags.get(_SAMPLES) or 1) > 1 or reader.GetNumberOfComponents() > 1:
        raise ValueError(f"{path} is a color image; choose a series of grey slices")
    position, directions = _numbers(tags, _POSITION, 3, path), _numbers(tags, _DIRECTIONS, 6, path)
    return _SliceFile(
        path,
        tags.get(_SERIES, ""),
        size[:2],
        reader.GetSpacing()[:2],
        _thickness(tags),
        position,
        directions.reshape(2, 3),
        reader.GetPixelID(),
    )


def _numbers(tags: dict[str, str], tag: str, count: int, path: Path) -> np.ndarray:
    try:
        numbers = np.array([float(part) for part in tags[tag].split("\\")])
    except (KeyError, ValueError):
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(
            f"{path} has no valid tag ({tag.replace('|', ',')}) ({tags.get(tag)!r}), so its place is unknown; "
            "export the series again"
        )
    return numbers


def _thickness(tags: dict[str, str]) -> float:
    """Of a single slice in mm; 1 if it is not stated."""
    for tag in (_THICKNESS, _SLICE_DISTANCE):
        try:
            thickness = float(tags.get(tag, ""))
        except ValueError:
            continue
        if math.isfinite(thickness) and thickness > 0:
            return thickness
    return 1.0


def _in_slice_order(paths: list[Path]) -> list[Path]:
    try:
        return [part.path for part in _sorted([_read_slice(path) for path in sorted(paths)])]
    except ValueError:
        # What is wrong is said when the series is read; others in the folder may be in order.
        return sorted(paths)


def _sorted(slices: list[_SliceFile]) -> list[_SliceFile]:
    normal = slices[0].normal
    return sorted(slices, key=lambda part: (float(part.position @ normal), str(part.path)))


def _check_alike(slices: list[_SliceFile]) -> None:
    first = slices[0]
    for part in slices[1:]:
        pairs: tuple[tuple[str, Any, Any], ...] = (
            ("series", part.series, first.series),
            ("size", part.size, first.size),
            ("pixel spacing", part.spacing, first.spacing),
            ("direction", part.directions.ravel().tolist(), first.directions.ravel().tolist()),
        )
        for name, here, there in pairs:
            same = here == there if name in ("series", "size") else np.allclose(here, there, rtol=0, atol=1e-3)
            if not same:
                raise ValueError(
                    f"{part.path} has the {name} {here}, but {first.path} has {there}; give the slices of one series"
                )


def _step(slices: list[_SliceFile]) -> float:
    """Distance of neighboring slices in mm; the slices are sorted."""
    first = slices[0]
    if len(slices) == 1:
        return first.thickness
    places = [part.position @ first.normal for part in slices]
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    tolerance = max(_TOLERANCE * usual, 1e-2)
    for (before, after), gap in zip(itertools.pairwise(slices), gaps, strict=True):
        if gap < 1e-3:
            raise ValueError(
                f"{before.path} and {after.path} lie at the same place; give the slices of one time point or "
                "image type"
            )
        if abs(gap - usual) > tolerance:
            raise ValueError(
                f"{before.path} and {after.path} are {gap:.6g} mm apart, but the others {usual:.6g} mm; "
                "slices are missing or unevenly spaced: copy the whole series again"
            )
    step = float((places[-1] - places[0]) / (len(slices) - 1))
    for number, part in enumerate(slices):
        off = float(np.linalg.norm(part.position - first.position - number * step * first.normal))
        if off > max(tolerance, 0.05 * step):
            raise ValueError(
                f"{part.path} lies {off:.6g} mm beside the line of the others (a tilted gantry?); "
                "resample the series to a straight grid first"
            )
    return step
