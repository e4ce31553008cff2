"""What a data set says about itself: classes, nested structures, licence, source."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "dim_dataset.json"
INTENSITIES = ("range", "zscore", "percentile", "local")
IGNORE_INDEX = 255
"""Value of ignored pixels, in masks and in label maps."""
NO_SPACING_NOTE = "spacing and orientation are not stored; with 1 mm assumed, distances are in voxels"
"""What an import notes of volumes whose files do not say how large their voxels are."""
MAX_LABELS = IGNORE_INDEX  # class ids are 0..254 at most


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


def _is_table(fits_key: Callable[[Any], bool], fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(fits_key(k) and fits(v) for k, v in value.items())


_TYPES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("id2label", "a table of class ids and names", _is_table(_is_whole, _is_text)),
    ("structures", "a table of names and lists of class ids", _is_table(_is_text, lambda _: True)),
    ("num_channels", "a whole number", _is_whole),
    ("spatial_dims", "a whole number", _is_whole),
    ("intensity", "a text", _is_text),
    ("label_values", "a table of layouts, values and class ids", _is_table(_is_text, _is_table(_is_text, _is_whole))),
    ("splits", "a list of texts", _is_list(_is_text)),
    ("licence", "a text", _is_text),
    ("source", "a list of texts", _is_list(_is_text)),
    ("notes", "a list of texts", _is_list(_is_text)),
)


@dataclass(frozen=True)
class DatasetDescription:
    """What the rows of a data set mean; lies beside a manifest as `dim_dataset.json`.

    Attributes:
        id2label: Name of each class 0..K-1, K at most 255.
        structures: Nested structures that are scored, each the union of some classes, e.g. `{"disc": [1, 2],
            "cup": [2]}`.
        num_channels: Channels of the images: 1 (grey) or 3 (color).
        spatial_dims: 2 for images and slices, 3 for volumes.
        intensity: How intensities are best normalised: "range" where the file type's span is the scale (photographs),
            "zscore" or "percentile" where it is not (MRI, floats), "local" where cameras differ in light and color.
        label_values: Value in the source's masks → class id, for each layout that was imported.
        splits: How the split came about, in a sentence for each import.
        licence: Licence of the data, empty where unknown.
        source: Where the data come from: names, addresses, citations.
        notes: What a user should know, such as how images were cropped or resampled.

    Raises:
        ValueError: If a value is of another type, class ids are not 0..K-1, names repeat, a structure names an unknown
            class, or a number is out of range.
    """

    id2label: dict[int, str]
    structures: dict[str, list[int]]
    num_channels: int = 1
    spatial_dims: int = 2
    intensity: str = "range"
    label_values: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: list[str] = field(default_factory=list)
    licence: str = ""
    source: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check what everything downstream relies on."""
        self._check_types()
        ids, names = sorted(self.id2label), list(self.id2label.values())
        if ids != list(range(len(ids))) or not 2 <= len(ids) <= MAX_LABELS:
            raise ValueError(f"id2label must name the classes 0..K-1 (2 <= K <= {MAX_LABELS}), got {self.id2label}")
        if len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"class names must be different and not empty, got {names}")
        if not self.structures:
            raise ValueError('structures must hold at least one structure, e.g. {"cup": [2]}')
        for name, classes in self.structures.items():
            if not _is_list(_is_whole)(classes) or not classes or not all(c in ids[1:] for c in classes):
                raise ValueError(f"structure {name!r} must be made of the classes {ids[1:]}, got {classes}")
        if self.num_channels not in (1, 3) or self.spatial_dims not in (2, 3):
            raise ValueError(
                f"num_channels must be 1 or 3 and spatial_dims 2 or 3, got {self.num_channels} and {self.spatial_dims}"
            )
        if self.intensity not in INTENSITIES:
            raise ValueError(f"intensity must be one of {INTENSITIES}, got {self.intensity!r}")

    def _check_types(self) -> None:
        """Refuse what JSON may hold and no reader expects; True is no number here, and neither is 1.0."""
        for name, kind, fits in _TYPES:
            value = getattr(self, name)
            if not fits(value):
                raise ValueError(f"{name} must be {kind}, got {value!r}")

    @property
    def num_labels(self) -> int:
        """Number of classes K."""
        return len(self.id2label)


def write_description(description: DatasetDescription, folder: str | os.PathLike) -> Path:
    """Write `dim_dataset.json` into `folder`; see `read_description`."""
    path = Path(folder) / FILE_NAME
    path.write_text(json.dumps(asdict(description), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_description(path: str | os.PathLike) -> DatasetDescription:
    """Read `dim_dataset.json`.

    Raises:
        ValueError: If the file is no JSON object, lacks a field or has an unknown one, or a value is illegal.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); import the data again or write it anew") from error
    return parse_description(values, str(path))


def parse_description(values: Any, where: str) -> DatasetDescription:
    """Check parsed JSON and make a description of it.

    Args:
        values: What the JSON holds; keys of `id2label` are strings there.
        where: Names the file in errors.

    Raises:
        ValueError: As `read_description`.
    """
    try:
        if not isinstance(values["id2label"], Mapping):
            raise ValueError(f"id2label must be a table of class ids and names, got {values['id2label']!r}")
        id2label = {int(key): name for key, name in values["id2label"].items()}
        return DatasetDescription(**{**values, "id2label": id2label})
    except KeyError as error:
        raise ValueError(f"{where} lacks the field {error}; import the data again or add it") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} describes no data set: {error}") from error
