"""Cells as an aligned table, in Markdown or plain text."""

from collections.abc import Sequence

TEXT_WIDTH = 100  # of captions below a table of plain text, in characters


def render(header: Sequence[str], lines: Sequence[Sequence[str]], style: str, left: int) -> str:
    """Align cells in columns of one width; no width is cut.

    Args:
        header: names of the columns.
        lines: cells of each line, as many as there are columns. In Markdown, `|` is escaped and a line break becomes
            a space.
        style: "markdown" or "text", which has a rule below the header and no other lines.
        left: how many columns, from the first on, are flush left; the others, those of numbers, are flush right.

    Returns:
        The lines of the table, without a line break at the end.

    Raises:
        ValueError: for an unknown style, or a line of another number of cells.

    >>> print(render(["Site", "Dice"], [["one", "0.5"]], "markdown", left=1))
    | Site | Dice |
    | ---- | ---: |
    | one  |  0.5 |
    """
    if style not in ("markdown", "text"):
        raise ValueError(f"style is {style!r}; choose markdown or text")
    if style == "markdown":
        header, *lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (header, *lines)]
    widths = [max(3, *map(len, column)) for column in zip(header, *lines, strict=True)]
    aligned = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, *lines)
    ]
    if style == "text":
        rule = "  ".join("-" * width for width in widths)
        head, *body = ["  ".join(line).rstrip() for line in aligned]
        return "\n".join([head, rule, *body])
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    head, *body = ["| " + " | ".join(line) + " |" for line in aligned]
    return "\n".join([head, "| " + " | ".join(rule) + " |", *body])
