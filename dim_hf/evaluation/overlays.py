"""Cases as pictures in a page: the image as JPEG, contours as vector paths above it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dim_hf.evaluation.result import Overlay
from dim_hf.metrics.figure_style import CONTOUR_COLORS
from dim_hf.pages import data_uri

MARGIN = 0.4  # of the structures' extent, on each side
SMALLEST = 1 / 3  # of the image's shorter side: a smaller cut would show a structure without its place
_QUALITY = 85


@dataclass(frozen=True)
class Shot:
    """A case as a page shows it.

    Attributes:
        name: its name.
        dice: its Dice, for reading.
        width: of the picture in pixels of the image; the contours' coordinates are half pixels.
        height: likewise.
        image: data URI.
        references: path of each structure's contour in the reference; empty for an empty mask.
        predictions: color and path of each structure's contour in the prediction.
    """

    name: str
    dice: str
    width: int
    height: int
    image: str
    references: Sequence[str]
    predictions: Sequence[tuple[str, str]]


def structure_colors(structures: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The color of each structure's contour."""
    return {name: CONTOUR_COLORS[index % len(CONTOUR_COLORS)] for index, name in enumerate(structures)}


def shot_of(overlay: Overlay, structures: Mapping[str, Sequence[int]]) -> Shot:
    """Cut a case to the surroundings of its structures and draw it.

    Args:
        overlay: The case.
        structures: Class ids by structure.
    """
    shown = sorted({value for classes in structures.values() for value in classes})
    window = cut_window(np.isin(overlay.reference, shown) | np.isin(overlay.prediction, shown))
    image, reference, prediction = (array[window] for array in (overlay.image, overlay.reference, overlay.prediction))
    colors = structure_colors(structures)
    return Shot(
        name=overlay.name,
        dice="–" if np.isnan(overlay.dice) else f"{overlay.dice:.3f}",
        width=reference.shape[1],
        height=reference.shape[0],
        image=_jpeg(image),
        references=[contour_path(np.isin(reference, classes)) for classes in structures.values()],
        predictions=[(colors[n], contour_path(np.isin(prediction, classes))) for n, classes in structures.items()],
    )


def cut_window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The square around a mask, with a margin, as far as the image goes; all of it for an empty mask.

    Args:
        mask: (H, W).

    Returns:
        Rows and columns.

    >>> mask = np.zeros((30, 90), bool)
    >>> mask[10:15, 40:50] = True
    >>> cut_window(mask)
    (slice(3, 21, None), slice(36, 54, None))
    """
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + (0, 1) for axis in (1, 0)]
    extent = max(int(high - low) for low, high in ends)
    side = max(round(extent * (1 + 2 * MARGIN)), round(min(mask.shape) * SMALLEST), 1)
    rows, columns = (
        slice(start, min(start + side, size))
        for size, (low, high) in zip(mask.shape, ends, strict=True)
        for start in [min(max((int(low + high) - side) // 2, 0), max(size - side, 0))]
    )
    return rows, columns


def contour_path(mask: NDArray[np.bool_]) -> str:
    """The border of a mask as the `d` of an SVG path, in half pixels from the image's upper left corner.

    Args:
        mask: (H, W).

    Returns:
        Closed paths of relative steps; "" for an empty mask.

    >>> contour_path(np.array([[True]]))
    'M0 1l1 -1l1 1l-1 1z'
    """
    from contourpy import contour_generator

    if not mask.any():
        return ""
    # Without the margin, contours that touch the edge of the image would stay open.
    loops = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    return "".join(_steps((2 * loop - 1).round().astype(int)) for loop in loops)


def _steps(points: NDArray[np.integer]) -> str:
    """One closed loop (N, 2) of x and y, whose last point is its first, with straight runs joined."""
    moves = np.diff(points, axis=0)
    turns = np.flatnonzero((moves[1:] != moves[:-1]).any(axis=1)) + 1
    joined = np.add.reduceat(moves, [0, *turns])
    x, y = points[0]
    return f"M{x} {y}" + "".join(f"l{dx} {dy}" for dx, dy in joined[:-1]) + "z"


def _jpeg(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).convert("RGB" if image.ndim == 3 else "L").save(
        stream, "JPEG", quality=_QUALITY
    )
    return data_uri(stream.getvalue(), "jpeg")
