"""Small figures as SVG inside the page: readable on light and dark ground, and spoken by a screen reader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Each has a contrast of 3 or more to a white and to a nearly black page; ink is the page's own color of text.
FIRST, SECOND, THIRD = "#2f81d6", "#d3671a", "#8b8f98"
INK = "currentColor"
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 26, 36


def contrast(color: str, ground: str) -> float:
    """Contrast of two colors as WCAG 2 defines it, from 1 to 21.

    Args:
        color: "#rrggbb".
        ground: "#rrggbb".

    >>> round(contrast("#000000", "#ffffff"), 1)
    21.0
    """

    def luminance(text: str) -> float:
        parts = (int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(color), luminance(ground)))
    return (high + 0.05) / (low + 0.05)


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, color: str = INK) -> str:
    """Words at a place of the figure.

    Args:
        x: In pixels from the left.
        y: Base line, in pixels from the top.
        words: Shown as they are.
        anchor: "start", "middle" or "end".
        size: In pixels.
        color: Of the letters.
    """
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{color}" stroke="none">{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, color: str, opacity: float = 1.0) -> str:
    """A filled rectangle, in pixels."""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect {box} fill="{color}" fill-opacity="{opacity:g}" stroke="none"/>'


@dataclass(frozen=True)
class Panel:
    """A pair of axes in a figure of its own.

    Attributes:
        title: Stands above it.
        x_range: Values at the left and the right end.
        y_range: Values at the lower and the upper end.
        width: In pixels at the size of a phone; the figure grows with the page.
        height: In pixels.
    """

    title: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int = 360
    height: int = 240

    def x(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y_range
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def curve(
        self, xs: Sequence[float], ys: Sequence[float], color: str, *, dashes: str = "", width: float = 2
    ) -> str:
        """A line through points; what lies outside of the axes is left out.

        Args:
            xs: Values along x.
            ys: As many along y.
            color: Of the line.
            dashes: Lengths of dashes and gaps, e.g. "5 4".
            width: In pixels.
        """
        low, high = self.y_range
        parts, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if not (math.isfinite(y) and low <= y <= high):
                pen = "M"
                continue
            parts.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        return f'<path d="{"".join(parts)}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashed}/>'

    def dot(self, x: float, y: float, radius: float, color: str, *, filled: bool = True, opacity: float = 1.0) -> str:
        """A disc at a value, or its outline.

        Args:
            x: Value along x.
            y: Value along y.
            radius: In pixels.
            color: Of the disc.
            filled: Whether it is more than an outline.
            opacity: From 0 to 1.
        """
        fill = f'fill="{color}"' if filled else 'fill="none"'
        look = f'{fill} stroke="{color}" stroke-width="2" opacity="{opacity:g}"'
        return f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}" {look}/>'

    def ball(self, x: float, y: float, radius: float, color: str) -> str:
        """All that is within a distance of a value, as an ellipse since the two axes have scales of their own.

        Args:
            x: Value along x.
            y: Value along y.
            radius: In the values of both axes.
            color: Of the ellipse.
        """
        across, up = self.x(x + radius) - self.x(x), self.y(y) - self.y(y + radius)
        shape = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" rx="{across:.1f}" ry="{up:.1f}"'
        return f'<ellipse {shape} fill="{color}" fill-opacity="0.15" stroke="{color}" stroke-dasharray="3 3"/>'

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> str:
        """Title, grid, ticks and the name of the axis below.

        Args:
            x_ticks: Values along x.
            y_ticks: Values along y.
            x_label: What x is, with its unit.
        """
        left, right = _LEFT, self.width - _RIGHT
        parts = [text(left, 14, self.title, size=13)]
        for value in y_ticks:
            at = self.y(value)
            parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="{INK}" stroke-opacity="0.15"/>')
            parts.append(text(left - 5, at + 4, f"{value:g}", anchor="end", size=11))
        for value in x_ticks:
            parts.append(text(self.x(value), self.height - _BOTTOM + 15, f"{value:g}", anchor="middle", size=11))
        parts.append(text((left + right) / 2, self.height - 4, x_label, anchor="middle", size=12))
        return "".join(parts)

    def figure(self, parts: Sequence[str], said: str) -> str:
        """The whole as an `svg` element.

        Args:
            parts: What is drawn, from the back to the front.
            said: What a screen reader says in its place.
        """
        return (
            f'<svg class="figure" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(said)}" '
            f'xmlns="http://www.w3.org/2000/svg" font-family="inherit">{"".join(parts)}</svg>'
        )
