"""How well masks of one picture agree: with each other, and with a reference that the visitor brings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dim_hf.data.images import read_mask
from dim_hf.demo.drawing import border
from dim_hf.demo.file_kinds import told
from dim_hf.demo.refusals import Refusal
from dim_hf.metrics.overlap import dice
from dim_hf.metrics.surface import hd95

SPACING_RANGE_MM = (0.0005, 10.0)
MOST_BORDER_PIXELS = 300_000
"""Of a structure; the longest border of a smooth mask of 25 million pixels has about a tenth of it."""
_WHITE = 255
_SHOWN_VALUES = 6


def check_spacing(value: float | None) -> tuple[float, float] | None:
    """The size of a pixel that a visitor entered, as (H, W); None or 0 stands for unknown.

    Args:
        value: In mm, for pixels that are squares.

    Raises:
        Refusal: If it is not finite, negative, or no size that a pixel of a medical image has.
    """
    if value is None or value == 0:
        return None
    low, high = SPACING_RANGE_MM
    if not low <= value <= high:
        raise Refusal(
            f"The size of a pixel is {value:g} mm; enter one from {low:g} to {high:g} mm, or leave the field empty if "
            "it is not known."
        )
    return float(value), float(value)


def read_reference(path: Path, shape: Sequence[int], id2label: Mapping[int, str], max_pixels: int) -> np.ndarray:
    """A reference mask as class ids, refused unless it fits the picture and the classes.

    Args:
        path: A picture file that passed `intake.check_picture`.
        shape: (H, W) of the picture.
        id2label: Name of each class of the models. With two classes, 255 may stand for the second one.
        max_pixels: Limit of the header.

    Returns:
        (H, W) uint8 or uint16.

    Raises:
        Refusal: If the file is no mask, its size is another, or a value is none of the classes.
    """
    with told(path):
        labels = read_mask(path, max_pixels=max_pixels)
    if labels.shape != tuple(shape):
        found, wanted = (f"{width} × {height}" for height, width in (labels.shape, shape))
        raise Refusal(
            f"The reference mask has {found} pixels (width × height) and the picture {wanted}; give the mask of this "
            "picture, at its own size."
        )
    values = np.unique(labels)
    if len(id2label) == 2 and set(values.tolist()) <= {0, _WHITE}:
        return (labels == _WHITE).astype(np.uint8)
    unknown = [int(value) for value in values if int(value) not in id2label]
    if unknown:
        raise Refusal(_unknown_values(unknown, values.tolist(), id2label))
    return labels.astype(np.uint8 if max(id2label) < 256 else np.uint16)


def _unknown_values(unknown: Sequence[int], values: Sequence[int], id2label: Mapping[int, str]) -> str:
    shown = ", ".join(map(str, unknown[:_SHOWN_VALUES])) + (", …" if len(unknown) > _SHOWN_VALUES else "")
    expected = ", ".join(f"{index} = {name}" for index, name in sorted(id2label.items()))
    advice = f"Save it as grey PNG with one class a pixel: {expected}."
    if len(values) > 4 * len(id2label):
        advice = f"It looks like a photograph, or was saved as JPEG, which changes values. {advice}"
    elif max(values) == _WHITE:
        advice = f"Black, grey and white do not say which class is meant. {advice}"
    return f"The reference mask holds the values {shown}, which are no classes here. {advice}"


@dataclass(frozen=True)
class Agreement:
    """How well two masks agree on one structure.

    Attributes:
        structure: Its name.
        dice: In [0, 1]; 1 where neither mask has it.
        hd95: In `unit`; NaN where a mask lacks the structure, or `ragged` holds.
        unit: "mm" or "px".
        in_first: Whether the first mask has it.
        in_second: Whether the second mask has it.
        ragged: Whether the borders are too long to be measured here.
    """

    structure: str
    dice: float
    hd95: float
    unit: str
    in_first: bool
    in_second: bool
    ragged: bool


def score_agreement(
    first: np.ndarray,
    second: np.ndarray,
    structures: Mapping[str, Sequence[int]],
    spacing_mm: tuple[float, float] | None = None,
) -> list[Agreement]:
    """Dice and HD95 of each structure, by the functions of the evaluation.

    Args:
        first: (H, W) class ids.
        second: The same shape.
        structures: Class ids by structure.
        spacing_mm: (H, W) of a pixel; None measures in pixels.
    """
    rows = []
    for name, classes in structures.items():
        masks = [np.isin(labels, list(classes)) for labels in (first, second)]
        in_first, in_second = (bool(mask.any()) for mask in masks)
        # Noise has borders of millions of pixels, between which distances take minutes.
        ragged = max(np.count_nonzero(border(mask)) for mask in masks) > MOST_BORDER_PIXELS
        measured = in_first and in_second and not ragged
        distance = hd95(*masks, spacing_mm) if measured else math.nan
        unit = "px" if spacing_mm is None else "mm"
        rows.append(Agreement(name, dice(*masks), distance, unit, in_first, in_second, ragged))
    return rows


def agreement_cells(row: Agreement, first: str, second: str) -> list[str]:
    """What a table says of one structure: its name, Dice, HD95 with its unit, and a remark in words.

    Args:
        row: From `score_agreement`.
        first: What the first mask is called, e.g. "the model".
        second: What the second mask is called.
    """
    if not row.in_first and not row.in_second:
        return [row.structure, "–", "–", "in neither of the two: they agree that there is none"]
    if row.in_first != row.in_second:
        found, other = (first, second) if row.in_first else (second, first)
        return [row.structure, "0.000", "–", f"only in {found}, not in {other}: there is no distance"]
    if row.ragged:
        return [row.structure, f"{row.dice:.3f}", "–", "the borders are too ragged for a distance"]
    shown = f"{row.hd95:.2f} mm" if row.unit == "mm" else f"{row.hd95:.1f} px"
    equal = row.dice == 1
    remark = "the same pixels" if equal else f"95 % of the borders lie within {shown} of each other"
    return [row.structure, f"{row.dice:.3f}", shown, remark]
