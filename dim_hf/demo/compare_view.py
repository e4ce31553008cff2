"""What the comparison shows: both masks and their difference beside each other, and tables of agreement."""

import html
from dataclasses import dataclass

import numpy as np
import PIL.Image

from dim_hf.demo.agreement import Agreement, agreement_cells
from dim_hf.demo.drawing import DIFFERENCE_COLORS, ONLY_FIRST, ONLY_SECOND, OTHER_CLASS, SAME, difference, legend
from dim_hf.demo.fundus_view import encoded, layer, painted, shown_size, viewer
from dim_hf.demo.tables import table
from dim_hf.inference.prediction import Prediction

EMPTY_TABLES = '<div class="tables empty"></div>'
_HEAD = ["Structure", "Dice", "HD95", "In words"]
_HELP = (
    "Dice is 1 where both enclose the same pixels and 0 where they share none. HD95 is a distance: 95 % of the "
    "borders lie nearer to each other than that."
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
    """

    name: str
    image: np.ndarray
    titles: tuple[str, str]
    predictions: tuple[Prediction, Prediction]
    between: list[Agreement]
    with_reference: list[list[Agreement]]


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
    shown = np.asarray(PIL.Image.fromarray(whole).resize(size, PIL.Image.Resampling.NEAREST))
    grey = PIL.Image.fromarray(found.image).resize(size, PIL.Image.Resampling.LANCZOS).convert("L").convert("RGB")
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
        f'<figure class="viewer differing" style="aspect-ratio: {size[0]} / {size[1]}">'
        f"{layer('base', encoded(grey, 'WEBP'), f'Difference of the two masks: {said}')}"
        f"{layer('fill', encoded(painted(shown, DIFFERENCE_COLORS), 'PNG'), '')}</figure>"
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
    return f'<div class="tables">{"".join(parts)}<p class="quiet">{_HELP}</p></div>'
