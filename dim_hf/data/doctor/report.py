"""The diagnosis as one HTML page that needs nothing else: no script, no font, no file beside it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from dim_hf.data.description import IGNORE_INDEX
from dim_hf.data.doctor import text
from dim_hf.data.doctor.diagnosis import Diagnosis
from dim_hf.data.doctor.findings import CODES, Code, Finding, count_severities
from dim_hf.data.doctor.flips import MIN_LEAD
from dim_hf.data.doctor.inspection import Inspector, Standard
from dim_hf.data.doctor.measures import BINS
from dim_hf.data.doctor.pictures import COLORS, Picture, draw
from dim_hf.data.doctor.summary import DomainSummary, Histogram
from dim_hf.data.rows import is_present
from dim_hf.pages import render_page

SAMPLES = 8
FAULTY = 24
_LISTED = 200
_PLOT = (320, 88)


@dataclass(frozen=True)
class Shot:
    """A picture with its caption."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class Group:
    """All findings of one code."""

    code: str
    kind: Code
    items: Sequence[Finding]
    hidden: int
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Section:
    """One domain."""

    summary: DomainSummary
    facts: Sequence[tuple[str, str]]
    curves: Sequence[tuple[str, str]]
    ends: tuple[str, str]
    bars: Sequence[tuple[str, str, float, int]]
    shots: Sequence[Shot]


def write_report(diagnosis: Diagnosis, rows: datasets.Dataset, path: str | os.PathLike, dataset: str) -> Path:
    """Write the page; see `render_report`.

    Raises:
        ValueError: If the file cannot be written.
    """
    path = Path(path)
    page = render_report(diagnosis, rows, dataset)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another file for the report") from error
    return path


def render_report(diagnosis: Diagnosis, rows: datasets.Dataset, dataset: str) -> str:
    """The page as text: verdict, findings with pictures of up to 24 faulty rows, and every domain with 8 samples.

    Args:
        diagnosis: What the doctor found in `rows`.
        rows: The same rows: the chosen ones are read once more.
        dataset: Name of the data set, for the heading; files below a folder of that name are shown without it.
    """
    diagnosis = diagnosis.relative_to(dataset)
    dims = diagnosis.description.spatial_dims
    inspector = Inspector(rows, Standard(diagnosis.description.num_labels, IGNORE_INDEX, spatial_dims=dims))
    names = _names(diagnosis, rows)
    return render_page(
        "dim_hf.data.doctor",
        "doctor.html.jinja",
        dataset=dataset,
        diagnosis=diagnosis,
        verdict=text.verdict(diagnosis),
        counts=count_severities(diagnosis.findings),
        labeled=sum(summary.labeled for summary in diagnosis.domains),
        groups=_groups(diagnosis, inspector, names),
        sections=_sections(diagnosis, inspector, names, is_present(rows, "label")),
        legend=list(zip(list(diagnosis.description.id2label.values())[1:], _colors(diagnosis), strict=True)),
        plot=_PLOT,
        min_lead=MIN_LEAD,
    )


def _names(diagnosis: Diagnosis, rows: datasets.Dataset) -> list[tuple[str, str]]:
    """Domain and name of every row."""
    columns = [
        rows.select_columns([column]).with_format(None)[:][column] if column in rows.column_names else [""] * len(rows)
        for column in ("domain", "name")
    ]
    return [(domain or "", name or f"row {i}") for i, (domain, name) in enumerate(zip(*columns, strict=True))]


def _colors(diagnosis: Diagnosis) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(diagnosis.description.num_labels - 1)]


def _groups(diagnosis: Diagnosis, inspector: Inspector, names: list[tuple[str, str]]) -> list[Group]:
    groups = []
    left = FAULTY
    for code, items in text.by_code(diagnosis.findings):
        shots: list[Shot] = []
        if CODES[code].severity != "note":
            # No more than half of what is left for one code, so that the first one does not take them all.
            chosen = list(dict.fromkeys(item.row for item in items if item.row is not None))[: max(left // 2, 1)]
            shots = _shots(inspector, chosen if left > 0 else [], names)
            left -= len(shots)
        groups.append(Group(code, CODES[code], items[:_LISTED], max(len(items) - _LISTED, 0), shots))
    return groups


def _shots(inspector: Inspector, indices: Sequence[int], names: list[tuple[str, str]]) -> list[Shot]:
    pictures = ((index, draw(inspector, index, IGNORE_INDEX)) for index in indices)
    return [Shot(picture, names[index][1]) for index, picture in pictures if picture is not None]


def _sections(
    diagnosis: Diagnosis, inspector: Inspector, names: list[tuple[str, str]], has_label: np.ndarray
) -> list[Section]:
    faulty = {item.row for item in diagnosis.findings if item.severity == "error"}
    by_domain: dict[str, list[int]] = {}
    for index, (domain, _) in enumerate(names):
        by_domain.setdefault(domain, []).append(index)
    sections = []
    for summary in diagnosis.domains:
        members = by_domain[summary.domain]
        best = [index for index in members if has_label[index] and index not in faulty]
        sections.append(
            Section(
                summary,
                _facts(summary),
                _curves(summary.histogram),
                _ends(summary.histogram),
                _bars(diagnosis, summary),
                _shots(inspector, _spread(best or members, SAMPLES), names),
            )
        )
    return sections


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """Up to `count` of them, evenly spaced."""
    count = min(count, len(indices))
    return [indices[(2 * number + 1) * len(indices) // (2 * count)] for number in range(count)]


def _facts(summary: DomainSummary) -> list[tuple[str, str]]:
    facts = [
        ("images", f"{summary.images:,}"),
        ("with mask", f"{summary.labeled:,} ({100 * summary.labeled / max(summary.images, 1):.3g} %)"),
        ("patients", f"{summary.patients:,}"),
        ("splits", text.splits(summary)),
        ("size", _span(summary.sizes)),
        ("channels", _tally(summary.channels)),
        ("type", _tally(summary.dtypes)),
        ("spacing in mm", _span(summary.spacings_mm)),
        ("axes", _tally(summary.orientations)),
        ("flips", "checked" if summary.flips_checked else "cannot be told here"),
    ]
    return [(name, value) for name, value in facts if value]


def _span(tally: dict[str, int]) -> str:
    """Sizes such as "35 x 51 x 35", one by one if they are few, else the smallest and largest of each axis."""
    axes = list(zip(*(map(float, size.split(" x ")) for size in tally), strict=False))
    if len(tally) <= 3 or not axes:
        return _tally(tally)
    ends = [" x ".join(f"{end(axis):g}" for axis in axes) for end in (min, max)]
    return f"{ends[0]} to {ends[1]} ({len(tally)} different)"


def _tally(tally: dict, shown: int = 3) -> str:
    if len(tally) == 1:
        return str(next(iter(tally)))
    parts = [f"{value} ({number})" for value, number in list(tally.items())[:shown]]
    return ", ".join(parts + [f"{len(tally) - shown} more"] * (len(tally) > shown))


def _curves(histogram: Histogram | None) -> list[tuple[str, str]]:
    """Name and path of each channel's curve; heights are square roots of shares, so that small bins are seen."""
    if histogram is None:
        return []
    shares = np.sqrt(np.clip(histogram.shares, 0, None))
    width, height = _PLOT
    kinds = ("red", "green", "blue") if len(shares) == 3 else ("grey",) * len(shares)
    top = max(float(shares.max()), 1e-9)
    paths = []
    for kind, channel in zip(kinds, shares, strict=True):
        heights = height - channel / top * (height - 4)
        steps = "".join(f"V{y:.1f}H{(i + 1) * width / BINS:.1f}" for i, y in enumerate(heights))
        paths.append((kind, f"M0,{height}{steps}V{height}Z"))
    return paths


def _ends(histogram: Histogram | None) -> tuple[str, str]:
    if histogram is None:
        return "", ""
    is_8_bit = (histogram.low, histogram.high) == (0, 256)
    return ("0", "255") if is_8_bit else (f"{histogram.low:.4g}", f"{histogram.high:.4g}")


def _bars(diagnosis: Diagnosis, summary: DomainSummary) -> list[tuple[str, str, float, int]]:
    """Name, color, share and number of masks of each class but the first."""
    if not summary.labeled:
        return []
    classes = list(summary.class_shares.items())[1:]
    return [
        (name, color, share, summary.class_images[name])
        for (name, share), color in zip(classes, _colors(diagnosis), strict=True)
    ]
