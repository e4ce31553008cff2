"""Scores of cases as a CSV file: a line a case and structure."""

import csv
from collections.abc import Iterable
from dataclasses import MISSING, astuple, fields
from pathlib import Path

from dim_hf.metrics.cases import CaseResult


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
        ValueError: if a column is missing or a cell is not of its column's type; the message names the line. Columns
            whose attributes have a default may be missing, as in files of earlier versions.
    """
    parsers = {str: str, float: float, bool: {"True": True, "False": False}.__getitem__}
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
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: cannot read the value {error}") from error
    return results
