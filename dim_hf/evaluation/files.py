"""The files that an evaluation leaves: cases, tables, report."""

import json
import os
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dim_hf.data.texts import printable
from dim_hf.evaluation.background import background, heading
from dim_hf.evaluation.drift_report import drift_facts, format_drift
from dim_hf.evaluation.html_report import write_html_report
from dim_hf.evaluation.result import SELECTED_ON_TEST, EvaluationResult
from dim_hf.evaluation.runs import RESULTS_FILE, is_chosen_on_test
from dim_hf.metrics.case_files import read_about, read_cases_csv, write_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.paired_cases import Key, compare_cases
from dim_hf.metrics.report import site_table
from dim_hf.metrics.statistics import PairedComparison
from dim_hf.metrics.summary_text import format_comparison_of_cases, format_summary, write_summary_csv
from dim_hf.metrics.text_table import TEXT_WIDTH

CASES_FILE = "cases.csv"
PROVENANCE_FILE = "evaluation.json"


@dataclass(frozen=True)
class OtherEvaluation:
    """Cases of an evaluation that was written before.

    Attributes:
        cases: Scores by case and structure.
        protocol: How they were scored; "" where the files do not say.
        selection: How the step was chosen, in words; "" where the files do not say.
    """

    cases: list[CaseResult]
    protocol: str = ""
    selection: str = ""


@dataclass(frozen=True)
class Comparison:
    """This evaluation minus another one.

    Attributes:
        found: By domain and structure, in Dice.
        stamps: What must be said of checkpoints that were chosen by test images; "" for none.
    """

    found: dict[Key, PairedComparison]
    stamps: str


def check_writable(folder: str | os.PathLike) -> None:
    """Make a folder and write a file into it, so that one that takes none is known before an hour is lost.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror}); choose another folder with --output_dir"
        ) from error


def compare_with(result: EvaluationResult, others: Mapping[str, OtherEvaluation]) -> dict[str, Comparison]:
    """This evaluation minus others, in Dice, by their names.

    Args:
        result: What was found.
        others: Evaluations of other models on the same images, by name.

    Raises:
        ValueError: If they are not of the same images, scored alike.
    """
    source = result.provenance
    for name, other in others.items():
        check_protocols({"this evaluation": source.protocol, name: other.protocol})
    return {
        name: Comparison(
            compare_cases(result.cases, other.cases), _stamps({"this": source.selection, name: other.selection})
        )
        for name, other in others.items()
    }


def write_evaluation(
    result: EvaluationResult, folder: str | os.PathLike, *, compared: Mapping[str, Comparison] | None = None
) -> Path:
    """Write `cases.csv`, `summary.csv`, `table.md`, `evaluation.json` and `report.html` into `folder`.

    Args:
        result: What was found.
        folder: Made if need be.
        compared: From `compare_with`.

    Returns:
        The report.
    """
    folder, source, compared = Path(folder), result.provenance, compared or {}
    folder.mkdir(parents=True, exist_ok=True)
    about = {"split": source.split or "", "selected": source.selection}
    about_cases = {"protocol": source.protocol} | about
    write_cases_csv(result.cases, folder / CASES_FILE, about=about_cases, more=_drift_columns(result))
    write_summary_csv(result.summary, folder / "summary.csv", about=about)
    (folder / "table.md").write_text(f"{format_result(result, compared=compared)}\n", encoding="utf-8")
    facts = asdict(source) | ({"drift": drift_facts(result)} if result.drift else {})
    (folder / PROVENANCE_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return write_html_report(
        result,
        folder / "report.html",
        comparisons={name: one.found for name, one in compared.items()},
        remarks={name: one.stamps for name, one in compared.items()},
    )


def _drift_columns(result: EvaluationResult) -> dict[str, list[object]]:
    """Score and flag of each row's case; no columns without statistics of the seen sites."""
    drift = result.drift
    if drift is None:
        return {}
    scores = [drift.scores.get((case.domain, case.name)) for case in result.cases]
    flags = ["" if score is None else score >= drift.threshold for score in scores]
    return {"drift_score": ["" if score is None else score for score in scores], "review": flags}


def format_result(
    result: EvaluationResult, style: str = "markdown", *, compared: Mapping[str, Comparison] | None = None
) -> str:
    """The table for reading, with what stands behind its numbers, and the comparisons with other models.

    Args:
        result: What was found.
        style: "markdown" or "text".
        compared: From `compare_with`.
    """
    source = result.provenance
    facts = [f"{fact.name}: {fact.text}." for fact in background(source, result.summary)]
    facts += [SELECTED_ON_TEST] * source.selected_on_test
    text = [
        f"{'# ' * (style == 'markdown')}{printable(heading(source))}",
        format_summary(result.summary, style),
        _wrapped(printable(" ".join(facts)), style),
        *[_wrapped(part, style) if "\n" not in part else part for part in format_drift(result, style)],
    ]
    for name, one in (compared or {}).items():
        text.append(format_comparison_of_cases(one.found, names=("this", name), table=result.summary, style=style))
        text += [_wrapped(printable(one.stamps), style)] * bool(one.stamps)
    return "\n\n".join(text)


def _wrapped(text: str, style: str) -> str:
    return textwrap.fill(text, TEXT_WIDTH) if style == "text" else text


def _stamps(selections: Mapping[str, str]) -> str:
    """What must be said of models whose step was chosen by test images; "" for none."""
    return " ".join(f"{name}: {SELECTED_ON_TEST}" for name, chosen in selections.items() if is_chosen_on_test(chosen))


def check_protocols(protocols: Mapping[str, str]) -> None:
    """Refuse to pair evaluations of different protocols.

    Args:
        protocols: Name of an evaluation → its protocol, "" where it is not known.

    Raises:
        ValueError: Naming both.
    """
    known = [(name, protocol) for name, protocol in protocols.items() if protocol]
    for name, protocol in known[1:]:
        if protocol != known[0][1]:
            raise ValueError(
                f"{known[0][0]} was scored by the protocol {known[0][1]}, {name} by {protocol}; score both alike "
                "(dim-hf evaluate --protocol)"
            )


def read_evaluation(path: str | os.PathLike) -> OtherEvaluation:
    """An evaluation or a run: its folder, or a `cases.csv`.

    Files of earlier versions do not say how they were scored; then `evaluation.json` or `results.json` beside them is
    asked.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    path = Path(path)
    file = path / CASES_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} is neither a {CASES_FILE} nor a folder that holds one; evaluate first")
    cases, about = read_cases_csv(file), read_about(file)
    if file.name == CASES_FILE:
        about = _said_beside(file.parent) | about
    return OtherEvaluation(cases, about.get("protocol", ""), about.get("selected", ""))


def _said_beside(folder: Path) -> dict[str, str]:
    for name in (PROVENANCE_FILE, RESULTS_FILE):
        if not (folder / name).is_file():
            continue
        try:
            said = json.loads((folder / name).read_text(encoding="utf-8"))
            if name == PROVENANCE_FILE:
                return {"protocol": said.get("protocol", ""), "selected": said.get("selection", "")}
            return {"protocol": "network", "selected": said.get("training", {}).get("selected", "")}
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder / name} cannot be read ({error}); remove it, or evaluate again") from error
    return {}


def compare_files(first: str, second: str, metric: str = "dice", style: str = "markdown") -> str:
    """Paired differences of two evaluations of the same images, first minus second, as a table with its caption.

    Args:
        first: Folder or `cases.csv` of an evaluation.
        second: Of the other.
        metric: A name in `metrics.report.MEANS`.
        style: "markdown" or "text".

    Raises:
        ValueError: If a file cannot be read or holds no case, the metric is unknown, or the two were not scored alike
            on the same cases.
    """
    a, b, found = _paired(first, second, metric)
    text = [
        f"A: {first}\nB: {second}",
        format_comparison_of_cases(found, metric=metric, table=site_table(a.cases), style=style),
        _protocols(a.protocol, b.protocol),
        _wrapped(_stamps({"A": a.selection, "B": b.selection}), style),
    ]
    return "\n\n".join(filter(None, text))


def compare_files_for_programs(first: str, second: str, metric: str = "dice") -> dict[str, Any]:
    """What `compare_files` says, as a record. Args and errors: see there."""
    a, b, found = _paired(first, second, metric)
    return {
        "a": {"name": first, "protocol": a.protocol, "selection": a.selection},
        "b": {"name": second, "protocol": b.protocol, "selection": b.selection},
        "metric": metric,
        "rows": _comparison_rows(found),
    }


def result_for_programs(result: EvaluationResult, *, compared: Mapping[str, Comparison]) -> dict[str, Any]:
    """What `format_result` says, as a record: provenance, summary, comparisons and drift. Args: see there."""
    comparisons = {name: _comparison_rows(one.found) for name, one in compared.items()}
    about = {"provenance": result.provenance, "summary": result.summary, "comparisons": comparisons}
    return about | ({"drift": drift_facts(result)} if result.drift else {})


def _comparison_rows(found: Mapping[Key, PairedComparison]) -> list[dict[str, Any]]:
    """Comparisons as a list of records, each with its domain and structure."""
    return [{"domain": domain, "structure": name} | asdict(one) for (domain, name), one in found.items()]


def _paired(
    first: str, second: str, metric: str
) -> tuple[OtherEvaluation, OtherEvaluation, dict[Key, PairedComparison]]:
    a, b = read_evaluation(first), read_evaluation(second)
    for name, one in ((first, a), (second, b)):
        if not one.cases:
            raise ValueError(f"{name} holds no case, so there is nothing to compare; evaluate again")
    check_protocols({first: a.protocol, second: b.protocol})
    return a, b, compare_cases(a.cases, b.cases, metric)


def _protocols(*protocols: str) -> str:
    if len(set(protocols)) == 1:
        return f"Protocol: {protocols[0] or 'unknown, as the files do not say it'}."
    a, b = (protocol or "unknown" for protocol in protocols)
    return f"Protocol: {a} in A, {b} in B."
