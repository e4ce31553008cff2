"""The files a run leaves for people: tables, figures, and everything needed to run it again."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dim_hf.evaluation.result import SELECTED_ON_TEST
from dim_hf.hub.run_folder import HASHES, run_hashes
from dim_hf.metrics.case_files import write_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.report import SiteTable, write_table_csv
from dim_hf.metrics.summary import summarize
from dim_hf.metrics.summary_text import format_summary, write_summary_csv
from dim_hf.whole_files import write_text

RESULTS_FILE = "results.json"
PACKAGES = ("dim-hf", "torch", "transformers", "accelerate", "datasets", "numpy", "scipy")


def environment(training: Mapping[str, Any]) -> dict[str, str | int]:
    """Versions of Python and of the packages that a result depends on, the number of processes, and the precision.

    Args:
        training: fields of the training.
    """
    place = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "precision": "bf16" if training["bf16"] else "fp16" if training["fp16"] else "float32",
    }
    return place | {name: metadata.version(name) for name in PACKAGES}


def stamp(training: Mapping[str, Any]) -> str:
    """The warning that results of this training carry.

    Args:
        training: `training_summary` of the trainer.

    Returns:
        A sentence; "" where no test image had a part in choosing the checkpoint, or the one that it started from.

    >>> stamp({"selected": "last step"})
    ''
    """
    return SELECTED_ON_TEST if "test-legacy" in training["selected"] else ""


def _sentences(training: Mapping[str, Any]) -> str:
    """How the checkpoint was chosen, what it started from, and the warning."""
    sentences = [f"Checkpoint: {training['selected']}."]
    start = training.get("started_from")
    if start:
        labels = f", trained on {start['labeled_images']} labeled images" if "labeled_images" in start else ""
        sentences.append(f"Started from {start['model']}: {start['selected']}{labels}.")
    return " ".join(filter(None, [*sentences, stamp(training)]))


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
    from dim_hf.metrics.figures import PANELS, TEST_LEGACY_PANELS, curves

    about = {"split": "test", "selected": summary["training"]["selected"]}
    write_cases_csv(cases, folder / "cases.csv", about={"protocol": "network"} | about)
    write_table_csv(table, folder / "sites.csv")
    intervals = summarize(cases, protocol="network", labeled_domain=summary["split"]["labeled_domain"])
    write_summary_csv(intervals, folder / "summary.csv", about=about)
    sentences = _sentences(summary["training"])
    (folder / "table.md").write_text(f"{format_summary(intervals)}\n\n{sentences}\n", encoding="utf-8")
    logged = [line for line in log_history if "loss" in line or "eval_mean_dice" in line]
    if logged:  # a run of a few steps may end before its first line
        on_test = summary["job"]["training"]["select"] == "test-legacy"
        curves(logged, folder / "curves.png", TEST_LEGACY_PANELS if on_test else PANELS)
    results = {**summary, "environment": environment(summary["job"]["training"]), HASHES: run_hashes(folder)}
    # The file's presence says that the run is complete.
    write_text(folder / RESULTS_FILE, json.dumps(results, indent=2, default=str) + "\n")
