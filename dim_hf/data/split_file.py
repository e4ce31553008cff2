"""A fixed split, kept in a CSV file of names apart from the images."""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dim_hf.data.rows import SPLITS

_NAMES = ("source_file", "name")


@dataclass(frozen=True)
class SplitFile:
    """Split, and perhaps place among the labeled images, of each image of a data set.

    Attributes:
        path: The file, for errors.
        key: Column of the rows that the file names images by: `source_file` or `name`.
        entries: (domain, name) → (split, place or None).
    """

    path: Path
    key: str
    entries: dict[tuple[str, str], tuple[str, int | None]]

    def of(self, domain: str, name: str, source_file: str | None) -> tuple[str, int | None]:
        """Split of an image, and its place among the labeled ones or None.

        Args:
            domain: Domain of the image.
            name: Name of its row.
            source_file: Path in the source; the file may name it with or without its folders.

        Raises:
            ValueError: If the image is not in the file.
        """
        entry = self._entry(domain, name, source_file)
        if entry is None:
            shown = name if self.key == "name" else source_file
            raise ValueError(
                f"{self.path} says nothing of {shown!r} in domain {domain!r}; add a line for it, or import without "
                "--split-file"
            )
        return self.entries[entry]

    def require_all(self, images: Iterable[tuple[str, str, str | None]]) -> None:
        """Refuse a data set that lacks images of its domains which the file names, or has two for one line.

        Args:
            images: (domain, name, source_file) of every image.

        Raises:
            ValueError: Naming the first such line.
        """
        seen = set()
        for image in images:
            entry = self._entry(*image)
            if entry is not None and entry in seen:
                raise ValueError(f"{self.path}: two images fit the line of {entry[1]!r} in domain {entry[0]!r}")
            seen.add(entry)
        domains = {entry[0] for entry in seen if entry}
        missing = sorted(entry for entry in self.entries.keys() - seen if entry[0] in domains)
        if missing:
            raise ValueError(
                f"{self.path} names {len(missing)} images that were not found, such as {missing[0][1]!r} of domain "
                f"{missing[0][0]!r}; complete the download, or remove their lines"
            )

    def _entry(self, domain: str, name: str, source_file: str | None) -> tuple[str, str] | None:
        names = [name] if self.key == "name" else [source_file or name, PurePosixPath(source_file or name).name]
        return next(((domain, key) for key in names if (domain, key) in self.entries), None)


def read_split_file(path: str | os.PathLike) -> SplitFile:
    """Read a CSV file with the columns `domain`, `source_file` or `name`, `split`, and optionally `train_order`.

    `train_order` numbers the training images of a domain: the first ones are its labeled images when labels come from
    it.

    Raises:
        ValueError: Naming file, line and value: no table, a column missing, an image twice, an unknown split or an
            order that is no whole number.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV ({error})") from error
    columns = set(lines[0]) if lines else set()
    key = next((name for name in _NAMES if name in columns), None)
    if key is None or not {"domain", "split"} <= columns:
        raise ValueError(
            f"{path} must have the columns domain, source_file (or name) and split, found {sorted(map(str, columns))}"
        )
    entries: dict[tuple[str, str], tuple[str, int | None]] = {}
    for number, line in enumerate(lines, start=2):
        entry, split, order = (line["domain"], line[key]), line["split"], line.get("train_order") or None
        if split not in SPLITS:
            raise ValueError(f"{path}, line {number}: split is {split!r}; use one of {', '.join(SPLITS)}")
        if entry in entries:
            raise ValueError(f"{path}, line {number}: {entry[1]!r} of domain {entry[0]!r} is named twice")
        if order is not None and not order.isdecimal():
            raise ValueError(f"{path}, line {number}: train_order is {order!r}; write a whole number or nothing")
        entries[entry] = (split, int(order) if order is not None else None)
    return SplitFile(path, key, entries)
