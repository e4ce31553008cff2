"""Opens every file once before training starts, so that a fault is found in the first minute."""

from dataclasses import dataclass

import datasets

from dim_hf.data.doctor.comparison import foreground_ignored
from dim_hf.data.doctor.findings import CODES
from dim_hf.data.doctor.inspection import Standard, inspect_rows
from dim_hf.data.limits import MAX_PIXELS, MAX_VOXELS

_SHOWN = 10


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
    max_voxels: int = MAX_VOXELS,
    num_workers: int | None = None,
    progress: bool = True,
) -> None:
    """Open every image and mask once, in parallel threads, and refuse the rows if any is faulty.

    Args:
        rows: Rows with `image` and perhaps `label`.
        num_labels: Number of classes; masks hold 0..num_labels - 1.
        ignore_index: Value of mask pixels that are not scored; None for no such value.
        max_pixels: Largest allowed number of pixels of a picture, read from its header before it is decoded.
        max_voxels: The same for volumes.
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
        max_voxels=max_voxels,
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
    max_voxels: int = MAX_VOXELS,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[Fault]:
    """The faults that `check_rows` would report, in the order of the rows; its arguments.

    They are the doctor's findings that keep training from running, so that `dim-hf doctor` shows each of them, too. A
    file is faulty if it is missing, cannot be read to its end or has too many pixels or voxels; an image, if a pixel
    is NaN or infinite; a mask, if it has another size or place than its image, more than one channel, or a value that
    is no class. If all masks together hold nothing but 0 and `ignore_index`, that is a fault too: they were surely
    written as 0/255, and no pixel of the foreground would be learned from.
    """
    facts = inspect_rows(
        rows,
        Standard(num_labels, ignore_index, max_pixels, max_voxels),
        num_workers=num_workers,
        progress=progress,
    )
    faults = [
        Fault(row.files[problem.column], problem.problem, CODES[problem.code].fix)
        for row in facts
        for problem in row.problems
        if CODES[problem.code].blocks
    ]
    found = foreground_ignored(facts, num_labels, ignore_index)
    return faults + [Fault(item.file, item.problem, item.fix) for item in found]
