"""What is measured on a mask: volumes, areas, cup-to-disc ratio."""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from dim_hf.data.texts import printable

CUP_TO_DISC = "vertical_cup_to_disc_ratio"
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Measurement:
    """One number about one mask.

    Attributes:
        structure: What was measured.
        quantity: "volume", "area" or `CUP_TO_DISC`.
        value: The number.
        unit: "ml"; "mm2"; "px" or "voxels" where the spacing is unknown; "" of a ratio.
        pixels: Pixels or voxels of the structure.
    """

    structure: str
    quantity: str
    value: float
    unit: str
    pixels: int


def measure(
    labels: np.ndarray, structures: Mapping[str, Sequence[int]], spacing_mm: Sequence[float] | None
) -> tuple[Measurement, ...]:
    """Volume or area of each structure, and the vertical cup-to-disc ratio of a picture with a disc.

    Args:
        labels: (H, W) or (X, Y, Z) class ids.
        structures: Class ids by structure; "disc" and "cup" are known in any case.
        spacing_mm: Along the axes of the labels; None measures in pixels.
    """
    counts = count_values(labels, 1 + max(max(classes) for classes in structures.values()))
    quantity = "volume" if labels.ndim == 3 else "area"
    factor, unit = 1.0, "voxels" if labels.ndim == 3 else "px"
    if spacing_mm is not None:
        factor = math.prod(spacing_mm) / (_MM3_PER_ML if labels.ndim == 3 else 1.0)
        unit = "ml" if labels.ndim == 3 else "mm2"
    found = []
    for name, classes in structures.items():
        pixels = int(sum(counts[index] for index in classes))
        found.append(Measurement(name, quantity, pixels * factor, unit, pixels))
    named = {name.lower(): classes for name, classes in structures.items()}
    if labels.ndim == 2 and {"cup", "disc"} <= set(named):
        ratio = vertical_ratio(labels, named["cup"], named["disc"])
        if ratio is not None:
            cup = int(sum(counts[index] for index in named["cup"]))
            found.append(Measurement("cup", CUP_TO_DISC, ratio, "", cup))
    return tuple(found)


def vertical_ratio(labels: np.ndarray, cup: Sequence[int], disc: Sequence[int]) -> float | None:
    """Rows with the cup over rows with the disc; None where there is no disc.

    >>> vertical_ratio(np.array([[1], [2], [1], [1], [0]]), [2], [1, 2])
    0.25
    """
    heights = [int(np.isin(labels, classes).any(axis=1).sum()) for classes in (cup, disc)]
    return heights[0] / heights[1] if heights[1] else None


def write_measurements(rows: Iterable[tuple[str, Sequence[Measurement]]], path: str | os.PathLike) -> None:
    """Write a line a case and measurement, that a spreadsheet can open without running anything.

    Args:
        rows: Names of cases and what was measured.
        path: The CSV file.
    """
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(field.name for field in fields(Measurement))])
        for name, measurements in rows:
            for measurement in measurements:
                writer.writerow([safe_cell(value) for value in (name, *asdict(measurement).values())])


def safe_cell(value: object) -> object:
    """A value as a cell that no spreadsheet takes for a formula; numbers stay as they are.

    >>> safe_cell("=1+1"), safe_cell(-1.5)
    ("'=1+1", -1.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) else text


def count_values(array: np.ndarray, at_least: int = 0) -> np.ndarray:
    """How often each value occurs, counted plane by plane, since counting takes eight bytes a pixel.

    Args:
        array: (H, W) or (X, Y, Z), integers from 0.
        at_least: Length of the result, at least.
    """
    counts = np.zeros(at_least, np.int64)
    for plane in [array] if array.ndim == 2 else np.moveaxis(array, -1, 0):
        found = np.bincount(plane.ravel(), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts
