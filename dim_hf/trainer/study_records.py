"""The results of a study, from its JSON files alone: read and checked, found by their cell, compared."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES
from dim_hf.metrics.statistics import PairedComparison, compare_paired, compare_paired_groups
from dim_hf.trainer.study import ALL_DOMAINS, ROWS, differing_settings, of_all_structures

Record = dict[str, Any]
_NEEDED = ("study", "row", "labeled_domain", "seed", "scores", "cases", "split", "settings", "cost", "code")


def read_json_files(folder: Path) -> list[tuple[Path, Any]]:
    """The JSON files of a folder by name, each with its content.

    Raises:
        ValueError: if one cannot be read.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append((file, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {file}: {error}") from error
    return found


def read_records(folder: Path) -> list[Record]:
    """The results of a study.

    Args:
        folder: of the JSON files that `StudyRunner` wrote.

    Raises:
        ValueError: if there is none, one cannot be read, or they are of several studies, of other test images, or a
            row of other settings, ways of choosing the checkpoint or precisions.
    """
    records = []
    for file, record in read_json_files(folder):
        missing = [key for key in _NEEDED if not isinstance(record, dict) or key not in record]
        if missing:
            raise ValueError(f"{file} is no result of a study: it lacks {', '.join(missing)}")
        records.append(record)
    if not records:
        raise ValueError(f"there is no result of a study in {folder}: run `examples/study.py run` first")
    for what, values in {
        "studies": {record["study"] for record in records},
        "test images": {json.dumps(record["split"]["test"], sort_keys=True) for record in records},
    }.items():
        if len(values) > 1:
            raise ValueError(f"{folder} holds results of several {what}: one table needs the same {what}")
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(record["row"], record)
        if differing := _differing(record, other):
            raise ValueError(
                f"{folder}: the results of the row {record['row']!r} with labels of {other['labeled_domain']}, seed "
                f"{other['seed']}, and of {record['labeled_domain']}, seed {record['seed']}, differ in "
                f"{', '.join(differing)}: all results of a row need the same"
            )
    return records


def _differing(one: Record, other: Record) -> list[str]:
    """In what two cells of a row differ that should be the same in all of them."""
    own = {"seed", "labeled_domain"}
    if one.get("share_choice"):
        own.add("share_adaptation")  # chosen on validation images, in each cell by itself
    settings = differing_settings(one["settings"], other["settings"])
    found = [f"{name} of {stage}" for stage, name in settings if name not in own]
    if one["selected"] != other["selected"]:
        found.append("how the checkpoint was chosen")
    precisions = [record.get("environment", {}).get("precision") for record in (one, other)]
    if None not in precisions and precisions[0] != precisions[1]:  # which older files do not say
        found.append("precision")
    return found


@dataclass(frozen=True)
class StudyTable:
    """Records by row, labeled domain and seed; the upper bound's stand for every labeled domain.

    Attributes:
        records: of `read_records`.
    """

    records: Sequence[Record]

    @property
    def rows(self) -> list[str]:
        """The rows that have a record, in the order of `ROWS`."""
        found = {record["row"] for record in self.records}
        return [row for row in ROWS if row in found]

    @property
    def labeled_domains(self) -> list[str]:
        """Domains that had the labels in some record, sorted."""
        return sorted({record["labeled_domain"] for record in self.records} - {ALL_DOMAINS}) or [ALL_DOMAINS]

    @property
    def seeds(self) -> list[int]:
        """Seeds of all records, sorted."""
        return sorted({record["seed"] for record in self.records})

    @property
    def test_domains(self) -> list[str]:
        """Domains with test images, in the order of the data set."""
        return [domain for domain in self.records[0]["scores"] if domain != MEAN_OF_SITES]

    @property
    def structures(self) -> list[str]:
        """What is scored."""
        return [name for name in self.records[0]["scores"][self.test_domains[0]] if name != ALL_STRUCTURES]

    def record(self, row: str, labeled_domain: str, seed: int) -> Record | None:
        """The record of a cell, or None where it has not been run."""
        for record in self.records:
            key = record["row"], record["seed"], record["labeled_domain"]
            if key[:2] == (row, seed) and key[2] in (labeled_domain, ALL_DOMAINS):
                return record
        return None

    def cells(self, *rows: str) -> list[tuple[str, int]]:
        """(labeled domain, seed) of which every one of the rows has a record."""
        pairs = [(domain, seed) for domain in self.labeled_domains for seed in self.seeds]
        return [pair for pair in pairs if all(self.record(row, *pair) for row in rows)]

    def refuse_absent(self, row: str) -> None:
        """Raise ValueError, naming the rows that there are, unless one has this name."""
        if row not in self.rows:
            raise ValueError(f"there is no result of the row {row!r}; there are: {', '.join(self.rows)}")

    def dices(self, row: str, labeled_domain: str | None = None) -> list[float]:
        """Dice, mean of structures and test domains, a value a seed.

        Args:
            row: one of `rows`.
            labeled_domain: that had the labels; None for the mean over all, of the seeds that have all.
        """
        if labeled_domain is None:
            return self.values(row, lambda record, _: mean_dice(record))
        return [mean_dice(self.record(row, *pair)) for pair in self.cells(row) if pair[0] == labeled_domain]

    def complete_seeds(self, row: str) -> list[int]:
        """Seeds in which a row has a record for each labeled domain."""
        return [seed for seed in self.seeds if all((d, seed) in self.cells(row) for d in self.labeled_domains)]

    def values(self, row: str, value_of: Callable[[Record, str], float]) -> list[float]:
        """A value for each seed in which the row is complete: the mean over labeled domains."""
        return [
            mean_value(value_of(self.record(row, domain, seed), domain) for domain in self.labeled_domains)
            for seed in self.complete_seeds(row)
        ]


def compare_rows(
    table: StudyTable, row: str, other: str, labeled_domain: str | None = None
) -> tuple[PairedComparison, PairedComparison, list[str]]:
    """Row minus other, on the cells that both have; with a labeled domain, on those of it alone.

    Returns:
        The comparison by test case (Dice, mean of structures, averaged over the common cells; interval and test over
        patients); that by cell (a value each labeled domain and seed: the mean of sites); and the (labeled domain →
        test domain) pairs in which the row is below the other, mean over seeds.
    """
    pairs = [pair for pair in table.cells(row, other) if labeled_domain in (None, pair[0])]
    groups, below = [], []
    for domain in table.test_domains:
        sides = [np.stack([_case_values(table.record(name, *p), domain) for p in pairs]) for name in (row, other)]
        patients = [str(number) for number in table.record(row, *pairs[0])["cases"][domain]["patients"]]
        groups.append((sides[0].mean(0), sides[1].mean(0), patients))
        for labeled in dict.fromkeys(labeled for labeled, _ in pairs):
            chosen = [index for index, pair in enumerate(pairs) if pair[0] == labeled]
            if np.nanmean(sides[0][chosen]) < np.nanmean(sides[1][chosen]):
                below.append(f"{labeled} → {domain}")
    means = [[mean_dice(table.record(name, *p)) for p in pairs] for name in (row, other)]
    return compare_paired_groups(groups), compare_paired(*means), below


def _case_values(record: Record, domain: str) -> np.ndarray:
    """Dice of each test case of a domain, mean over structures; NaN where the reference says nothing."""
    dices = np.array([scores["dice"] for scores in record["cases"][domain]["scores"].values()], dtype=float)
    known = ~np.isnan(dices)
    return np.where(known.any(0), np.where(known, dices, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def mean_value(values: Iterable[float | None]) -> float:
    """The mean; NaN with a value that is not defined."""
    return float(np.mean(np.array(list(values), dtype=float)))


def mean_dice(record: Record) -> float:
    """Mean over structures and over the test images of all domains."""
    return of_all_structures(record["scores"][MEAN_OF_SITES])["dice"]
