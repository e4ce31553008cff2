"""The family of f-divergences as a figure: how far two distributions of classes are apart, and what each class adds.

All values are those of `dim_hf.divergences`, the functions that a training minimises.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dim_hf.demo import svg
from dim_hf.demo.tables import table
from dim_hf.divergences import (
    F_DIVERGENCES,
    PROBABILITY_FLOOR,
    FDivergence,
    alpha_divergence,
    closed_form,
    get_f_divergence,
)

CLASSES = ("background", "rim of the disc", "cup")
_SHORT = ("background", "rim", "cup")
ALPHA_RANGE = (-2.0, 3.0)
_T_END, _F_END = 4.0, 4.0


@dataclass(frozen=True)
class Wording:
    """A divergence for reading.

    Attributes:
        title: Its name.
        formula: f(t) as text.
        meaning: What it punishes, in a sentence.
        bound: Largest value that it can have, as text; "∞" where there is none.
    """

    title: str
    formula: str
    meaning: str
    bound: str = "∞"


WORDINGS = {
    "jensen_shannon": Wording(
        "Jensen-Shannon",
        "½ [t log t − (1 + t) log((1 + t)/2)]",
        "Treats both sides alike and never exceeds log 2: one strange class cannot take the training over.",
        "log 2 ≈ 0.693",
    ),
    "kl": Wording(
        "Kullback-Leibler (KL)",
        "t log t",
        "Punishes most where the labeled images have a class that the unlabeled ones hardly have.",
    ),
    "reverse_kl": Wording(
        "Reverse KL",
        "−log t",
        "Punishes most where the unlabeled images have a class that the labeled ones hardly have.",
    ),
    "jeffreys": Wording("Jeffreys", "(t − 1) log t", "KL plus reverse KL: alike for both sides, and without a bound."),
    "pearson_chi2": Wording(
        "Pearson χ²",
        "(t − 1)²",
        "Squares the differences, relative to the unlabeled side: mild for small ones, harsh for large ones.",
    ),
    "neyman_chi2": Wording(
        "Neyman χ²",
        "(1 − t)²/t",
        "Squares the differences, relative to the labeled side: harsh where a class is missing there.",
    ),
    "squared_hellinger": Wording(
        "Squared Hellinger", "(√t − 1)²", "Compares the roots of the shares; alike for both sides.", "2"
    ),
    "total_variation": Wording(
        "Total variation",
        "½ |t − 1|",
        "The share of pixels that would have to change class; its slope is the same for small and large differences.",
        "1",
    ),
    "alpha": Wording(
        "α-divergence",
        "(t^α − αt + α − 1)/(α(α − 1))",
        "A family that α leads through: KL at 1, reverse KL at 0, half of Pearson χ² at 2, half of Neyman χ² at −1.",
    ),
}


@dataclass(frozen=True)
class Reading:
    """A divergence between two distributions of classes, and where it comes from.

    Attributes:
        name: Key in `F_DIVERGENCES`.
        alpha: Order of the α-divergence; None of the others.
        p: Shares of the classes on labeled images.
        q: On unlabeled images.
        ratios: t = p/q by class, after the floor of one pixel in a million.
        terms: q f(t) by class; their sum is `value`.
        value: D_f(P‖Q) in nats.
        reverse: D_f(Q‖P).
    """

    name: str
    alpha: float | None
    p: tuple[float, ...]
    q: tuple[float, ...]
    ratios: tuple[float, ...]
    terms: tuple[float, ...]
    value: float
    reverse: float


def class_shares(disc_percent: float, cup_percent: float) -> tuple[float, float, float]:
    """Shares of background, rim and cup.

    Args:
        disc_percent: Share of the image that is disc, rim and cup together, 0 to 100.
        cup_percent: Share of the disc that is cup, 0 to 100.

    Raises:
        ValueError: If a share is not from 0 to 100.

    >>> class_shares(20, 25)
    (0.8, 0.15, 0.05)
    """
    for name, value in (("disc", disc_percent), ("cup", cup_percent)):
        if not 0 <= value <= 100:
            raise ValueError(f"the share of the {name} is {value:g} %; choose one from 0 to 100 %")
    disc, cup = disc_percent / 100, cup_percent / 100
    return 1 - disc, round(disc * (1 - cup), 12), round(disc * cup, 12)


def _divergence(name: str, alpha: float) -> tuple[FDivergence, float | None]:
    """The divergence, and α where it has one; near 0 and 1 the limits take the place of the formula."""
    if name not in WORDINGS:
        raise ValueError(f"there is no f-divergence {name!r}; choose one of: {', '.join(WORDINGS)}")
    if name != "alpha":
        return get_f_divergence(name), None
    low, high = ALPHA_RANGE
    if not low <= alpha <= high:
        raise ValueError(f"alpha is {alpha:g}; choose one from {low:g} to {high:g}")
    limit = _limit_of(alpha)
    return F_DIVERGENCES[limit] if limit else alpha_divergence(alpha), alpha


def _limit_of(alpha: float | None) -> str | None:
    """The divergence that takes the place of the α-divergence where its formula is 0/0."""
    if alpha is None or min(abs(alpha), abs(alpha - 1)) >= 0.01:
        return None
    return "reverse_kl" if alpha < 0.5 else "kl"


def _value(divergence: FDivergence, p: Sequence[float], q: Sequence[float]) -> float:
    log_p, log_q = (torch.tensor(shares, dtype=torch.float64).log() for shares in (p, q))
    # Rounding may leave -1e-17 where P = Q.
    return max(0.0, float(closed_form(divergence, log_p, log_q)))


def read_divergence(name: str, p: Sequence[float], q: Sequence[float], alpha: float = 0.5) -> Reading:
    """D_f(P‖Q) of two distributions, class by class.

    Args:
        name: Key in `F_DIVERGENCES`.
        p: Shares on labeled images; they sum to 1.
        q: As many on unlabeled images.
        alpha: Order, used by "alpha" only; at 0 and 1 its limits are taken, reverse KL and KL.

    Raises:
        ValueError: If there is no such divergence, or `alpha` is outside of `ALPHA_RANGE`.
    """
    divergence, order = _divergence(name, alpha)
    kept = 1 - len(p) * PROBABILITY_FLOOR
    floored = [torch.tensor(shares, dtype=torch.float64) * kept + PROBABILITY_FLOOR for shares in (p, q)]
    ratios = floored[0] / floored[1]
    terms = floored[1] * divergence.generator(ratios)
    return Reading(
        name,
        order,
        tuple(p),
        tuple(q),
        ratios=tuple(ratios.tolist()),
        terms=tuple(terms.tolist()),
        value=_value(divergence, p, q),
        reverse=_value(divergence, q, p),
    )


def number(value: float) -> str:
    """A number for reading, with three digits or more.

    >>> number(0.0123456), number(-0.5), number(81230.4), number(1e-14)
    ('0.0123', '−0.500', '81,230', '0.000')
    """
    if abs(value) < 5e-5:
        return "0.000"
    size = abs(value)
    shown = f"{size:,.0f}" if size >= 1000 else f"{size:.{min(5, max(3, 2 - math.floor(math.log10(size))))}f}"
    return f"−{shown}" if value < 0 else shown


def draw_divergence(reading: Reading) -> str:
    """The figure as HTML: shares, f with a dot for each class, what each class adds, and all divergences beside it.

    Args:
        reading: From `read_divergence`.
    """
    wording = WORDINGS[reading.name]
    order = "" if reading.alpha is None else f", α = {reading.alpha:g}"
    limit = _limit_of(reading.alpha)
    order += f", whose limit is {WORDINGS[limit].title}" if limit else ""
    said = (
        f'<p class="result" role="status"><strong>D<sub>f</sub>(P‖Q) = {number(reading.value)}</strong> nats '
        f"({wording.title}{order}); the other way round, D<sub>f</sub>(Q‖P) = {number(reading.reverse)}. "
        f"{wording.meaning}</p>"
    )
    pictures = f'<div class="figures">{_draw_shares(reading)}{_draw_generator(reading)}</div>'
    return said + pictures + _table_of_classes(reading) + _table_of_family(reading)


def _draw_shares(reading: Reading) -> str:
    panel = svg.Panel("Share of the pixels, in %", (0, 3), (0, 112))
    parts = [panel.axes((), (0, 25, 50, 75, 100), "")]
    for index, (name, *both) in enumerate(zip(_SHORT, reading.p, reading.q, strict=True)):
        for place, share, color in zip((0.14, 0.52), both, (svg.FIRST, svg.SECOND), strict=True):
            left, top = panel.x(index + place), panel.y(100 * share)
            width = panel.x(0.34) - panel.x(0)
            parts.append(svg.rectangle(left, top, width, panel.y(0) - top, color))
            parts.append(svg.text(left + width / 2, top - 4, f"{100 * share:.0f}", anchor="middle", size=11))
        parts.append(svg.text(panel.x(index + 0.5), panel.height - 21, name, anchor="middle"))
    for at, label, color in ((60, "P, labeled", svg.FIRST), (200, "Q, unlabeled", svg.SECOND)):
        parts += [svg.rectangle(at, panel.height - 13, 11, 11, color), svg.text(at + 16, panel.height - 3, label)]
    both = (f"{n} {100 * p:.0f} and {100 * q:.0f}" for n, p, q in zip(CLASSES, reading.p, reading.q, strict=True))
    return panel.figure(parts, f"Shares in percent on labeled and on unlabeled images: {', '.join(both)}.")


def _draw_generator(reading: Reading) -> str:
    divergence, _ = _divergence(reading.name, 0.5 if reading.alpha is None else reading.alpha)
    ts = torch.linspace(0.01, _T_END, 400, dtype=torch.float64)
    values = divergence.generator(ts)
    low = min(-0.2, 0.5 * math.floor(float(values.min()) / 0.5))
    high = min(_F_END, max(1.0, math.ceil(float(values[40:].max()))))
    panel = svg.Panel("f(t), a dot for each class", (0, _T_END), (low, high))
    ticks = [value for value in (-1, 0, 0.5, 1, 2, 3, 4) if low <= value <= high and (high <= 1 or value != 0.5)]
    parts = [panel.axes(range(5), ticks, "t = P/Q of a class")]
    parts.append(panel.curve(ts.tolist(), values.tolist(), svg.INK))
    beyond, places = [], []
    for name, t, q in zip(_SHORT, reading.ratios, reading.q, strict=True):
        value = float(divergence.generator(torch.tensor(t, dtype=torch.float64)))
        if t > _T_END or value > high:
            beyond.append(name)
            continue
        # The area of a dot is the weight that the class has in the sum.
        radius = 3 + 9 * math.sqrt(q)
        parts.append(panel.dot(t, value, radius, svg.SECOND, opacity=0.75))
        places.append((panel.x(t), panel.y(value) - radius - 5, name))
    parts += _labels(places, panel.width)
    if beyond:
        parts.append(svg.text(panel.width - 10, 14, f"outside: {', '.join(beyond)}", anchor="end", size=11))
    points = (f"{name} at t = {number(t)}" for name, t in zip(CLASSES, reading.ratios, strict=True))
    return panel.figure(parts, f"f of {WORDINGS[reading.name].title} over t, with {', '.join(points)}.")


def _labels(places: Sequence[tuple[float, float, str]], width: float) -> list[str]:
    """Names above their dots, each moved up until it lies on no other one."""
    put: list[tuple[float, float, float]] = []
    parts = []
    for x, y, name in places:
        half = 3.2 * len(name)
        at = min(max(x, half), width - half)
        while any(abs(y - other) < 12 and abs(at - beside) < half + reach for beside, other, reach in put):
            y -= 13
        put.append((at, y, half))
        parts.append(svg.text(at, y, name, anchor="middle", size=11))
    return parts


def _table_of_classes(reading: Reading) -> str:
    columns = (reading.p, reading.q, reading.ratios, reading.terms)
    rows = [
        [name, f"{100 * p:.1f} %", f"{100 * q:.1f} %", number(t), number(term)]
        for name, p, q, t, term in zip(CLASSES, *columns, strict=True)
    ]
    rows.append(["sum", "100 %", "100 %", "", number(reading.value)])
    wording = WORDINGS[_limit_of(reading.alpha) or reading.name]
    return table(
        ["Class", "P", "Q", "t = P/Q", "Q f(t)"],
        rows,
        f"D_f(P‖Q) is the sum of Q f(t), here with f(t) = {wording.formula}.",
    )


def _table_of_family(reading: Reading) -> str:
    rows = []
    for name, wording in WORDINGS.items():
        own = read_divergence(name, reading.p, reading.q, 0.5 if reading.alpha is None else reading.alpha)
        title, bound = wording.title, wording.bound
        if own.alpha is not None:
            title = f"{title}, α = {own.alpha:g}"
            bound = f"{1 / (own.alpha * (1 - own.alpha)):.4g}" if 0 < own.alpha < 1 else bound
        rows.append([title, wording.formula, number(own.value), number(own.reverse), bound])
    head = ["f-divergence", "f(t)", "D_f(P‖Q)", "D_f(Q‖P)", "at most"]
    marked = list(WORDINGS).index(reading.name)
    return table(head, rows, "The same two distributions under every f-divergence.", marked)
