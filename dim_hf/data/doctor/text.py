"""The diagnosis for a terminal: one table of domains, then the findings by kind."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from dim_hf.data.doctor.diagnosis import Diagnosis
from dim_hf.data.doctor.findings import CODES, Finding, count_severities
from dim_hf.data.doctor.summary import DomainSummary
from dim_hf.data.texts import printable

_SHOWN = 5
_SPLIT_WORDS = {"": "no split"}


def format_text(diagnosis: Diagnosis, dataset: str) -> str:
    """Readable lines, no wider than the file names force them to be, whatever characters those hold.

    Args:
        diagnosis: What the doctor found.
        dataset: Name of the data set, for the first line; files below a folder of that name are shown without it.
    """
    diagnosis = diagnosis.relative_to(dataset)
    lines = [
        f"{printable(dataset)}: {count(diagnosis.rows, 'image')} of {count(len(diagnosis.domains), 'domain')}",
        "",
    ]
    lines += _table(diagnosis.domains)
    lines += ["", verdict(diagnosis)]
    for code, items in by_code(diagnosis.findings):
        lines += ["", *_group(code, items)]
    return "\n".join(lines)


def verdict(diagnosis: Diagnosis) -> str:
    """One sentence on what was found."""
    counts = count_severities(diagnosis.findings)
    if not diagnosis.findings:
        return "No fault was found."
    found = ", ".join(count(number, severity) for severity, number in counts.items() if number)
    if diagnosis.exit_code == 0:
        return f"No fault was found ({found})."
    return f"Found {found}."


def by_code(findings: Sequence[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """Findings of each code, in the order in which they are sorted."""
    for code, items in groupby(findings, lambda item: item.code):
        yield code, list(items)


def count(number: int, noun: str) -> str:
    """A number with its noun, e.g. "1 image", "1,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def first_of(tally: dict, unit: str = "") -> str:
    """The most frequent value, and how many others there are; "-" for none."""
    if not tally:
        return "-"
    first = f"{next(iter(tally))}{unit}"
    return first if len(tally) == 1 else f"{first} (+{len(tally) - 1})"


def splits(summary: DomainSummary) -> str:
    """Number of rows of each split, e.g. "45 train, 15 test"."""
    return ", ".join(f"{number} {_SPLIT_WORDS.get(split, split)}" for split, number in summary.splits.items())


def shares(summary: DomainSummary) -> str:
    """Share of each class but the first, e.g. "rim 6.6 %, cup 2.9 %"; "-" without masks."""
    if not summary.labeled:
        return "-"
    return ", ".join(f"{name} {100 * share:.3g} %" for name, share in list(summary.class_shares.items())[1:])


_COLUMNS = {
    "domain": lambda summary: summary.domain,
    "images": lambda summary: str(summary.images),
    "labeled": lambda summary: str(summary.labeled),
    "patients": lambda summary: str(summary.patients),
    "splits": splits,
    "size": lambda summary: first_of(summary.sizes),
    "channels": lambda summary: first_of(summary.channels),
    "spacing mm": lambda summary: first_of(summary.spacings_mm),
    "axes": lambda summary: first_of(summary.orientations),
    "classes": shares,
}


def _table(domains: Sequence[DomainSummary]) -> list[str]:
    """Aligned columns; those without any value are left out."""
    columns = {title: [printable(value(summary)) for summary in domains] for title, value in _COLUMNS.items()}
    kept = {title: cells for title, cells in columns.items() if set(cells) != {"-"}}
    widths = {title: max(map(len, [title, *cells])) for title, cells in kept.items()}
    rows = [list(kept), *([cells[number] for cells in kept.values()] for number in range(len(domains)))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths.values(), strict=True)).rstrip() for row in rows
    ]


def _group(code: str, items: Sequence[Finding]) -> Iterator[str]:
    kind = CODES[code]
    yield f"{kind.severity.upper()} {code}: {kind.title} ({len(items)})"
    for item in items[:_SHOWN]:
        yield f"  {printable(item.file)}: {printable(item.problem)}"
    if len(items) > _SHOWN:
        yield f"  ... and {len(items) - _SHOWN} more (--html and --json list them)"
    yield f"  Fix: {kind.fix}"
