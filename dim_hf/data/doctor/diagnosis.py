"""Examines a data set: every row once, then what only all of them together show."""

import os
from dataclasses import dataclass, replace
from typing import Any

import datasets

from dim_hf.data.description import IGNORE_INDEX, DatasetDescription
from dim_hf.data.doctor.comparison import by_domain, find_all
from dim_hf.data.doctor.findings import SEVERITIES, Finding, count_severities
from dim_hf.data.doctor.inspection import Standard, inspect_rows
from dim_hf.data.doctor.summary import DomainSummary, summarize

EXIT_CODES = {"error": 4, "warning": 3, "note": 0, None: 0}
"""Worst severity → exit code of the command; 1 and 2 are those of wrong input and wrong options."""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        rows: Number of rows.
        findings: Worst first, then by code, domain and file.
        domains: Summaries, sorted by name.
        description: Classes and structures of the data set.
    """

    rows: int
    findings: list[Finding]
    domains: list[DomainSummary]
    description: DatasetDescription

    @property
    def worst(self) -> str | None:
        """The worst severity found, or None where there is nothing to say."""
        found = {item.severity for item in self.findings}
        return next((severity for severity in SEVERITIES if severity in found), None)

    @property
    def exit_code(self) -> int:
        """0 without errors and warnings, 3 with warnings, 4 with errors."""
        return EXIT_CODES[self.worst]

    def relative_to(self, dataset: str) -> "Diagnosis":
        """The same for people to read: files without the folder that `dataset` names, if it names one."""
        path = os.path.abspath(dataset)
        folder = os.path.dirname(path) if os.path.isfile(path) else path
        if not os.path.isdir(folder):
            return self
        prefix = os.path.join(folder, "")
        shown = [
            replace(item, file=item.file.replace(prefix, ""), problem=item.problem.replace(prefix, ""))
            for item in self.findings
        ]
        return replace(self, findings=shown)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; holds neither NaN nor infinity."""
        return {
            "rows": self.rows,
            "worst": self.worst,
            "exit_code": self.exit_code,
            "counts": count_severities(self.findings),
            "classes": {str(value): name for value, name in self.description.id2label.items()},
            "findings": [item.to_dict() for item in self.findings],
            "domains": [summary.to_dict() for summary in self.domains],
        }


def examine(
    rows: datasets.Dataset,
    description: DatasetDescription,
    *,
    num_workers: int | None = None,
    progress: bool = True,
    processes: bool = False,
) -> Diagnosis:
    """Look at every file of a data set, several at a time.

    No broken file raises: each becomes a finding. Pixels are not kept; about 2 kB of facts are, for each row. An empty
    split counts as "train".

    Args:
        rows: Rows as a reader of this package gives them.
        description: Their classes.
        num_workers: Threads or processes; see `parallel.parallel_map`.
        progress: Show a progress bar on the standard error stream.
        processes: Use processes for thousands of rows; for programs with a `__main__` guard.

    Raises:
        ValueError: If there is no column `image`, or `num_workers` is below 1.
        ImportError: If there are volumes, and the package that reads them is missing.
    """
    standard = Standard(description.num_labels, IGNORE_INDEX, spatial_dims=description.spatial_dims)
    facts = inspect_rows(
        rows,
        standard,
        num_workers=num_workers,
        progress=progress,
        description="examining files",
        processes=processes,
    )
    return Diagnosis(
        rows=len(facts),
        findings=find_all(facts, description, IGNORE_INDEX),
        domains=[
            summarize(domain, members, description, IGNORE_INDEX) for domain, members in by_domain(facts).items()
        ],
        description=description,
    )
