"""The Markdown tables of a study: scores, paired differences, and what a step costs."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dim_hf.metrics.report import MEAN_OF_SITES
from dim_hf.metrics.statistics import PairedComparison
from dim_hf.trainer.job_report import stamp
from dim_hf.trainer.study import ALL_DOMAINS, ROWS, STAGE1
from dim_hf.trainer.study_records import Record, StudyTable, compare_rows, mean_value

# Metric, its name, and what its values are multiplied by.
_KINDS = (("dice", "Dice", 100.0), ("hd95", "HD95", 1.0))


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
    chosen = sorted({record["selected"] for record in table.records})
    warning = next(filter(None, (stamp(record) for record in table.records)), "")
    precisions = sorted({p for r in table.records if (p := r.get("environment", {}).get("precision"))})
    precision = f"Precision: {', '.join(precisions)}. " if precisions else ""
    text = (
        f"**{first['study']}**: {network}{settings.get('image_size', 128)} pixels, "
        f"{' + '.join(map(str, first['steps']))} steps, {first['split']['labeled']['images']} labels of one domain; "
        f"checkpoint: {', '.join(chosen)}; seeds {', '.join(map(str, table.seeds))}. Mean ± sd over seeds, where "
        f"there are several. {precision}Code: {'; '.join(codes)}."
    )
    return f"{text} {warning}".strip()


def _by_labeled_domain(table: StudyTable) -> str:
    """Dice, mean of structures and test domains: a column each labeled domain."""
    lines = []
    for row in table.rows:
        columns = [_spread(table.dices(row, domain)) for domain in table.labeled_domains]
        seeds = ", ".join(map(str, table.complete_seeds(row))) or "–"
        lines.append([row, *columns, f"**{_spread(table.dices(row))}**", seeds])
    names = [f"labels: {domain}" for domain in table.labeled_domains]
    title = (
        "Dice × 100, mean of structures and of the test images of all domains, and the seeds that have all labeled "
        "domains (rows of different seeds are compared below, on what they share):"
    )
    return f"{title}\n\n{markdown_table(['row', *names, 'mean', 'seeds'], lines)}"


def _structures_by_labeled_domain(table: StudyTable, metric: str, title: str, factor: float) -> str:
    """One metric of each structure, mean of the test images of all domains: columns for each labeled domain."""

    def value(structure: str) -> Callable[[Record, str], float]:
        return lambda record, _: mean_value([record["scores"][MEAN_OF_SITES][structure][metric]])

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
            return mean_value(record["scores"][domain][structure][metric] for domain in domains)

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
        return [mean_value([record["scores"][test][structure]["dice"]]) for record in records if record]

    columns = [(test, structure) for structure in table.structures for test in table.test_domains]
    lines = [[domain, *(_spread(values(domain, *column)) for column in columns)] for domain in table.labeled_domains]
    names = [f"{structure} at {test}" for test, structure in columns]
    return f"Dice × 100 of **{row}** by test domain:\n\n{markdown_table(['labels', *names], lines)}"


def _comparable(table: StudyTable, other: str) -> list[str]:
    """The rows that share a cell with another one."""
    return [row for row in table.rows if row != other and table.cells(row, other)]


def _differences(table: StudyTable, other: str) -> str:
    lines = [[row, *_difference(table, row, other)] for row in _comparable(table, other)]
    title = (
        f"Minus **{other}**, Dice × 100 on the same test cases, 95 % interval and Wilcoxon signed-rank test over "
        "patients; then how many cells of labeled domain and seed are better, and which test domains are worse:"
    )
    header = ["row", "difference", "p", "patients better / worse", "cells better", "labeled → test domain below"]
    return f"{title}\n\n{markdown_table(header, lines)}"


def _differences_by_labeled_domain(table: StudyTable, other: str) -> str:
    lines = []
    for row in _comparable(table, other):
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
        f"{by_cell.better} of {by_cell.pairs}",
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
