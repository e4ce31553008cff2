"""The files that an evaluation leaves: cases, tables, report."""

import json
import os
import textwrap
from dataclasses import asdict
from pathlib import Path

from dim_hf.evaluation.html_report import write_html_report
from dim_hf.evaluation.result import SELECTED_ON_TEST, EvaluationResult
from dim_hf.metrics.case_files import read_cases_csv, write_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.paired_cases import compare_cases
from dim_hf.metrics.report import site_table
from dim_hf.metrics.summary_text import format_comparison_of_cases, format_summary, write_summary_csv
from dim_hf.metrics.text_table import TEXT_WIDTH

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
    text = [format_result(result)]
    text += [
        format_comparison_of_cases(found, names=("this", name), table=result.summary)
        for name, found in comparisons.items()
    ]
    (folder / "table.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    (folder / PROVENANCE_FILE).write_text(json.dumps(asdict(result.provenance), indent=2) + "\n", encoding="utf-8")
    return write_html_report(result, folder / "report.html", comparisons=comparisons or None)


def format_result(result: EvaluationResult, style: str = "markdown") -> str:
    """The table for reading, with how the checkpoint was chosen, as the last of its sentences.

    Args:
        result: What was found.
        style: "markdown" or "text".
    """
    source = result.provenance
    chosen = f"Checkpoint: {source.selection}." + (f" {SELECTED_ON_TEST}" if source.selected_on_test else "")
    if style == "text":
        chosen = textwrap.fill(chosen, TEXT_WIDTH)
    return f"{format_summary(result.summary, style)}\n\n{chosen}"


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


def compare_files(first: str, second: str, metric: str = "dice", style: str = "markdown") -> str:
    """Paired differences of two evaluations of the same images, first minus second, as a table with its caption.

    Args:
        first: Folder or `cases.csv` of an evaluation.
        second: Of the other.
        metric: A name in `metrics.report.MEANS`.
        style: "markdown" or "text".

    Raises:
        ValueError: If a file cannot be read, the metric is unknown, or the two were not scored alike on the same
            cases.
    """
    cases = [read_cases(name) for name in (first, second)]
    found = compare_cases(*cases, metric)
    table = format_comparison_of_cases(found, metric=metric, table=site_table(cases[0]), style=style)
    return f"A: {first}\nB: {second}\n\n{table}"
