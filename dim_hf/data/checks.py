"""Opens every file once before training starts, so that a fault is found in the first minute."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets

from dim_hf.data.description import IGNORE_INDEX
from dim_hf.data.doctor.comparison import foreground_ignored
from dim_hf.data.doctor.findings import CODES
from dim_hf.data.doctor.inspection import Inspector, Standard, inspect_rows
from dim_hf.data.doctor.intake import ANY_IMAGE, Intake
from dim_hf.data.limits import MAX_PIXELS, MAX_VOXELS
from dim_hf.data.texts import numbered


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
    ignore_index: int | None = IGNORE_INDEX,
    *,
    max_pixels: int = MAX_PIXELS,
    max_voxels: int = MAX_VOXELS,
    intake: Intake = ANY_IMAGE,
    num_workers: int | None = None,
    progress: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Open every image and mask once, in parallel threads, and refuse the rows if any is faulty.

    Args:
        rows: Rows with `image` and perhaps `label`.
        num_labels: Number of classes; masks hold 0..num_labels - 1.
        ignore_index: Value of mask pixels that are not scored; None for no such value.
        max_pixels: Largest allowed number of pixels of a picture, read from its header before it is decoded.
        max_voxels: The same for volumes.
        intake: What the network's image processor takes.
        num_workers: Threads; by default twice the number of cores, at most 16.
        progress: Show a progress bar.
        rank: Number of this process among those that share the work; each looks at its own rows.
        world_size: How many processes do.

    Raises:
        ValueError: With the first ten faults, each with file and fix, and their total number; in a process of several
            those of its own rows, so gather what `find_faults` gives, and give it to `refuse_faults`, for all of them.
    """
    faults = find_faults(
        rows,
        num_labels,
        ignore_index,
        max_pixels=max_pixels,
        max_voxels=max_voxels,
        intake=intake,
        num_workers=num_workers,
        progress=progress,
        rank=rank,
        world_size=world_size,
    )
    refuse_faults(faults, len(rows))


def refuse_faults(faults: Sequence[Fault], num_rows: int) -> None:
    """Raise what `check_rows` raises, if there is any fault.

    Args:
        faults: Of all processes.
        num_rows: Number of the rows that were looked at.

    Raises:
        ValueError: With the first ten faults and their number.
    """
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ValueError(f"the check of {num_rows} rows found {count}:\n{numbered(faults)}")


def find_faults(
    rows: datasets.Dataset,
    num_labels: int,
    ignore_index: int | None = IGNORE_INDEX,
    *,
    max_pixels: int = MAX_PIXELS,
    max_voxels: int = MAX_VOXELS,
    intake: Intake = ANY_IMAGE,
    num_workers: int | None = None,
    progress: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> list[Fault]:
    """The faults that `check_rows` would report, in the order of the rows; its arguments.

    They are the doctor's findings that keep training from running, so that `dim-hf doctor` shows each of them, too. A
    file is faulty if it is missing, cannot be read to its end or has too many pixels or voxels; an image, if a pixel
    is NaN or infinite; a mask, if it has another size or place than its image, more than one channel, or a value that
    is no class. If all masks of a domain together hold nothing but 0 and `ignore_index`, that is a fault too: they
    were surely written as 0/255, and no pixel of the foreground would be learned from. What `intake` does not take is
    a fault of this training alone, and nothing that the doctor shows.

    Raises:
        ValueError: If `rank` is not in 0..world_size - 1, or as `inspection.inspect_rows`.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size - 1, got rank {rank} and world_size {world_size}")
    standard = Standard(num_labels, ignore_index, max_pixels, max_voxels, intake=intake)
    own = range(rank, len(rows), world_size)
    facts = inspect_rows(rows, standard, indices=own, num_workers=num_workers, progress=progress)
    faults = [
        Fault(row.files[problem.column], problem.problem, CODES[problem.code].fix)
        for row in facts
        for problem in row.problems
        if CODES[problem.code].blocks
    ]
    for item in foreground_ignored(facts, num_labels, ignore_index):
        if world_size == 1 or _is_ignored_elsewhere(rows, standard, own, item.domain):
            faults.append(Fault(item.file, item.problem, item.fix))
    return faults


def _is_ignored_elsewhere(rows: datasets.Dataset, standard: Standard, own: range, domain: str) -> bool:
    """Whether the masks of other processes' rows hold nothing else in this domain; mostly the first one tells."""
    inspector = Inspector(rows, standard)
    domains = rows["domain"] if "domain" in rows.column_names else [""] * len(rows)
    others = (index for index, name in enumerate(domains) if (name or "") == domain and index not in own)
    return all(set(inspector.inspect(index).counts or ()) <= {0, standard.ignore_index} for index in others)
