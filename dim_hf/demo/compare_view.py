"""What the comparison shows: both masks and their difference beside each other, and tables of agreement."""

import html
from dataclasses import dataclass

import numpy as np
import PIL.Image

from dim_hf.demo.agreement import Agreement, agreement_cells
from dim_hf.demo.drawing import (
    DIFFERENCE_COLORS,
    ONLY_FIRST,
    ONLY_SECOND,
    OTHER_CLASS,
    SAME,
    clear_png,
    difference,
    jpeg,
    layer,
    legend,
    resized,
)
from dim_hf.demo.fundus_view import shown_image, shown_size, viewer
from dim_hf.demo.tables import table
from dim_hf.demo.tiles import review_flag
from dim_hf.inference.prediction import Prediction

EMPTY_TABLES = '<div class="tables empty"></div>'
_HEAD = ["Structure", "Dice", "HD95", "In words"]
_HELP = (
    "Dice is 1 where both enclose the same pixels and 0 where they share none. HD95 is a distance: 95 % of the "
    "borders lie nearer to each other than that. One drawn image proves nothing; see the table on the tab Method."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on one picture.

    Attributes:
        name: What the visitor calls the picture; any text.
        image: (H, W, 3) uint8.
        titles: What the models are called.
        predictions: Of the two models, with the same classes.
        between: The first model's mask against the second one's.
        with_reference: Each model's mask against the reference; empty without one.
        cautions: Why the masks deserve no trust.
    """

    name: str
    image: np.ndarray
    titles: tuple[str, str]
    predictions: tuple[Prediction, Prediction]
    between: list[Agreement]
    with_reference: list[list[Agreement]]
    cautions: tuple[str, ...] = ()


def empty_view(titles: tuple[str, str]) -> str:
    """What stands in the place of the three pictures, as large as they, so that nothing jumps.

    Args:
        titles: What the models are called.
    """
    said = (
        "<p><b>Nothing to compare yet.</b><br>Upload a photograph of the back of the eye, or pick one of the "
        "examples.</p>",
        "",
        "",
    )
    parts = [
        _panel(title, f'<div class="viewer empty">{words}</div><div class="legends"></div>')
        for title, words in zip((*titles, "Difference"), said, strict=True)
    ]
    return f'<div class="beside">{"".join(parts)}</div>'


def comparison_view(found: Comparison) -> str:
    """Three pictures: the first model's mask, the second one's, and where they differ."""
    pairs = zip(found.titles, found.predictions, strict=True)
    parts = [_panel(title, viewer(found.image, prediction, found.name)) for title, prediction in pairs]
    return f'<div class="beside">{"".join(parts)}{_panel("Difference", _difference(found))}</div>'


def _panel(title: str, content: str) -> str:
    return f'<section aria-label="{html.escape(title)}"><h3>{html.escape(title)}</h3>{content}</section>'


def _difference(found: Comparison) -> str:
    """Both masks in one picture over the image in grey, with how much of it differs in words."""
    whole = difference(*(prediction.labels for prediction in found.predictions))
    size = shown_size(whole.shape)
    shown = resized(whole, size[::-1], is_label=True)
    grey = np.asarray(PIL.Image.fromarray(shown_image(found.image, size)).convert("L"))
    counts = np.bincount(whole.ravel(), minlength=5)
    either = int(counts[1:].sum())
    differing = 100 * (either - int(counts[SAME])) / either if either else 0.0
    said = f"{differing:.1f} % of what either model found differs" if either else "neither model found anything"
    names = {
        SAME: "the same in both",
        ONLY_FIRST: f"only {found.titles[0]}",
        ONLY_SECOND: f"only {found.titles[1]}",
        OTHER_CLASS: "found by both, as different structures",
    }
    present = {index: words for index, words in names.items() if counts[index]}
    return (
        '<figure class="viewer differing">'
        f"{layer('base', jpeg(grey), f'Difference of the two masks: {said}')}"
        f"{layer('fill', clear_png(shown, DIFFERENCE_COLORS))}</figure>"
        f'<div class="legends">{legend(present, DIFFERENCE_COLORS)}<p>{html.escape(said.capitalize())}.</p></div>'
    )


def agreement_tables(found: Comparison) -> str:
    """How the two models agree with each other, and each with the reference where there is one."""
    rows = [agreement_cells(row, *found.titles) for row in found.between]
    parts = [table(_HEAD, rows, "The two models with each other.")]
    if found.with_reference:
        for title, own in zip(found.titles, found.with_reference, strict=True):
            rows = [agreement_cells(row, "the model", "the reference") for row in own]
            parts.append(table(_HEAD, rows, f"{title}, with your reference mask."))
    flag = review_flag(found.cautions, is_likeness_known=True) if found.cautions else ""
    return f'<div class="tables">{flag}{"".join(parts)}<p class="quiet">{_HELP}</p></div>'
