"""MetaImage and NRRD files, read by SimpleITK after their text header was looked at."""

import math
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from dim_hf.data.limits import MAX_DEFLATE_RATIO, READING, check_shape
from dim_hf.data.volumes.header import VolumeHeader, check_affine, check_channel, check_dtype, require, spatial_shape

_TEXT_BYTES = 2**16
_ASCII_RATIO = 8  # "0 " may stand for a double
_ANY = 2**62
_CHUNK = 2**22
_ZLIB_OR_GZIP = 47  # zlib's number for "see by the first bytes which it is"
LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
_DTYPES = {
    **{f"{bits}-bit unsigned integer": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"{bits}-bit signed integer": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"{bits}-bit float": np.dtype(f"float{bits}") for bits in (32, 64)},
}


@dataclass(frozen=True)
class _DataFile:
    path: Path
    ratio: int  # the most bytes of voxels that a byte of the file stands for
    start: int = 0  # first byte of a packed stream
    length: int | None = None  # of a packed stream; to the end of the file if None


@dataclass(frozen=True)
class _Format:
    image_io: str
    find_data: Callable[[Path], _DataFile]


def read_itk_header(path: Path) -> VolumeHeader:
    """Header of a `.mha`, `.mhd`, `.nrrd` or `.nhdr` file; no voxel is read.

    Raises:
        ValueError: If the file is damaged or shorter than its header promises, its data lie outside its folder, or
            its values or affine are refused.
    """
    return _parse(path, _FORMATS[path.suffix.lower()].find_data(path))[1]


def read_itk(path: Path, channel: int | None, max_voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z) and affine (4, 4) of a `.mha`, `.mhd`, `.nrrd` or `.nhdr` file.

    Raises:
        ValueError: As `read_itk_header` does, and if there are too many voxels, or channels and none is chosen.
    """
    data = _FORMATS[path.suffix.lower()].find_data(path)
    reader, header = _parse(path, data)
    check_shape(header.shape, max_voxels, path)
    channel = check_channel(header.shape, channel, path)
    READING.charge(math.prod(header.shape) * header.dtype.itemsize)
    _check_stream(path, data, math.prod(header.shape) * header.dtype.itemsize)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged or cut short; copy the file again") from error
    # Axes of an image of channels: (Z, Y, X, C) if they are its components, (C, Z, Y, X) if a fourth axis.
    array = require("SimpleITK").GetArrayFromImage(image)
    if len(header.shape) == 4:
        array = array[..., channel] if image.GetNumberOfComponentsPerPixel() > 1 else array[channel]
    return array.T.reshape(header.shape[:3]), header.affine


def itk_affine(origin: tuple[float, ...], spacing: tuple[float, ...], direction: tuple[float, ...]) -> np.ndarray:
    """Affine (4, 4) to RAS+ mm of an ITK geometry (LPS) of 2 to 4 axes."""
    axes = len(spacing)
    used = min(axes, 3)
    affine = np.eye(4)
    columns = np.reshape(direction, (axes, axes)) * np.asarray(spacing)
    affine[:used, :used] = columns[:used, :used]
    affine[:used, 3] = origin[:used]
    return LPS_TO_RAS @ affine


def _parse(path: Path, data: _DataFile) -> tuple[Any, VolumeHeader]:
    sitk = require("SimpleITK")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_FORMATS[path.suffix.lower()].image_io)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path} has a damaged header; copy or convert the file again") from error
    components = reader.GetNumberOfComponents()
    stored = (*reader.GetSize(), components) if components > 1 else reader.GetSize()
    shape = spatial_shape(_padded(stored, reader.GetDimension()), path)
    check_shape(shape, _ANY, path)
    values = sitk.GetPixelIDValueAsString(reader.GetPixelID()).removeprefix("vector of ")
    dtype = check_dtype(_DTYPES.get(values, np.dtype(np.void)), f"{path} ({values})")
    promised, held = math.prod(shape) * dtype.itemsize, os.path.getsize(data.path)
    if promised > held * data.ratio:
        raise ValueError(
            f"{path} is cut short: its header promises {' x '.join(map(str, shape))} voxels in {promised} bytes, but "
            f"{data.path.name} has {held} bytes; copy the files again"
        )
    affine = itk_affine(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection())
    return reader, VolumeHeader(shape, dtype, check_affine(affine, path))


def _check_stream(path: Path, data: _DataFile, promised: int) -> None:
    """Unpack once without keeping anything: ITK gives arbitrary values where a stream is damaged or too short."""
    if data.ratio != MAX_DEFLATE_RATIO:
        return
    try:
        held = _unpacked_bytes(data, promised)
    except zlib.error as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy the file again") from error
    if held < promised:
        raise ValueError(f"{path} is cut short: it holds {held} of {promised} bytes of voxels; copy the file again")


def _unpacked_bytes(data: _DataFile, limit: int) -> int:
    """Bytes that a stream unpacks to, counted little beyond the limit; its checksum is compared if it ends there."""
    unpacker = zlib.decompressobj(_ZLIB_OR_GZIP)
    held = 0
    with open(data.path, "rb") as file:
        file.seek(data.start)
        left = os.path.getsize(data.path) if data.length is None else data.length
        while not unpacker.eof and held <= limit:
            packed = unpacker.unconsumed_tail
            if not packed:
                packed = file.read(min(_CHUNK, left))
                left -= len(packed)
            if not packed:
                held += len(unpacker.flush())
                if unpacker.eof:
                    break
                raise zlib.error(f"the packed data end after {held} of {limit} bytes")
            held += len(unpacker.decompress(packed, _CHUNK))
    return held


def _padded(stored: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """2D as one slice, before its channels."""
    return (*stored[:2], 1, *stored[2:]) if axes == 2 else tuple(stored)


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_TEXT_BYTES).decode("latin-1")


def _meta_data(path: Path) -> _DataFile:
    text = _text(path)
    lines = list(
        re.finditer(r"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*)(\r?\n)?", text, re.IGNORECASE | re.MULTILINE)
    )
    if not lines:
        raise ValueError(f"{path} is no MetaImage (it has no ElementDataFile); copy the file again or convert it")
    # The library may take another mention, or another end of a line, than is checked here.
    if len(re.findall("ElementDataFile", text, re.IGNORECASE)) > 1:
        raise ValueError(f"{path} names ElementDataFile more than once; write its header again")
    _refuse_odd_line_ends(path, text[: lines[0].end()])
    size = re.search(r"^\s*CompressedDataSize\s*[=:]\s*(\d+)", text, re.MULTILINE)
    length = int(size.group(1)) if size else None
    if lines[0].group(1).strip() == "LOCAL":
        return _DataFile(path, _meta_ratio(text), lines[0].end(), length)
    return _DataFile(_beside(path, lines[0].group(1).strip()), _meta_ratio(text), 0, length)


def _refuse_odd_line_ends(path: Path, header: str) -> None:
    if "\0" in header or re.search(r"\r(?!\n)", header):
        raise ValueError(f"{path} has a header with odd line ends; write it again")


def _meta_ratio(text: str) -> int:
    if re.search(r"^\s*CompressedData\s*[=:]\s*[Tt1]", text, re.MULTILINE):
        return MAX_DEFLATE_RATIO
    return _ASCII_RATIO if re.search(r"^\s*BinaryData\s*[=:]\s*[Ff0]", text, re.MULTILINE) else 1


def _nrrd_data(path: Path) -> _DataFile:
    text = _text(path)
    end = re.search(r"\r?\n\r?\n", text)
    if end is None and len(text) >= _TEXT_BYTES:
        raise ValueError(f"{path} has a header of more than {_TEXT_BYTES} bytes; write it again without comments")
    text = text[: end.start()] if end else text
    if not text.startswith("NRRD"):
        raise ValueError(f"{path} is no NRRD file; copy the file again or convert it")
    _refuse_odd_line_ends(path, text)
    encoding = re.search(r"^encoding:[ \t]*(\w+)", text, re.MULTILINE | re.IGNORECASE)
    ratio = _NRRD_RATIOS.get(encoding.group(1).lower() if encoding else "")
    skips = re.search(r"^(line|byte) ?skip:", text, re.MULTILINE | re.IGNORECASE)
    if ratio is None or (skips and ratio > 1):
        raise ValueError(f"{path} has an encoding that is not read here; save it with encoding raw or gzip")
    names = re.findall(r"^data ?file:(?!=)[ \t]*([^\r\n]*)", text, re.MULTILINE | re.IGNORECASE)
    data_files = [_beside(path, name.strip()) for name in names]
    return _DataFile(data_files[0], ratio) if data_files else _DataFile(path, ratio, end.end() if end else len(text))


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names, which must lie in the header's folder."""
    if not name or name.upper().startswith("LIST") or "%" in name:
        raise ValueError(f"{path} spreads its data over several files ({name!r}); save it as one .mha or .nii.gz file")
    flavors = (PurePosixPath(name), PureWindowsPath(name))
    if any(pure.anchor or ".." in pure.parts for pure in flavors):
        raise ValueError(
            f"{path} names the data file {name!r} outside its folder; put both into one folder and correct the name"
        )
    data = path.parent / name
    if not data.is_file():
        raise ValueError(f"{path} names the data file {name!r}, which is missing; copy it into the same folder")
    return data


_NRRD_RATIOS = {"raw": 1, "gzip": MAX_DEFLATE_RATIO, "gz": MAX_DEFLATE_RATIO}
_FORMATS = {
    ".mha": _Format("MetaImageIO", _meta_data),
    ".mhd": _Format("MetaImageIO", _meta_data),
    ".nrrd": _Format("NrrdImageIO", _nrrd_data),
    ".nhdr": _Format("NrrdImageIO", _nrrd_data),
}
