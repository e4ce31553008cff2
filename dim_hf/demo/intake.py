"""Files of strangers: all that a header tells is checked before anything is decoded."""

import math
import os
import re
import zipfile
from pathlib import Path

import numpy as np

from dim_hf.data.archives import unpack
from dim_hf.data.images import open_picture, read_picture
from dim_hf.data.limits import SizeError
from dim_hf.data.texts import printable
from dim_hf.data.volumes.volume import (
    Volume,
    VolumeHeader,
    find_dicom_series,
    read_dicom_series,
    read_header,
    read_volume,
)
from dim_hf.demo.file_kinds import check_kind, checked_size, occurrences, shown_name, told
from dim_hf.demo.picture_structure import check_structure
from dim_hf.demo.refusals import Refusal
from dim_hf.demo.settings import DemoSettings

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUME_ENDINGS = (".nii", ".nii.gz", ".mha", ".nrrd", ".zip")

_SHORTEST_SIDE, _MOST_ELONGATED = 16, 20  # pixels; longer side over shorter one
_SHORTEST_AXIS, _LONGEST_AXIS = 8, 2048  # voxels; two axes must have the former
_SPACINGS_MM = (1e-3, 100.0)
_LARGEST_VALUE = 1e30  # float32 still calculates with it
_TEXT_HEADER_BYTES = 2**16
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_DETACHED = {
    ".mha": re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:](?![ \t]*LOCAL[ \t]*\r?$)", re.IGNORECASE | re.MULTILINE),
    ".nrrd": re.compile(rb"^data ?file:", re.IGNORECASE | re.MULTILINE),
}
_MIB = 2**20


def check_picture(path: str | os.PathLike, settings: DemoSettings) -> Path:
    """Refuse a picture that is not to be decoded; no pixel is.

    Args:
        path: The upload.
        settings: `max_file_bytes` and `max_pixels` count.

    Returns:
        The path.

    Raises:
        Refusal: If it is missing, empty, too large, not what its name says, damaged, of several pages or scans
            without end, or of a size that no photograph has.
    """
    path = checked_size(path, settings)
    ending = check_kind(path, PICTURE_ENDINGS)
    check_structure(path, ending)
    with told(path):
        try:
            with open_picture(path, max_pixels=settings.max_pixels) as (image, _):
                width, height = image.size
        except SizeError as error:  # Pillow has a limit of its own, and names that one
            raise Refusal(
                f"{shown_name(path)} is too large: at most {settings.max_pixels / 1e6:g} million pixels are read. Cut "
                "it or reduce its resolution."
            ) from error
    shorter, longer = sorted((width, height))
    if shorter < _SHORTEST_SIDE or longer > _MOST_ELONGATED * shorter:
        raise Refusal(
            f"{shown_name(path)} has {width} x {height} pixels. Give a picture of at least {_SHORTEST_SIDE} x "
            f"{_SHORTEST_SIDE} whose sides differ by a factor of {_MOST_ELONGATED} at most."
        )
    return path


def load_picture(path: str | os.PathLike, settings: DemoSettings) -> np.ndarray:
    """Check and decode a picture.

    Returns:
        See `images.read_picture`; floats are finite.

    Raises:
        Refusal: As `check_picture` does, and if the content is damaged or holds NaN or infinity.
    """
    path = check_picture(path, settings)
    with told(path):
        array = read_picture(path, max_pixels=settings.max_pixels)
    _refuse_values(array[..., None] if array.ndim == 2 else array, path, "pixels")
    return array


def check_volume(path: str | os.PathLike, settings: DemoSettings) -> Path:
    """Refuse a volume, or zip of DICOM slices, that is not to be decoded; no voxel is, and nothing is unpacked.

    Args:
        path: The upload.
        settings: `max_file_bytes`, `max_voxels`, `max_unpacked_bytes` and `max_zip_entries` count.

    Returns:
        The path.

    Raises:
        Refusal: If it is missing, empty, too large, not what its name says, damaged, refers to other files, or is no
            volume of three axes whose places are known.
    """
    path = checked_size(path, settings)
    ending = check_kind(path, VOLUME_ENDINGS)
    if ending == ".zip":
        _check_zip(path, settings)
        return path
    if ending in _DETACHED:
        _refuse_detached(path, _DETACHED[ending])
    with told(path):
        header = read_header(path)
    _check_header(header, path, settings)
    return path


def load_volume(path: str | os.PathLike, folder: Path, settings: DemoSettings) -> Volume:
    """Check and decode a volume or a zip of one DICOM series.

    Args:
        path: The upload.
        folder: Where a zip is unpacked; made if need be, empty, and left to the caller to remove.
        settings: As for `check_volume`.

    Raises:
        Refusal: As `check_volume` and `unpack_dicom_zip` do, and if voxels are missing or damaged, NaN or infinite.
    """
    path = check_volume(path, settings)
    if path.name.lower().endswith(".zip"):
        volume = _read_slices(unpack_dicom_zip(path, folder, settings), path, settings)
        _check_header(VolumeHeader(volume.array.shape, volume.array.dtype, volume.affine), path, settings)
    else:
        with told(path):
            volume = read_volume(path, max_voxels=settings.max_voxels)
    _refuse_values(volume.array, path, "voxels")
    return volume


def unpack_dicom_zip(path: str | os.PathLike, folder: Path, settings: DemoSettings) -> Path:
    """Unpack a zip of DICOM files, after all its entries were checked.

    Args:
        path: The upload.
        folder: A new or empty folder.
        settings: `max_file_bytes`, `max_zip_entries` and `max_unpacked_bytes` count.

    Returns:
        The folder.

    Raises:
        Refusal: If the zip is damaged, encrypted, too large, packed beyond belief, has too many entries, other
            archives, links, or entries that lie outside of it.
    """
    path = checked_size(path, settings)
    check_kind(path, (".zip",))
    _check_zip(path, settings)
    with told(path):
        return unpack(path, folder, max_bytes=settings.max_unpacked_bytes, max_files=settings.max_zip_entries)


def _refuse_detached(path: Path, names_data: re.Pattern[bytes]) -> None:
    with path.open("rb") as file:
        head = file.read(_TEXT_HEADER_BYTES)
    # The header of NRRD ends with an empty line, that of MetaImage with the line itself.
    if names_data.search(re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]):
        raise Refusal(
            f"{shown_name(path)} is only a header that names other files; save the volume as one .mha, .nrrd or "
            ".nii.gz file."
        )


def _check_header(header: VolumeHeader, path: Path, settings: DemoSettings) -> None:
    name, size = shown_name(path), " x ".join(map(str, header.shape))
    if len(header.shape) > 3:
        raise Refusal(
            f"{name} has four axes ({size}): channels or time points. Save the one you mean as a volume of three axes."
        )
    voxels = math.prod(header.shape)
    if voxels > settings.max_voxels or voxels * header.dtype.itemsize > settings.max_unpacked_bytes:
        raise Refusal(
            f"{name} has {size} voxels of {header.dtype}, the limit is {settings.max_voxels} voxels in "
            f"{settings.max_unpacked_bytes / _MIB:g} MiB. Cut it to the part of interest, or resample it."
        )
    extents = sorted(header.shape)
    if extents[1] < _SHORTEST_AXIS or extents[2] > _LONGEST_AXIS:
        raise Refusal(
            f"{name} has {size} voxels. Give a volume whose slices have {_SHORTEST_AXIS} to {_LONGEST_AXIS} voxels a "
            "side."
        )
    spacing = np.linalg.norm(header.affine[:3, :3], axis=0)
    if not ((spacing >= _SPACINGS_MM[0]) & (spacing <= _SPACINGS_MM[1])).all():
        shown = " x ".join(f"{length:.4g}" for length in spacing)
        raise Refusal(f"{name} has a spacing of {shown} mm, as no scanner makes it; set its spacing again.")


def _refuse_values(array: np.ndarray, path: Path, noun: str) -> None:
    """Plane by plane, so that little memory is needed beside the array."""
    if array.dtype.kind != "f":
        return
    count = sum(
        int(np.count_nonzero(~(np.abs(array[..., plane]) <= _LARGEST_VALUE))) for plane in range(array.shape[-1])
    )
    if count:
        raise Refusal(
            f"{shown_name(path)} holds NaN, infinity or values beyond {_LARGEST_VALUE:g} in {count} of {array.size} "
            f"{noun}; replace them, e.g. by 0, and save it again."
        )


def _check_zip(path: Path, settings: DemoSettings) -> None:
    """By the table of entries; each has a mark of its own, so that no table is read that is too long."""
    name = shown_name(path)
    if occurrences(path, b"PK\x01\x02", settings.max_zip_entries) > settings.max_zip_entries:
        raise Refusal(
            f"{name} has more than {settings.max_zip_entries} entries. Pack the folder of one series, nothing else."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Refusal(f"{name} is no zip that can be read ({printable(error)}); pack it again.") from error
    files = [entry.filename for entry in entries if not entry.is_dir()]
    if not files:
        raise Refusal(f"{name} holds no files; pack the DICOM files of one series.")
    nested = [file for file in files if file.lower().endswith(_ARCHIVES) and not file.lower().endswith(".nii.gz")]
    if nested:
        raise Refusal(
            f"{name} holds another archive ({shown_name(Path(nested[0]))}). Pack the DICOM files of one series "
            "directly."
        )


def _read_slices(folder: Path, path: Path, settings: DemoSettings) -> Volume:
    name = shown_name(path)
    with told(path, folder):
        series = list(find_dicom_series(folder).values())
        if not series:
            raise Refusal(
                f"{name} holds no DICOM slices. Pack the files of one series; a NIfTI, MHA or NRRD file is uploaded "
                "as it is."
            )
        if len(series) > 1:
            counts = ", ".join(str(len(files)) for files in series[:6])
            raise Refusal(f"{name} holds {len(series)} DICOM series (of {counts} slices). Pack the one you mean.")
        return read_dicom_series(series[0], max_voxels=settings.max_voxels)
