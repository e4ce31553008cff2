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
DIFFERENCE_COLORS: dict[int, Color] = {
    SAME: (187, 187, 187),
    ONLY_FIRST: (230, 159, 0),
    ONLY_SECOND: (86, 180, 233),
    OTHER_CLASS: (204, 121, 167),
}
_BACKGROUND = 0
_MOST_COLORS = 255  # of a palette, beside the background
_QUALITY = 90  # of JPEG, for images; masks are packed without loss


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


def contours(
    labels: np.ndarray, structures: Mapping[str, Sequence[int]], colors: Mapping[int, Color], width: int = 1
) -> np.ndarray:
    """The line around each structure, as a map for `clear_png`.

    Structures may hold one another: the line around a disc encloses its cup, has the color of its rim, and lies below
    that of the cup where they touch.

    Args:
        labels: (H, W) class ids.
        structures: Class ids by structure.
        colors: By class; structures without one are not drawn.
        width: Of the line in pixels, all within the structure.

    Returns:
        (H, W), same type: along the lines the class whose color they have, else 0.
    """
    lines = np.zeros_like(labels)
    drawn: set[int] = set()
    for classes in sorted(structures.values(), key=len):
        own = [index for index in classes if index not in drawn and index in colors]
        drawn.update(classes)
        if own:
            mask = np.isin(labels, list(classes))
            edge = border(mask)
            for _ in range(width - 1):
                edge |= border(mask & ~edge)
            lines[edge & (lines == _BACKGROUND)] = own[0]
    return lines


def clear_png(labels: np.ndarray, colors: Mapping[int, Color]) -> str:
    """Classes in full color on a clear ground, for the page to lay over an image with any opacity.

    Args:
        labels: (H, W) class ids.
        colors: By class; classes without one stay clear.

    Returns:
        A PNG as the address of an `<img>`, so that one answer brings it and no file is left behind.
    """
    numbers = np.zeros(1 + max(int(labels.max(initial=0)), *colors), np.uint8)
    palette = [0, 0, 0]
    for number, (index, color) in enumerate(list(colors.items())[:_MOST_COLORS], start=1):
        numbers[index] = number
        palette.extend(color)
    picture = PIL.Image.fromarray(np.take(numbers, labels))
    picture.putpalette(palette)
    # The weakest compression takes a third of the time; areas of one color pack well all the same.
    return _address(picture, "PNG", compress_level=1, transparency=0)


def jpeg(pixels: np.ndarray) -> str:
    """An image without its mask, as the address of an `<img>`; packed in a tenth of the time of a PNG.

    Args:
        pixels: (H, W) or (H, W, 3) uint8.
    """
    return _address(PIL.Image.fromarray(np.ascontiguousarray(pixels)), "JPEG", quality=_QUALITY)


def layer(kind: str, source: str, alt: str = "") -> str:
    """One of the pictures that lie on each other in a `viewer`.

    Args:
        kind: CSS class: "base", "fill", "lines" or "heat".
        source: From `jpeg` or `clear_png`.
        alt: What a screen reader says; any text. With "" the layer is passed over.
    """
    hidden = "" if alt else ' aria-hidden="true"'
    return f'<img class="layer {kind}" alt="{html.escape(alt)}"{hidden} src="{source}">'


def _address(picture: PIL.Image.Image, form: str, **settings: int) -> str:
    file = BytesIO()
    picture.save(file, format=form, **settings)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


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
    """Where two masks agree and where not, as a map for `clear_png` with `DIFFERENCE_COLORS`.

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


def legend(names: Mapping[int, str], colors: Mapping[int, Color]) -> str:
    """A line of swatches with their names, as HTML; any text may be a name."""
    items = (
        f'<li><span class="swatch" style="background: rgb{colors[index]}"></span>{html.escape(names[index])}</li>'
        for index in names
        if index in colors
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
