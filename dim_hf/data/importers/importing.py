"""Imports a layout: finds its cases, writes them in parallel, and publishes one manifest."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import datasets

from dim_hf.data.archives import is_archive, unpack, visible
from dim_hf.data.description import FILE_NAME, DatasetDescription, read_description, write_description
from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout
from dim_hf.data.importers.registry import LAYOUTS
from dim_hf.data.importers.staging import check_target, publish, refuse_taken, staged
from dim_hf.data.importers.writer import WriteOptions, safe_name, write_case
from dim_hf.data.manifest import columns_of, find_manifest, read_manifest, relative_path, write_manifest
from dim_hf.data.parallel import parallel_map
from dim_hf.data.rows import COLUMNS, TYPED_COLUMNS
from dim_hf.data.split_file import SplitFile, read_split_file
from dim_hf.data.splits import mark_test_patients
from dim_hf.data.texts import numbered, printable
from dim_hf.data.volumes.resampling import spacing_in, spacing_note
from dim_hf.data.volumes.slices import plane_in, plane_note

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportJob:
    """Everything an import is asked to do.

    Attributes:
        layout: One of `registry.LAYOUTS`.
        source: Folder or archive (.zip, .tar, .tar.gz) in that layout; only read.
        target: Folder that becomes the data set.
        find: Choices of what is read.
        write: Choices of how it is written.
        append: Add domains to the manifest that is in `target`.
        split_file: CSV file with a fixed split (`split_file.read_split_file`).
        test_fraction: Draw test patients where the layout publishes no split; None leaves the split undecided.
        split_seed: Seed of that draw.
        skip_broken: Leave cases out that cannot be read, and say so in the description, instead of giving up.
        manifest_format: "csv" or "parquet".
        licence: Overrides the licence that the layout states.
        origin: Where the data come from, in place of what the layout states.
        workers: Threads; see `parallel.parallel_map`.
    """

    layout: str
    source: Path
    target: Path
    find: ImportOptions = field(default_factory=ImportOptions)
    write: WriteOptions = field(default_factory=WriteOptions)
    append: bool = False
    split_file: Path | None = None
    test_fraction: float | None = None
    split_seed: int = 0
    skip_broken: bool = False
    manifest_format: str = "csv"
    licence: str | None = None
    origin: str | None = None
    workers: int | None = None


def import_dataset(
    job: ImportJob, *, progress: bool = True, check: Callable[[DatasetDescription], None] | None = None
) -> Path:
    """Import a layout; nothing is written inside the source, and an interrupted import leaves no manifest.

    Args:
        job: What to import, from where, to where.
        progress: Show a progress bar.
        check: Called with the description before anything is written; what it raises ends the import.

    Returns:
        The manifest.

    Raises:
        ValueError: If the layout is unknown, the source is not in it, the target would be harmed, or cases cannot be
            read (all are named, unless `skip_broken`).
    """
    layout = _layout(job.layout)
    split = read_split_file(job.split_file) if job.split_file else None
    if not job.source.exists():
        raise ValueError(f"{job.source} does not exist; give the folder or archive that holds {layout.tree}")
    _refuse_unused(layout, job)
    check_target(job.source, job.target, append=job.append)
    with staged(job.target) as staging:
        check_target(job.source, job.target, append=job.append)  # another import may have ended meanwhile
        earlier = _Earlier.of(job) if job.append else None
        with _opened(job, staging) as source:
            found = _find(layout, source, job)
            _check_cases(found, earlier, job)
            cases = _with_fixed_split(found.cases, split) if split else found.cases
            refuse_taken(job.target, sorted({safe_name(case.domain) for case in cases}))
            planned = _joined(earlier, _description(found, [], split, job), job)
            if check:  # whatever is wrong is said before the work
                check(planned)
            rows, notes = _write_cases(cases, staging, job, progress)
        rows = _with_drawn_test(rows, job)
        description = _description(found, notes, split, job)
        files = _write_tables(rows, description, earlier, staging, job)
        publish(staging, job.target, sorted({safe_name(row["domain"]) for row in rows}), files)
    return job.target / files[-1]


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r} is unknown; choose from {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _refuse_unused(layout: Layout, job: ImportJob) -> None:
    """An option that a layout does not know would be obeyed in silence by doing nothing."""
    plain = ImportOptions()
    for item in fields(ImportOptions):
        if item.name not in layout.uses and getattr(job.find, item.name) != getattr(plain, item.name):
            used = ", ".join(f"--{name.replace('_', '-')}" for name in layout.uses) or "no such option"
            raise ValueError(
                f"layout {layout.name} does not use --{item.name.replace('_', '-')} (it knows {used}); leave it out"
            )


@dataclass(frozen=True)
class _Earlier:
    """The data set that an import is added to."""

    manifest: Path
    rows: datasets.Dataset
    description: DatasetDescription

    @classmethod
    def of(cls, job: ImportJob) -> "_Earlier":
        manifest = find_manifest(job.target)
        beside = manifest.parent / FILE_NAME
        if not beside.is_file():
            raise ValueError(
                f"{manifest} has no {FILE_NAME} beside it, so what its classes mean is not known; write one with "
                'id2label and structures, like {"id2label": {"0": "background", "1": "gland"}, '
                '"structures": {"gland": [1]}}'
            )
        return cls(manifest, read_manifest(manifest), read_description(beside))


@contextmanager
def _opened(job: ImportJob, staging: Path) -> Iterator[Path]:
    """The source as a folder; an archive is unpacked for as long as it is needed."""
    if not is_archive(job.source):
        if not job.source.is_dir():
            raise ValueError(f"{job.source} is neither a folder nor a .zip or .tar archive")
        yield job.source
        return
    if job.write.in_place:
        raise ValueError(f"{job.source} is an archive, so its images cannot stay in place; leave out --in-place")
    folder = staging / ".unpacked"
    unpack(job.source, folder)
    try:
        yield folder
    except ValueError as error:
        text = str(error)
        for path in (folder.absolute(), folder):  # a folder that will be gone
            text = text.replace(f"{path}{os.sep}", f"{job.source}: ").replace(str(path), str(job.source))
        raise ValueError(text) from error


def _find(layout: Layout, source: Path, job: ImportJob) -> Found:
    try:
        return layout.find(source, job.find)
    except ValueError as error:
        inner = visible(source)
        if len(inner) != 1 or not inner[0].is_dir():
            raise
        try:  # most archives wrap everything in a folder of their own name
            return layout.find(inner[0], job.find)
        except ValueError as inner_error:
            raise ValueError(f"{error}\nor, one folder further in: {inner_error}") from inner_error


def _check_cases(found: Found, earlier: _Earlier | None, job: ImportJob) -> None:
    """No two cases may be written to one file, and no domain twice."""
    if not found.cases:
        raise ValueError(f"{job.source} holds no images in the layout {job.layout}: {LAYOUTS[job.layout].tree}")
    if job.write.plane and found.spatial_dims != 3:
        raise ValueError(f"{job.source} holds pictures, and --slices is for volumes; leave it out")
    if job.write.spacing_mm and found.spatial_dims != 3:
        raise ValueError(f"{job.source} holds pictures, and --spacing-mm is for volumes; leave it out")
    unknown = [case for case in found.cases if not case.has_spacing]
    if job.write.spacing_mm and unknown:
        raise ValueError(
            f"{unknown[0].source} does not state its spacing, nor do any files of the layout {job.layout}, so "
            "--spacing-mm would resample by an invented one; leave it out"
        )
    files: dict[tuple[str, str], Case] = {}
    for case in found.cases:
        key = (safe_name(case.domain).casefold(), safe_name(case.name).casefold())
        if key in files:
            raise ValueError(
                f"{case.source} and {files[key].source} would both be written as {safe_name(case.name)} in domain "
                f"{case.domain}; rename one"
            )
        files[key] = case
    if earlier:
        taken = {safe_name(domain).casefold() for domain in earlier.rows.unique("domain")}
        again = sorted({case.domain for case in found.cases if safe_name(case.domain).casefold() in taken})
        if again:
            raise ValueError(f"{earlier.manifest} has the domains {again} already; rename the others")
        _refuse_other_ways(earlier.description, found, job)


def _refuse_other_ways(old: DatasetDescription, found: Found, job: ImportJob) -> None:
    """Volumes of one data set are cut and resampled alike, since a model treats new ones in one way only."""
    old_plane, plane = plane_in(old.notes), job.write.plane
    of_volumes = found.spatial_dims == 3 and (old.spatial_dims == 3 or old_plane is not None)
    if not of_volumes or old.spatial_dims != (2 if plane else 3):  # pictures, or refused for their dimensions
        return
    # As a note would give it back, so that the same numbers are equal.
    spacing = spacing_in([spacing_note(job.write.spacing_mm)]) if job.write.spacing_mm else None
    for flag, before, now in (("--slices", old_plane, plane), ("--spacing-mm", spacing_in(old.notes), spacing)):
        if before != now:
            wanted = f"say {_as_typed(flag, before)}" if before else f"leave {flag} out"
            raise ValueError(
                f"{job.target} was imported {_with(flag, before)}, and this import is {_with(flag, now)}; a model "
                f"treats all new volumes in one way: {wanted}, or import into another folder"
            )


def _with(flag: str, value: str | tuple[float, ...] | None) -> str:
    return f"with {_as_typed(flag, value)}" if value else f"without {flag}"


def _as_typed(flag: str, value: str | tuple[float, ...]) -> str:
    return " ".join([flag, *([value] if isinstance(value, str) else (f"{part:.12g}" for part in value))])


def _write_cases(
    cases: Sequence[Case], staging: Path, job: ImportJob, progress: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    for domain in {case.domain for case in cases}:
        for part in ("images", "masks"):
            (staging / safe_name(domain) / part).mkdir(parents=True, exist_ok=True)

    def write(case: Case) -> list[dict[str, Any]] | str:
        try:
            return write_case(case, staging, job.write)
        except ValueError as error:
            return str(error)

    results = parallel_map(write, cases, description="importing", unit="case", workers=job.workers, progress=progress)
    broken = [result for result in results if isinstance(result, str)]
    if broken and not job.skip_broken:
        raise ValueError(
            f"{len(broken)} of {len(cases)} cases cannot be imported; mend them, or leave them out with "
            f"--skip-broken:\n{numbered(broken)}"
        )
    rows = [row for result in results if not isinstance(result, str) for row in result]
    if not rows:
        raise ValueError(f"none of the {len(cases)} cases of {job.source} can be read; the first: {broken[0]}")
    for problem in broken:
        _LOGGER.warning("left out: %s", printable(problem))
    # Only their number is recorded: names of folders may name patients, and descriptions are published.
    return rows, [f"{len(broken)} cases that could not be read were left out"] if broken else []


def _with_fixed_split(cases: list[Case], split: SplitFile) -> list[Case]:
    """The cases with the split that a file states, known before an hour goes into writing them."""
    split.require_all((case.domain, case.name, case.columns.get("source_file")) for case in cases)
    marked = []
    for case in cases:
        part, order = split.of(case.domain, case.name, case.columns.get("source_file"))
        marked.append(replace(case, split=part, columns={**case.columns, "labeled_order": order}))
    return marked


def _with_drawn_test(rows: list[dict[str, Any]], job: ImportJob) -> list[dict[str, Any]]:
    """The rows with test patients drawn where the layout publishes none."""
    if job.test_fraction is None:
        return rows
    table = datasets.Dataset.from_dict({column: [row.get(column) for row in rows] for column in COLUMNS})
    marked = mark_test_patients(table, seed=job.split_seed, test_fraction=job.test_fraction)
    return [{**row, "split": part} for row, part in zip(rows, marked["split"], strict=True)]


def _description(found: Found, notes: list[str], split: SplitFile | None, job: ImportJob) -> DatasetDescription:
    rule = f"as {split.path.name} says" if split else found.split_rule
    if job.test_fraction is not None:
        rule += (
            f"; domains without test images: {job.test_fraction:g} of the patients drawn with seed {job.split_seed}"
        )
    written = []
    if job.write.spacing_mm:
        written.append(spacing_note(job.write.spacing_mm))
    if job.write.plane:
        written.append(plane_note(job.write.plane))
    return DatasetDescription(
        id2label=found.id2label,
        structures=found.structures,
        num_channels=found.num_channels,
        spatial_dims=2 if job.write.plane else found.spatial_dims,
        intensity="zscore" if found.spatial_dims == 3 or job.layout == "ssl4mis-h5" else "range",
        label_values={job.layout: found.label_values},
        splits=[f"{job.layout}: {rule}"],
        licence=job.licence or found.licence,
        source=[job.origin] if job.origin else [f"{job.layout}: {found.origin}"] * bool(found.origin),
        notes=[f"{job.layout}: {note}" for note in (*found.notes, *written, *notes)],
    )


def _write_tables(
    rows: list[dict[str, Any]],
    description: DatasetDescription,
    earlier: _Earlier | None,
    staging: Path,
    job: ImportJob,
) -> list[str]:
    """Write description and manifest into `staging`; their names, the manifest last."""
    name = f"manifest.{job.manifest_format}"
    if earlier:
        name = earlier.manifest.name
        description = _joined(earlier, description, job)
        rows = [*_records(earlier, job.target), *rows]
    free = dict.fromkeys(column for row in rows for column in row if column not in COLUMNS)
    # Columns that this package reads come first, so that two imports give one order.
    ordered = [column for column in TYPED_COLUMNS if column in free]
    ordered += [column for column in free if column not in TYPED_COLUMNS]
    write_description(description, staging)
    write_manifest(columns_of(rows, ordered), staging / name)
    return [FILE_NAME, name]


def _records(earlier: _Earlier, folder: Path) -> list[dict[str, Any]]:
    """The rows of a manifest with paths as they were written."""
    undecoded = earlier.rows
    for column in ("image", "label"):
        undecoded = undecoded.cast_column(column, replace(undecoded.features[column], decode=False))
    records = []
    for row in undecoded:
        paths = {c: relative_path(row[c]["path"], folder) if row[c] else None for c in ("image", "label")}
        records.append({**row, **paths})
    return records


def _joined(earlier: _Earlier | None, new: DatasetDescription, job: ImportJob) -> DatasetDescription:
    """One description of both; they must mean the same by their classes.

    Raises:
        ValueError: If classes, structures, channels or dimensions differ.
    """
    if earlier is None:
        return new
    old = earlier.description
    for name in ("id2label", "structures", "num_channels", "spatial_dims"):
        if getattr(old, name) != getattr(new, name):
            raise ValueError(
                f"{job.target} has {name} = {getattr(old, name)}, but {job.source} has {getattr(new, name)}; data "
                "sets of different meaning need folders of their own"
            )
    licences = list(dict.fromkeys(part for part in (old.licence, new.licence) if part))
    return replace(
        old,
        intensity=old.intensity if old.intensity == new.intensity else "zscore",
        label_values={**old.label_values, **_under_new_names(new.label_values, old.label_values)},
        splits=list(dict.fromkeys((*old.splits, *new.splits))),
        licence="; ".join(licences),
        source=list(dict.fromkeys((*old.source, *new.source))),
        notes=list(dict.fromkeys((*old.notes, *new.notes))),
    )


def _under_new_names(new: dict[str, dict[str, int]], taken: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Label values of one more import of a layout beside those of earlier ones, which may have met others."""
    named = {}
    for layout, values in new.items():
        known = [name for name in taken if name.split(" #")[0] == layout]
        same = any(taken[name] == values for name in known)
        if not same:
            named[f"{layout} #{len(known) + 1}" if known else layout] = values
    return named
