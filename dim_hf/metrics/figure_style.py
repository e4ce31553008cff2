"""What the figures of an evaluation share: their look, and files with the same bytes for the same numbers."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, 2008; black is kept for means, and yellow, too pale on white, is left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# On images: bright colours that are seen on grey, on the orange of a fundus, and apart from the white reference.
CONTOUR_COLORS = ("#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#E69F00", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx")
INK, GRID = "#333333", "#DDDDDD"
CROWD = 400  # points above which they are drawn as pixels, so that a vector file stays small
NAME_LENGTH = 26

# Every color is named, so that a page may give a vector file other ones in the dark.
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
    "svg.hashsalt": "dim_hf",
}
NO_DATE = {".svg": {"Date": None}, ".svgz": {"Date": None}, ".pdf": {"CreationDate": None}}


@contextmanager
def house_style() -> Iterator[None]:
    """Draws and saves what is inside in the look of a report; matplotlib's settings come back afterwards."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        # A name in letters that the font lacks is no fault of the user; an SVG leaves them to the reader's fonts.
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield


def save(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure; its ending chooses the format, missing folders are made.

    Args:
        figure: what to write.
        path: file to write.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=NO_DATE.get(path.suffix.lower()))
    return path


def short(name: str) -> str:
    """A name in one line that leaves room for the data, without characters that no XML file may hold.

    Args:
        name: any text.

    Returns:
        Up to `NAME_LENGTH` characters.

    >>> short("site   b"), short("hospital of a very long name")
    ('site b', 'hospital of a very long n…')
    """
    name = "".join(char if char.isprintable() else "?" for char in " ".join(name.split())) or "(no name)"
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def nothing(axes: "Axes", text: str = "no case to draw") -> None:
    """Says in empty axes that there is nothing to see."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def quiet_grid(axes: "Axes") -> None:
    """A grid behind the data."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
