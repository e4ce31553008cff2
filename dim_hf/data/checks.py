"""Opens every file once before training starts, so that a fault is found in the first minute."""

import math
import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import datasets
import numpy as np
from tqdm.auto import tqdm

from dim_hf.data.rows import column_view, is_present, require_columns

MAX_PIXELS = 2**27
_SHOWN = 10
_T = TypeVar("_T")
_LABEL_FIX = "rewrite the mask with one integer class id a pixel"


@dataclass(frozen=True)
class Fault:
    """One fault of the data.

    Attributes:
        file: The file, or `<domain>/<name> (<column>)` where there is none.
        problem: What is wrong, with the value found.
        fix: What to do about it.
    """

    file: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}. Fix: {self.fix}"


def check_rows(
    rows: datasets.Dataset,
    num_labels: int,
    ignore_index: int | None = 255,
    *,
    max_pixels: int = MAX_PIXELS,
    num_workers: int | None = None,
    progress: bool = True,
) -> None:
    """Open every image and mask once, in parallel threads, and refuse the rows if any is faulty.

    Args:
        rows: Rows with `image` and perhaps `label`.
        num_labels: Number of classes; masks hold 0..num_labels - 1.
        ignore_index: Value of mask pixels that are not scored; None for no such value.
        max_pixels: Largest allowed number of pixels or voxels of a file, read from its header before it is decoded.
        num_workers: Threads; by default twice the number of cores, at most 16.
        progress: Show a progress bar.

    Raises:
        ValueError: With the first ten faults, each with file and fix, and their total number.
    """
    faults = find_faults(
        rows,
        num_labels,
        ignore_index,
        max_pixels=max_pixels,
        num_workers=num_workers,
        progress=progress,
    )
    if not faults:
        return
    lines = [f"  {number}. {fault}" for number, fault in enumerate(faults[:_SHOWN], start=1)]
    if len(faults) > _SHOWN:
        lines.append(f"  ... and {len(faults) - _SHOWN} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise ValueError(f"the check of {len(rows)} rows found {count}:\n" + "\n".join(lines))


def find_faults(
    rows: datasets.Dataset,
    num_labels: int,
    ignore_index: int | None = 255,
    *,
    max_pixels: int = MAX_PIXELS,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[Fault]:
    """The faults that `check_rows` would report, in the order of the rows; its arguments.

    A file is faulty if it is missing, cannot be read to its end or has more than `max_pixels` pixels; an image, if a
    pixel is NaN or infinite; a mask, if it has another size than its image, more than one channel, or a value that is
    no class. If all masks together hold nothing but 0 and `ignore_index`, that is a fault too: they were surely
    written as 0/255, and no pixel of the foreground would be learned from.
    """
    require_columns(rows, ["image"])
    if num_labels < 1:
        raise ValueError(f"num_labels must be at least 1, got {num_labels}")
    checker = _RowChecker(rows, num_labels, ignore_index, max_pixels)
    workers = num_workers or min(2 * (os.cpu_count() or 1), 16)
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(checker.check, range(len(rows)))
        outcomes = list(tqdm(results, total=len(rows), desc="checking files", unit="row", disable=not progress))
    faults = [fault for row_faults, _ in outcomes for fault in row_faults]
    values = set().union(*(row_values for _, row_values in outcomes))
    if num_labels > 1 and ignore_index is not None and ignore_index in values and values <= {0, ignore_index}:
        faults.append(
            Fault(
                "all masks",
                f"they hold only 0 and {ignore_index}, and {ignore_index} means 'ignore'",
                "write the foreground as class 1 (or 2, ...)",
            )
        )
    return faults


class _FaultError(Exception):
    """Carries problem and fix of a file out of its reader."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


class _RowChecker:
    """Checks one row at a time; safe to call from several threads."""

    def __init__(self, rows: datasets.Dataset, num_labels: int, ignore_index: int | None, max_pixels: int) -> None:
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.max_pixels = max_pixels
        columns = [column for column in ("image", "label") if column in rows.column_names]
        self.views = {column: column_view(rows, column, decode=False) for column in columns}
        self.features = {column: rows.features[column] for column in columns}
        self.has_label = is_present(rows, "label")
        names = [column for column in ("domain", "name") if column in rows.column_names]
        texts = rows.select_columns(names).with_format(None)[:] if names else {}
        self.names = ["/".join(map(str, parts)) for parts in zip(*texts.values(), strict=True)]

    def check(self, index: int) -> tuple[list[Fault], set[int]]:
        """Faults of row `index`, and the values of its mask."""
        faults: list[Fault] = []
        image = self._guard(faults, index, "image", self._image)
        if not self.has_label[index]:
            return faults, set()
        label = self._guard(faults, index, "label", self._label)
        if label is None:
            return faults, set()
        values = self._guard(faults, index, "label", lambda _: self._values(label)) or set()
        if image is not None:
            self._guard(faults, index, "label", lambda _: _check_size(image.shape, label.shape))
        return faults, values

    def _guard(self, faults: list[Fault], index: int, column: str, step: Callable[[int], _T]) -> _T | None:
        """Result of a step, or None and one more fault."""
        try:
            return step(index)
        except _FaultError as error:
            faults.append(Fault(self._file(index, column), error.problem, error.fix))
        except Exception as error:  # decoders raise almost anything on a broken file
            problem = f"cannot be read ({type(error).__name__}: {error})"
            faults.append(Fault(self._file(index, column), problem, "copy the file again or remove the row"))
        return None

    def _file(self, index: int, column: str) -> str:
        value = self.views[column][index][column]
        name = f"{self.names[index] if self.names else f'row {index}'} ({column})"
        path = value.get("path") if isinstance(value, dict) else None
        if path is None:
            return name
        return path if os.path.isabs(path) else f"{name}, {path}"

    def _array(self, index: int, column: str) -> np.ndarray:
        value = self.views[column][index][column]
        if value is None:
            raise _FaultError("the row has no image", "fill in the image or remove the row")
        feature = self.features[column]
        reader = _READERS.get(type(feature).__name__)
        if reader is None:
            return _limited(np.asarray(value), self.max_pixels)
        if value["bytes"] is None and not os.path.isfile(value["path"]):
            raise _FaultError("the file does not exist", "restore the file, correct the path or remove the row")
        return reader(feature, value, self.max_pixels)

    def _image(self, index: int) -> np.ndarray:
        image = self._array(index, "image")
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
            count = int(image.size - np.isfinite(image).sum())
            raise _FaultError(f"{count} of {image.size} pixels are NaN or infinite", "replace them or remove the row")
        return image

    def _label(self, index: int) -> np.ndarray:
        label = self._array(index, "label")
        if isinstance(self.features["label"], datasets.Image) and label.ndim != 2:
            raise _FaultError(f"the mask has {label.shape[-1]} channels", _LABEL_FIX)
        return label

    def _values(self, label: np.ndarray) -> set[int]:
        values = _unique(label)
        if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.trunc(values)):
            broken = values[values != np.trunc(values)]
            raise _FaultError(f"the mask has values that are no integers ({_listed(broken)})", _LABEL_FIX)
        found = {int(value) for value in values}
        allowed = set(range(self.num_labels)) | ({self.ignore_index} - {None})
        if found - allowed:
            classes = f"0..{self.num_labels - 1}"
            if self.ignore_index is not None:
                classes += f" (or {self.ignore_index} to ignore)"
            raise _FaultError(
                f"the mask has the values {_listed(sorted(found - allowed))} outside {classes}",
                f"{_LABEL_FIX}, or raise num_labels",
            )
        return found


def _read_image(feature: datasets.Image, value: dict, max_pixels: int) -> np.ndarray:
    import PIL.ExifTags
    import PIL.Image
    import PIL.ImageOps

    source = value["path"] if value["bytes"] is None else BytesIO(value["bytes"])
    try:
        with PIL.Image.open(source) as image:
            _limit(image.size, max_pixels)
            # Turned as `datasets` turns it when it decodes; a mask seldom carries the tag of its image.
            turned = image.getexif().get(PIL.ExifTags.Base.Orientation) is not None
            return np.asarray(PIL.ImageOps.exif_transpose(image) if turned else image)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise _FaultError(f"the image is too large ({error})", "cut or shrink the image") from error


def _read_nifti(feature: datasets.Nifti, value: dict, max_pixels: int) -> np.ndarray:
    volume = feature.decode_example(value)
    _limit(volume.shape, max_pixels)
    return np.asanyarray(volume.dataobj)


_READERS: dict[str, Callable[[Any, dict, int], np.ndarray]] = {"Image": _read_image, "Nifti": _read_nifti}


def _limit(shape: Iterable[int], max_pixels: int) -> None:
    shape = tuple(shape)
    if math.prod(shape) > max_pixels:
        size = " x ".join(map(str, shape))
        raise _FaultError(f"the image is too large ({size}, the limit is {max_pixels})", "cut or shrink the image")


def _limited(array: np.ndarray, max_pixels: int) -> np.ndarray:
    _limit(array.shape, max_pixels)
    return array


def _check_size(image: tuple[int, ...], label: tuple[int, ...]) -> None:
    """An image has the shape of its mask, perhaps with channels before or after it."""
    if label not in (image, image[1:], image[:-1]):
        raise _FaultError(
            f"the mask has shape {label}, but its image {image}", "bring mask and image to the same grid"
        )


def _unique(label: np.ndarray) -> np.ndarray:
    if label.dtype in (np.uint8, np.bool_):
        return np.flatnonzero(np.bincount(label.ravel(), minlength=2))
    # NaN compares unequal to its own truncation, so that it is reported as no integer.
    return np.unique(label)


def _listed(values: Collection[float]) -> str:
    shown = [str(value) for value in list(values)[:5]]
    return ", ".join(shown + ["..."] * (len(values) > 5))
