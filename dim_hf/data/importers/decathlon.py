"""Reads the Medical Segmentation Decathlon and nnU-Net's raw data sets, both described by a `dataset.json`."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dim_hf.data.description import IGNORE_INDEX
from dim_hf.data.images import EXTENSIONS, PictureFacts, picture_facts
from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout
from dim_hf.data.importers.finding import base_folder, read_pictures, refuse_twins, relative
from dim_hf.data.importers.volume_folders import copies, read_pair
from dim_hf.data.patients import compile_pattern, patient_of
from dim_hf.data.trees import Formats, by_stem, files_in
from dim_hf.data.volumes.volume import VOLUME_EXTENSIONS, is_volume_file, read_header, volume_stem

_DESCRIPTION = "dataset.json"
_MAX_JSON_BYTES = 2**26
_MAX_TEXT = 500
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_COMPANIONS = (".json", ".raw", ".zraw", ".raw.gz")


@dataclass(frozen=True)
class _Labels:
    """What a `dataset.json` says of the masks."""

    id2label: dict[int, str]
    structures: dict[str, list[int]]
    label_values: dict[int, int]


def read_dataset_json(root: Path) -> dict[str, Any]:
    """Read `dataset.json` below `root`.

    Raises:
        ValueError: If it is missing, too large or no JSON object.
    """
    path = root / _DESCRIPTION
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder that holds imagesTr, labelsTr and dataset.json")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_JSON_BYTES} bytes, which no description needs; replace it")
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); correct it") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; it must be an object with the field labels")
    return values


def parse_labels(labels: Any, where: Path) -> _Labels:
    """Make classes 0..K-1 and structures of the field `labels`.

    Both orientations are read: `{"0": "background", "1": "cup"}` (MSD, nnU-Net v1) and `{"background": 0, "cup": 1}`
    (nnU-Net v2). A list of values is a region, and becomes a structure; its values become exclusive classes, each
    named after the label of that one value, or else after the smallest region around it and the value. `ignore`
    becomes 255.

    Args:
        labels: The field's content.
        where: The file, named in errors.

    Raises:
        ValueError: If it is no such table, a value is none, or the background is not 0.
    """
    regions = _regions(labels, where)
    ignored = regions.pop("ignore", set())
    background = [name for name, values in regions.items() if values == {0}]
    named = {name: values for name, values in regions.items() if values != {0}}
    if len(background) != 1 or not named or any(0 in values for values in named.values()):
        raise ValueError(
            f"{where}: labels must hold one background with the value 0, and further labels without it; got {labels}"
        )
    values = sorted(set().union(*named.values()))
    if ignored & {0, *values} or len(ignored) > 1:
        raise ValueError(f"{where}: ignore must be one value of its own, got {sorted(ignored)}; correct labels")
    ids = {value: index for index, value in enumerate([0, *values])}
    return _Labels(
        id2label={0: background[0], **{ids[value]: _class_name(value, named) for value in values}},
        structures={name: sorted(ids[value] for value in region) for name, region in named.items()},
        label_values={**ids, **dict.fromkeys(ignored, IGNORE_INDEX)},
    )


def _regions(labels: Any, where: Path) -> dict[str, set[int]]:
    if not isinstance(labels, dict):
        raise ValueError(f"{where} has no table labels, such as {{'background': 0, 'cup': 1}}; got {labels!r}")
    if labels and all(isinstance(name, str) for name in labels.values()):
        if len(set(labels.values())) != len(labels):
            raise ValueError(f"{where}: labels name two values alike ({labels}); rename one")
        labels = {name: value for value, name in labels.items()}
    regions = {}
    for name, value in labels.items():
        try:
            region = {_whole(item) for item in (value if isinstance(value, list) else [value])}
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{where}: label {name!r} has the value {value!r}; write a whole number >= 0") from error
        if not name or not region:
            raise ValueError(f"{where}: label {name!r} has the values {value!r}; give a name and a value")
        regions[name] = region
    return regions


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 0:
        raise ValueError(value)
    return int(value)


def _class_name(value: int, named: Mapping[str, set[int]]) -> str:
    smallest = min((len(values), name) for name, values in named.items() if value in values)
    return smallest[1] if smallest[0] == 1 else f"{smallest[1]}_{value}"


def inner_path(root: Path, text: Any, where: Path) -> Path:
    """The existing file below `root` that `dataset.json` names.

    Raises:
        ValueError: If the path is absolute, leads out of `root`, or names no file.
    """
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{where} names the file {text!r}; write a relative path such as ./imagesTr/case.nii.gz")
    inner = PurePosixPath(text.replace("\\", "/"))
    if inner.is_absolute() or PureWindowsPath(text).drive or ".." in inner.parts:
        raise ValueError(f"{where} names {text!r}, which leads out of {root}; write a path below that folder")
    path = root / inner
    if not path.is_file():
        raise ValueError(f"{where} names {text!r}, but {path} is no file; fetch it, or remove the entry")
    return path


def _text(values: Mapping[str, Any], *keys: str) -> str:
    """The first of the fields that is text, on one line and not too long."""
    texts = [values[key] for key in keys if isinstance(values.get(key), str)]
    return " ".join(texts[0].split())[:_MAX_TEXT] if texts else ""


def _domain(values: Mapping[str, Any], root: Path, options: ImportOptions) -> str:
    stated = re.sub(r"[^\w.-]+", "_", _text(values, "name", "dataset_name")).strip("._")
    return options.domain or stated or root.name


def _channel_names(values: Mapping[str, Any]) -> dict[int, str]:
    """Channel index → name, from `channel_names` or the older `modality`; empty where nothing readable is stated."""
    stated = values.get("channel_names", values.get("modality"))
    if not isinstance(stated, dict):
        return {}
    return {int(index): str(name)[:_MAX_TEXT] for index, name in stated.items() if str(index).isdecimal()}


def _choose_channel(channels: Sequence[int], names: Mapping[int, str], chosen: int | None, where: Path) -> int:
    """The channel to import: the only one, or the one that the user chose."""
    listed = ", ".join(f"{channel} ({names.get(channel, 'no name')})" for channel in channels)
    if chosen is None and len(channels) > 1:
        raise ValueError(f"{where} has the channels {listed}; choose one with --modality")
    if chosen is not None and chosen not in channels:
        raise ValueError(f"{where} has no channel {chosen}; choose --modality from {listed}")
    return channels[0] if chosen is None else chosen


@dataclass(frozen=True)
class _Set:
    """A data set before its images are listed."""

    root: Path
    values: dict[str, Any]
    labels: _Labels
    domain: str
    options: ImportOptions

    @property
    def description(self) -> Path:
        return self.root / _DESCRIPTION

    def case(self, name: str, image: Path, is_test: bool, label: Path | None, **fields: Any) -> Case:
        pattern = compile_pattern(self.options.patient_pattern)
        return Case(
            domain=self.domain,
            patient=patient_of(image, name, pattern),
            name=name,
            split="test" if is_test and label else "",
            source=image,
            columns={"source_file": relative(image, self.root)},
            **fields,
        )


def _open(root: Path, options: ImportOptions, tree: str) -> _Set:
    root = base_folder(Path(os.path.abspath(root)), lambda folder: (folder / _DESCRIPTION).is_file(), tree)
    values = read_dataset_json(root)
    labels = parse_labels(values.get("labels"), root / _DESCRIPTION)
    return _Set(root, values, labels, _domain(values, root, options), options)


def find_msd(root: Path, options: ImportOptions) -> Found:
    """Find the cases that `training` and `test` of `dataset.json` list; of several modalities one is read.

    Args:
        root: Holds `dataset.json`, or a folder that does.
        options: `domain`, `patient_pattern` and `modality` are used.

    Raises:
        ValueError: If `dataset.json` is missing or illegal, a path in it leads out of `root` or to no file, or there
            are several modalities and none is chosen.
    """
    data = _open(root, options, MSD.tree)
    listed = [(False, *_files(data, entry)) for entry in _entries(data, "training")]
    listed += [(True, *_files(data, entry)) for entry in _entries(data, "test")]
    counts = [_count_channels(image) for _, image, _ in listed]
    names = _channel_names(data.values)
    most = max((count for count in counts if count), default=1)
    channel = _choose_channel(range(most), names, options.modality, data.root)
    cases = []
    for (is_test, image, label), count in zip(listed, counts, strict=True):
        if count:
            _choose_channel(range(count), names, channel, image)
        read = partial(read_pair, image, label, data.labels.label_values, channel if count and count > 1 else None)
        cases.append(
            data.case(volume_stem(image), image, is_test, label, read=read, copies=count == 1 and copies(image))
        )
    notes = [f"modality {channel} ({names.get(channel, 'no name')}) was read"] if most > 1 else []
    return _found(cases, data, notes, num_channels=1, spatial_dims=3)


def _count_channels(image: Path) -> int | None:
    """Channels of a volume; None where its header cannot be read: reading the case says what is wrong."""
    try:
        shape = read_header(image).shape
    except ValueError:
        return None
    return shape[3] if len(shape) == 4 else 1


def _entries(data: _Set, key: str) -> list[dict[str, Any]]:
    entries = data.values.get(key, [])
    if not isinstance(entries, list) or (key == "training" and not entries):
        raise ValueError(f"{data.description}: {key} must be a list of images, got {str(entries)[:80]}; correct it")
    return [entry if isinstance(entry, dict) else {"image": entry} for entry in entries]


def _files(data: _Set, entry: Mapping[str, Any]) -> tuple[Path, Path | None]:
    image = inner_path(data.root, entry.get("image"), data.description)
    label = inner_path(data.root, entry["label"], data.description) if entry.get("label") else None
    for path in filter(None, (image, label)):
        if not is_volume_file(path):
            raise ValueError(f"{data.description} names {path}, which is no volume; convert it to NIfTI")
    return image, label


def find_nnunet(root: Path, options: ImportOptions) -> Found:
    """Find the cases of an nnU-Net data set: pictures or volumes, one file a channel, of which one is read.

    Args:
        root: Holds `dataset.json`, or a folder that does.
        options: `domain`, `patient_pattern` and `modality` are used.

    Raises:
        ValueError: If `dataset.json` is missing or illegal, a file has another format or no channel, a label has no
            image, or there are several channels and none is chosen.
    """
    data = _open(root, options, NNUNET.tree)
    formats = _formats(data)
    listed = [
        (is_test, case, files, labels.get(case))
        for is_test, images, labels in _parts(data, formats)
        for case, files in images.items()
    ]
    if not listed:
        raise ValueError(f"{data.root / 'imagesTr'} is empty; the layout is {NNUNET.tree}")
    names = _channel_names(data.values)
    channels = sorted({channel for _, _, files, _ in listed for channel in files})
    channel = _choose_channel(channels, names, options.modality, data.root)
    lacking = [case for _, case, files, _ in listed if channel not in files]
    if lacking:
        raise ValueError(f"{data.root}: case {lacking[0]!r} has no file of channel {channel:04d}; add it")
    are_pictures = formats.extensions[0] in EXTENSIONS
    make = _picture_case if are_pictures else _volume_case
    cases = [make(data, case, files[channel], is_test, label) for is_test, case, files, label in listed]
    notes = [f"channel {channel} ({names.get(channel, 'no name')}) was read"] if len(channels) > 1 else []
    if (data.root / "splits_final.json").exists():
        notes.append("the folds of splits_final.json are not read")
    is_color = are_pictures and any(_is_color(case.source) for case in cases)
    return _found(cases, data, notes, num_channels=3 if is_color else 1, spatial_dims=2 if are_pictures else 3)


def _formats(data: _Set) -> Formats:
    ending = data.values.get("file_ending", ".nii.gz")
    known = (*EXTENSIONS, *VOLUME_EXTENSIONS)
    if not isinstance(ending, str) or ending.lower() not in known:
        raise ValueError(f"{data.description}: file_ending {ending!r} cannot be read here; convert to one of {known}")
    return Formats("a file of this data set", (ending.lower(),), _COMPANIONS)


def _parts(data: _Set, formats: Formats) -> Iterator[tuple[bool, dict[str, dict[int, Path]], dict[str, Path]]]:
    """For training and test: whether it is test, the files of each case by channel, and the labels."""
    if not (data.root / "imagesTr").is_dir():
        raise ValueError(f"{data.root} has no folder imagesTr; the layout is {NNUNET.tree}")
    for is_test, ending in ((False, "Tr"), (True, "Ts")):
        images, labels = data.root / f"images{ending}", data.root / f"labels{ending}"
        cases: dict[str, dict[int, Path]] = {}
        for path in files_in(images, formats) if images.is_dir() else []:
            match = _CHANNEL.fullmatch(formats.stem(path))
            if match is None:
                raise ValueError(f"{path} does not end in a channel of four digits; rename it to <case>_0000")
            cases.setdefault(match["case"], {})[int(match["channel"])] = path
        found = by_stem(files_in(labels, formats), formats, str(labels)) if labels.is_dir() else {}
        without_image = sorted(set(found) - set(cases))
        if without_image:
            raise ValueError(f"{found[without_image[0]]} has no image in {images}; add it or remove the label")
        yield is_test, cases, found


def _volume_case(data: _Set, name: str, image: Path, is_test: bool, label: Path | None) -> Case:
    read = partial(read_pair, image, label, data.labels.label_values)
    return data.case(name, image, is_test, label, read=read, copies=copies(image))


def _picture_case(data: _Set, name: str, image: Path, is_test: bool, label: Path | None) -> Case:
    read = partial(read_pictures, image, label, data.labels.label_values)
    return data.case(name, image, is_test, label, read=read, copies=_is_plain(image))


def _facts(image: Path) -> PictureFacts | None:
    try:
        return picture_facts(image)
    except ValueError:  # reading the case says what is wrong
        return None


def _is_plain(image: Path) -> bool:
    """Whether the pixels are read as they are stored."""
    facts = _facts(image)
    if facts is None or facts.has_alpha or (facts.mode == "RGB" and facts.bits > 8):
        return False
    return facts.mode in ("L", "RGB", "I;16")


def _is_color(image: Path) -> bool:
    facts = _facts(image)
    return facts is not None and not facts.is_grey


def _found(cases: list[Case], data: _Set, notes: Sequence[str], **fields: Any) -> Found:
    refuse_twins((case.name, case.source) for case in cases)
    labels, values = data.labels, data.values
    origin = [_text(values, "name", "dataset_name"), _text(values, "description"), _text(values, "reference")]
    return Found(
        cases=sorted(cases, key=lambda case: (case.domain, case.name)),
        id2label=labels.id2label,
        structures=labels.structures,
        label_values={str(value): index for value, index in labels.label_values.items()},
        licence=_text(values, "licence", "license"),
        origin="; ".join(filter(None, origin)),
        notes=tuple(notes),
        split_rule="labeled cases of imagesTs are test; the others are open",
        **fields,
    )


MSD = Layout(
    "msd",
    "imagesTr, labelsTr, imagesTs, dataset.json with the lists training and test",
    find_msd,
    ("domain", "patient_pattern", "modality"),
)
NNUNET = Layout(
    "nnunet",
    "imagesTr/<case>_0000.<ext>, labelsTr/<case>.<ext>, imagesTs, dataset.json",
    find_nnunet,
    ("domain", "patient_pattern", "modality"),
)
