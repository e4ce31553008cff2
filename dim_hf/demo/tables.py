"""Tables of words and numbers as the page shows them: wide ones scroll by themselves, every cell is escaped."""

import re
from collections.abc import Sequence
from html import escape

_NUMBER = re.compile(r"[−-]?[\d.,]+( (%|mm|px))?( \[.*\])?|[–∞]")
_LONG = 40  # characters of a cell that is broken into lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, marked: int | None = None) -> str:
    """A table of words and numbers as HTML; every cell is shown as it is.

    Args:
        head: Names of the columns.
        rows: Cells; the first of a row names it.
        caption: Says what it is.
        marked: Number of a row to be set off.
    """
    kinds = [all(_NUMBER.fullmatch(row[place]) or not row[place] for row in rows) for place in range(len(head))]
    columns = "".join(_cell("th", name, 'scope="col"', kind) for name, kind in zip(head, kinds, strict=True))
    lines = []
    for number, (first, *others) in enumerate(rows):
        named = zip(others, kinds[1:], strict=True)
        cells = _cell("th", first, 'scope="row"') + "".join(_cell("td", words, "", kind) for words, kind in named)
        lines.append(
            f'<tr class="marked" aria-current="true">{cells}</tr>' if number == marked else f"<tr>{cells}</tr>"
        )
    return (
        f'<p class="quiet caption">{escape(caption)}</p>'
        f'<div class="dim-scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="scores">'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(tag: str, words: str, more: str = "", is_number: bool = False) -> str:
    kind = "number" if is_number else "long" if len(words) > _LONG else ""
    attributes = "".join(f" {text}" for text in (more, f'class="{kind}"' if kind else "") if text)
    return f"<{tag}{attributes}>{escape(words)}</{tag}>"
