"""Tables of the report: what stands in each cell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dim_hf.evaluation.result import EvaluationResult
from dim_hf.metrics.agreement import limits_of_agreement, volume_pairs, volume_unit
from dim_hf.metrics.labels import LABELS, SHARES, metric_label
from dim_hf.metrics.report import MEAN_OF_SITES
from dim_hf.metrics.resampling import Interval
from dim_hf.metrics.statistics import PairedComparison
from dim_hf.metrics.summary import Summary, SummaryRow

DISTANCES = ("hd95", "hd", "asd", "assd")  # differences of volumes have their own table, with limits


@dataclass(frozen=True)
class Bar:
    """An interval on an axis, in percent of its width."""

    left: float
    width: float
    dot: float


@dataclass(frozen=True)
class Cell:
    """What a cell says: a number, what is beneath it, and how it is to be seen ("good", "bad", "quiet" or "")."""

    text: str
    below: str = ""
    kind: str = ""
    bar: Bar | None = None


@dataclass(frozen=True)
class Group:
    """The rows of one domain, with marks such as "labeled"; each row is a structure's name and its cells."""

    domain: str
    marks: Sequence[str]
    is_mean: bool
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Table:
    """A table with its caption; `head` are the columns after domain and structure."""

    title: str
    head: Sequence[str]
    groups: Sequence[Group]
    caption: str


def number(value: float, digits: int, *, sign: bool = False) -> str:
    """A number for reading, with a minus that is one; "–" for NaN.

    >>> number(-1234.5, 1), number(0.5, 2, sign=True), number(float("nan"), 2)
    ('−1,234.5', '+0.50', '–')
    """
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}z,.{digits}f}".replace("-", "−")


def score_tables(result: EvaluationResult, standing: str) -> list[Table]:
    """Overlaps, then distances; metrics without any value are left out, and so are tables without any metric.

    Args:
        result: The evaluation.
        standing: Protocol, unit and empty policy, for captions.
    """
    summary = result.summary
    if not summary.rows:
        return []
    bars = f"Bars show the interval of the Dice on an axis from {_axis_start(summary):g} to 1. "
    undefined = ["undefined"] * any(row.undefined for row in summary.rows)
    kinds = (
        ("Overlap", SHARES, ["cases", "patients", "missed", "spurious"], bars),
        ("Distances", DISTANCES, ["cases", "missed", "spurious", *undefined], ""),
    )
    tables = []
    for title, metrics, counts, text in kinds:
        shown = [name for name in metrics if any(row.intervals[name].cases for row in summary.rows)]
        heads = [metric_label(name, summary.unit, summary.nsd_tolerance) for name in shown]
        if shown:
            groups = _groups(summary, shown, counts)
            tables.append(Table(title, [*heads, *map(str.capitalize, counts)], groups, text + standing))
    return tables


def _axis_start(summary: Summary) -> float:
    """The tenth below all intervals of the Dice."""
    dice = [row.intervals["dice"] for row in summary.rows]
    lowest = min((v for one in dice for v in (one.low, one.mean) if not math.isnan(v)), default=0.0)
    return min(max(math.floor(10 * lowest) / 10, 0.0), 0.9)


def _groups(summary: Summary, metrics: Sequence[str], counts: Sequence[str]) -> list[Group]:
    start = _axis_start(summary)
    groups = []
    for domain, rows in groupby(summary.rows, key=lambda row: row.domain):
        is_worst = domain == summary.worst_domain and len(summary.domains) > 1
        marks = ["labeled"] * (domain == summary.labeled_domain) + ["worst"] * is_worst
        cells = [
            (row.structure, [_score(row, name, start) for name in metrics] + [_count(row, name) for name in counts])
            for row in rows
        ]
        groups.append(Group(domain, marks, domain == MEAN_OF_SITES, cells))
    return groups


def _count(row: SummaryRow, name: str) -> Cell:
    value = getattr(row, name)
    if name in ("cases", "patients"):
        return Cell(f"{value:,}")
    return Cell(f"{value:,}", kind="bad" if value else "quiet")


def _score(row: SummaryRow, metric: str, start: float) -> Cell:
    """Mean ± sd, beneath it the interval, and for the Dice its bar."""
    one, digits = row.intervals[metric], 3 if metric in SHARES else 2
    text = number(one.mean, digits) + ("" if math.isnan(one.sd) else f" ± {number(one.sd, digits)}")
    below = _interval(one, digits)
    return Cell(text, below, bar=_bar(one, start) if metric == "dice" and below else None)


def _interval(one: Interval, digits: int, *, sign: bool = False) -> str:
    """Low and high in brackets; nothing where they are not defined."""
    if math.isnan(one.low):
        return ""
    return f"[{number(one.low, digits, sign=sign)}, {number(one.high, digits, sign=sign)}]"


def _bar(interval: Interval, start: float) -> Bar:
    low, high, mean = (100 * (value - start) / (1 - start) for value in (interval.low, interval.high, interval.mean))
    return Bar(round(low, 1), round(high - low, 1), round(mean, 1))


def agreement_tables(result: EvaluationResult, spatial_dims: int | None, standing: str) -> list[Table]:
    """Mean differences with limits of agreement: of volumes or areas, and of the ratios where there are some.

    Args:
        result: The evaluation.
        spatial_dims: 2 or 3; None where it is not known.
        standing: Protocol, unit and empty policy, for captions.
    """
    unit, factor = volume_unit(result.summary.unit, spatial_dims)
    structures = dict.fromkeys(case.structure for case in result.cases)
    volumes = {
        structure: {
            domain: [(factor * predicted, factor * reference) for predicted, reference in pairs]
            for domain, pairs in volume_pairs(result.cases, structure).items()
        }
        for structure in structures
    }
    limits = "Limits: mean ± 1.96 standard deviations (Bland and Altman, 1986), cases taken as independent."
    text = f"Prediction minus reference ({unit}); cases with neither are left out. {limits} {standing}"
    what = {2: "areas", 3: "volumes"}.get(spatial_dims or 0, "volumes or areas")
    tables = [_agreement_table(f"Agreement of {what}", volumes, 0 if factor == 1 else 1, text)] if volumes else []
    if result.ratios:
        text = (
            "Vertical ratio, prediction minus reference; cases without a disc are left out. "
            "Extents are those of each structure's largest connected part, from its top row to its bottom row."
            f" {limits} {standing}"
        )
        tables.append(_agreement_table("Agreement of the cup-to-disc ratio", {"ratio": result.ratios}, 3, text))
    return tables


def _agreement_table(
    title: str, found: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], digits: int, caption: str
) -> Table:
    """A table of pairs by structure and domain, with all domains together at its end."""
    domains = list(dict.fromkeys(domain for by_domain in found.values() for domain in by_domain))
    groups = [
        Group(
            domain,
            [],
            False,
            [
                (name, _agreement(by_domain[domain], digits))
                for name, by_domain in found.items()
                if domain in by_domain
            ],
        )
        for domain in domains
    ]
    if len(domains) > 1:
        together = {
            name: [pair for pairs in by_domain.values() for pair in pairs] for name, by_domain in found.items()
        }
        rows = [(name, _agreement(pairs, digits)) for name, pairs in together.items()]
        groups.append(Group("all cases", [], True, rows))
    return Table(title, ("Mean difference", "SD", "Lower limit", "Upper limit", "Cases"), groups, caption)


def _agreement(pairs: Sequence[tuple[float, float]], digits: int) -> list[Cell]:
    one = limits_of_agreement([predicted for predicted, _ in pairs], [reference for _, reference in pairs])
    signed = [Cell(number(value, digits, sign=True)) for value in (one.bias, one.lower, one.upper)]
    return [signed[0], Cell(number(one.sd, digits)), *signed[1:], Cell(f"{one.cases:,}")]


def comparison_table(
    name: str, comparisons: Mapping[tuple[str, str], PairedComparison], metric: str, standing: str
) -> Table:
    """Paired differences between this model and another one, from `summary.compare_cases`.

    Args:
        name: The other model.
        comparisons: By domain and structure, this model minus the other.
        metric: What was compared; a share.
        standing: Protocol, unit and empty policy, for the caption.
    """
    label = LABELS[metric]
    groups = [
        Group(domain, [], domain == MEAN_OF_SITES, [(structure, _compared(one)) for (_, structure), one in rows])
        for domain, rows in groupby(comparisons.items(), key=lambda item: item[0][0])
    ]
    head = (f"Difference of {label}", "p", "Better", "Worse", "Equal", "Cases", "Patients")
    text = (
        f"{label} of this model minus that of “{name}” on the same cases: mean [95 % interval: percentile bootstrap "
        "over patients]; p: two-sided Wilcoxon signed-rank test of the patients' means, not adjusted for the number "
        f"of tests; better, worse, equal: patients for whom this model is so. {standing}"
    )
    return Table(f"Compared with {name}", head, groups, text)


def _compared(one: PairedComparison) -> list[Cell]:
    below = _interval(one.difference, 3, sign=True)
    kind = "good" if one.difference.low > 0 else "bad" if one.difference.high < 0 else ""
    p_value = "–" if math.isnan(one.p_value) else "<0.001" if one.p_value < 0.001 else f"{one.p_value:.3f}"
    counts = (one.better, one.worse, one.equal, one.difference.cases, one.pairs)
    return [
        Cell(number(one.difference.mean, 3, sign=True), below, kind),
        Cell(p_value),
        *[Cell(f"{count:,}") for count in counts],
    ]
