"""What is measured on a mask: volumes, areas, cup-to-disc ratio."""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from dim_hf.data.texts import printable
from dim_hf.metrics.agreement import vertical_ratio
from dim_hf.metrics.case_files import safe_cell

CUP_TO_DISC = "vertical_cup_to_disc_ratio"
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
        ratio = vertical_ratio(np.isin(labels, named["cup"]), np.isin(labels, named["disc"]))
        if ratio is not None:
            cup = int(sum(counts[index] for index in named["cup"]))
            found.append(Measurement("cup", CUP_TO_DISC, ratio, "", cup))
    return tuple(found)


def write_measurements(
    rows: Iterable[tuple[str, Sequence[Measurement]]],
    path: str | os.PathLike,
    *,
    drifts: Mapping[str, tuple[float, bool]] | None = None,
) -> None:
    """Write a line a case and measurement, that a spreadsheet can open without running anything.

    Args:
        rows: Names of cases and what was measured.
        path: The CSV file.
        drifts: Drift score and flag for review by name, for two more columns; none are added where it is None.
    """
    more = [] if drifts is None else ["drift", "review"]
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(field.name for field in fields(Measurement)), *more])
        for name, measurements in rows:
            own = () if drifts is None else drifts.get(name, ("", ""))
            for measurement in measurements:
                cells = (name, *asdict(measurement).values(), *own)
                writer.writerow([safe_cell(printable(cell)) if isinstance(cell, str) else cell for cell in cells])


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
