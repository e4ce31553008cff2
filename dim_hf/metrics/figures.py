"""Figures of a report: contours over images, curves of a training, bars by site. Written as PNG, SVG or PDF.

Line styles and labels repeat what colours say. matplotlib is imported when a figure is drawn, without pyplot and its
global state, so that the functions work without a display and beside a user's own figures.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim_hf.metrics.cases import check_structures
from dim_hf.metrics.figure_style import COLORS, CONTOUR_COLORS, GRID, HATCHES, INK, LINES, house_style, save, short
from dim_hf.metrics.labels import SHARES, metric_label
from dim_hf.metrics.report import MEAN_OF_SITES, SiteTable, check_comparable, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _as_picture(image: ArrayLike, labels_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An image as (*S) or (*S, 3) in [0, 1], from (*S), (C, *S) or (*S, C) of any value range."""
    array = np.asarray(image)
    ndim = len(labels_shape)
    if array.ndim == ndim + 1:
        if array.shape[1:] == labels_shape:
            array = np.moveaxis(array, 0, -1)
        array = array if array.shape[-1] == 3 else array.mean(axis=-1)
    if array.shape[:ndim] != labels_shape:
        raise ValueError(
            f"the image has shape {np.shape(image)} and its label map {labels_shape}; resample one of them"
        )
    scaled = array.astype(np.float64) / 255 if array.dtype == np.uint8 else array.astype(np.float64)
    finite = scaled[np.isfinite(scaled)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    if array.ndim == ndim + 1 and low >= 0 and high <= 1:
        low, high = 0.0, 1.0  # colours that are in range already stay as they are
    scaled = (scaled - low) / (high - low if high > low else 1.0)
    return np.clip(np.nan_to_num(scaled), 0, 1)


def _slice_to_show(labels: NDArray[np.integer], classes: set[int]) -> int | None:
    """Of a volume the slice with the most foreground; None for an image."""
    if labels.ndim == 2:
        return None
    return int(np.isin(labels, list(classes)).sum(axis=(1, 2)).argmax())


def _contour(axes: "Axes", mask: NDArray[np.bool_], color: str, style: str, width: float) -> None:
    from matplotlib.patheffects import Normal, Stroke

    if not mask.any():
        return
    # The margin closes contours at the edge of the image.
    y, x = (np.arange(-1, size + 1) for size in mask.shape)
    lines = axes.contour(x, y, np.pad(mask, 1), levels=[0.5], colors=[color], linestyles=[style], linewidths=[width])
    # The dark edge keeps a line visible where the image is as bright as the line.
    lines.set_path_effects([Stroke(linewidth=width + 1.2, foreground="black", alpha=0.6), Normal()])


def _draw_case(
    axes: "Axes",
    picture: NDArray[np.float64],
    reference: NDArray[np.integer],
    prediction: NDArray[np.integer] | None,
    structures: Mapping[str, Sequence[int]],
) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for index, classes in enumerate(structures.values()):
        color = CONTOUR_COLORS[index % len(CONTOUR_COLORS)]
        if prediction is None:
            _contour(axes, np.isin(reference, classes), color, "-", 1.4)
        else:
            _contour(axes, np.isin(prediction, classes), color, "-", 1.4)
            _contour(axes, np.isin(reference, classes), "white", (0, (1.5, 1.5)), 1.1)
    height, width = reference.shape
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _check_sheet(
    images: Sequence[ArrayLike],
    references: Sequence[ArrayLike],
    predictions: Mapping[str, Sequence[ArrayLike]],
    titles: Sequence[str],
) -> None:
    if len(images) == 0:
        raise ValueError("images is empty; pass at least one image")
    lengths = {"references": len(references), "titles": len(titles)}
    lengths |= {f"predictions of {model!r}": len(maps) for model, maps in predictions.items()}
    for name, length in lengths.items():
        if length != len(images):
            raise ValueError(f"there are {len(images)} images and {length} {name}; pass one an image")
    for model, maps in predictions.items():
        for title, labels, reference in zip(titles, maps, references, strict=True):
            if np.shape(labels) != np.shape(reference):
                raise ValueError(
                    f"row {title!r}: {model!r} has shape {np.shape(labels)} and the reference {np.shape(reference)}"
                )


def overlay_sheet(
    images: Sequence[ArrayLike],
    references: Sequence[ArrayLike],
    predictions: Mapping[str, Sequence[ArrayLike]],
    titles: Sequence[str],
    structures: Mapping[str, Sequence[int]],
    path: str | Path,
) -> Path:
    """Draws contours over images: a row a case (site), a column a model, the reference first.

    The reference's column has its contours in the structures' colours; the models' columns have the prediction's in
    the same colours and the reference's in dotted white. Of a volume the slice with most of the reference is shown.

    Args:
        images: one a row: (H, W), (C, H, W) or (H, W, C), or a volume (D, H, W) or (C, D, H, W); any value range.
        references: class ids of each image, (H, W) or (D, H, W).
        predictions: by the model's name the class ids for each image, in the reference's shape.
        titles: name of each row, such as its site.
        structures: class ids by structure name.
        path: file to write; its ending chooses the format; missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: if there is no image, the lists differ in length, or an image and its label maps differ in shape.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    check_structures(structures, ignore_index=None)
    _check_sheet(images, references, predictions, titles)
    rows, columns = len(images), 1 + len(predictions)
    shown = {value for classes in structures.values() for value in classes}
    with house_style():
        figure = Figure(figsize=(2.2 * columns + 0.3, 2.2 * rows + 0.7), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for row, (image, labels, title) in enumerate(zip(images, references, titles, strict=True)):
            reference = np.asarray(labels)
            picture, at = _as_picture(image, reference.shape), _slice_to_show(reference, shown)
            maps = [None, *(np.asarray(maps[row]) for maps in predictions.values())]
            for axes, prediction in zip(grid[row], maps, strict=True):
                cut = [
                    array if at is None or array is None else array[at] for array in (picture, reference, prediction)
                ]
                _draw_case(axes, *cut, structures)
            grid[row, 0].set_ylabel(title if at is None else f"{title} (slice {at})")
        for axes, name in zip(grid[0], ["reference", *predictions], strict=True):
            axes.set_title(name)
        handles = [
            Line2D([], [], color=CONTOUR_COLORS[i % len(CONTOUR_COLORS)], lw=2.5, label=name)
            for i, name in enumerate(structures)
        ]
        if predictions:
            handles.append(
                Line2D([], [], color="white", ls=(0, (1.5, 1.5)), lw=1.5, label="reference, beside a prediction")
            )
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=True)
        legend.get_frame().set(facecolor="#555555", edgecolor="none")
        for text in legend.get_texts():
            text.set_color("white")
        return save(figure, path)


@dataclass(frozen=True)
class Panel:
    """One of the small multiples of `curves`.

    Attributes:
        title: what is drawn, with its unit or range.
        pattern: regular expression that a key of the log must match in full; its group, if it has one, is the label.
        log_scale: whether the axis is logarithmic where the values are positive and span more than a factor of 20.
        share: whether the values are in [0, 1] and the axis shows no more.
        main: labels that are drawn in black.
        names: whether labels are names of domains, which are written as they are.
        nested: whether a label such as "A_cup" is left out where "A" is there.
    """

    title: str
    pattern: str
    log_scale: bool = False
    share: bool = False
    main: tuple[str, ...] = ("loss", "mean")
    names: bool = False
    nested: bool = True


PANELS = (
    Panel("Loss terms", r"loss|loss_(.+)|(?!eval|train)(.+)_loss", log_scale=True),
    Panel("f-divergence of labeled and unlabeled", r"divergence|divergence_(?!weight)(.+)", log_scale=True),
    Panel("Norm of the perturbation", r"perturbation_norm"),
    Panel("Pseudo-labels and agreement (share)", r"(?!eval_)(.*(?:kept|foreground|agreement).*)", share=True),
    Panel("Validation Dice", r"eval_(?!.*(?:student|teacher)_)(.+)_dice|eval_dice", share=True, names=True),
)
# Of a run that chose its step on test images.
TEST_LEGACY_PANELS = (*PANELS[:-1], replace(PANELS[-1], title="Dice on TEST images (test-legacy)"))
ROOM = 6  # names that find room inside a panel; more stand below it


def _series(log_history: Sequence[Mapping[str, Any]], panel: Panel) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and finite values by label of the log's keys that match."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for entry in log_history:
        for key, value in entry.items():
            match = re.fullmatch(panel.pattern, key)
            if match is None or "step" not in entry or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            steps, values = found.setdefault(next(filter(None, match.groups()), key), ([], []))
            steps.append(float(entry["step"]))
            values.append(float(value))
    # Where a domain has its mean over structures ("siteA"), its structures ("siteA_cup") are left to the tables.
    return {
        label: series
        for label, series in found.items()
        if not (panel.nested and any(label.startswith(other + "_") for other in found if other not in panel.main))
    }


def _draw_panel(axes: "Axes", panel: Panel, series: Mapping[str, tuple[list[float], list[float]]]) -> None:
    index = 0
    for label, (steps, values) in series.items():
        if label in panel.main:
            look = {"color": "black", "linewidth": 2.2, "zorder": 3}
        else:
            line = LINES[index // len(COLORS) % len(LINES)]
            look = {"color": COLORS[index % len(COLORS)], "linestyle": line, "linewidth": 1.4}
            index += 1
        text = label if panel.names else label.replace("_", " ")
        look |= {"label": short(text), "marker": "o" if len(steps) < 12 else None, "ms": 3}
        axes.plot(steps, values, **look)
    lowest, highest = (choose(choose(values) for _, values in series.values()) for choose in (min, max))
    if panel.log_scale and lowest > 0 and highest > 20 * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    elif panel.share:
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_ylim(bottom=min(0.0, lowest))
    axes.set_title(panel.title, loc="left")
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if not (len(series) == 1 and re.fullmatch("divergence|perturbation_norm", next(iter(series)))):
        look = {"fontsize": 7.5, "labelspacing": 0.3, "handlelength": 2.2}
        if len(series) <= ROOM:
            axes.legend(**look).set_in_layout(False)  # else a long name would push the axes away
        else:
            place = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "borderaxespad": 0}
            axes.legend(ncols=_legend_columns(series), columnspacing=1, **place, **look)


def _legend_columns(series: Iterable[str]) -> int:
    return max(1, 66 // (max(len(short(label)) for label in series) + 7))  # characters that a panel is wide


def curves(log_history: Sequence[Mapping[str, Any]], path: str | Path, panels: Sequence[Panel] = PANELS) -> Path:
    """Draws what a training logged over its steps, as small multiples; panels without values are left out.

    Args:
        log_history: `trainer.state.log_history` of a transformers Trainer: dictionaries with "step" and values.
        path: file to write; its ending chooses the format; missing folders are made.
        panels: what to draw.

    Returns:
        The path.

    Raises:
        ValueError: if no key of the log belongs to any panel.
    """
    from matplotlib.figure import Figure

    drawn = [(panel, series) for panel in panels if (series := _series(log_history, panel))]
    if not drawn:
        raise ValueError("log_history has no values to draw; log at least once (logging_steps, eval_steps)")
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with house_style():
        below = max(-(-len(own) // _legend_columns(own)) if len(own) > ROOM else 0 for _, own in drawn)
        figure = Figure(figsize=(3.9 * columns, (2.8 + 0.14 * below) * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (panel, series) in zip(grid, drawn, strict=False):
            _draw_panel(axes, panel, series)
        for axes in grid[len(drawn) :]:
            axes.remove()
        return save(figure, path)


def site_bars(
    tables: SiteTable | Mapping[str, SiteTable], path: str | Path, metric: str = "dice", structure: str | None = None
) -> Path:
    """Draws one metric by site, a group of bars a site and a bar a setting, with the mean of sites at the right.

    Args:
        tables: a table, or tables by setting, in the same unit and with the same empty policy.
        path: file to write; its ending chooses the format; missing folders are made.
        metric: one of `report.MEANS`.
        structure: a structure; None is the mean of the structures.

    Returns:
        The path.

    Raises:
        ValueError: for tables without any case, an unknown metric, or tables that cannot be compared.
    """
    from matplotlib.figure import Figure

    tables = {"": tables} if isinstance(tables, SiteTable) else dict(tables)
    unit, tolerance = check_comparable(tables, metric)
    sites = list(dict.fromkeys(domain for table in tables.values() for domain in table.domains))
    if not sites:
        raise ValueError("the tables have no cases to draw; score at least one")
    sites.append(MEAN_OF_SITES)
    # The gap sets the mean apart from the sites.
    centers = np.arange(len(sites)) + 0.35 * (np.arange(len(sites)) == len(sites) - 1)
    width = 0.8 / len(tables)
    with house_style():
        figure = Figure(figsize=(max(4.0, 1.2 + (0.5 + 0.36 * len(tables)) * len(sites)), 3.2), layout="constrained")
        axes = figure.subplots()
        for index, (setting, table) in enumerate(tables.items()):
            values = [value_of(table, metric, site, structure) for site in sites]
            offset = (index - (len(tables) - 1) / 2) * width
            color, hatch = COLORS[index % len(COLORS)], HATCHES[index // len(COLORS) % len(HATCHES)]
            look = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.8, "label": setting}
            bars = axes.bar(centers + offset, values, width, **look)
            digits = 2 if metric in SHARES else 1
            labels = ["n/a" if math.isnan(value) else f"{value:.{digits}f}" for value in values]
            axes.bar_label(bars, labels, fontsize=6.5, padding=1.5, color=INK)
        axes.set_xticks(centers, sites)
        axes.set_ylabel(metric_label(metric, unit, tolerance) + (f", {structure}" if structure else ""))
        if metric in SHARES:
            axes.set_ylim(0, 1.05)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        if "" not in tables:
            figure.legend(loc="outside upper center", ncols=min(4, len(tables)))
        return save(figure, path)
