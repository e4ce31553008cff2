"""Opens one row after the other: what is wrong with each, and small facts about it that can be kept of every row.

Both the gate before training (`checks.check_rows`) and the doctor read rows here.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import datasets
import numpy as np

from dim_hf.data.description import IGNORE_INDEX
from dim_hf.data.doctor.findings import Problem
from dim_hf.data.doctor.flips import evidence
from dim_hf.data.doctor.intake import ANY_IMAGE, Intake
from dim_hf.data.doctor.measures import (
    ImageFacts,
    channels_last,
    check_axes,
    check_image,
    check_mask,
    check_place,
    compare,
    count_values,
    measure,
)
from dim_hf.data.doctor.reading import Content, FaultError, read_content
from dim_hf.data.limits import MAX_PIXELS, MAX_VOXELS
from dim_hf.data.parallel import parallel_map
from dim_hf.data.rows import column_view, is_present, require_columns
from dim_hf.data.volumes.header import require

_TEXTS = ("domain", "name", "patient", "split")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What is kept of a row.

    Attributes:
        index: Number of the row.
        domain: As the row states it, like `name`, `patient` and `split`.
        name: Name of the image.
        patient: Patient.
        split: Split.
        files: Column → its file, or `<domain>/<name> (<column>)` where there is none.
        has_label: The row has a mask.
        problems: What is wrong with its files.
        image: Facts about the image; None if it cannot be used, or nothing was measured.
        counts: Value in the mask → number of pixels; None without a mask, or if it cannot be used.
        mask_size: Shape of the mask.
        fit: How well image and mask fit; see `flips.evidence`.
    """

    index: int
    domain: str
    name: str
    patient: str
    split: str
    files: dict[str, str]
    has_label: bool
    problems: tuple[Problem, ...]
    image: ImageFacts | None = None
    counts: dict[int, int] | None = None
    mask_size: tuple[int, ...] = ()
    fit: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Standard:
    """What rows are held against.

    Attributes:
        num_labels: Number of classes; masks hold 0..num_labels - 1.
        ignore_index: Value of mask pixels that are not scored; None for no such value.
        max_pixels: Largest allowed number of pixels of a picture, read from its header before it is decoded.
        max_voxels: The same for volumes.
        spatial_dims: Number of spatial axes of the images, for the facts of the doctor; None gathers none, and looks
            only for what training needs to know.
        intake: What the image processor takes.

    Raises:
        ValueError: If `num_labels` is below 1.
    """

    num_labels: int
    ignore_index: int | None = IGNORE_INDEX
    max_pixels: int = MAX_PIXELS
    max_voxels: int = MAX_VOXELS
    spatial_dims: int | None = None
    intake: Intake = ANY_IMAGE

    def __post_init__(self) -> None:
        """Check the number of classes."""
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {self.num_labels}; masks hold 0..num_labels - 1")


def inspect_rows(
    rows: datasets.Dataset,
    standard: Standard,
    *,
    indices: Sequence[int] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    description: str = "checking files",
    processes: bool = False,
) -> list[RowFacts]:
    """Open every image and mask once, several at a time.

    Args:
        rows: Rows with `image` and perhaps the other columns.
        standard: What they are held against.
        indices: Which rows are looked at; all by default.
        num_workers: Threads or processes; see `parallel.parallel_map`.
        progress: Show a progress bar on the standard error stream.
        description: Stands before the bar.
        processes: Use processes for many rows; for programs with a `__main__` guard.

    Returns:
        Facts and problems in the order of the indices; broken files raise nothing.

    Raises:
        ValueError: If there is no column `image`, or `num_workers` is below 1.
        ImportError: If there are volumes, and the package that reads them is missing.
    """
    require_columns(rows, ["image"])
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    inspector = Inspector(rows, standard)
    return parallel_map(
        inspector.inspect,
        range(len(rows)) if indices is None else indices,
        description=description,
        unit="row",
        workers=num_workers,
        progress=progress,
        processes=processes,
    )


class Inspector:
    """Looks at one row at a time; safe to call from several threads.

    Args:
        rows: Rows with `image` and perhaps the other columns.
        standard: What they are held against.
    """

    def __init__(self, rows: datasets.Dataset, standard: Standard) -> None:
        self.standard = standard
        columns = [column for column in ("image", "label") if column in rows.column_names]
        self._views = {column: column_view(rows, column, decode=False) for column in columns}
        self._features = {column: rows.features[column] for column in columns}
        if any(isinstance(feature, datasets.Nifti) for feature in self._features.values()):
            require("nibabel")
        self._has_label = is_present(rows, "label")
        known = [column for column in (*_TEXTS, "spacing_mm", "affine") if column in rows.column_names]
        self._texts = rows.select_columns(known).with_format(None)[:] if known else {}

    def inspect(self, index: int) -> RowFacts:
        """Facts and problems of row `index`."""
        problems: list[Problem] = []
        values = {column: view[index][column] for column, view in self._views.items()}
        image = self._guard(problems, "image", lambda: self.read(values["image"], "image"))
        label = counts = None
        if self._has_label[index]:
            label = self._guard(problems, "label", lambda: self.read(values["label"], "label"))
        if label is not None:
            limits = self.standard.num_labels, self.standard.ignore_index
            counts = self._guard(problems, "label", lambda: count_values(label.array, *limits))
        if image is not None and label is not None:
            problems.extend(filter(None, [compare(image, label)]))
        problems.extend(problem for content in (image, label) if content for problem in content.problems)
        if image is not None:
            problems.extend(filter(None, [check_place(image), self._refusal(index, image)]))
        facts = fit = None
        if self.standard.spatial_dims is not None and image is not None:
            sizes_differ = any(problem.code == "mask-size" for problem in problems)
            mask = None if sizes_differ else label
            wrong_axes = check_axes(image, mask, self.standard.spatial_dims)
            problems.extend(filter(None, [wrong_axes]))
            if wrong_axes is None:
                facts = self._guard(problems, "image", lambda: self._measure(index, image, mask))
            if facts is not None and mask is not None and counts is not None:
                fit = self._guard(problems, "label", lambda: self._fit(image, mask))
        return RowFacts(
            index,
            **{column: str(self._text(column, index) or "") for column in _TEXTS},
            files={column: self._file(index, column, value) for column, value in values.items()},
            has_label=bool(self._has_label[index]),
            problems=tuple(problems),
            image=facts,
            counts=counts,
            mask_size=label.array.shape if label is not None else (),
            fit=fit,
        )

    def read(self, value: Any, column: str) -> Content:
        """Content of a value of `column`.

        Raises:
            FaultError: If it cannot be used.
        """
        is_picture = isinstance(self._features[column], datasets.Image)
        limit = self.standard.max_pixels if is_picture else self.standard.max_voxels
        content = read_content(self._features[column], value, column, limit)
        {"image": check_image, "label": check_mask}[column](content)
        return content

    def contents(self, index: int) -> tuple[Content | None, Content | None]:
        """Image and mask of row `index`, each None where there is none that can be read."""
        columns = ["image"] + ["label"] * bool(self._has_label[index])
        found = [
            self._guard([], column, lambda c=column: self.read(self._views[c][index][c], c)) for column in columns
        ]
        return found[0], found[1] if len(found) > 1 else None

    def _refusal(self, index: int, image: Content) -> Problem | None:
        refusal = self.standard.intake.refusal(image)
        if refusal is None:
            return None
        code, said = refusal
        name, domain = (self._text(column, index) for column in ("name", "domain"))
        # The path alone may say neither, and images of one folder may lie in several domains.
        words = f"image {name!r} of domain {domain!r}" if name and domain else "the image"
        return Problem(code, f"{words} {said}")

    def _measure(self, index: int, image: Content, mask: Content | None) -> ImageFacts:
        affine = image.affine
        stated = self._text("affine", index)
        if affine is None and stated is not None and np.size(stated) == 16:
            affine = np.asarray(stated, dtype=np.float64).reshape(4, 4)
        array = channels_last(image, mask, self.standard.spatial_dims)
        return measure(array, affine, self._text("spacing_mm", index))

    def _fit(self, image: Content, mask: Content) -> tuple[float, ...] | None:
        array = channels_last(image, mask, self.standard.spatial_dims)
        return evidence(array, mask.array) if array.shape[:-1] == mask.array.shape else None

    def _text(self, column: str, index: int) -> Any:
        return self._texts[column][index] if column in self._texts else None

    def _file(self, index: int, column: str, value: Any) -> str:
        parts = [str(self._texts[part][index]) for part in ("domain", "name") if part in self._texts]
        name = f"{'/'.join(parts) if parts else f'row {index}'} ({column})"
        path = value.get("path") if isinstance(value, dict) else None
        if path is None:
            return name
        return path if os.path.isabs(path) else f"{name}, {path}"

    @staticmethod
    def _guard(problems: list[Problem], column: str, step: Callable[[], _T]) -> _T | None:
        """Result of a step, or None and one more problem."""
        try:
            return step()
        except FaultError as error:
            problems.append(Problem(error.code, error.problem, column))
        except MemoryError:
            problems.append(Problem("too-large", "this machine has not enough memory to look at the file", column))
        except Exception as error:  # the doctor outlives any file
            text = f"cannot be read ({type(error).__name__}: {error})"
            problems.append(Problem("unreadable-file", text, column))
        return None
