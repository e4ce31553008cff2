"""A valley of the loss as a figure: where plain gradient descent comes to rest in it, and where SAM does.

An illustration: the loss is a formula of two weights, not that of a network. The steps are those that a training takes
by `dim_hf.sharpness` (a test holds them against each other), written out for two numbers.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dim_hf.demo import svg
from dim_hf.demo.divergence_figure import number
from dim_hf.demo.tables import table

RHO_RANGE, START_RANGE, NARROW_RANGE = (0.0, 0.5), (-1.5, 1.5), (1.0, 30.0)
STEPS, LEARNING_RATE, START_ACROSS = 400, 0.03, 0.5
_FLAT, _HILL, _BEND = 1.0, 0.6, 3.0  # curvature of the broad part, height of the pass, how fast one part turns broad
_ALONG, _ACROSS = (-1.9, 1.9), (-0.8, 0.8)


@dataclass(frozen=True)
class Valley:
    """A loss of two weights: a valley whose floor has two equally low places, in a narrow and in a broad part.

    L(x, y) = ½ h(y) x² + c (y² - 1)²/4, where x is across and y along the valley, h falls from `narrow` to 1.

    Attributes:
        narrow: Curvature across the valley in its narrow part; 1 is the broad part's.
    """

    narrow: float

    def curvature(self, y: np.ndarray | float) -> np.ndarray:
        """h(y), the second derivative across the valley."""
        return _FLAT + (self.narrow - _FLAT) / (1 + np.exp(_BEND * np.asarray(y, dtype=np.float64)))

    def loss(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """L(x, y)."""
        return self.curvature(y) * np.square(x) / 2 + _HILL * np.square(np.square(y) - 1) / 4

    def gradient(self, x: float, y: float) -> tuple[float, float]:
        """∂L/∂x and ∂L/∂y."""
        share = 1 / (1 + math.exp(_BEND * y))
        bend = -(self.narrow - _FLAT) * _BEND * share * (1 - share)
        return (_FLAT + (self.narrow - _FLAT) * share) * x, bend * x**2 / 2 + _HILL * y * (y**2 - 1)

    def worst(self, x: float, y: float, rho: float) -> float:
        """The largest loss within the ball of radius ρ around a point, found on its rim and 8 rings inside."""
        angles = np.linspace(0, 2 * math.pi, 360, endpoint=False)
        radii = rho * np.linspace(0, 1, 9)[:, None]
        return float(self.loss(x + radii * np.cos(angles), y + radii * np.sin(angles)).max())


@dataclass(frozen=True, eq=False)
class Descent:
    """The way of one optimizer.

    Attributes:
        path: (steps + 1, 2), x and y after each step.
        loss: Where it ended.
        worst: Largest loss within ρ around its end.
    """

    path: np.ndarray
    loss: float
    worst: float


def descend(valley: Valley, start: float, rho: float, steps: int = STEPS) -> np.ndarray:
    """Go down the valley in steps of SAM with radius ρ, or of plain gradient descent where ρ is 0.

    Args:
        valley: The loss.
        start: Where along the valley; across it, all start at `START_ACROSS`.
        rho: Radius ρ ≥ 0.
        steps: How many.

    Returns:
        (steps + 1, 2): x and y at the start and after each step.
    """
    x, y = START_ACROSS, start
    path = [(x, y)]
    for _ in range(steps):
        slope = valley.gradient(x, y)
        length = math.hypot(*slope)
        if rho > 0 and length > 0:
            slope = valley.gradient(x + rho * slope[0] / length, y + rho * slope[1] / length)
        x, y = x - LEARNING_RATE * slope[0], y - LEARNING_RATE * slope[1]
        path.append((x, y))
    return np.array(path)


def _checked(name: str, value: float, allowed: tuple[float, float]) -> float:
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}; choose a number from {low:g} to {high:g}")
    return round(float(value), 3)


def compare_descents(rho: float, start: float, narrow: float) -> tuple[Descent, Descent]:
    """Plain gradient descent and SAM from one place.

    Args:
        rho: Radius ρ, in `RHO_RANGE`; also that of the ball around both ends.
        start: Where along the valley, in `START_RANGE`.
        narrow: Curvature of the narrow part, in `NARROW_RANGE`.

    Raises:
        ValueError: If a number is out of its range.
    """
    return _compared(
        _checked("rho", rho, RHO_RANGE),
        _checked("the start", start, START_RANGE),
        _checked("the curvature", narrow, NARROW_RANGE),
    )


@lru_cache(maxsize=512)
def _compared(rho: float, start: float, narrow: float) -> tuple[Descent, Descent]:
    valley = Valley(narrow)
    found = []
    for radius in (0.0, rho):
        path = descend(valley, start, radius)
        path.setflags(write=False)
        x, y = path[-1].tolist()
        found.append(Descent(path, float(valley.loss(x, y)), valley.worst(x, y, rho)))
    return found[0], found[1]


def draw_landscape(rho: float, start: float, narrow: float) -> str:
    """The figure as HTML: the valley from above with both ways, cuts across it at both ends, and the numbers.

    Arguments and errors are those of `compare_descents`.
    """
    plain, sharpness_aware = compare_descents(rho, start, narrow)
    valley = Valley(round(float(narrow), 3))
    pictures = _draw_map(valley, plain, sharpness_aware, rho) + _draw_cuts(valley, plain, sharpness_aware, rho)
    rows = [
        [name, _part(found), number(found.loss), number(found.worst), number(found.worst - found.loss)]
        for name, found in (("Plain gradient descent", plain), (f"SAM, ρ = {rho:g}", sharpness_aware))
    ]
    head = ["Optimizer", "ends in the", "loss there", f"worst loss within ρ = {rho:g}", "rise"]
    caption = f"After {STEPS} steps from the same place, with the learning rate {LEARNING_RATE:g}."
    return (
        f'<p class="result" role="status">{_sentence(plain, sharpness_aware, rho)}</p>'
        f'<div class="figures">{pictures}</div>{table(head, rows, caption)}'
    )


def _part(found: Descent) -> str:
    y = found.path[-1, 1]
    return "broad part" if y > 0.5 else "narrow part" if y < -0.5 else "pass between"


def _sentence(plain: Descent, sharpness_aware: Descent, rho: float) -> str:
    """What the figure shows, in words, whichever way it went."""
    if rho == 0:
        return "With ρ = 0 SAM is plain gradient descent: both took the same way."
    first, second = _part(plain), _part(sharpness_aware)
    if first == second:
        more = {
            "narrow part": "SAM bounces between its walls; a larger ρ or a narrower valley lets it out.",
            "broad part": "From this start there was nothing narrow to leave.",
        }
        return f"<strong>Both ended in the {first}.</strong> {more.get(first, '')}"
    return (
        f"<strong>Plain gradient descent ended in the {first}, SAM in the {second}.</strong> "
        "Small changes of the weights cost much in the narrow part and little in the broad one."
    )


def _thinned(panel: svg.Panel, path: np.ndarray) -> np.ndarray:
    """The points of a way that lie a pixel or more from the last one that is drawn."""
    kept = [path[0]]
    for point in path[1:]:
        if math.hypot(panel.x(point[1]) - panel.x(kept[-1][1]), panel.y(point[0]) - panel.y(kept[-1][0])) >= 1:
            kept.append(point)
    return np.array([*kept, path[-1]])


def _draw_map(valley: Valley, plain: Descent, sharpness_aware: Descent, rho: float) -> str:
    from contourpy import contour_generator

    panel = svg.Panel("The valley from above", _ALONG, _ACROSS)
    along, across = np.linspace(*_ALONG, 77), np.linspace(*_ACROSS, 49)
    heights = valley.loss(across[:, None], along[None, :])
    lines = contour_generator(along, across, heights)
    parts = [panel.axes((-1, 0, 1), (-0.5, 0, 0.5), "along the valley (narrow ← → broad)"), _legend(panel.width)]
    for level in np.geomspace(0.02, 5.12, 9):
        for line in lines.lines(level):
            # The lower, the darker: the floor of the valley is where the eye shall go.
            color, width = svg.THIRD, 1.6 - 0.12 * math.log2(level / 0.02)
            parts.append(panel.curve(line[:, 0], line[:, 1], color, width=width))
    for found, color, width in ((plain, svg.FIRST, 2.4), (sharpness_aware, svg.SECOND, 1.2)):
        way = _thinned(panel, found.path)
        parts.append(panel.curve(way[:, 1], way[:, 0], color, width=width))
        x, y = found.path[-1]
        parts.append(panel.ball(y, x, rho, color))
        parts.append(panel.dot(y, x, 4, color))
    x, y = plain.path[0]
    parts.append(panel.dot(y, x, 4, svg.INK, filled=False))
    parts.append(svg.text(panel.x(y) + 8, panel.y(x) - 4, "start", size=11))
    ends = f"Plain gradient descent ends in the {_part(plain)}, SAM in the {_part(sharpness_aware)}."
    return panel.figure(parts, f"Map of a loss valley that is narrow at the left and broad at the right. {ends}")


def _draw_cuts(valley: Valley, plain: Descent, sharpness_aware: Descent, rho: float) -> str:
    top = 2.0
    panel = svg.Panel("Loss across it, at both ends", _ACROSS, (0, top))
    parts = [panel.axes((-0.5, 0, 0.5), (0, 0.5, 1, 1.5, 2), "across the valley"), _legend(panel.width)]
    left, right = max(-rho, _ACROSS[0]), min(rho, _ACROSS[1])
    if rho > 0:
        parts.append(
            svg.rectangle(
                panel.x(left), panel.y(top), panel.x(right) - panel.x(left), panel.y(0) - panel.y(top), svg.THIRD, 0.2
            )
        )
        parts.append(svg.text(panel.x(0), panel.y(top) + 14, "within ρ", anchor="middle", size=11))
    xs = np.linspace(*_ACROSS, 161)
    for found, color, dashes in ((plain, svg.FIRST, ""), (sharpness_aware, svg.SECOND, "7 4")):
        parts.append(panel.curve(xs, valley.loss(xs, found.path[-1, 1]), color, dashes=dashes, width=2.4))
    rises = [number(found.worst - found.loss) for found in (plain, sharpness_aware)]
    said = f"up to {rises[0]} at the end of plain gradient descent and {rises[1]} at that of SAM"
    return panel.figure(parts, f"The loss across the valley. Within the radius {rho:g} it rises by {said}.")


def _legend(width: int) -> str:
    """Colors of the two optimizers, at the right of a title."""
    parts = []
    for at, name, color, dashes in ((132, "plain", svg.FIRST, "none"), (66, "SAM", svg.SECOND, "7 4")):
        look = f'stroke="{color}" stroke-width="2.6" stroke-dasharray="{dashes}"'
        parts.append(f'<path d="M{width - at} 10h20" {look}/>')
        parts.append(svg.text(width - at + 25, 14, name, size=11))
    return "".join(parts)
