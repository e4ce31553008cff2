"""Words of strangers, and long lists, as a terminal can show them."""

from collections.abc import Sequence

SHOWN = 10


def printable(text: object, keep: str = "") -> str:
    r"""Text in which characters that a terminal would obey, or could not write, are escaped.

    Args:
        text: Perhaps a name that a stranger chose.
        keep: Characters that stay as they are, such as line ends of a text of our own.

    Example:
        >>> printable("site\x1b[2J\nb")
        'site\\x1b[2J\\nb'
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode("ascii")
        for letter in str(text)
    )


def first_line(error: object, otherwise: str | None = None) -> str:
    r"""What an error says, without the lines that follow.

    Args:
        error: An exception, perhaps of a library, or what one said.
        otherwise: Given for an error that says nothing; the name of its class when None.

    Example:
        >>> first_line(OSError("it is gone\nsee the log")), first_line(KeyError())
        ('it is gone', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    return type(error).__name__ if otherwise is None else otherwise


def numbered(items: Sequence[object], shown: int = SHOWN) -> str:
    """The first items, one a numbered line, and how many more there are.

    Example:
        >>> print(numbered(["a", "b", "c"], shown=2))
          1. a
          2. b
          ... and 1 more
    """
    lines = [f"  {number}. {item}" for number, item in enumerate(items[:shown], start=1)]
    if len(items) > shown:
        lines.append(f"  ... and {len(items) - shown} more")
    return "\n".join(lines)
