"""The files a run leaves for people: tables, figures, and everything needed to run it again."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dim_hf.metrics.case_files import write_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.report import SiteTable, write_table_csv
from dim_hf.metrics.summary import summarize
from dim_hf.metrics.summary_text import format_summary, write_summary_csv

RESULTS_FILE = "results.json"
PACKAGES = ("dim-hf", "torch", "transformers", "accelerate", "datasets", "numpy", "scipy")


def environment() -> dict[str, str | int]:
    """Versions of Python and of the packages that a result depends on, and the number of processes."""
    place = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    return place | {name: metadata.version(name) for name in PACKAGES}


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    table: SiteTable,
    cases: Sequence[CaseResult],
    log_history: Iterable[Mapping[str, Any]],
) -> None:
    """Write `cases.csv`, `sites.csv`, `summary.csv`, `table.md`, `curves.png` and, last, `results.json`.

    A folder that holds `results.json` is complete.
    """
    from dim_hf.metrics.figures import curves

    write_cases_csv(cases, folder / "cases.csv")
    write_table_csv(table, folder / "sites.csv")
    intervals = summarize(cases, protocol="network", labeled_domain=summary["split"]["labeled_domain"])
    write_summary_csv(intervals, folder / "summary.csv")
    chosen = f"Checkpoint: {summary['training']['selected']}."
    (folder / "table.md").write_text(f"{format_summary(intervals)}\n\n{chosen}\n", encoding="utf-8")
    logged = [line for line in log_history if "loss" in line or "eval_mean_dice" in line]
    if logged:  # a run of a few steps may end before its first line
        curves(logged, folder / "curves.png")
    results = {**summary, "environment": environment()}
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
