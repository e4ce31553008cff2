"""Tables by site from rows of cases, and their text, Markdown and CSV forms.

Order of the means: over the cases of a domain for each structure, over the structures of the domain, then over domains
with equal weight for each. Undefined values (NaN, from the `nan` policy) are left out of a mean and counted beside it.
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dim_hf.metrics.case_files import read_cases_csv, safe_cell, write_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.labels import LABELS, SHARES, metric_label, scoring_sentence
from dim_hf.metrics.text_table import render

__all__ = [
    "ALL_STRUCTURES",
    "MEANS",
    "MEAN_OF_SITES",
    "SiteRow",
    "SiteTable",
    "check_names",
    "format_comparison",
    "format_table",
    "mean_of_defined",
    "read_cases_csv",
    "site_table",
    "write_cases_csv",
    "write_table_csv",
]

ALL_STRUCTURES = "all structures"
MEAN_OF_SITES = "mean of sites"
MEANS = tuple(LABELS)

# Columns of the printed table after the counts: mean and number of decimals.
COLUMNS = (("dice", 4), ("jaccard", 4), ("hd95", 2), ("asd", 2))

Item = TypeVar("Item")


@dataclass(frozen=True)
class SiteRow:
    """Means over the cases of one domain, or over domains.

    Attributes:
        domain: name of the domain, or `MEAN_OF_SITES`.
        structure: name of the structure, or `ALL_STRUCTURES`.
        cases: number of cases.
        missed: how many (case, structure) pairs have only the prediction empty.
        spurious: how many have only the reference empty.
        undefined: how many have no HD95 (NaN) and are left out of the means of distances; those whose reference has
            ignored pixels only are left out of all means.
        means: mean by name in `MEANS`; NaN where nothing is defined.
    """

    domain: str
    structure: str
    cases: int
    missed: int
    spurious: int
    undefined: int
    means: dict[str, float]


Row = TypeVar("Row", bound=SiteRow)


@dataclass(frozen=True)
class SiteTable(Generic[Row]):
    """Rows by site and structure with what a reader must know about them.

    Attributes:
        rows: of each domain its structures and, if there are several, their mean; then the same over domains.
        unit: "mm" or "px" of every distance; "" for a table without cases.
        empty_policy: how distances of missed and spurious structures were scored; "" for a table without cases.
        nsd_tolerance: tolerance of the NSD, in the unit; NaN without one.
    """

    rows: tuple[Row, ...]
    unit: str
    empty_policy: str
    nsd_tolerance: float

    def row(self, domain: str = MEAN_OF_SITES, structure: str | None = None) -> Row:
        """The row of a domain and a structure.

        Args:
            domain: a domain, or `MEAN_OF_SITES`.
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


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there are none.

    Args:
        values: any numbers.

    Returns:
        The mean.

    >>> mean_of_defined([1.0, float("nan"), 2.0])
    1.5
    >>> mean_of_defined([])
    nan
    """
    defined = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _mean_row(domain: str, structure: str, cases: int, rows: Sequence[SiteRow]) -> SiteRow:
    counts = {name: sum(getattr(row, name) for row in rows) for name in ("missed", "spurious", "undefined")}
    means = {name: mean_of_defined(row.means[name] for row in rows) for name in MEANS}
    return SiteRow(domain, structure, cases, **counts, means=means)


def _row_of_cases(results: Sequence[CaseResult]) -> SiteRow:
    return SiteRow(
        results[0].domain,
        results[0].structure,
        cases=len(results),
        missed=sum(result.missed for result in results),
        spurious=sum(result.spurious for result in results),
        undefined=sum(result.undefined for result in results),
        means={name: mean_of_defined(getattr(result, name) for result in results) for name in MEANS},
    )


def grouped(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Items by key, in the order of first appearance.

    Args:
        items: any.
        key: of an item.

    Returns:
        Lists by key.

    >>> grouped(["a", "bb", "c"], lambda text: str(len(text)))
    {'1': ['a', 'c'], '2': ['bb']}
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def the_one(values: Iterable[str], what: str) -> str:
    """The value that all cases of one table or figure must share.

    Args:
        values: of the cases.
        what: their name in the plural, for the message.

    Returns:
        The value; "" where there is none.

    Raises:
        ValueError: if there are several.
    """
    found = sorted(set(values))
    if len(found) > 1:
        raise ValueError(f"the cases were scored with different {what}: {', '.join(found)}; score all of them alike")
    return found[0] if found else ""


def the_tolerance(values: Iterable[float]) -> float:
    """The tolerance of the NSD that all cases of one table or figure must share.

    Args:
        values: of the cases, NaN for none.

    Returns:
        The tolerance; NaN where there is none.

    Raises:
        ValueError: if there are several.
    """
    return float(the_one((repr(float(value)) for value in values), "tolerances of the NSD (nan: none)") or math.nan)


def check_names(domains: Iterable[str], structures: Iterable[str] = ()) -> None:
    """Refuses names that the rows of means have; call it before the images are predicted.

    Args:
        domains: names of the data set's domains.
        structures: names of what is scored.

    Raises:
        ValueError: if one of them is the name of a row of means.
    """
    for kind, names, taken in (("domain", domains, MEAN_OF_SITES), ("structure", structures, ALL_STRUCTURES)):
        if taken in names:
            raise ValueError(
                f"a {kind} of the data set has the name of a mean in every table, {taken!r}; rename the {kind}"
            )


def _check_results(results: Sequence[CaseResult]) -> None:
    seen = set()
    for result in results:
        key = (result.domain, result.name, result.structure)
        if key in seen:
            raise ValueError("domain {!r}, case {!r}, structure {!r} comes twice; name cases uniquely".format(*key))
        seen.add(key)
    check_names((result.domain for result in results), (result.structure for result in results))


def site_table(results: Iterable[CaseResult]) -> SiteTable:
    """Means by site: over cases for each structure, then over structures, then over domains with equal weight.

    Args:
        results: rows of `score_case`, of any number of domains, cases and structures; may be empty.

    Returns:
        The table, without rows for no results.

    Raises:
        ValueError: if units, empty policies or tolerances of the NSD are mixed, a (domain, case, structure) comes
            twice, or a domain or a structure has the name of a mean.
    """
    results = list(results)
    unit = the_one((result.unit for result in results), "units")
    policy = the_one((result.empty_policy for result in results), "empty policies")
    tolerance = the_tolerance(result.nsd_tolerance for result in results)
    _check_results(results)
    rows: list[SiteRow] = []
    by_structure: dict[str, list[SiteRow]] = {}
    summaries: list[SiteRow] = []
    for domain, cases in grouped(results, lambda result: result.domain).items():
        own = [_row_of_cases(group) for group in grouped(cases, lambda result: result.structure).values()]
        for row in own:
            by_structure.setdefault(row.structure, []).append(row)
        if len(own) > 1:
            own.append(_mean_row(domain, ALL_STRUCTURES, len({case.name for case in cases}), own))
        rows += own
        summaries.append(own[-1])
    if len(by_structure) > 1:
        by_structure[ALL_STRUCTURES] = summaries
    for structure, group in by_structure.items():
        rows.append(_mean_row(MEAN_OF_SITES, structure, sum(row.cases for row in group), group))
    return SiteTable(tuple(rows), unit, policy, tolerance)


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _caption(table: SiteTable) -> str:
    if not table.rows:
        return "No cases were scored."
    return scoring_sentence(table.unit, table.empty_policy)


def format_table(table: SiteTable, style: str = "markdown") -> str:
    """The table for reading: Dice, Jaccard, HD95, ASD, and how many cases were missed or spurious.

    Args:
        table: from `site_table`.
        style: "markdown" or "text".

    Returns:
        Lines with a caption that states the unit and the empty policy. A column "Undefined" counts the cases left out
        of the means of distances, if there are any; "–" is a mean of nothing.

    Raises:
        ValueError: for an unknown style.
    """
    header = ["Site", "Structure", "Cases", *(metric_label(name, table.unit) for name, _ in COLUMNS)]
    header += ["Missed", "Spurious"]
    undefined = any(row.undefined for row in table.rows)
    lines = []
    for row in table.rows:
        numbers = [_number(row.means[name], digits) for name, digits in COLUMNS]
        lines.append([row.domain, row.structure, str(row.cases), *numbers, str(row.missed), str(row.spurious)])
        if undefined:
            lines[-1].append(str(row.undefined))
    return render(header + ["Undefined"] * undefined, lines, style, left=2) + "\n\n" + _caption(table)


def format_comparison(
    tables: Mapping[str, SiteTable], metric: str = "dice", structure: str | None = None, style: str = "markdown"
) -> str:
    """One metric of several settings side by side: sites as rows, settings as columns.

    Args:
        tables: tables by setting, in the same unit and with the same empty policy.
        metric: one of `MEANS`.
        structure: a structure; None is the mean of the structures.
        style: "markdown" or "text".

    Returns:
        Lines; "–" where a setting has no such row or value. For other metrics than Dice and Jaccard, with a caption
        that states the unit, the empty policy and the tolerance of the NSD.

    Raises:
        ValueError: for an unknown metric or style, or tables in different units or with different policies.
    """
    unit, tolerance = check_comparable(tables, metric)
    domains = list(dict.fromkeys(domain for table in tables.values() for domain in table.domains))
    digits = 4 if metric in SHARES else 2
    lines = [
        [domain, *(_number(value_of(table, metric, domain, structure), digits) for table in tables.values())]
        for domain in [*domains, MEAN_OF_SITES]
    ]
    text = render(["Site", *tables], lines, style, left=1)
    policy = next((table.empty_policy for table in tables.values() if table.rows), "")
    if metric in ("dice", "jaccard") or not policy:
        return text
    label = metric_label(metric, unit, tolerance)
    return f"{text}\n\n{label}. {scoring_sentence(unit, policy, tolerance)}"


def check_comparable(tables: Mapping[str, SiteTable], metric: str) -> tuple[str, float]:
    """Checks that tables may stand side by side.

    Args:
        tables: tables by setting.
        metric: one of `MEANS`.

    Returns:
        The unit of their distances, "" where none has a case, and the tolerance of the NSD, NaN where there is none.

    Raises:
        ValueError: for no table, an unknown metric, or tables in different units or with different policies; for the
            NSD also with different tolerances.
    """
    if not tables:
        raise ValueError("there is no table to compare; pass at least one")
    if metric not in MEANS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(MEANS)}")
    filled = [table for table in tables.values() if table.rows]
    the_one((table.empty_policy for table in filled), "empty policies")
    tolerance = the_tolerance(table.nsd_tolerance for table in filled) if metric == "nsd" else math.nan
    return the_one((table.unit for table in filled), "units"), tolerance


def value_of(table: SiteTable, metric: str, domain: str = MEAN_OF_SITES, structure: str | None = None) -> float:
    """One mean of a table.

    Args:
        table: from `site_table`.
        metric: one of `MEANS`.
        domain: a domain, or `MEAN_OF_SITES`.
        structure: a structure; None is the mean of the structures.

    Returns:
        The mean; NaN where the table has no such row.
    """
    try:
        return table.row(domain, structure).means[metric]
    except ValueError:
        return math.nan


def write_table_csv(table: SiteTable, path: str | Path) -> None:
    """Writes the rows of a table with all its means, unit and policy, for further computation.

    Args:
        table: from `site_table`.
        path: file to write; its folder must exist.
    """
    counts = ("domain", "structure", "cases", "missed", "spurious", "undefined")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        about = ("unit", "empty_policy", "nsd_tolerance")
        writer.writerow([*counts, *MEANS, *about])
        for row in table.rows:
            own = [getattr(row, name) for name in counts] + [row.means[name] for name in MEANS]
            writer.writerow([safe_cell(cell) for cell in (*own, *(getattr(table, name) for name in about))])
