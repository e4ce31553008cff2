"""NIfTI files, read without trusting their header."""

import gzip
import logging
import math
import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from dim_hf.data.limits import MAX_DEFLATE_RATIO, READING, check_shape, file_name
from dim_hf.data.volumes.header import (
    PlaceError,
    VolumeHeader,
    check_affine,
    check_channel,
    check_dtype,
    require,
    spatial_shape,
)

_CHUNK = 2**24
_NIFTI1_BYTES = 348  # of its header
_MAX_OFFSET = 2**26  # bytes of header extensions
_GZIP_MAGIC = b"\x1f\x8b"
_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1e3, "micron": 1e-3}
_NARROW = {"b": np.uint8, "f": np.float32, "i": np.int32, "u": np.int32}
_KEPT = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32)
_ERROR_LEVEL = 40  # nibabel's level of faults that it cannot mend
_MAX_EXTENT = 2**15 - 1
_ANY = 2**62
_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


def read_nifti_header(path: Path) -> VolumeHeader:
    """Header of a `.nii` or `.nii.gz` file; no voxel is read.

    Raises:
        ValueError: If the file is damaged or shorter than its header promises, or its values or affine are refused.
    """
    return _parsed(path)[1]


def read_nifti(path: Path, channel: int | None, max_voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z) and affine (4, 4) of a `.nii` or `.nii.gz` file.

    Memory grows with what the file really holds, whatever its header promises.

    Raises:
        ValueError: As `read_nifti_header` does, and if there are too many voxels, or channels and none is chosen.
    """
    header, found = _parsed(path)
    check_shape(found.shape, max_voxels, path)
    channel = check_channel(found.shape, channel, path)
    return _voxels(path, header, found.shape[:3], channel), found.affine


def read_nifti_as_stored(source: Path | bytes, max_voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """All voxels of a NIfTI file with the axes that its header states, and the affine (4, 4) whatever it is.

    For a look at files that no training could use; the limits are those of `read_nifti`.

    Args:
        source: A file, packed or not, or its content.
        max_voxels: Largest allowed number of voxels, checked before anything is allocated.

    Raises:
        SizeError: If there are too many voxels.
        PlaceError: If a spacing is 0 and nothing else places the voxels.
        ValueError: If the file is damaged or shorter than its header promises, its values are no real numbers, its
            name says wrongly whether it is packed, or NIfTI-2 is given by its content, which `datasets` does not read.
    """
    header, shape, dtype, affine = nifti_fields(source)
    if isinstance(source, bytes):
        if header.sizeof_hdr != _NIFTI1_BYTES:
            raise ValueError("the file is NIfTI-2, which is read from folders only; convert it to NIfTI-1")
    elif _is_packed(source) != source.name.lower().endswith(".gz"):
        raise ValueError(f"{source} is packed if its name ends with .gz, and not else; rename it")
    check_shape(shape, max_voxels, file_name(source))
    check_dtype(dtype, file_name(source))
    _check_promise(source, shape, dtype, _offset(header))
    return _voxels(source, header, shape, 0), affine


def write_nifti_file(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write `.nii` or `.nii.gz`; the arguments of `volumes.write_nifti`."""
    nibabel = require("nibabel")
    if max(array.shape) > _MAX_EXTENT:
        raise ValueError(f"{path}: NIfTI takes at most {_MAX_EXTENT} voxels along an axis, got {array.shape}; cut it")
    image = nibabel.Nifti1Image(_storable(array, path), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    if not np.allclose(image.get_qform(), affine, rtol=0, atol=1e-3):
        # A shear cannot be written as a qform; a wrong one would be believed by some readers.
        image.set_qform(affine, code="unknown")
    nibabel.save(image, path)


def _parsed(path: Path) -> tuple[Any, VolumeHeader]:
    header, stored, dtype, affine = nifti_fields(path)
    shape = spatial_shape(stored, path)
    check_shape(shape, _ANY, path)
    _check_promise(path, shape, dtype, _offset(header))
    return header, VolumeHeader(shape, check_dtype(dtype, path), check_affine(affine, path))


def nifti_fields(source: Path | bytes) -> tuple[Any, tuple[int, ...], np.dtype, np.ndarray]:
    """The header as nibabel has it, and the shape, type and affine (4, 4) in mm that it states; no voxel is read.

    Args:
        source: A file, packed or not, or its content.

    Raises:
        PlaceError: If a spacing is 0 and nothing else places the voxels.
        ValueError: If it is no NIfTI file in one piece, or a field has no meaning.
    """
    header = _raw_header(source)
    try:
        header.check_fix(logger=_SILENT, error_level=_ERROR_LEVEL)
        stored, dtype, affine = header.get_data_shape(), header.get_data_dtype(), header.get_best_affine()
        scale = unit_mm(header)
        _offset(header)
    except Exception as error:  # nibabel has several errors for a field without meaning
        raise ValueError(
            f"{file_name(source)} has a damaged NIfTI header ({error}); copy or convert the file again"
        ) from error
    return header, tuple(map(int, stored)), dtype, affine * np.array((scale, scale, scale, 1.0))[:, None]


def unit_mm(header: Any) -> float:
    """Millimeters of the unit in which a header of nibabel states lengths; those without a unit count as mm.

    Raises:
        KeyError: If the unit is none that NIfTI knows.
    """
    return _MM[header.get_xyzt_units()[0]]


def _raw_header(source: Path | bytes) -> Any:
    """The fields without the extensions after them, which may be of any size."""
    nifti = require("nibabel")
    with _opened(source) as stream:
        head = _read_some(stream, source, nifti.Nifti2Header.sizeof_hdr)
    for kind in (nifti.Nifti1Header, nifti.Nifti2Header):
        for order, sign in (("little", "<"), ("big", ">")):
            if len(head) >= kind.sizeof_hdr and int.from_bytes(head[:4], order) == kind.sizeof_hdr:
                header = kind(head[: kind.sizeof_hdr], endianness=sign, check=False)
                return _checked_fields(header, file_name(source))
    raise ValueError(f"{file_name(source)} is no NIfTI file; copy the file again or convert it")


def _checked_fields(header: Any, path: str) -> Any:
    if header["magic"].item() != header.single_magic:
        raise ValueError(
            f"{path} is no NIfTI file in one piece (magic {header['magic'].item()!r}); save it as .nii.gz"
        )
    # Asked here, since nibabel quietly replaces a spacing of zero by one.
    spacing = header["pixdim"][1:4]
    if header["sform_code"] == 0 and not (np.isfinite(spacing) & (spacing != 0)).all():
        raise PlaceError(f"{path} has the spacing {spacing.tolist()} mm; set its spacing again")
    return header


def _offset(header: Any) -> int:
    offset = int(header.get_data_offset()) or header.single_vox_offset
    if not header.sizeof_hdr <= offset <= _MAX_OFFSET:
        raise ValueError(f"voxels from byte {offset} on")
    return offset


def _check_promise(source: Path | bytes, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> None:
    length = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    promised = offset + math.prod(shape) * dtype.itemsize
    if promised > length * (MAX_DEFLATE_RATIO if _is_packed(source) else 1):
        size = " x ".join(map(str, shape))
        raise ValueError(
            f"{file_name(source)} is cut short: its header promises {size} voxels in {promised} bytes, but it has "
            f"{length} bytes; copy the file again"
        )


def _is_packed(source: Path | bytes) -> bool:
    # By its content: files with the wrong one of the two names are common.
    if isinstance(source, bytes):
        return source.startswith(_GZIP_MAGIC)
    with open(source, "rb") as file:
        return file.read(2) == _GZIP_MAGIC


def _opened(source: Path | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return gzip.GzipFile(fileobj=BytesIO(source)) if _is_packed(source) else BytesIO(source)
    return gzip.open(source) if _is_packed(source) else open(source, "rb")


def _read_some(stream: IO[bytes], source: Path | bytes, count: int) -> bytes:
    try:
        return stream.read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(source, error) from error


def _damaged(source: Path | bytes, error: Exception) -> ValueError:
    return ValueError(f"{file_name(source)} is damaged or cut short ({error}); copy the file again")


def _voxels(source: Path | bytes, header: Any, shape: tuple[int, ...], block: int) -> np.ndarray:
    """The block of this number and shape, in the type of the file, or scaled as the file says."""
    dtype = header.get_data_dtype()
    count = math.prod(shape) * dtype.itemsize
    READING.charge(count)
    buffer = _read_bytes(source, _offset(header) + block * count, count)
    array = np.frombuffer(buffer, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="), copy=False)
    return _scaled(array, header, file_name(source))


def _read_bytes(source: Path | bytes, start: int, count: int) -> bytearray:
    buffer = bytearray()
    with _opened(source) as stream:
        try:
            stream.seek(start)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(source, error) from error
        while len(buffer) < count:
            chunk = _read_some(stream, source, min(_CHUNK, count - len(buffer)))
            if not chunk:
                raise ValueError(
                    f"{file_name(source)} is cut short: it holds {len(buffer)} of {count} bytes of voxels; copy the "
                    "file again"
                )
            buffer += chunk
        # At its end a gzip stream compares the checksum.
        _read_some(stream, source, 2**16)
    return buffer


def _scaled(array: np.ndarray, header: Any, path: str) -> np.ndarray:
    volumeutils = require("nibabel.volumeutils")
    try:
        slope, inter = header.get_slope_inter()
    except Exception as error:
        raise ValueError(f"{path} has a damaged slope or intercept ({error}); convert the file again") from error
    if (slope, inter) in ((None, None), (1, 0)):
        return array
    # 24 bits hold all values of 16.
    precision = np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64
    return volumeutils.apply_read_scaling(array, precision(slope), precision(inter))


def _storable(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype.newbyteorder("=") in _KEPT:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    narrow = np.dtype(_NARROW.get(array.dtype.kind, np.void))
    if narrow == np.void:
        raise ValueError(f"{path}: NIfTI takes real numbers, got {array.dtype}; convert the array first")
    if narrow == np.int32 and array.size:
        limits = np.iinfo(narrow)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ValueError(
                f"{path}: the values {array.min()} to {array.max()} do not fit 32 bits; reduce them first"
            )
    return array.astype(narrow)
