"""Numbers as tiles, and whether somebody should look again: what every kind of image is told with."""

from collections.abc import Sequence
from html import escape

EMPTY_CARDS = '<div class="cards empty"></div>'
_CALM = "<b>No reason for a second look was found.</b> This approves nothing."


def cards(tiles: Sequence[tuple[str, str, str]]) -> str:
    """Tiles as HTML; any text may stand in them.

    Args:
        tiles: What it is, its value, and a remark.
    """
    shown = (
        f'<div class="tile"><span>{escape(title)}</span><b>{escape(value)}</b><small>{escape(remark)}</small></div>'
        for title, value, remark in tiles
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def review_flag(reasons: Sequence[str], *, is_likeness_known: bool) -> str:
    """A line that says whether somebody should look again.

    Args:
        reasons: Sentences; none where nothing speaks for it.
        is_likeness_known: Whether the model can tell images that are unlike those of its training.
    """
    if reasons:
        return f'<p class="flag look" role="status"><b>Look again.</b> {escape(" ".join(reasons))}</p>'
    known = "" if is_likeness_known else " Likeness to the images of the training is not known for this model."
    return f'<p class="flag calm" role="status">{_CALM}{known}</p>'
