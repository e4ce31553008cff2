"""Masks over images as a screen shows them: colors that every eye tells apart, contours, heat maps, legends."""

import base64
import html
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO

import numpy as np
import PIL.Image

Color = tuple[int, int, int]

# Okabe and Ito's palette without black; told apart with any kind of color blindness. Blue tones come first: nothing
# in a photograph of the eye is blue.
PALETTE: tuple[Color, ...] = (
    (86, 180, 233),
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
)
SAME, ONLY_FIRST, ONLY_SECOND, OTHER_CLASS = 1, 2, 3, 4
DIFFERENCE_NAMES = {SAME: "both", ONLY_FIRST: "only the first", ONLY_SECOND: "only the second", OTHER_CLASS: "differ"}
DIFFERENCE_COLORS: dict[int, Color] = {
    SAME: (187, 187, 187),
    ONLY_FIRST: (230, 159, 0),
    ONLY_SECOND: (86, 180, 233),
    OTHER_CLASS: (204, 121, 167),
}
_BACKGROUND = 0
_MOST_COLORS = 255  # of a palette, beside the background


def class_colors(id2label: Mapping[int, str]) -> dict[int, Color]:
    """A color for each class but the background; they repeat from the eighth on."""
    classes = sorted(index for index in id2label if index != _BACKGROUND)
    return {index: PALETTE[number % len(PALETTE)] for number, index in enumerate(classes)}


def border(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that share an edge with one outside of it; the rim of the picture is no outside.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    colors: Mapping[int, Color],
    opacity: float,
    contours: bool = True,
    structures: Mapping[str, Sequence[int]] | None = None,
) -> np.ndarray:
    """Classes in color over an image, and lines around them that the opacity leaves alone.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        labels: (H, W) class ids.
        colors: By class; classes without one are not drawn.
        opacity: Of the areas, in [0, 1]; with 0 and no contours the image comes back.
        contours: Draw the border of each structure.
        structures: Class ids by structure, which may hold one another: the line around a disc then encloses its cup.
            None takes each class for itself.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: If the sizes differ or the opacity is outside [0, 1].
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image has {image.shape[:2]} pixels, the labels {labels.shape}; give a mask of its size")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; it lies in [0, 1]")
    drawn = [index for index in colors if index <= labels.max(initial=0)]
    number = np.zeros(1 + int(labels.max(initial=0)), np.uint8)
    number[drawn] = 1 + np.arange(len(drawn)) % _MOST_COLORS
    picture = PIL.Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    areas = PIL.Image.fromarray(np.take(number, labels))
    paint = areas.copy()
    paint.putpalette([0, 0, 0, *(part for index in drawn[:_MOST_COLORS] for part in colors[index])])
    share = areas.point([0] + [round(opacity * 255)] * _MOST_COLORS)
    blended = np.array(PIL.Image.composite(paint.convert("RGB"), picture, share))
    if contours:
        _draw_contours(blended, labels, colors, structures)
    return blended


def _draw_contours(
    picture: np.ndarray,
    labels: np.ndarray,
    colors: Mapping[int, Color],
    structures: Mapping[str, Sequence[int]] | None,
) -> None:
    """Larger structures first, so that a line within another one stays visible where they touch."""
    groups = [tuple(classes) for classes in structures.values()] if structures else [(index,) for index in colors]
    drawn: set[int] = set()
    lines = []
    for classes in sorted(groups, key=len):
        # A disc has the color of its rim: the class that no smaller structure has.
        own = [index for index in classes if index not in drawn and index in colors] or list(classes)
        drawn.update(classes)
        if own[0] in colors:
            lines.append((classes, colors[own[0]]))
    for classes, color in reversed(lines):
        mask = np.zeros(labels.shape, np.bool_)
        for index in classes:
            mask |= labels == index
        picture[border(mask)] = color


def heat_map(uncertainty: np.ndarray) -> np.ndarray:
    """A map of [0, 1] in colors from dark blue to yellow, whose lightness rises with the value.

    Args:
        uncertainty: (H, W) floats; NaN counts as 0.

    Returns:
        (H, W, 3) uint8.
    """
    steps = np.rint(np.nan_to_num(np.clip(uncertainty, 0, 1)) * 255).astype(np.uint8)
    picture = PIL.Image.fromarray(steps)
    picture.putpalette(_heat_palette())
    return np.array(picture.convert("RGB"))


@lru_cache(maxsize=1)
def _heat_palette() -> bytes:
    """256 times red, green, blue; matplotlib takes half a second to import, so only when it is needed."""
    import matplotlib

    return (matplotlib.colormaps["cividis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()


def difference(labels_a: np.ndarray, labels_b: np.ndarray) -> np.ndarray:
    """Where two masks agree and where not, as a map for `overlay` with `DIFFERENCE_COLORS`.

    Args:
        labels_a: (H, W) class ids.
        labels_b: The same size.

    Returns:
        (H, W) uint8: 0 where both see background, `SAME`, `ONLY_FIRST`, `ONLY_SECOND`, or `OTHER_CLASS` where both
        see something, but not the same.

    Raises:
        ValueError: If the sizes differ.
    """
    if labels_a.shape != labels_b.shape:
        raise ValueError(f"the masks have {labels_a.shape} and {labels_b.shape} pixels; compare masks of one image")
    first, second = labels_a != _BACKGROUND, labels_b != _BACKGROUND
    found = np.zeros(labels_a.shape, np.uint8)
    found[first & second] = OTHER_CLASS
    found[first & (labels_a == labels_b)] = SAME
    found[first & ~second] = ONLY_FIRST
    found[second & ~first] = ONLY_SECOND
    return found


def screen_size(shape: Sequence[int], spacing_mm: Sequence[float], longest: int) -> tuple[int, int]:
    """Height and width in square pixels that keep a slice's proportions in the patient.

    Args:
        shape: (H, W) of the slice.
        spacing_mm: Distance of neighboring rows, then of neighboring columns.
        longest: Of the two in pixels.

    Example:
        >>> screen_size((20, 100), (3.0, 0.6), 400)
        (400, 400)
    """
    height, width = (float(extent * length) for extent, length in zip(shape, spacing_mm, strict=True))
    largest = max(height, width)
    return max(1, round(longest * height / largest)), max(1, round(longest * width / largest))


def resized(pixels: np.ndarray, size: tuple[int, int], *, is_label: bool) -> np.ndarray:
    """Pixels at another size.

    Args:
        pixels: (H, W) or (H, W, 3) uint8.
        size: (height, width).
        is_label: Take the nearest pixel, so that no class is invented; else interpolate.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    method = PIL.Image.Resampling.NEAREST if is_label else PIL.Image.Resampling.BILINEAR
    return np.asarray(PIL.Image.fromarray(np.ascontiguousarray(pixels)).resize((size[1], size[0]), method))


def picture_tag(picture: np.ndarray, alt: str, css_class: str = "drawing") -> str:
    """An `<img>` that holds its pixels, so that one answer brings them and no file is left behind.

    Args:
        picture: (H, W) or (H, W, 3) uint8.
        alt: What a screen reader says; any text.
        css_class: Of our own style sheet.
    """
    file = BytesIO()
    # The weakest compression: it takes a third of the time, and the way to the browser is short.
    PIL.Image.fromarray(np.ascontiguousarray(picture)).save(file, format="PNG", compress_level=1)
    content = base64.b64encode(file.getvalue()).decode("ascii")
    height, width = picture.shape[:2]
    return (
        f'<img class="{css_class}" width="{width}" height="{height}" alt="{html.escape(alt)}" '
        f'src="data:image/png;base64,{content}">'
    )


def legend(names: Mapping[int, str], colors: Mapping[int, Color]) -> str:
    """A line of swatches with their names, as HTML; any text may be a name."""
    items = (
        f'<li><span class="swatch" style="background: rgb{colors[index]}"></span>{html.escape(names[index])}</li>'
        for index in names
        if index in colors
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
