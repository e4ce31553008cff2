"""Scores of cases as a CSV file: a line a case and structure."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, astuple, fields
from pathlib import Path

from dim_hf.metrics.cases import CaseResult

ABOUT = ("protocol", "split", "selected")
"""Columns beside the scores: how all cases of a file were scored, which images they are, how the step was chosen."""

_FORMULA_STARTS = ("=", "+", "-", "@")


def _looks_like_formula(text: str) -> bool:
    core = text.lstrip("'")  # so that `cell_value` can tell its own apostrophe from a stranger's
    return core.startswith(("\t", "\r")) or core.lstrip().startswith(_FORMULA_STARTS)


def safe_cell(value: object) -> object:
    """A value as a cell that no spreadsheet takes for a formula; numbers stay numbers.

    >>> safe_cell("=1+1"), safe_cell("site"), safe_cell(-1.5)
    ("'=1+1", 'site', -1.5)
    """
    return f"'{value}" if isinstance(value, str) and _looks_like_formula(value) else value


def cell_value(text: str) -> str:
    """The text that `safe_cell` made a cell of.

    >>> cell_value("'=1+1"), cell_value("'site")
    ('=1+1', "'site")
    """
    return text[1:] if text.startswith("'") and _looks_like_formula(text) else text


def write_cases_csv(
    results: Iterable[CaseResult],
    path: str | Path,
    *,
    about: Mapping[str, str] | None = None,
    more: Mapping[str, Sequence[object]] | None = None,
) -> None:
    """Writes one line a case and structure, with the attributes of `CaseResult` as columns.

    Args:
        results: rows of `score_case`.
        path: file to write; its folder must exist.
        about: further columns with the same value in each line, such as those of `ABOUT`.
        more: further columns with a value for each result.
    """
    about, more = about or {}, more or {}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(field.name for field in fields(CaseResult)), *more, *about])
        for result, *own in zip(results, *more.values(), strict=True):
            writer.writerow([safe_cell(value) for value in (*astuple(result), *own, *about.values())])


def read_cases_csv(path: str | Path) -> list[CaseResult]:
    """Reads what `write_cases_csv` wrote.

    Args:
        path: the file.

    Returns:
        The rows, equal to those written.

    Raises:
        ValueError: if a column is missing or a cell is not of its column's type; the message names the line. Columns
            whose attributes have a default may be missing, as in files of earlier versions.
    """
    parsers = {str: cell_value, float: float, bool: {"True": True, "False": False}.__getitem__}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        named = set(reader.fieldnames or ())
        absent = {field.name for field in fields(CaseResult) if field.default is MISSING} - named
        present = [field for field in fields(CaseResult) if field.name in named]
        if absent:
            raise ValueError(
                f"{path}: the columns {', '.join(sorted(absent))} are missing; give the cases.csv of an evaluation"
            )
        results = []
        for line in reader:
            try:
                results.append(CaseResult(**{f.name: parsers[f.type](line[f.name]) for f in present}))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: cannot read the value {error}") from error
    return results


def read_about(path: str | Path) -> dict[str, str]:
    """What the columns `ABOUT` of a file say; without those it lacks, as files of earlier versions do.

    Args:
        path: what `write_cases_csv` wrote.

    Raises:
        ValueError: if one column has two values: cases of two evaluations are no table.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found = {name: sorted({cell_value(line[name] or "") for line in lines if name in line}) for name in ABOUT}
    for name, values in found.items():
        if len(values) > 1:
            raise ValueError(f"{path}: {name} is {values[0]!r} and {values[1]!r}; give the cases of one evaluation")
    return {name: values[0] for name, values in found.items() if values and values[0]}
