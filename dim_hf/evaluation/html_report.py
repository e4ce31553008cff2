"""An evaluation as one HTML page that needs nothing else: no script, no font, no file beside it."""

import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim_hf.evaluation.background import Fact, background, heading
from dim_hf.evaluation.drift_report import drift_table
from dim_hf.evaluation.overlays import Shot, shot_of, structure_colors
from dim_hf.evaluation.protocols import PROTOCOLS
from dim_hf.evaluation.report_tables import agreement_tables, comparison_table, number, score_tables
from dim_hf.evaluation.result import SELECTED_ON_TEST, EvaluationResult, Overlay
from dim_hf.metrics import report_figures
from dim_hf.metrics.empty_masks import EMPTY_POLICIES
from dim_hf.metrics.figure_style import COLORS, GRID, INK
from dim_hf.metrics.labels import metric_label
from dim_hf.metrics.resampling import LEVEL, RESAMPLES
from dim_hf.metrics.statistics import PairedComparison
from dim_hf.metrics.summary import Summary
from dim_hf.metrics.summary_text import FEW_PATIENTS
from dim_hf.pages import data_uri, render_page

Key = tuple[str, str]

FIGURE_BYTES = 150_000
# Colors of a figure by their name in its style, in light and in dark.
_THEME = (
    ("ink", INK, "#e6eaef"),
    ("grid", GRID, "#37414c"),
    ("paper", "#ffffff", "#1a2027"),
    ("blue", COLORS[0], "#2a7fd4"),  # the only one of the colors that is too dark there
)


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        title: its heading.
        about: what the heading leaves to the figure, for those who cannot see it.
        image: data URI.
        caption: what is drawn, protocol, unit and empty policy.
        layout: "" for half a row, "row" for a whole one, "row broad" for one that is scrolled on phones.
    """

    title: str
    about: str
    image: str
    caption: str
    layout: str = ""


@dataclass(frozen=True)
class Section:
    """The cases of one domain that a reader should see, under their headings."""

    domain: str
    rows: Sequence[tuple[str, Sequence[Shot]]]


def write_html_report(
    result: EvaluationResult,
    path: str | os.PathLike,
    *,
    comparisons: Mapping[str, Mapping[Key, PairedComparison]] | None = None,
    remarks: Mapping[str, str] | None = None,
) -> Path:
    """Write the page; see `render_html_report`.

    Args:
        result: The evaluation.
        path: File to write; missing folders are made.
        comparisons: By name of another model what `compare_cases` says of this one against it, in Dice.
        remarks: By name of another model what else a reader of its comparison must know.

    Returns:
        The path.

    Raises:
        ValueError: If the file cannot be written.
    """
    path = Path(path)
    page = render_html_report(result, comparisons=comparisons, remarks=remarks)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files that are no text become references instead of an error.
        path.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another file for the report") from error
    return path


def render_html_report(
    result: EvaluationResult,
    *,
    comparisons: Mapping[str, Mapping[Key, PairedComparison]] | None = None,
    remarks: Mapping[str, str] | None = None,
) -> str:
    """The page as text: what stands behind the numbers, tables, figures, and the worst and best cases by domain.

    Args:
        result: The evaluation.
        comparisons: By name of another model what `compare_cases` says of this one against it, in Dice.
        remarks: By name of another model what else a reader of its comparison must know.
    """
    standing, dims = standing_of(result.summary), result.spatial_dims
    compared = [
        comparison_table(name, one, "dice", " ".join(filter(None, [(remarks or {}).get(name), standing])))
        for name, one in (comparisons or {}).items()
    ]
    return render_page(
        "dim_hf.evaluation",
        "report.html.jinja",
        provenance=result.provenance,
        title=heading(result.provenance),
        stamp=SELECTED_ON_TEST if result.provenance.selected_on_test else "",
        subtitle=standing,
        tiles=_tiles(result),
        facts=_facts(result),
        about=_about(result.summary),
        tables=[*score_tables(result, standing), *compared],
        agreement=agreement_tables(result, dims, standing),
        drift=drift_table(result),
        figures=_figures(result, dims, standing),
        sections=_sections(result),
        legend=list(structure_colors(result.structures).items()),
        standing=standing,
    )


def standing_of(summary: Summary) -> str:
    """Protocol, unit, empty policy and tolerance of the NSD in sentences: what no number may go without."""
    protocol, policy = PROTOCOLS.get(summary.protocol), EMPTY_POLICIES.get(summary.empty_policy)
    parts = [
        f"Protocol {summary.protocol}" + (f": {protocol.description}" if protocol else ""),
        {"mm": "Distances in mm", "px": "Distances in pixels"}.get(summary.unit, ""),
        "" if math.isnan(summary.nsd_tolerance) else metric_label("nsd", summary.unit, summary.nsd_tolerance),
        f"Empty masks: {summary.empty_policy} ({policy.description})" if policy else "",
    ]
    return " ".join(f"{part}." for part in parts if part)


def _tiles(result: EvaluationResult) -> list[tuple[str, str, str]]:
    """Number, what it is, and "bad" where it should be seen."""
    summary = result.summary
    if not summary.rows:
        return [("0", "cases", "bad")]
    mean, sites = summary.row(), len(summary.domains)
    dice = mean.intervals["dice"]
    interval = "" if dice.low != dice.low else f" [{number(dice.low, 3)}, {number(dice.high, 3)}]"
    tiles = [(number(dice.mean, 3), f"Dice, mean of {sites} site{'s' * (sites != 1)}{interval}", "")]
    if sites > 1 and summary.worst_domain:
        worst = summary.row(summary.worst_domain).intervals["dice"].mean
        tiles.append((number(worst, 3), f"Dice of the worst site, {summary.worst_domain}", ""))
    if summary.gap is not None:
        tiles.append((number(summary.gap, 3, sign=True), "gap: labeled site minus worst other site", ""))
    tiles.append((f"{mean.cases:,}", f"cases of {mean.patients:,} patients", ""))
    tiles += [(f"{getattr(mean, name):,}", name, "bad" * bool(getattr(mean, name))) for name in ("missed", "spurious")]
    return tiles


def _about(summary: Summary) -> list[str]:
    """What a reader must know to read the tables."""
    if not summary.rows:
        return []
    few = any(row.patients < FEW_PATIENTS for row in summary.rows)
    lone = summary.cases_without_patient
    return [
        f"Cells: mean ± standard deviation over cases (in the rows “mean of sites”, over sites of equal weight) and "
        f"the {100 * LEVEL:g} % interval: percentile bootstrap over patients within sites, {RESAMPLES:,} resamples. "
        "It says how much the mean would change with other patients of the same sites, not with another training.",
        *[f"Sites with fewer than {FEW_PATIENTS} patients have intervals that are too narrow."] * few,
        *[f"{lone:,} cases name no patient and count as patients of their own."] * bool(lone),
        "Missed: only the prediction is empty. Spurious: only the reference is empty.",
    ]


def _facts(result: EvaluationResult) -> list[Fact]:
    source, summary = result.provenance, result.summary
    protocol = PROTOCOLS.get(summary.protocol)
    return [
        *background(source, summary),
        Fact("Structures", ", ".join(_classes(result, name) for name in result.structures)),
        Fact("Protocol", f"{summary.protocol}" + (f": {protocol.description}" if protocol else "")),
        Fact("Unit of distances", {"mm": "mm", "px": "pixels"}.get(summary.unit, "–")),
        Fact("Empty masks", _policy(summary.empty_policy)),
        *[Fact("Tolerance of the NSD", f"{summary.nsd_tolerance:g} {summary.unit}")] * (summary.nsd_tolerance >= 0),
        Fact("Data set", source.dataset),
        Fact("Model", source.model + (f", its {source.scored_model}" if source.scored_model else "")),
    ]


def _classes(result: EvaluationResult, structure: str) -> str:
    """A structure with its classes, where they are not the one of its name."""
    names = [result.id2label.get(value, str(value)) for value in result.structures[structure]]
    return structure if names == [structure] else f"{structure} ({' + '.join(names)})"


def _policy(name: str) -> str:
    return f"{name}: {EMPTY_POLICIES[name].description}" if name in EMPTY_POLICIES else "–"


def _sections(result: EvaluationResult) -> list[Section]:
    sections = []
    for domain in dict.fromkeys([*result.summary.domains, *result.worst, *result.best]):
        worst, best = result.worst.get(domain, []), result.best.get(domain, [])
        if {case.name for case in worst} == {case.name for case in best}:
            rows = [("All cases, worst first", worst)]
        else:
            half = result.summary.row(domain).cases // 2
            worst, best = worst[:half], best[:half]
            rows = [(f"Worst {len(worst)}", worst), (f"Best {len(best)}", best)]
        shots = [(title, _shots(cases, result)) for title, cases in rows if cases]
        if shots:
            sections.append(Section(domain, shots))
    return sections


def _shots(cases: Sequence[Overlay], result: EvaluationResult) -> list[Shot]:
    return [shot_of(case, result.structures) for case in cases]


def _figures(result: EvaluationResult, dims: int | None, standing: str) -> list[Picture]:
    if not result.cases:
        return []
    by_structure: dict[str, list[Any]] = {}
    for case in result.cases:
        by_structure.setdefault(case.structure, []).append(case)
    boxes = (
        "Box: median and quartiles; whiskers: last case within 1.5 interquartile ranges (Tukey, 1977); diamond: mean; "
        f"points: cases. {standing}"
    )
    pairs = (
        "Solid line: mean difference of all cases; dashed: 95 % limits of agreement (Bland and Altman, 1986). "
        f"Cases with two empty masks are left out. {standing}"
    )
    pictures = [
        Picture(f"{label} by site", structure, _embed(report_figures.box_plots, cases, metric=metric), boxes)
        for structure, cases in by_structure.items()
        for metric, label in (("dice", "Dice"), ("hd95", "HD95"))
    ]
    kind = {2: "Area", 3: "Volume"}.get(dims or 0, "Volume or area")
    for structure, cases in by_structure.items():
        image = _embed(report_figures.bland_altman, cases, structure=structure, spatial_dims=dims)
        pictures.append(Picture(f"{kind}: prediction minus reference", structure, image, pairs))
    if result.reliability:
        text = (
            "How often pixels are right by the confidence of the model, and how many have it (below, log scale). "
            "ECE: expected calibration error (Naeini et al., 2015). Most pixels are easy background: compare "
            f"models on the same images only. {standing}"
        )
        image = _embed(report_figures.reliability_diagram, result.reliability)
        pictures.append(Picture("Calibration", "by site", image, text, layout="" if len(pictures) % 2 else "row"))
    if result.ratios:
        image = _embed(report_figures.ratio_agreement, result.ratios)
        text = (
            "Left: prediction over reference, dotted where both are equal. Right: solid: mean difference; dashed: "
            f"95 % limits of agreement (Bland and Altman, 1986). Cases without a disc are left out. "
            "Extents are those of each structure's largest connected part, from its top row to its bottom row. "
            f"{standing}"
        )
        pictures.append(Picture("Cup-to-disc ratio", "by site", image, text, layout="row broad"))
    return pictures


def _embed(draw: Callable[..., Path], data: Any, **options: Any) -> str:
    """The figure as a data URI: SVG that follows the reader's light or dark, or PNG where that is too large."""
    with tempfile.TemporaryDirectory() as folder:
        vector = themed(draw(data, Path(folder, "figure.svg"), **options).read_text(encoding="utf-8")).encode()
        if len(vector) * 4 / 3 < FIGURE_BYTES:
            return data_uri(vector, "svg+xml")
        return data_uri(draw(data, Path(folder, "figure.png"), **options).read_bytes(), "png")


def themed(svg: str) -> str:
    """An SVG of matplotlib whose ink, grid and paper follow the reader's light or dark.

    >>> page = themed('<?xml version="1.0"?><svg width="9"><path style="fill: #ffffff"/></svg>')
    >>> page.startswith('<svg width="9"><style>:root{--ink:')
    True
    >>> page[page.index("<path"):]
    '<path style="fill: var(--paper)"/></svg>'
    """
    svg = svg[svg.index("<svg") :]
    for name, light, _ in _THEME:
        svg = re.sub(rf"(fill|stroke): {light}", rf"\1: var(--{name})", svg, flags=re.IGNORECASE)
    light, dark = (";".join(f"--{colors[0]}:{colors[at]}" for colors in _THEME) for at in (1, 2))
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    end = svg.index(">") + 1
    return svg[:end] + style + svg[end:]
