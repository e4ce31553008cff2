"""Summaries and comparisons of cases for reading, in Markdown or text, and as CSV."""

import csv
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from dim_hf.metrics.case_files import safe_cell
from dim_hf.metrics.labels import SHARES, metric_label, scoring_sentence
from dim_hf.metrics.paired_cases import Key
from dim_hf.metrics.report import MEAN_OF_SITES, MEANS, SiteTable
from dim_hf.metrics.resampling import LEVEL, RESAMPLES, Interval
from dim_hf.metrics.statistics import MIN_PAIRS, PairedComparison
from dim_hf.metrics.summary import Summary
from dim_hf.metrics.text_table import TEXT_WIDTH, render

# What a printed table shows unless told: the CSV has all.
SHOWN = ("dice", "jaccard", "hd95", "asd", "nsd")

# Below this many clusters the caption warns of percentile intervals.
FEW_PATIENTS = 20


def _digits(metric: str) -> int:
    return 3 if metric in SHARES else 2


def _cell(interval: Interval, digits: int) -> str:
    if math.isnan(interval.mean):
        return "–"
    spread = "" if math.isnan(interval.sd) else f" ± {interval.sd:.{digits}f}"
    known = not math.isnan(interval.low)
    return f"{interval.mean:.{digits}f}{spread}" + known * f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _scoring(table: SiteTable) -> str:
    scored = scoring_sentence(table.unit, table.empty_policy, table.nsd_tolerance)
    return f"Protocol {table.protocol}; {scored[0].lower()}{scored[1:]}" if isinstance(table, Summary) else scored


def _worst_sentence(summary: Summary) -> str:
    worst = summary.row(summary.worst_domain).intervals["dice"].mean
    sentence = f"Worst domain by Dice: {summary.worst_domain} ({worst:.3f})."
    if summary.labeled_domain is None:
        return sentence
    if summary.gap is None:
        missing = "no other domain was" if summary.labeled_domain in summary.domains else "it was not"
        return f"{sentence} Labeled domain: {summary.labeled_domain}; no gap, since {missing} scored."
    labeled = summary.row(summary.labeled_domain).intervals["dice"].mean
    return (
        f"{sentence} Labeled domain: {summary.labeled_domain} ({labeled:.3f}); its Dice minus that of the worst other "
        f"domain: {summary.gap:+z.3f}."
    )


def _caption(summary: Summary) -> str:
    if not summary.rows:
        return f"No cases were scored (protocol {summary.protocol})."
    sentences = [
        _scoring(summary),
        f"Mean ± standard deviation over cases (in rows “{MEAN_OF_SITES}”, over sites of equal weight) "
        f"[{100 * LEVEL:g} % interval: percentile bootstrap over patients within sites, {RESAMPLES} resamples].",
        f"With fewer than {FEW_PATIENTS} patients such an interval is too narrow."
        if any(row.patients < FEW_PATIENTS for row in summary.rows)
        else "",
        _worst_sentence(summary) if summary.worst_domain else "",
        f"{summary.cases_without_patient} cases name no patient and count as patients of their own."
        if summary.cases_without_patient
        else "",
    ]
    return " ".join(filter(None, sentences))


def format_summary(summary: Summary, style: str = "markdown", metrics: Sequence[str] = SHOWN) -> str:
    """The summary for reading: means ± sd [interval] beside the counts of missed and spurious structures.

    Args:
        summary: from `summarize`.
        style: "markdown", one table, or "text", a narrower one for each metric.
        metrics: names in `report.MEANS`; those without any value, such as the NSD without a tolerance, are left out.

    Returns:
        Lines with a caption that states protocol, unit, empty policy, the worst domain and the gap. A column
        "Undefined" counts what is left out of the means of distances, if there is anything; "–" is a mean of nothing,
        and a mean of one patient has no interval.

    Raises:
        ValueError: for an unknown style or metric.
    """
    unknown = [metric for metric in metrics if metric not in MEANS]
    if unknown:
        raise ValueError(f"metric is {unknown[0]!r}; choose from {', '.join(MEANS)}")
    shown = [name for name in metrics if any(row.intervals[name].cases for row in summary.rows) or not summary.rows]
    groups = [[name] for name in shown] if style == "text" and summary.rows else [shown]
    undefined = any(row.undefined for row in summary.rows)
    counts = ["cases", "patients", "missed", "spurious", *["undefined"] * undefined]
    tables = []
    for group in groups:
        header = ["Site", "Structure", *(name.capitalize() for name in counts)]
        lines = [
            [row.domain, row.structure]
            + [str(getattr(row, name)) for name in counts]
            + [_cell(row.intervals[metric], _digits(metric)) for metric in group]
            for row in summary.rows
        ]
        header += [metric_label(metric, summary.unit, summary.nsd_tolerance) for metric in group]
        tables.append(render(header, lines, style, left=2))
    return "\n\n".join([*tables, _wrapped(_caption(summary), style)])


def write_summary_csv(summary: Summary, path: str | Path, *, about: Mapping[str, str] | None = None) -> None:
    """Writes one line a domain, structure and metric, with all that the caption of a table says.

    Args:
        summary: from `summarize`.
        path: file to write; its folder must exist. `defined_cases` and `defined_patients` are those that the metric
            has a value for; NaN and None are empty cells.
        about: further columns with the same value in each line, such as how the step was chosen.
    """
    more = about or {}
    counts = ("cases", "patients", "missed", "spurious", "undefined")
    known = ("unit", "empty_policy", "nsd_tolerance", "protocol", "labeled_domain", "worst_domain", "gap")
    moments = ("mean", "sd", "low", "high")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["domain", "structure", "metric", *moments, "defined_cases", "defined_patients", *counts, *known, *more]
        )
        for row in summary.rows:
            for metric, interval in row.intervals.items():
                own = [*(getattr(row, name) for name in counts), *(getattr(summary, name) for name in known)]
                cells = [row.domain, row.structure, metric, *vars(interval).values(), *own, *more.values()]
                writer.writerow(["" if isinstance(v, float) and math.isnan(v) else safe_cell(v) for v in cells])


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def format_comparison_of_cases(
    comparisons: Mapping[Key, PairedComparison],
    names: Sequence[str] = ("A", "B"),
    metric: str = "dice",
    *,
    table: SiteTable | None = None,
    style: str = "markdown",
) -> str:
    """The comparison for reading: mean difference [interval], p value, and for how many patients which is better.

    Args:
        comparisons: from `compare_cases`.
        names: of the two methods.
        metric: the one that was compared.
        table: of either method, or its summary, for unit, empty policy and protocol in the caption.
        style: "markdown" or "text".

    Returns:
        Lines with a caption. A column "Undefined" counts cases without a value in either, if there are any.

    Raises:
        ValueError: for an unknown style or metric.
    """
    if metric not in MEANS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(MEANS)}")
    label = metric_label(metric, *(table.unit, table.nsd_tolerance) if table else ())
    label = f"Absolute {label[0].lower()}{label[1:]}" if metric == "volume_difference" else label
    if not comparisons:
        return "No cases were compared."
    first, second = names
    header = ["Site", "Structure", "Cases", "Patients", f"{first} − {second}", "p", f"{first} better"]
    header += [f"{second} better", "Equal"]
    undefined = any(item.undefined for item in comparisons.values())
    lines = []
    for (domain, structure), item in comparisons.items():
        counts = [item.better, item.worse, item.equal, *[item.undefined] * undefined]
        cells = [item.difference.cases, item.pairs, _difference_cell(item.difference, _digits(metric))]
        lines.append([domain, structure, *map(str, [*cells, _p_value(item.p_value), *counts])])
    caption = (
        f"{label} of {first} minus {second} on the same cases: mean [{100 * LEVEL:g} % interval: percentile bootstrap "
        f"over patients, {RESAMPLES} resamples]; p: two-sided Wilcoxon signed-rank test of the patients' means, from "
        f"{MIN_PAIRS} patients on, not adjusted for the number of tests."
    )
    text = render(header + ["Undefined"] * undefined, lines, style, left=2)
    return text + "\n\n" + _wrapped(caption + (f" {_scoring(table)}" if table else ""), style)


def _wrapped(caption: str, style: str) -> str:
    return textwrap.fill(caption, TEXT_WIDTH) if style == "text" else caption


def _difference_cell(interval: Interval, digits: int) -> str:
    if math.isnan(interval.mean):
        return "–"
    mean, low, high = (f"{value:+.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return mean if math.isnan(interval.low) else f"{mean} [{low}, {high}]"
