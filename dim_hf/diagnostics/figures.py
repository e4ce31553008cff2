"""Figures of a diagnosis: sharpness by domain, loss landscape, divergence matrices, agreement over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dim_hf.diagnostics.domains import DomainDivergences
from dim_hf.diagnostics.landscape import Landscape
from dim_hf.diagnostics.loss_sharpness import Sharpness
from dim_hf.diagnostics.records import Diagnosis
from dim_hf.metrics.figure_style import COLORS, GRID, INK, LINES, house_style, save
from dim_hf.metrics.figures import Panel, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_LOGGED = "as logged in training"
_OF_DOMAINS = {"share": True, "main": (_LOGGED,), "names": True, "nested": False}
_AGREEMENT = (
    Panel("Teacher and student: share of equal pixels", rf"({_LOGGED})|pixels of (.+)", **_OF_DOMAINS),
    Panel("Teacher and student: Dice of the two", r"dice of (.+)", **_OF_DOMAINS),
)


def draw_diagnosis(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Draw what the diagnosis holds into `sharpness.png`, `landscape.png`, `divergence.png` and `agreement.png`.

    Returns:
        The files; the last two only where there are two domains, or a teacher or log.
    """
    models = diagnosis.models
    files = [
        draw_sharpness({role: model.sharpness for role, model in models.items()}, folder / "sharpness.png"),
        draw_landscape({role: model.landscape for role, model in models.items()}, folder / "landscape.png"),
    ]
    if len(diagnosis.unlabeled_images) > 1:
        matrices = {role: model.divergences for role, model in models.items()}
        files.append(draw_divergences(matrices, folder / "divergence.png"))
    entries = _agreement_entries(diagnosis)
    if entries:
        files.append(curves(entries, folder / "agreement.png", panels=_AGREEMENT))
    return files


def _agreement_entries(diagnosis: Diagnosis) -> list[dict[str, float]]:
    """What the training logged and what was measured, in the form of a log, for `curves`."""
    entries: list[dict[str, float]] = [{"step": step, _LOGGED: value} for step, value in diagnosis.log]
    for row in diagnosis.agreements:
        if row.step is not None:
            entries.append({"step": row.step, f"pixels of {row.domain}": row.agreement.pixels})
            if row.agreement.dice is not None:
                entries[-1][f"dice of {row.domain}"] = row.agreement.dice
    return entries


def draw_sharpness(sharpness: Mapping[str, Mapping[str, Sharpness]], path: str | Path) -> Path:
    """Draw the rises of the loss by domain, a panel a kind of direction and a bar a model.

    Args:
        sharpness: by model, by domain.
        path: file to write; its ending chooses the format.
    """
    from matplotlib.figure import Figure

    domains = list(dict.fromkeys(domain for own in sharpness.values() for domain in own))
    rho = next(iter(next(iter(sharpness.values())).values())).rho
    kinds = (
        ("worst found (a lower bound)", "worst_rise", None),
        ("SAM's own step", "sam_rise", None),
        ("random directions, mean ± sd", "random_mean", "random_sd"),
    )
    width = 0.8 / len(sharpness)
    with house_style():
        figure = Figure(figsize=(3 * max(2.2, 1 + 0.6 * len(domains)), 3.1), layout="constrained")
        panels = figure.subplots(1, len(kinds))
        panels[1].sharey(panels[0])
        for axes, (title, field, spread) in zip(panels, kinds, strict=True):
            for index, (role, own) in enumerate(sharpness.items()):
                places = np.arange(len(domains)) + (index - (len(sharpness) - 1) / 2) * width
                heights = [getattr(own[domain], field) for domain in domains]
                errors = [getattr(own[domain], spread) for domain in domains] if spread else None
                look = {"color": COLORS[index % len(COLORS)], "edgecolor": "white", "label": role, "ecolor": INK}
                axes.bar(places, heights, width, yerr=errors, capsize=2, **look)
            axes.axhline(0, color=INK, linewidth=0.8)
            axes.set_xticks(range(len(domains)), domains, rotation=20 if len(domains) > 2 else 0)
            axes.set_title(title, loc="left")
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
        figure.axes[0].set_ylabel(f"rise of the loss within ρ = {rho:g}")
        if len(sharpness) > 1:
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(sharpness)
            )
        return save(figure, path)


def draw_landscape(landscapes: Mapping[str, Landscape], path: str | Path) -> Path:
    """Draw the loss along a line, all models in one panel, and over a plane, a panel a model with one color scale.

    Args:
        landscapes: by model; those without a plane have none drawn.
        path: file to write; its ending chooses the format.
    """
    from matplotlib.figure import Figure

    planes = {role: found for role, found in landscapes.items() if found.plane.size}
    with house_style():
        figure = Figure(figsize=(4.0 + 3.5 * len(planes), 3.4), layout="constrained")
        first, *others = np.ravel(figure.subplots(1, 1 + len(planes)))
        _draw_lines(first, landscapes)
        if planes:
            levels = _levels([found.plane for found in planes.values()])
            for axes, (role, found) in zip(others, planes.items(), strict=True):
                drawn = _draw_plane(axes, found, levels)
                axes.set_title(role, loc="left")
            figure.colorbar(drawn, ax=others, label="loss", format="%.2g", shrink=0.9)
        return save(figure, path)


def _draw_lines(axes: "Axes", landscapes: Mapping[str, Landscape]) -> None:
    for index, (role, found) in enumerate(landscapes.items()):
        look = {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}
        axes.plot(found.line_at, found.line, marker="o", ms=2.5, lw=1.5, label=role, **look)
    values = np.concatenate([found.line for found in landscapes.values()])
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("random direction (1: each filter's norm)")
    axes.set_ylabel("loss")
    axes.set_title("line through the weights", loc="left")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(landscapes) > 1:
        axes.legend()


def _levels(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Contour levels for all planes, evenly spaced in the logarithm: the bottom is where models differ."""
    values = np.concatenate([plane.ravel() for plane in planes])
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.geomspace(low, high, 15) if low > 0 else np.linspace(low, high, 15)


def _draw_plane(axes: "Axes", found: Landscape, levels: np.ndarray) -> object:
    from matplotlib.colors import BoundaryNorm

    norm = BoundaryNorm(levels, 256)
    plane = np.ma.masked_invalid(np.clip(found.plane, levels[0], levels[-1]))
    drawn = axes.contourf(found.plane_at, found.plane_at, plane, levels=levels, cmap="cividis", norm=norm)
    axes.contour(found.plane_at, found.plane_at, plane, levels=levels, colors="white", linewidths=0.4)
    axes.plot(0, 0, marker="+", color="white", ms=8)
    axes.set_aspect("equal")
    axes.set(xlabel="first direction", ylabel="second direction")
    return drawn


def draw_divergences(matrices: Mapping[str, Sequence[DomainDivergences]], path: str | Path) -> Path:
    """Draw the marginal matrices D_f(P_row ‖ P_column): a row a model, a column an f, one color scale a column.

    Args:
        matrices: by model, in one order.
        path: file to write; its ending chooses the format.
    """
    from matplotlib.figure import Figure

    roles = list(matrices)
    marginal = [[each for each in own if each.estimator == "marginal"] for own in matrices.values()]
    columns = list(zip(*marginal, strict=True))
    size = 1.3 + 0.45 * len(columns[0][0].domains)
    with house_style():
        figure = Figure(figsize=(0.8 + size * len(columns), 1.1 + size * len(roles)), layout="constrained")
        grid = figure.subplots(len(roles), len(columns), squeeze=False)
        for column, found in enumerate(columns):
            norm = _log_scale(found)
            for row, each in enumerate(found):
                _draw_matrix(grid[row, column], each, norm)
                if column:
                    grid[row, column].set_yticklabels([])
                if row < len(roles) - 1:
                    grid[row, column].set_xticklabels([])
            grid[0, column].set_title(each.f_divergence.replace("_", " "))
            grid[-1, column].set_xlabel("Q")
        for row, role in enumerate(roles):
            grid[row, 0].set_ylabel(f"{role}: P")
        figure.suptitle("D(P‖Q) of the predictions' class shares", fontsize=10)
        return save(figure, path)


def _log_scale(found: Sequence[DomainDivergences]) -> "Normalize":
    """Logarithmic, as two models often differ by powers of ten; no more than four of them."""
    from matplotlib.colors import LogNorm, Normalize

    values = [value for each in found for row in each.matrix for value in row if value > 0]
    if not values or min(values) == max(values):
        return Normalize(0, 1)
    return LogNorm(max(min(values), max(values) / 1e4), max(values), clip=True)


def _draw_matrix(axes: "Axes", found: DomainDivergences, norm: "Normalize") -> None:
    values = np.array(found.matrix)
    off_diagonal = np.ma.masked_where(np.eye(len(values), dtype=bool), values)
    axes.imshow(off_diagonal, cmap="cividis", norm=norm)
    for (row, column), value in np.ndenumerate(values):
        if row != column:
            color = "black" if value > 0 and norm(value) > 0.6 else "white"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=color)
    names = range(len(found.domains))
    axes.set_xticks(names, found.domains, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(names, found.domains, fontsize=7)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
