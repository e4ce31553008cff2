"""Reads one file of a row, whatever its state, with the limits of all readers: every failure with a code."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.data.doctor.findings import Problem
from dim_hf.data.images import PictureFacts, open_picture, upright
from dim_hf.data.limits import SizeError, file_name
from dim_hf.data.volumes.header import PlaceError
from dim_hf.data.volumes.nifti import read_nifti_as_stored

_TRUNCATED = (
    "truncat", "broken data stream", "could the file be damaged", "end-of-stream", "unexpected end of", "cut short:"
)  # fmt: skip
_PLAIN_MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "F")


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
        mode: PIL's mode of a picture; None for anything else.
    """

    array: np.ndarray
    ndim: int | None = None
    affine: np.ndarray | None = None
    problems: tuple[Problem, ...] = ()
    mode: str | None = None


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
    if reader is None:
        array = np.asarray(value)
        check_size(array.shape, max_pixels)
        return Content(array)
    _check_file(value)
    source = value["path"] if value["bytes"] is None else value["bytes"]
    try:
        return reader(source, column, max_pixels)
    except MemoryError as error:
        raise FaultError("too-large", "this machine has not enough memory to read the file") from error
    except SizeError as error:
        raise FaultError("too-large", _said(error, source).rpartition("; ")[0]) from error
    except PlaceError as error:
        raise FaultError("invalid-affine", _said(error, source)) from error
    except Exception as error:  # the doctor outlives any file
        reasons = list(_causes(error))
        early = any(isinstance(reason, EOFError) for reason in reasons)
        early |= any(part in _said(reason, source).lower() for reason in reasons for part in _TRUNCATED)
        code = "truncated-file" if early else "unreadable-file"
        raise FaultError(code, f"cannot be read ({_said(error, source)})") from error


def _said(error: Exception, source: str | bytes) -> str:
    """An error's text without the file's name, which stands before it in a finding."""
    text = str(error).replace(file_name(source), "the file")
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text or 'no reason given'}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


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


def _read_picture(source: str | bytes, column: str, max_pixels: int) -> Content:
    """A picture as training sees it; a mask by its values, which are a palette's indices."""
    with open_picture(source, max_pixels=max_pixels) as (image, facts):
        problems = tuple(_oddities(facts, column))
        # Turned as `datasets` turns it when it decodes; a mask seldom carries the tag of its image.
        picture = upright(image)
        plain = column == "label" or facts.mode in _PLAIN_MODES or facts.mode.startswith("I;16")
        array = np.asarray(picture if plain else picture.convert("RGB"))
    if column == "image" and facts.mode in ("LA", "RGBA"):
        array = array[..., 0] if facts.mode == "LA" else array[..., :-1]
    return Content(array, ndim=2, problems=problems, mode=facts.mode)


def _oddities(facts: PictureFacts, column: str) -> Iterable[Problem]:
    """What the header of a picture tells."""
    if column == "image" and facts.has_alpha:
        yield Problem("alpha-channel", f"the image is stored as {facts.mode} with transparency")
    if column == "label" and (facts.mode in ("I", "F") or facts.mode.startswith("I;16")):
        bits = 16 if facts.mode.startswith("I;16") else 32
        yield Problem("wide-mask", f"the mask is stored with {bits} bits a pixel (mode {facts.mode})", column)


def _read_nifti(source: str | bytes, column: str, max_pixels: int) -> Content:
    voxels, affine = read_nifti_as_stored(source if isinstance(source, bytes) else Path(source), max_pixels)
    return Content(voxels, affine=affine)


_READERS: dict[str, Callable[[str | bytes, str, int], Content]] = {"Image": _read_picture, "Nifti": _read_nifti}
