"""Scores of cases as means with intervals, for each domain and structure, and two methods compared on the same cases.

Means are those of `report.site_table`: over the cases of a domain for each structure, over the structures of the
domain, then over domains with equal weight for each. Intervals resample patients within their domain, with all their
cases and structures together (`resampling`); domains are not resampled, so that no interval is one for a new domain.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.empty_masks import EMPTY_POLICIES
from dim_hf.metrics.paired_cases import SHARES, Key, by_domain, compare_cases
from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES, MEANS, SiteRow, mean_of_defined, render, site_table
from dim_hf.metrics.resampling import (
    LEVEL,
    RESAMPLES,
    Interval,
    ResampledMeans,
    count_clusters,
    mean_of_resampled,
    resample_means,
)
from dim_hf.metrics.statistics import MIN_PAIRS, PairedComparison

__all__ = [
    "METRICS",
    "SHOWN",
    "Summary",
    "SummaryRow",
    "compare_cases",
    "format_comparison_of_cases",
    "format_summary",
    "summarize",
    "write_summary_csv",
]

METRICS = MEANS

# What a printed table shows unless told: the CSV has all.
SHOWN = ("dice", "jaccard", "hd95", "asd", "nsd")

# Below this many clusters the caption warns of percentile intervals.
FEW_PATIENTS = 20

LABELS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95": "HD95",
    "hd": "HD",
    "asd": "ASD",
    "assd": "ASSD",
    "nsd": "NSD",
    "volume_difference": "Volume difference",
}


@dataclass(frozen=True)
class SummaryRow:
    """Means with intervals over the cases of one domain, or over domains.

    Attributes:
        domain: name of the domain, or `report.MEAN_OF_SITES`.
        structure: name of the structure, or `report.ALL_STRUCTURES`.
        cases: number of cases.
        patients: number of their patients; a case without a patient counts as a patient.
        missed: how many (case, structure) pairs have only the prediction empty.
        spurious: how many have only the reference empty.
        undefined: how many have no HD95 (NaN) and are left out of the means of distances.
        intervals: by name in `METRICS`; `sd` is over cases, and over domains in rows of the mean of sites.
    """

    domain: str
    structure: str
    cases: int
    patients: int
    missed: int
    spurious: int
    undefined: int
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Summary:
    """Rows by domain and structure with what a reader must know about them.

    Attributes:
        rows: of each domain its structures and, if there are several, their mean; then the same over domains.
        unit: "mm" or "px" of every distance; "" without cases.
        empty_policy: how distances of missed and spurious structures were scored; "" without cases.
        protocol: name of the way to score, for captions.
        labeled_domain: domain whose labels were trained on; None where unknown.
        worst_domain: domain with the lowest mean Dice (mean of structures), whether labeled or not; "" without cases.
        gap: Dice of the labeled domain minus that of the worst other domain; None where one of them was not scored.
        cases_without_patient: how many cases have no patient and are resampled alone.
    """

    rows: tuple[SummaryRow, ...]
    unit: str
    empty_policy: str
    protocol: str
    labeled_domain: str | None
    worst_domain: str
    gap: float | None
    cases_without_patient: int = 0

    def row(self, domain: str = MEAN_OF_SITES, structure: str | None = None) -> SummaryRow:
        """The row of a domain and a structure.

        Args:
            domain: a domain, or `report.MEAN_OF_SITES`.
            structure: a structure; None is the mean of the structures, or the only one.

        Returns:
            The row.

        Raises:
            ValueError: if there is no such row; the message lists those that there are.
        """
        found = [row for row in self.rows if row.domain == domain and structure in (None, row.structure)]
        if not found:
            names = ", ".join(f"{row.domain} / {row.structure}" for row in self.rows) or "none"
            raise ValueError(f"no row for domain {domain!r} and structure {structure!r}; there are: {names}")
        return found[-1]

    @property
    def domains(self) -> list[str]:
        """Domains in the order of their first case, without the mean."""
        return list(dict.fromkeys(row.domain for row in self.rows if row.domain != MEAN_OF_SITES))


def _patients(cases: Mapping[str, Mapping[str, CaseResult]]) -> list[str]:
    """The patient of each case."""
    patients = []
    for name, rows in cases.items():
        found = sorted({row.patient for row in rows.values()})
        if len(found) > 1:
            raise ValueError(f"case {name!r} has the patients {', '.join(map(repr, found))}; name one a case")
        patients.append(found[0])
    return patients


def _resample_domain(cases: Mapping[str, Mapping[str, CaseResult]], seed: Sequence[int]) -> dict[str, ResampledMeans]:
    """Resampled means by structure and of all structures, all from the same resamples of patients."""
    structures = sorted({structure for rows in cases.values() for structure in rows})
    values = np.full((len(cases), len(structures) + 1, len(METRICS)), math.nan)
    for at, rows in enumerate(cases.values()):
        scores = {name: [getattr(row, metric) for metric in METRICS] for name, row in rows.items()}
        for place, structure in enumerate(structures):
            values[at, place] = scores.get(structure, math.nan)
        # The mean of a case's structures, for the spread over cases.
        values[at, -1] = [mean_of_defined(column) for column in zip(*scores.values(), strict=True)]
    whole = resample_means(values.reshape(len(cases), -1), _patients(cases), seed=seed)
    *parts, by_case = [
        ResampledMeans(*(array[..., first : first + len(METRICS)] for array in vars(whole).values()))
        for first in range(0, len(whole.means), len(METRICS))
    ]
    together = mean_of_resampled(parts)
    together = replace(together, sds=by_case.sds, cases=by_case.cases, clusters=by_case.clusters)
    return dict(zip(structures, parts, strict=True)) | {ALL_STRUCTURES: together}


def _summary_row(row: SiteRow, patients: int, resampled: ResampledMeans) -> SummaryRow:
    intervals = dict(zip(METRICS, resampled.intervals(LEVEL), strict=True))
    counts = (row.missed, row.spurious, row.undefined)
    return SummaryRow(row.domain, row.structure, row.cases, patients, *counts, intervals)


def _worst_and_gap(dice: Mapping[str, float], labeled_domain: str | None) -> tuple[str, float | None]:
    known = sorted((value, domain) for domain, value in dice.items() if not math.isnan(value))
    others = [value for value, domain in known if domain != labeled_domain]
    labeled = [value for value, domain in known if domain == labeled_domain]
    return known[0][1] if known else "", labeled[0] - others[0] if labeled and others else None


def summarize(
    cases: Iterable[CaseResult], *, protocol: str, labeled_domain: str | None = None, seed: int = 0
) -> Summary:
    """Means, standard deviations and 95 % intervals by domain and structure, and the worst domain.

    Args:
        cases: rows of `score_case`, of any number of domains, cases and structures; may be empty.
        protocol: name of the way they were scored, for captions.
        labeled_domain: domain whose labels were trained on; it need not be among the cases.
        seed: of the resamples, an integer from 0. A domain's intervals depend on its own name and cases only.

    Returns:
        The summary, without rows for no cases. It does not depend on the order of the cases, but for the order of
        its rows.

    Raises:
        ValueError: if units or empty policies are mixed, a (domain, case, structure) comes twice, a case has several
            patients, or a domain or a structure has the name of a mean.
    """
    cases = list(cases)
    table, domains = site_table(cases), by_domain(cases)
    resampled: dict[Key, ResampledMeans] = {}
    patients: dict[Key, int] = {}
    for domain, own in domains.items():
        for structure, means in _resample_domain(own, (seed, *domain.encode("utf-8", "surrogatepass"))).items():
            held = {name: rows for name, rows in own.items() if structure in (*rows, ALL_STRUCTURES)}
            resampled[domain, structure] = means
            patients[domain, structure] = count_clusters(_patients(held))
    # With one structure in all, the table has no rows of the mean of structures: these entries stay unused.
    for structure in dict.fromkeys(structure for _, structure in resampled):
        having = [domain for domain in sorted(domains) if (domain, structure) in resampled]
        resampled[MEAN_OF_SITES, structure] = mean_of_resampled([resampled[name, structure] for name in having])
        patients[MEAN_OF_SITES, structure] = sum(patients[name, structure] for name in having)
    keys = [(row.domain, row.structure) for row in table.rows]
    rows = [_summary_row(row, patients[key], resampled[key]) for key, row in zip(keys, table.rows, strict=True)]
    dice = {domain: float(resampled[domain, ALL_STRUCTURES].means[METRICS.index("dice")]) for domain in domains}
    worst, gap = _worst_and_gap(dice, labeled_domain)
    unnamed = sum(not patient for own in domains.values() for patient in _patients(own))
    return Summary(tuple(rows), table.unit, table.empty_policy, protocol, labeled_domain, worst, gap, unnamed)


def _label(metric: str, unit: str) -> str:
    if metric in SHARES or not unit:
        return LABELS[metric]
    return f"{LABELS[metric]} ({'mm² or mm³' if metric == 'volume_difference' and unit == 'mm' else unit})"


def _digits(metric: str) -> int:
    return 3 if metric in SHARES else 2


def _cell(interval: Interval, digits: int) -> str:
    if math.isnan(interval.mean):
        return "–"
    spread = "" if math.isnan(interval.sd) else f" ± {interval.sd:.{digits}f}"
    known = not math.isnan(interval.low)
    return f"{interval.mean:.{digits}f}{spread}" + known * f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _scoring(summary: Summary) -> str:
    policy = EMPTY_POLICIES.get(summary.empty_policy)
    return (
        f"Protocol {summary.protocol}; distances in {'mm' if summary.unit == 'mm' else 'pixels'}; empty masks: "
        f"{summary.empty_policy} ({policy.description if policy else 'unknown'})."
    )


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
        f"domain: {summary.gap:+.3f}."
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
        metrics: names in `METRICS`; those without any value, such as the NSD without a tolerance, are left out.

    Returns:
        Lines with a caption that states protocol, unit, empty policy, the worst domain and the gap. A column
        "Undefined" counts what is left out of the means of distances, if there is anything; "–" is a mean of nothing,
        and a mean of one patient has no interval.

    Raises:
        ValueError: for an unknown style or metric.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"metric is {unknown[0]!r}; choose from {', '.join(METRICS)}")
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
        tables.append(render(header + [_label(metric, summary.unit) for metric in group], lines, style, left=2))
    return "\n\n".join([*tables, _caption(summary)])


def write_summary_csv(summary: Summary, path: str | Path) -> None:
    """Writes one line a domain, structure and metric, with all that the caption of a table says.

    Args:
        summary: from `summarize`.
        path: file to write; its folder must exist. `defined_cases` and `defined_patients` are those that the metric
            has a value for; NaN and None are empty cells.
    """
    counts = ("cases", "patients", "missed", "spurious", "undefined")
    about = ("unit", "empty_policy", "protocol", "labeled_domain", "worst_domain", "gap")
    moments = ("mean", "sd", "low", "high")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["domain", "structure", "metric", *moments, "defined_cases", "defined_patients", *counts, *about]
        )
        for row in summary.rows:
            for metric, interval in row.intervals.items():
                numbers = ["" if isinstance(v, float) and math.isnan(v) else v for v in vars(interval).values()]
                own = [*(getattr(row, name) for name in counts), *(getattr(summary, name) for name in about)]
                writer.writerow([row.domain, row.structure, metric, *numbers, *own])


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def format_comparison_of_cases(
    comparisons: Mapping[Key, PairedComparison],
    names: Sequence[str] = ("A", "B"),
    metric: str = "dice",
    *,
    summary: Summary | None = None,
    style: str = "markdown",
) -> str:
    """The comparison for reading: mean difference [interval], p value, and for how many patients which is better.

    Args:
        comparisons: from `compare_cases`.
        names: of the two methods.
        metric: the one that was compared.
        summary: of either method, for the protocol, unit and empty policy in the caption.
        style: "markdown" or "text".

    Returns:
        Lines with a caption. A column "Undefined" counts cases without a value in either, if there are any.

    Raises:
        ValueError: for an unknown style or metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")
    label = _label(metric, summary.unit if summary else "")
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
    table = render(header + ["Undefined"] * undefined, lines, style, left=2)
    return table + "\n\n" + caption + (f" {_scoring(summary)}" if summary else "")


def _difference_cell(interval: Interval, digits: int) -> str:
    if math.isnan(interval.mean):
        return "–"
    mean, low, high = (f"{value:+.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return mean if math.isnan(interval.low) else f"{mean} [{low}, {high}]"
