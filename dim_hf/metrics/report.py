"""Tables by site from rows of cases, and their text, Markdown and CSV forms.

Order of the means: over the cases of a domain for each structure, over the structures of the domain, then over domains
with equal weight for each. Undefined values (NaN, from the `nan` policy) are left out of a mean and counted beside it.
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TypeVar

from dim_hf.metrics.cases import CaseResult, check_structures, default_structures, score_case
from dim_hf.metrics.empty_masks import EMPTY_POLICIES

__all__ = [
    "ALL_STRUCTURES",
    "MEAN_OF_SITES",
    "CaseResult",
    "SiteRow",
    "SiteTable",
    "check_structures",
    "default_structures",
    "format_comparison",
    "format_table",
    "mean_of_defined",
    "read_cases_csv",
    "score_case",
    "site_table",
    "write_cases_csv",
    "write_table_csv",
]

ALL_STRUCTURES = "all structures"
MEAN_OF_SITES = "mean of sites"
MEANS = ("dice", "jaccard", "hd95", "hd", "asd", "assd", "nsd", "volume_difference")

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
        undefined: how many have no HD95 (NaN) and are left out of the means of distances.
        means: mean by name in `MEANS`; NaN where nothing is defined.
    """

    domain: str
    structure: str
    cases: int
    missed: int
    spurious: int
    undefined: int
    means: dict[str, float]


@dataclass(frozen=True)
class SiteTable:
    """Rows by site and structure with what a reader must know about them.

    Attributes:
        rows: of each domain its structures and, if there are several, their mean; then the same over domains.
        unit: "mm" or "px" of every distance; "" for a table without cases.
        empty_policy: how distances of missed and spurious structures were scored; "" for a table without cases.
    """

    rows: tuple[SiteRow, ...]
    unit: str
    empty_policy: str

    def row(self, domain: str = MEAN_OF_SITES, structure: str | None = None) -> SiteRow:
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
        undefined=sum(math.isnan(result.hd95) for result in results),
        means={name: mean_of_defined(getattr(result, name) for result in results) for name in MEANS},
    )


def _grouped(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    """Items by key, in the order of first appearance."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _the_one(values: Iterable[str], what: str) -> str:
    found = sorted(set(values))
    if len(found) > 1:
        raise ValueError(f"the cases were scored with different {what}: {', '.join(found)}; score all of them alike")
    return found[0] if found else ""


def _check_results(results: Sequence[CaseResult]) -> None:
    seen = set()
    for result in results:
        key = (result.domain, result.name, result.structure)
        if key in seen:
            raise ValueError("domain {!r}, case {!r}, structure {!r} comes twice; name cases uniquely".format(*key))
        seen.add(key)
        if result.domain == MEAN_OF_SITES or result.structure == ALL_STRUCTURES:
            raise ValueError(
                f"domain {result.domain!r} or structure {result.structure!r} is the name of a mean; rename it"
            )


def site_table(results: Iterable[CaseResult]) -> SiteTable:
    """Means by site: over cases for each structure, then over structures, then over domains with equal weight.

    Args:
        results: rows of `score_case`, of any number of domains, cases and structures; may be empty.

    Returns:
        The table, without rows for no results.

    Raises:
        ValueError: if units or empty policies are mixed, a (domain, case, structure) comes twice, or a domain or a
            structure has the name of a mean.
    """
    results = list(results)
    unit = _the_one((result.unit for result in results), "units")
    policy = _the_one((result.empty_policy for result in results), "empty policies")
    _check_results(results)
    rows: list[SiteRow] = []
    by_structure: dict[str, list[SiteRow]] = {}
    summaries: list[SiteRow] = []
    for domain, cases in _grouped(results, lambda result: result.domain).items():
        own = [_row_of_cases(group) for group in _grouped(cases, lambda result: result.structure).values()]
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
    return SiteTable(tuple(rows), unit, policy)


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def render(header: Sequence[str], lines: Sequence[Sequence[str]], style: str, left: int) -> str:
    """Aligned cells; the first `left` columns are flush left, the others flush right."""
    if style not in ("markdown", "text"):
        raise ValueError(f"style is {style!r}; choose markdown or text")
    if style == "markdown":
        header, *lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (header, *lines)]
    widths = [max(3, *(len(line[column]) for line in (header, *lines))) for column in range(len(header))]
    aligned = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, *lines)
    ]
    if style == "text":
        rule = "  ".join("-" * width for width in widths)
        head, *body = ["  ".join(line).rstrip() for line in aligned]
        return "\n".join([head, rule, *body])
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    head, *body = ["| " + " | ".join(line) + " |" for line in aligned]
    return "\n".join([head, "| " + " | ".join(rule) + " |", *body])


def _caption(table: SiteTable) -> str:
    if not table.rows:
        return "No cases were scored."
    where = "in mm" if table.unit == "mm" else "in pixels"
    policy = EMPTY_POLICIES.get(table.empty_policy)
    return f"Distances {where}; empty masks: {table.empty_policy} ({policy.description if policy else 'unknown'})."


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
    unit = f" ({table.unit})" if table.unit else ""
    header = ["Site", "Structure", "Cases", "Dice", "Jaccard", f"HD95{unit}", f"ASD{unit}", "Missed", "Spurious"]
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
        Lines; "–" where a setting has no such row or value.

    Raises:
        ValueError: for an unknown metric or style, or tables in different units or with different policies.
    """
    check_comparable(tables, metric)
    domains = list(dict.fromkeys(domain for table in tables.values() for domain in table.domains))
    digits = 4 if metric in ("dice", "jaccard", "nsd") else 2
    lines = [
        [domain, *(_number(value_of(table, metric, domain, structure), digits) for table in tables.values())]
        for domain in [*domains, MEAN_OF_SITES]
    ]
    return render(["Site", *tables], lines, style, left=1)


def check_comparable(tables: Mapping[str, SiteTable], metric: str) -> str:
    """Checks that tables may stand side by side.

    Args:
        tables: tables by setting.
        metric: one of `MEANS`.

    Returns:
        The unit of their distances; "" where none has a case.

    Raises:
        ValueError: for no table, an unknown metric, or tables in different units or with different policies.
    """
    if not tables:
        raise ValueError("there is no table to compare; pass at least one")
    if metric not in MEANS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(MEANS)}")
    filled = [table for table in tables.values() if table.rows]
    _the_one((table.empty_policy for table in filled), "empty policies")
    return _the_one((table.unit for table in filled), "units")


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


def write_cases_csv(results: Iterable[CaseResult], path: str | Path) -> None:
    """Writes one line a case and structure, with the attributes of `CaseResult` as columns.

    Args:
        results: rows of `score_case`.
        path: file to write; its folder must exist.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(CaseResult)])
        writer.writerows(astuple(result) for result in results)


def read_cases_csv(path: str | Path) -> list[CaseResult]:
    """Reads what `write_cases_csv` wrote.

    Args:
        path: the file.

    Returns:
        The rows, equal to those written.

    Raises:
        ValueError: if a column is missing or a cell is not of its column's type; the message names the line.
    """
    parsers = {str: str, float: float, bool: {"True": True, "False": False}.__getitem__}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        absent = {field.name for field in fields(CaseResult)} - set(reader.fieldnames or ())
        if absent:
            raise ValueError(
                f"{path}: the columns {', '.join(sorted(absent))} are missing; write it with write_cases_csv"
            )
        results = []
        for line in reader:
            try:
                results.append(CaseResult(**{f.name: parsers[f.type](line[f.name]) for f in fields(CaseResult)}))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: cannot read the value {error}") from error
    return results


def write_table_csv(table: SiteTable, path: str | Path) -> None:
    """Writes the rows of a table with all its means, unit and policy, for further computation.

    Args:
        table: from `site_table`.
        path: file to write; its folder must exist.
    """
    counts = ("domain", "structure", "cases", "missed", "spurious", "undefined")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*counts, *MEANS, "unit", "empty_policy"])
        for row in table.rows:
            own = [getattr(row, name) for name in counts]
            writer.writerow([*own, *(row.means[name] for name in MEANS), table.unit, table.empty_policy])
