"""Files that are there in full or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives another path to write to, which takes the place of `path` when the block ends without an error.

    At every moment the old file or the whole new one is there, even if the machine loses its power.

    Raises:
        OSError: If it cannot be written; the old file stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else the new name may reach the disk before what it names
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole text file in UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
