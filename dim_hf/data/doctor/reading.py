"""Reads one file of a row, whatever its state: the header before the pixels, every failure with a code."""

import gzip
import math
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from dim_hf.data.doctor.findings import Problem
from dim_hf.data.images import FORMATS

_LARGE = 2**25  # voxels; two of such at a time, so that threads do not fill the memory
_large_files = threading.BoundedSemaphore(2)
_TRUNCATED = ("truncat", "broken data stream", "could the file be damaged", "end-of-stream", "unexpected end of")
_ALPHA_MODES = ("RGBA", "LA")
_PLAIN_MODES = ("1", "L", "RGB", "I", "F")


class FaultError(Exception):
    """Carries the code and the problem of a file out of its reader."""

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(problem)
        self.code = code
        self.problem = problem


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds.

    Attributes:
        array: (H, W), (H, W, C), (X, Y, Z) or what the row holds, of the file's own type.
        ndim: 2 for a picture; None where only the mask or the data set can tell the spatial axes from channels.
        affine: (4, 4) voxel → mm of a volume, or None.
        problems: What is odd about the file although it can be read.
    """

    array: np.ndarray
    ndim: int | None = None
    affine: np.ndarray | None = None
    problems: tuple[Problem, ...] = ()


def read_content(feature: Any, value: Any, column: str, max_pixels: int) -> Content:
    """Read a value of a column that was not decoded.

    Args:
        feature: Feature of the column: `Image`, `Nifti` or an array.
        value: `{"path", "bytes"}` of a file, or the array.
        column: "image" or "label".
        max_pixels: Largest allowed number of pixels or voxels, refused before they are decoded.

    Raises:
        FaultError: Whatever the file holds, if it cannot be read.
    """
    if value is None:
        raise FaultError("no-image", f"the row has no {'image' if column == 'image' else 'mask'}")
    reader = _READERS.get(type(feature).__name__)
    try:
        if reader is None:
            array = np.asarray(value)
            check_size(array.shape, max_pixels)
            return Content(array)
        _check_file(value)
        return reader(value, column, max_pixels)
    except (FaultError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # decoders raise almost anything on a broken file
        text = str(error) or "no reason given"
        early = isinstance(error, EOFError) or any(part in text.lower() for part in _TRUNCATED)
        code = "truncated-file" if early else "unreadable-file"
        raise FaultError(code, f"cannot be read ({type(error).__name__}: {text})") from error


def check_size(shape: Iterable[int], max_pixels: int) -> None:
    """Refuse a shape with more than `max_pixels` elements.

    Raises:
        FaultError: Stating shape and limit.
    """
    shape = tuple(shape)
    if math.prod(shape) > max_pixels:
        size = " x ".join(map(str, shape))
        raise FaultError("too-large", f"the image is too large ({size}, the limit is {max_pixels})")


def _check_file(value: dict) -> None:
    if value["bytes"] is not None:
        empty = not value["bytes"]
    elif not value["path"] or not os.path.isfile(value["path"]):
        raise FaultError("missing-file", "the file does not exist")
    else:
        empty = os.path.getsize(value["path"]) == 0
    if empty:
        raise FaultError("empty-file", "cannot be read (the file is empty, 0 bytes)")


def _read_picture(value: dict, column: str, max_pixels: int) -> Content:
    import PIL.ExifTags
    import PIL.Image
    import PIL.ImageOps

    source = value["path"] if value["bytes"] is None else BytesIO(value["bytes"])
    try:
        with PIL.Image.open(source, formats=FORMATS) as image:
            check_size(image.size, max_pixels)
            problems = tuple(_oddities(image, column))
            has_alpha = image.mode in _ALPHA_MODES
            # Turned as `datasets` turns it when it decodes; a mask seldom carries the tag of its image.
            turned = image.getexif().get(PIL.ExifTags.Base.Orientation) is not None
            picture = PIL.ImageOps.exif_transpose(image) if turned else image
            # As the image processor sees it; the palette's indices of a mask are its classes.
            plain = column == "label" or has_alpha or image.mode in _PLAIN_MODES or image.mode.startswith("I;16")
            array = np.asarray(picture if plain else picture.convert("RGB"))
    except PIL.UnidentifiedImageError as error:
        raise FaultError("unreadable-file", "cannot be read (it is no picture of a known format)") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise FaultError("too-large", f"the image is too large ({error})") from error
    if has_alpha and column == "image":
        array = array[..., 0] if array.shape[-1] == 2 else array[..., :-1]
    return Content(array, ndim=2, problems=problems)


def _oddities(image: Any, column: str) -> Iterable[Problem]:
    """What the header of a picture tells."""
    if column == "image" and (image.mode in (*_ALPHA_MODES, "PA") or "transparency" in image.info):
        yield Problem("alpha-channel", f"the image is stored as {image.mode} with transparency")
    if column == "label" and (image.mode in ("I", "F") or image.mode.startswith("I;16")):
        bits = 16 if image.mode.startswith("I;16") else 32
        yield Problem("wide-mask", f"the mask is stored with {bits} bits a pixel (mode {image.mode})", column)


def _read_nifti(value: dict, column: str, max_pixels: int) -> Content:
    import nibabel

    if value["bytes"] is None:
        volume = nibabel.load(value["path"])
    else:
        volume = nibabel.Nifti1Image.from_bytes(_unzip(value["bytes"], max_pixels))
    check_size(volume.shape, max_pixels)
    large = math.prod(volume.shape) > _LARGE
    with _large_files if large else nullcontext():
        return Content(_voxels(volume), affine=np.asarray(volume.affine, np.float64))


def _voxels(volume: Any) -> np.ndarray:
    """The voxels in their own type, or in float32 where they are scaled: float64 would double the memory."""
    data = volume.dataobj
    if (getattr(data, "slope", 1), getattr(data, "inter", 0)) == (1, 0):
        return np.asanyarray(data)
    return volume.get_fdata(dtype=np.float32, caching="unchanged")


def _unzip(content: bytes, max_pixels: int) -> bytes:
    """The bytes of a NIfTI file, no more of them than its header promises."""
    from nibabel import Nifti1Header

    if content[:2] != b"\x1f\x8b":
        return content
    with gzip.GzipFile(fileobj=BytesIO(content)) as stream:
        start = stream.read(Nifti1Header.sizeof_hdr)
        header = Nifti1Header(start)
        check_size(header.get_data_shape(), max_pixels)
        size = int(header["vox_offset"]) + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        return start + stream.read(max(size - len(start), 0))


_READERS: dict[str, Callable[[dict, str, int], Content]] = {"Image": _read_picture, "Nifti": _read_nifti}
