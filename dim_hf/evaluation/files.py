"""The files that an evaluation leaves: cases, tables, report."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from dim_hf.evaluation.html_report import write_html_report
from dim_hf.evaluation.result import EvaluationResult
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.report import read_cases_csv, write_cases_csv
from dim_hf.metrics.statistics import PairedComparison
from dim_hf.metrics.summary import compare_cases, format_comparison_of_cases, format_summary, write_summary_csv

CASES_FILE = "cases.csv"
PROVENANCE_FILE = "evaluation.json"


def write_evaluation(
    result: EvaluationResult, folder: str | os.PathLike, *, against: dict[str, list[CaseResult]] | None = None
) -> Path:
    """Write `cases.csv`, `summary.csv`, `table.md`, `evaluation.json` and `report.html` into `folder`.

    Args:
        result: What was found.
        folder: Made if need be.
        against: Cases of other models on the same images, by name, to compare with.

    Returns:
        The report.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_cases_csv(result.cases, folder / CASES_FILE)
    write_summary_csv(result.summary, folder / "summary.csv")
    comparisons = {name: compare_cases(result.cases, cases) for name, cases in (against or {}).items()}
    text = [format_summary(result.summary)]
    text += [
        format_comparison_of_cases(found, names=("this", name), summary=result.summary)
        for name, found in comparisons.items()
    ]
    (folder / "table.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    (folder / PROVENANCE_FILE).write_text(json.dumps(asdict(result.provenance), indent=2) + "\n", encoding="utf-8")
    return write_html_report(result, folder / "report.html", comparisons=comparisons or None)


def read_cases(path: str | os.PathLike) -> list[CaseResult]:
    """Cases of an evaluation or a run: its folder, or a `cases.csv`.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    path = Path(path)
    file = path / CASES_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} is neither a {CASES_FILE} nor a folder that holds one; evaluate first")
    return read_cases_csv(file)


def compare_files(first: str, second: str, metric: str = "dice") -> dict[tuple[str, str], PairedComparison]:
    """Paired differences of two evaluations of the same images, first minus second."""
    return compare_cases(read_cases(first), read_cases(second), metric)
