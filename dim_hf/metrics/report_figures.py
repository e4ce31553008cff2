"""Figures of an evaluation: scores by site, agreement of volumes and ratios, calibration, and bars over seeds.

All are written as PNG, SVG or PDF with the same bytes for the same numbers. Names come from data sets and are drawn as
they are: a `$` starts no formula. Values that are not defined (NaN) are left out, and counted where cases are counted.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dim_hf.metrics.agreement import LIMITS, Agreement, finite_pairs, limits_of_agreement, volume_pairs, volume_unit
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.figure_style import (
    COLORS,
    CROWD,
    GRID,
    HATCHES,
    INK,
    LINES,
    MARKERS,
    house_style,
    nothing,
    quiet_grid,
    save,
    short,
)
from dim_hf.metrics.labels import SHARES, metric_label
from dim_hf.metrics.report import MEANS, grouped, the_one, the_tolerance

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

    from dim_hf.metrics.calibration import Reliability

# Cases with one empty mask: attribute of `CaseResult`, marker, color, width of its lines, label.
EMPTY_MARKS = (
    ("missed", "x", "#D55E00", 1.6, "missed: prediction empty"),
    ("spurious", "P", "#CC79A7", 0.4, "spurious: reference empty"),
)


def _unit_of(cases: Iterable[CaseResult]) -> str:
    return the_one((case.unit for case in cases), "units")


def _by_domain(cases: Iterable[CaseResult]) -> dict[str, list[CaseResult]]:
    return grouped(cases, lambda case: case.domain)


def _by_structure(cases: Iterable[CaseResult]) -> dict[str, list[CaseResult]]:
    return grouped(cases, lambda case: case.structure)


def _draw_box(axes: "Axes", values: NDArray[np.float64], row: float, color: str) -> None:
    """A box of the quartiles with whiskers after Tukey, lying, and a diamond at the mean."""
    from matplotlib.cbook import boxplot_stats

    (box,) = boxplot_stats(values)
    axes.barh(row, box["q3"] - box["q1"], 0.56, box["q1"], color=color, alpha=0.28, edgecolor="none")
    look = {"color": color, "linewidth": 1.2}
    axes.hlines([row, row], [box["whislo"], box["q3"]], [box["q1"], box["whishi"]], **look)
    axes.vlines([box["whislo"], box["whishi"]], row - 0.12, row + 0.12, **look)
    axes.vlines([box["q1"], box["q3"]], row - 0.28, row + 0.28, **look)
    axes.vlines(box["med"], row - 0.28, row + 0.28, color=color, linewidth=2.4)
    axes.plot(box["mean"], row, marker="D", ms=5, color=INK, mec="white", mew=0.8, zorder=4)


def _draw_site(axes: "Axes", cases: Sequence[CaseResult], metric: str, row: float, color: str) -> str:
    """Box and cases of one domain and structure; returns the label of its row."""
    values = np.array([getattr(case, metric) for case in cases], float)
    seen = np.isfinite(values)
    # Multiples of the golden ratio spread evenly for any number of points, without a random draw.
    rows = row + 0.4 * ((np.arange(len(values)) * 0.6180339887) % 1 - 0.5)
    if seen.any():
        _draw_box(axes, values[seen], row, color)
    dense = len(values) > CROWD
    plain = seen & [not (case.missed or case.spurious) for case in cases]
    axes.plot(values[plain], rows[plain], "o", ms=3, color=color, mec="none", alpha=0.7, rasterized=dense, zorder=2.5)
    for name, marker, mark_color, width, _ in EMPTY_MARKS:
        shown = seen & [getattr(case, name) for case in cases]
        axes.plot(values[shown], rows[shown], marker, ms=6, color=mark_color, mew=width)
    absent = len(values) - int(seen.sum())
    count = f"{len(values)} case" + "s" * (len(values) != 1) + (f", {absent} undefined" if absent else "")
    return f"{short(cases[0].domain)}\n{count}"


def _draw_boxes(axes: "Axes", cases: Sequence[CaseResult], metric: str, colors: Mapping[str, str]) -> None:
    axes.use_sticky_edges = False  # a bar would end the axis where its box begins
    sites = _by_domain(cases)
    labels = [_draw_site(axes, group, metric, row, colors[name]) for row, (name, group) in enumerate(sites.items())]
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    tolerance = the_tolerance(case.nsd_tolerance for case in cases) if metric == "nsd" else math.nan
    axes.set_xlabel(metric_label(metric, _unit_of(cases), tolerance))
    low, high = axes.get_xlim()
    if metric in SHARES:
        axes.set_xlim(max(low, -0.02), 1 + 0.02 * (1 - max(low, 0)))
    elif metric != "volume_difference":
        axes.set_xlim(-0.02 * high, high)  # distances from 0 on, whatever the smallest is
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def box_plots(cases: Iterable[CaseResult], path: str | Path, metric: str = "dice") -> Path:
    """Draws one metric of every case by site, a panel a structure.

    Boxes show median and quartiles, whiskers reach the last case within 1.5 interquartile ranges (J. W. Tukey,
    "Exploratory Data Analysis", 1977), a diamond is the mean; missed and spurious structures have marks of their own.

    Args:
        cases: rows of `score_case`; none at all leave a figure that says so.
        path: file to write; its ending chooses the format; missing folders are made.
        metric: one of `report.MEANS`.

    Returns:
        The path.

    Raises:
        ValueError: for an unknown metric, or cases in different units.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    cases = list(cases)
    if metric not in MEANS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(MEANS)}")
    _unit_of(cases)  # draws nothing of cases in two units
    structures = _by_structure(cases)
    colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(_by_domain(cases))}
    marks = [
        Line2D([], [], ls="", marker=marker, color=color, ms=6, mew=width, label=label)
        for name, marker, color, width, label in EMPTY_MARKS
        if any(getattr(case, name) and math.isfinite(getattr(case, metric)) for case in cases)
    ]
    height = 0.9 + 0.48 * max(len(colors), 2) + 0.25 * bool(marks)
    with house_style():
        figure = Figure(figsize=(4.7 * max(len(structures), 1), height), layout="constrained")
        grid = figure.subplots(1, max(len(structures), 1), squeeze=False)[0]
        for axes, (name, group) in zip(grid, structures.items(), strict=False):
            _draw_boxes(axes, group, metric, colors)
            axes.set_title(short(name), loc="left")
        if not cases:
            nothing(grid[0])
        if marks:
            figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8)
        return save(figure, path)


def _draw_limits(axes: "Axes", agreement: Agreement, digits: int) -> None:
    """Lines at the mean difference and its limits, with their values in the margin."""
    axes.axhline(0, color=INK, linewidth=0.6)
    lines = [(agreement.bias, "mean", "-")]
    if LIMITS * agreement.sd > 1e-9 * (1 + abs(agreement.bias)):  # else one line, not three with the same place
        lines += [(agreement.upper, "+1.96 SD", "--"), (agreement.lower, "−1.96 SD", "--")]
    for value, name, line in lines:
        axes.axhline(value, color=INK, linewidth=1.1, linestyle=line)
        text = f"{name}\n{value:+z,.{digits}f}".replace("-", "−")
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (4, 0)}
        axes.annotate(text, (1, value), fontsize=7.5, va="center", **place)


def _scatter(axes: "Axes", points: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> list["Artist"]:
    """Points by domain, each with a color and a marker; both repeat with different periods."""
    drawn = []
    for index, (x, y) in enumerate(points.values()):
        look = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "mec": "none"}
        drawn += axes.plot(x, y, ls="", ms=4.2, alpha=0.8, rasterized=len(x) > CROWD, **look)
    return drawn


def _draw_differences(
    axes: "Axes", pairs: Mapping[str, NDArray[np.float64]], quantity: str, digits: int
) -> list["Artist"]:
    """Bland-Altman plot of pairs (N, 2), prediction and reference, by domain."""
    everything = np.concatenate([np.zeros((0, 2)), *pairs.values()])
    agreement = limits_of_agreement(everything[:, 0], everything[:, 1])
    if not agreement.cases:
        nothing(axes)
        return []
    drawn = _scatter(axes, {domain: (both.mean(axis=1), both[:, 0] - both[:, 1]) for domain, both in pairs.items()})
    _draw_limits(axes, agreement, digits)
    axes.margins(0.06, 0.12)
    axes.set_xlabel(f"mean of prediction and reference{quantity}")
    axes.set_ylabel(f"prediction − reference{quantity}")
    quiet_grid(axes)
    return drawn


def _legend(figure: "Figure", drawn: Sequence["Artist"], labels: Sequence[str]) -> None:
    """What is drawn for each domain, below the axes."""
    if drawn:
        columns = max(1, int(13 * figure.get_figwidth()) // (max(map(len, labels)) + 6))
        columns = -(-len(drawn) // -(-len(drawn) // columns))  # rows of equal length
        figure.legend(drawn, labels, loc="outside lower center", ncols=columns, fontsize=8)


def bland_altman(
    cases: Iterable[CaseResult], path: str | Path, structure: str, *, spatial_dims: int | None = None
) -> Path:
    """Draws how predicted volumes (or areas) differ from the reference; see `limits_of_agreement` for the source.

    Differences stand over the mean of both measurements, since over the reference alone they would slope even without
    any relation (J. M. Bland and D. G. Altman, Lancet 346 (1995) 1085-1087).

    Args:
        cases: rows of `score_case`; other structures are passed over, cases with two empty masks too.
        path: file to write; its ending chooses the format; missing folders are made.
        structure: name of the structure.
        spatial_dims: 2 for areas, 3 for volumes (in mL where the unit is mm), None where it is not known.

    Returns:
        The path.

    Raises:
        ValueError: if there are cases but none of that structure, or they are in different units.
    """
    from matplotlib.figure import Figure

    cases = list(cases)
    names = list(_by_structure(cases))
    if names and structure not in names:
        raise ValueError(f"structure is {structure!r}; the cases have {', '.join(names)}")
    unit, factor = volume_unit(_unit_of(cases), spatial_dims)
    pairs = {domain: factor * finite_pairs(own) for domain, own in volume_pairs(cases, structure).items()}
    with house_style():
        figure = Figure(figsize=(4.7, 3.4), layout="constrained")
        axes = figure.subplots()
        drawn = _draw_differences(axes, pairs, f" ({unit})", 0 if factor == 1 else 1)
        axes.set_title(short(structure), loc="left")
        _legend(figure, drawn, list(map(short, pairs)))
        return save(figure, path)


def ratio_agreement(
    ratios: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, name: str = "vertical cup-to-disc ratio"
) -> Path:
    """Draws a predicted ratio over the reference one, and their differences after Bland and Altman.

    Args:
        ratios: pairs (prediction, reference) by domain; pairs that are not finite are left out.
        path: file to write; its ending chooses the format; missing folders are made.
        name: what the ratio is, for the axes.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    pairs = {domain: finite_pairs(own) for domain, own in ratios.items()}
    with house_style():
        figure = Figure(figsize=(8.4, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        drawn = _scatter(left, {domain: (both[:, 1], both[:, 0]) for domain, both in pairs.items()})
        shown = np.concatenate([np.zeros((0, 2)), *pairs.values()])
        if shown.size:
            edge = 0.05 * float(np.ptp(shown)) or 0.05
            low, high = shown.min() - edge, shown.max() + edge
            left.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":", zorder=1)
            left.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="reference", ylabel="prediction")
            quiet_grid(left)
        else:
            nothing(left)
        _draw_differences(right, pairs, "", 3)
        left.set_title(name[:1].upper() + name[1:], loc="left")
        right.set_title("Differences", loc="left")
        _legend(figure, drawn, list(map(short, pairs)))
        return save(figure, path)


def reliability_diagram(reliability: Mapping[str, "Reliability"], path: str | Path) -> Path:
    """Draws how often pixels are right for each confidence, by domain, and how many pixels have that confidence.

    After A. Niculescu-Mizil and R. Caruana, "Predicting good probabilities with supervised learning", ICML 2005; the
    expected calibration error (ECE) is that of `calibration.Reliability`.

    Args:
        reliability: calibration by domain; bins without a pixel are left out.
        path: file to write; its ending chooses the format; missing folders are made.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(4.7, 4.6), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        drawn, labels = [], []
        for index, (domain, one) in enumerate(reliability.items()):
            counts = np.asarray(one.counts, float)
            if not counts.sum():
                continue
            filled = counts > 0
            look = {"color": COLORS[index % len(COLORS)], "linewidth": 1.3}
            line = {"linestyle": LINES[index // len(COLORS) % len(LINES)], "marker": MARKERS[index % len(MARKERS)]}
            confidence, accuracy = (np.asarray(values, float)[filled] for values in (one.confidence, one.accuracy))
            drawn += top.plot(confidence, accuracy, ms=3.6, **look, **line)
            share = np.where(filled, counts / counts.sum(), np.nan)
            bottom.stairs(share, one.edges, baseline=None, **look)
            labels.append(f"{short(domain)}, ECE {one.expected_calibration_error:.3f}")
        if labels:
            _finish_reliability(top, bottom)
            _legend(figure, drawn, labels)
        else:
            nothing(top, "no pixel to draw")
            bottom.remove()
        return save(figure, path)


def _finish_reliability(top: "Axes", bottom: "Axes") -> None:
    lines = list(top.get_lines())
    top.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    top.text(0.03, 0.97, "too cautious", transform=top.transAxes, va="top", fontsize=7.5, style="italic")
    top.text(0.97, 0.03, "too sure", transform=top.transAxes, ha="right", fontsize=7.5, style="italic")
    # The most probable of K classes has at least 1 / K: the empty part of the square is left out.
    low = max(math.floor(10 * min(float(min(*line.get_xdata(), *line.get_ydata())) for line in lines)) / 10, 0)
    edge = 0.02 * (1 - low)
    top.set(ylabel="share of pixels that are right", ylim=(low - edge, 1 + edge))
    bottom.set(xlabel="confidence", ylabel="pixels", xlim=(low - edge, 1 + edge), yscale="log")
    bottom.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    quiet_grid(top)
    quiet_grid(bottom)


def _draw_seeds(
    axes: "Axes", values: Sequence[NDArray[np.float64]], places: NDArray[np.float64], width: float, index: int
) -> "BarContainer":
    """Bars of one setting at their places, with standard deviations and a dot a seed."""
    means = [own.mean() if own.size else math.nan for own in values]
    spreads = [own.std(ddof=1) if own.size > 1 else math.nan for own in values]
    look = {"color": COLORS[index % len(COLORS)], "hatch": HATCHES[index // len(COLORS) % len(HATCHES)]}
    bars = axes.bar(places, means, width, edgecolor="white", linewidth=0.8, alpha=0.75, **look)
    axes.errorbar(places, means, spreads, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    for place, own in zip(places, values, strict=True):
        across = place + 0.4 * width * ((np.arange(len(own)) + 0.5) / max(len(own), 1) - 0.5)
        axes.plot(across, own, "o", ms=3, color=INK, mec="white", mew=0.5)
    return bars


def seed_bars(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    path: str | Path,
    metric: str = "dice",
    unit: str = "",
    nsd_tolerance: float = math.nan,
    note: str = "",
) -> Path:
    """Draws the mean over seeds with its standard deviation and every seed, a group a domain and a bar a setting.

    Args:
        scores: by setting and domain one value a seed; values that are not finite are left out.
        path: file to write; its ending chooses the format; missing folders are made.
        metric: one of `report.MEANS`.
        unit: "mm" or "px" for distances.
        nsd_tolerance: of the NSD, in the unit.
        note: what a reader must know of the scores, written below them.

    Returns:
        The path.

    Raises:
        ValueError: for no setting or domain, or an unknown metric.
    """
    from matplotlib.figure import Figure

    domains = list(dict.fromkeys(domain for by_domain in scores.values() for domain in by_domain))
    if not domains:
        raise ValueError("scores has no setting with a domain; pass values of at least one seed")
    if metric not in MEANS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(MEANS)}")
    with house_style():
        width = 0.8 / len(scores)
        figure = Figure(figsize=(max(4.0, 1.2 + (0.5 + 0.36 * len(scores)) * len(domains)), 3.4), layout="constrained")
        axes = figure.subplots()
        bars = []
        for index, by_domain in enumerate(scores.values()):
            values = [np.array(by_domain.get(domain, ()), float) for domain in domains]
            places = np.arange(len(domains)) + (index - (len(scores) - 1) / 2) * width
            bars.append(_draw_seeds(axes, [own[np.isfinite(own)] for own in values], places, width, index))
        axes.set_xticks(range(len(domains)), list(map(short, domains)))
        axes.set_ylabel(metric_label(metric, unit, nsd_tolerance))
        if metric in SHARES:
            axes.set_ylim(0, 1.05)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(bars, list(map(short, scores)), loc="outside upper center", ncols=min(4, len(scores)))
        if note:
            figure.supxlabel(textwrap.fill(note, int(15 * figure.get_figwidth())), fontsize=7.5)
        return save(figure, path)
