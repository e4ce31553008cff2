"""The Markdown tables of a study, from its JSON files alone: scores, paired differences, and what a step costs."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES
from dim_hf.metrics.statistics import PairedComparison, compare_paired, compare_paired_groups
from dim_hf.trainer.study import ALL_DOMAINS, ROWS, STAGE1

Record = dict[str, Any]
# Metric, its name, and what its values are multiplied by.
_KINDS = (("dice", "Dice", 100.0), ("hd95", "HD95", 1.0))
_NEEDED = ("study", "row", "labeled_domain", "seed", "scores", "cases", "split", "settings", "cost", "code")


def read_records(folder: Path) -> list[Record]:
    """The results of a study.

    Args:
        folder: of the JSON files that `StudyRunner` wrote.

    Raises:
        ValueError: if there is none, one cannot be read, or they are of several studies, settings of one row or
            test images.
    """
    records = []
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {file}: {error}") from error
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
    return records


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
            return self.values(row, lambda record, _: _mean_dice(self, record))
        return [_mean_dice(self, self.record(row, *pair)) for pair in self.cells(row) if pair[0] == labeled_domain]

    def values(self, row: str, value_of: Callable[[Record, str], float]) -> list[float]:
        """A value for each seed in which the row is complete: the mean over labeled domains."""
        complete = [seed for seed in self.seeds if all((d, seed) in self.cells(row) for d in self.labeled_domains)]
        return [
            _mean(value_of(self.record(row, domain, seed), domain) for domain in self.labeled_domains)
            for seed in complete
        ]


def format_study(records: Sequence[Record], baseline: str = "supervised") -> str:
    """All tables of a study as Markdown.

    Args:
        records: of `read_records`.
        baseline: the row that the others are compared with.

    Raises:
        ValueError: if the baseline has no record.
    """
    table = StudyTable(records)
    table.refuse_absent(baseline)
    parts = [_caption(table), _by_labeled_domain(table)]
    parts += [_structures_by_labeled_domain(table, *kind) for kind in _KINDS]
    parts += [_by_structure(table)]
    parts += [_labeled_to_test(table, row) for row in dict.fromkeys((baseline, "dim")) if row in table.rows]
    parts += [_differences(table, baseline), _differences_by_labeled_domain(table, baseline)]
    if "dim" in table.rows and baseline != "dim":
        parts.append(_differences(table, "dim"))
    return "\n\n".join([*parts, _choices(table), _costs(table)]).replace("\n\n\n", "\n\n").strip()


def format_variants(studies: Mapping[str, Sequence[Record]], baseline: str = "supervised") -> str:
    """One table of several studies that differ in their data: a line each, its scores and what DiM adds.

    Args:
        studies: name of the variant → its records.
        baseline: the row that `dim` is compared with.

    Raises:
        ValueError: if there is no study, or one lacks a row for the comparison.
    """
    tables = {name: StudyTable(records) for name, records in studies.items()}
    rows = [row for row in ROWS if any(row in table.rows for table in tables.values())]
    lines = []
    for name, table in tables.items():
        pairs = table.cells("dim", baseline)
        if not pairs:
            raise ValueError(f"the study {name!r} has no results of dim and {baseline} alike: run it to its end first")
        means = [_spread(table.dices(row)) for row in rows]
        difference, p_value, _, _, below = _difference(table, "dim", baseline)
        seeds = ", ".join(map(str, sorted({seed for _, seed in pairs})))
        lines.append([name, seeds, *means, difference, p_value, below])
    if not lines:
        raise ValueError("there is no study to make a table of")
    header = ["variant", "seeds", *rows, f"DiM minus {baseline}", "p", "labeled → test domain below"]
    return markdown_table(header, lines)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are texts already."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values: Sequence[float], factor: float = 100.0) -> str:
    if not values:
        return "–"
    mean = f"{factor * np.mean(values):.1f}"
    return f"{mean} ± {factor * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _caption(table: StudyTable) -> str:
    full = [record for record in table.records if record["row"] != STAGE1]
    first = next((record for record in full if record["labeled_domain"] != ALL_DOMAINS), table.records[0])
    settings = first["settings"]["stage1"]
    sizes = "-".join(map(str, settings.get("hidden_sizes", [])))
    network = f"U-Net {sizes}, " if sizes else ""
    codes = sorted({f"{r['code']['git_revision']}, sources {r['code']['sources_sha256'][:12]}" for r in table.records})
    return (
        f"**{first['study']}**: {network}{settings.get('image_size', 128)} pixels, "
        f"{' + '.join(map(str, first['steps']))} steps, {first['split']['labeled']['images']} labels of one domain; "
        f"checkpoint: {first['selected']}; seeds {', '.join(map(str, table.seeds))}. Mean ± sd over seeds, where "
        f"there are several. Code: {'; '.join(codes)}."
    )


def _by_labeled_domain(table: StudyTable) -> str:
    """Dice, mean of structures and test domains: a column each labeled domain."""
    lines = []
    for row in table.rows:
        columns = [_spread(table.dices(row, domain)) for domain in table.labeled_domains]
        lines.append([row, *columns, f"**{_spread(table.dices(row))}**"])
    names = [f"labels: {domain}" for domain in table.labeled_domains]
    title = "Dice × 100, mean of structures and of the test images of all domains:"
    return f"{title}\n\n{markdown_table(['row', *names, 'mean'], lines)}"


def _mean(values: Iterable[float | None]) -> float:
    """The mean; NaN with a value that is not defined."""
    return float(np.mean(np.array(list(values), dtype=float)))


def _mean_dice(table: StudyTable, record: Record) -> float:
    """Mean over structures and over the test images of all domains."""
    return record["scores"][MEAN_OF_SITES][_all(table)]["dice"]


def _all(table: StudyTable) -> str:
    return ALL_STRUCTURES if len(table.structures) > 1 else table.structures[0]


def _structures_by_labeled_domain(table: StudyTable, metric: str, title: str, factor: float) -> str:
    """One metric of each structure, mean of the test images of all domains: columns for each labeled domain."""

    def value(structure: str) -> Callable[[Record, str], float]:
        return lambda record, _: _mean([record["scores"][MEAN_OF_SITES][structure][metric]])

    lines = []
    for row in table.rows:
        columns = [
            [value(structure)(record, domain) for seed in table.seeds if (record := table.record(row, domain, seed))]
            for domain in table.labeled_domains
            for structure in table.structures
        ]
        means = [table.values(row, value(structure)) for structure in table.structures]
        lines.append([row, *(_spread(values, factor) for values in [*columns, *means])])
    names = [f"{domain}: {structure}" for domain in [*table.labeled_domains, "mean"] for structure in table.structures]
    unit = "× 100" if factor != 1 else "in pixels of the network's input"
    return (
        f"{title} {unit} by labeled domain, mean of the test images of all domains:\n\n"
        f"{markdown_table(['row', *names], lines)}"
    )


def _by_structure(table: StudyTable) -> str:
    """Dice and HD95 by structure, on the labeled domain's own test images and on the others'."""

    def at(metric: str, structure: str, own: bool) -> Callable[[Record, str], float]:
        def value(record: Record, labeled: str) -> float:
            domains = [domain for domain in table.test_domains if (domain == labeled) == own]
            return _mean(record["scores"][domain][structure][metric] for domain in domains)

        return value

    columns = [(kind, structure, own) for kind in _KINDS for structure in table.structures for own in (True, False)]
    header = [f"{kind[1]} {structure}, {'labeled' if own else 'foreign'}" for kind, structure, own in columns]
    lines = [
        [row, *(_spread(table.values(row, at(kind[0], structure, own)), kind[2]) for kind, structure, own in columns)]
        for row in table.rows
    ]
    title = (
        "By structure, on test images of the labeled domain and of the foreign ones, mean over labeled domains (HD95 "
        "in pixels of the network's input; only rows and seeds that are complete):"
    )
    return f"{title}\n\n{markdown_table(['row', *header], lines)}"


def _labeled_to_test(table: StudyTable, row: str) -> str:
    """Dice of one row by structure: a line each labeled domain, a column each test domain."""

    def values(labeled: str, test: str, structure: str) -> list[float]:
        records = [table.record(row, labeled, seed) for seed in table.seeds]
        return [_mean([record["scores"][test][structure]["dice"]]) for record in records if record]

    columns = [(test, structure) for structure in table.structures for test in table.test_domains]
    lines = [[domain, *(_spread(values(domain, *column)) for column in columns)] for domain in table.labeled_domains]
    names = [f"{structure} at {test}" for test, structure in columns]
    return f"Dice × 100 of **{row}** by test domain:\n\n{markdown_table(['labels', *names], lines)}"


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
    means = [[_mean_dice(table, table.record(name, *p)) for p in pairs] for name in (row, other)]
    return compare_paired_groups(groups), compare_paired(*means), below


def _case_values(record: Record, domain: str) -> np.ndarray:
    """Dice of each test case of a domain, mean over structures; NaN where the reference says nothing."""
    dices = np.array([scores["dice"] for scores in record["cases"][domain]["scores"].values()], dtype=float)
    known = ~np.isnan(dices)
    return np.where(known.any(0), np.where(known, dices, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _differences(table: StudyTable, other: str) -> str:
    lines = []
    for row in table.rows:
        if row == other or not table.cells(row, other):
            continue
        lines.append([row, *_difference(table, row, other)])
    title = (
        f"Minus **{other}**, Dice × 100 on the same test cases, 95 % interval and Wilcoxon signed-rank test over "
        "patients; then how many cells of labeled domain and seed are better, and which test domains are worse:"
    )
    header = ["row", "difference", "p", "patients better / worse", "cells better", "labeled → test domain below"]
    return f"{title}\n\n{markdown_table(header, lines)}"


def _differences_by_labeled_domain(table: StudyTable, other: str) -> str:
    lines = []
    for row in table.rows:
        if row == other or not table.cells(row, other):
            continue
        shared = {labeled for labeled, _ in table.cells(row, other)}
        lines.append([row, *(_interval(table, row, other, d) if d in shared else "–" for d in table.labeled_domains)])
    title = f"The same by labeled domain, minus **{other}**, with 95 % intervals over patients:"
    return f"{title}\n\n{markdown_table(['row', *(f'labels: {d}' for d in table.labeled_domains)], lines)}"


def _interval(table: StudyTable, row: str, other: str, labeled_domain: str) -> str:
    return _difference_text(compare_rows(table, row, other, labeled_domain)[0])


def _difference_text(cases: PairedComparison) -> str:
    mean, low, high = (f"{100 * getattr(cases.difference, name):+.2f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _difference(table: StudyTable, row: str, other: str) -> list[str]:
    """Row minus other in words: difference and interval, p, patients, cells, test domains below."""
    cases, by_cell, below = compare_rows(table, row, other)
    number = len({labeled for labeled, _ in table.cells(row, other)}) * len(table.test_domains)
    return [
        _difference_text(cases),
        _p(cases.p_value),
        f"{cases.better} / {cases.worse}",
        f"{by_cell.better} of {by_cell.pairs}, p {_p(by_cell.p_value)}",
        f"{len(below)} of {number}" + (f": {', '.join(below)}" if 0 < len(below) <= 4 else ""),
    ]


def _p(value: float) -> str:
    return "–" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _choices(table: StudyTable) -> str:
    """Which strength of `share_adaptation` validation chose, where there was a choice."""
    found = [r for r in table.records if r["row"] == "teacher-student" and r.get("share_choice")]
    if not found:
        return ""
    texts = [
        f"{r['labeled_domain']} seed {r['seed']}: {r['share_adaptation']:g} ("
        + ", ".join(f"{float(strength):g} {100 * dice:.1f}" for strength, dice in r["share_choice"].items())
        + ")"
        for r in sorted(found, key=lambda r: (r["labeled_domain"], r["seed"]))
    ]
    return f"`share_adaptation` by validation (Dice × 100 of teacher-student): {'; '.join(texts)}."


def _costs(table: StudyTable) -> str:
    lines = []
    for row in table.rows:
        own = [list(record["cost"].values())[-1] for record in table.records if record["row"] == row]
        seconds = [cost["seconds_per_step"] for cost in own if cost["seconds_per_step"] is not None]
        memory = [cost["peak_memory_gib"] for cost in own if cost["peak_memory_gib"] is not None]
        cells = [f"{np.median(values):.2f}" if values else "–" for values in (seconds, memory)]
        lines.append([row, *cells, str(len(own))])
    title = "Cost of a step of the last stage, medians (memory of the GPU; not known on a CPU):"
    return f"{title}\n\n{markdown_table(['row', 's a step', 'peak GiB', 'runs'], lines)}"
