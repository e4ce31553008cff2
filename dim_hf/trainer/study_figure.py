"""A study as a picture: the Dice of every row by labeled domain, each seed a dot, and what a row differs by."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dim_hf.metrics.figure_style import COLORS, GRID, INK, MARKERS, house_style, quiet_grid, save, short
from dim_hf.trainer.study_records import Record, StudyTable, compare_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALL = "mean"
_LINE, _GAP = 1.0, 1.2  # in lines: a row, and the room between labeled domains


def study_figure(records: Sequence[Record], path: str | Path, baseline: str = "supervised") -> Path:
    """Draw the scores of a study and their differences to one row.

    Left the Dice × 100, mean of structures and of the test images of all domains: a large mark for the mean over
    seeds, a dot for each seed. Right the difference to the baseline on the same test images, with its 95 % interval
    over patients. A group a labeled domain, and one for the mean of all.

    Args:
        records: of `dim_hf.trainer.study_records.read_records`.
        path: file to write; its ending chooses the format; missing folders are made.
        baseline: the row that the others are compared with.

    Returns:
        The path.

    Raises:
        ValueError: if the baseline has no record.
    """
    from matplotlib.figure import Figure

    table = StudyTable(records)
    table.refuse_absent(baseline)
    groups = [*table.labeled_domains, ALL]
    height = len(groups) * (len(table.rows) * _LINE + _GAP)
    with house_style():
        figure = Figure(figsize=(7.2, 1.1 + 0.17 * height), layout="constrained")
        scores, differences = figure.subplots(1, 2, sharey=True)
        middles = []
        for number, group in enumerate(groups):
            top = number * (len(table.rows) * _LINE + _GAP)
            for axes in (scores, differences) if number else ():
                axes.axhline(top - (_LINE + _GAP) / 2, color=GRID, linewidth=0.6)
            middles.append(top + (len(table.rows) - 1) * _LINE / 2)
            for index, row in enumerate(table.rows):
                place = top + index * _LINE
                _draw_scores(scores, table, row, group, place, index)
                if row != baseline:
                    _draw_difference(differences, table, (row, baseline), group, place, index)
        scores.set_yticks(middles, [short(group) for group in groups])
        scores.set_ylim(height - _GAP, -_GAP)
        scores.tick_params(axis="y", length=0)
        scores.set(xlabel="Dice × 100, all test domains", ylabel="labels of")
        differences.axvline(0, color=INK, linewidth=0.8)
        differences.set_xlabel(f"minus {short(baseline)}, 95 % over patients")
        for axes in (scores, differences):
            quiet_grid(axes)
            axes.grid(visible=False, axis="y")
        handles, labels = scores.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=3)
        return save(figure, path)


def _look(index: int) -> dict[str, str]:
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_scores(axes: "Axes", table: StudyTable, row: str, group: str, place: float, index: int) -> None:
    by_seed = table.dices(row, None if group == ALL else group)
    if not by_seed:
        return
    values = [100 * dice for dice in by_seed]
    axes.plot(values, [place] * len(values), "o", ms=2.5, color=_look(index)["color"], alpha=0.6)
    axes.plot(sum(values) / len(values), place, ls="", ms=6, mec="white", mew=0.7, label=short(row), **_look(index))


def _draw_difference(
    axes: "Axes", table: StudyTable, rows: tuple[str, str], group: str, place: float, index: int
) -> None:
    domain = None if group == ALL else group
    if not any(domain in (None, labeled) for labeled, _ in table.cells(*rows)):
        return
    found = compare_rows(table, *rows, domain)[0].difference
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    axes.plot([low, high], [place, place], "-", color=_look(index)["color"], linewidth=1.5)
    axes.plot(mean, place, ls="", ms=6, mec="white", mew=0.7, **_look(index))
