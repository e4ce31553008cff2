"""The files a run leaves for people: tables, figures, and everything needed to run it again."""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dim_hf.metrics.report import CaseResult, SiteTable, format_table, write_csv

PACKAGES = ("dim-hf", "torch", "transformers", "accelerate", "datasets", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), "machine": platform.machine()} | {
        name: metadata.version(name) for name in PACKAGES
    }


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    table: SiteTable,
    cases: Sequence[CaseResult],
    log_history: Iterable[Mapping[str, Any]],
) -> None:
    """Write `results.json`, `cases.csv`, `table.md` and `curves.png` into the run's folder."""
    from dim_hf.metrics.figures import curves

    rows = [{"domain": row.domain, "structure": row.structure, "cases": row.cases, "missed": row.missed,
             "spurious": row.spurious, **row.means} for row in table.rows]  # fmt: skip
    results = {"sites": rows, "unit": table.unit, "empty_policy": table.empty_policy, "environment": environment()}
    (folder / "results.json").write_text(json.dumps({**summary, **results}, indent=2, default=str) + "\n")
    write_csv(cases, folder / "cases.csv")
    (folder / "table.md").write_text(format_table(table, markdown=True) + "\n")
    curves(list(log_history), folder / "curves.png")
