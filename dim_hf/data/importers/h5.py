"""Reads the HDF5 files of UA-MT and SSL4MIS: the left atrium of LA 2018, and the heart of ACDC."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.data.archives import walk
from dim_hf.data.description import NO_SPACING_NOTE
from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout, Pixels
from dim_hf.data.importers.finding import refuse_twins, relative, remap
from dim_hf.data.limits import MAX_DEFLATE_RATIO, MAX_PIXELS, MAX_VOXELS, READING, check_shape
from dim_hf.data.volumes.header import require
from dim_hf.data.volumes.volume import Volume

_TREE = "<case>/mri_norm2.h5, or patientXXX_frameYY.h5 and patientXXX_frameYY_slice_Z.h5; train.list, test.list"
_LA_FILE = "mri_norm2.h5"
_ACDC_STEM = re.compile(r"(?P<volume>(?P<patient>patient\d+)_frame\d+)(?:_slice_(?P<slice>\d+))?")
_LIST = re.compile(r"(train|val|test)(?:_slices)?\.list", re.IGNORECASE)
_LIST_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_MAX_LIST_BYTES = 2**24


@dataclass(frozen=True)
class _Collection:
    domain: str
    id2label: dict[int, str]
    slices_first: bool  # the arrays of volumes are stored as (Z, Y, X)
    origin: str


_LA = _Collection(
    domain="la2018",
    id2label={0: "background", 1: "left_atrium"},
    slices_first=False,
    origin="2018 Left Atrium Segmentation Challenge, as UA-MT (Yu et al., MICCAI 2019) prepared it",
)
_ACDC = _Collection(
    domain="acdc",
    id2label={0: "background", 1: "RV", 2: "MYO", 3: "LV"},
    slices_first=True,
    origin="ACDC (Bernard et al., IEEE TMI 2018), as SSL4MIS prepared it",
)


@dataclass(frozen=True)
class _File:
    path: Path
    patient: str
    name: str
    volume: str | None = None  # of a slice
    slice_number: int = 0


@dataclass(frozen=True)
class _Place:
    split: str
    order: int  # line of the list
    file: Path


def find_h5(root: Path, options: ImportOptions) -> Found:
    """Find the cases of LA 2018 or ACDC as UA-MT and SSL4MIS prepare them; no HDF5 file is opened.

    Volumes of LA keep their axes; those of ACDC, stored slice by slice, become (X, Y, Z). Neither stores voxel spacing
    or orientation: the affine is the identity. `slice_index` counts the slices of a volume from 0.

    Args:
        root: Holds the files; the lists lie in it or beside it.
        options: `domain` is used, and `partition`: "slices" (the default where there are any) or "volumes" of ACDC.

    Raises:
        ValueError: If there is no such file, one of another name, both collections, or a name or list twice.
    """
    require("h5py")
    root = Path(os.path.abspath(root))
    paths = list(walk(root))
    collection, everything = _collect([path for path in paths if path.suffix.lower() == ".h5"], root)
    refuse_twins((file.name, file.path) for file in everything)
    files, notes = _choose_slices(everything, options.partition, root)
    places, where = _read_lists(paths, root)
    domain = options.domain or collection.domain
    cases = [_case(file, root, domain, collection, places) for file in _numbered(files)]
    unplaced = sum(not case.split for case in cases)
    absent = set(places) - {name for file in everything for name in (file.name, file.volume)}
    if where and unplaced:
        notes.append(f"{unplaced} of {len(cases)} cases are in no list, so their split is open")
    if absent:
        notes.append(f"{len(absent)} names in the lists have no file here, such as {min(absent)}")
    if any("labeled_order" in case.columns for case in cases):
        notes.append("labeled_order is the place in the list of training cases, of which the field labels the first")
    return Found(
        cases=sorted(cases, key=lambda case: (case.domain, case.name)),
        id2label=dict(collection.id2label),
        structures={name: [index] for index, name in collection.id2label.items() if index},
        label_values={str(index): index for index in collection.id2label},
        num_channels=1,
        spatial_dims=2 if files[0].volume else 3,
        origin=collection.origin,
        split_rule=f"as {', '.join(where)} say" if where else "no list lies with the data; the split is open",
        notes=(
            *notes,
            NO_SPACING_NOTE,
        ),
    )


def _collect(paths: Sequence[Path], root: Path) -> tuple[_Collection, list[_File]]:
    if not paths:
        raise ValueError(f"{root} holds no .h5 file; the layout is {_TREE}")
    volumes = [_File(path, path.parent.name, path.parent.name) for path in paths if path.name == _LA_FILE]
    others = [path for path in paths if path.name != _LA_FILE]
    if volumes and others:
        raise ValueError(f"{root} holds both {_LA_FILE} (LA 2018) and {others[0]}; import one collection at a time")
    if volumes:
        return _LA, volumes
    return _ACDC, [_acdc_file(path) for path in others]


def _acdc_file(path: Path) -> _File:
    match = _ACDC_STEM.fullmatch(path.stem)
    if match is None:
        raise ValueError(f"{path} has a name of neither collection ({_TREE}); rename or remove it")
    volume = match["volume"] if match["slice"] else None
    return _File(path, match["patient"], path.stem, volume, int(match["slice"] or 0))


def _choose_slices(files: list[_File], partition: str | None, root: Path) -> tuple[list[_File], list[str]]:
    """One of slices and volumes, since a manifest holds either: the slices unless the user says otherwise."""
    if partition not in (None, "slices", "volumes"):
        raise ValueError(f"partition {partition!r} is unknown for {root}; choose slices or volumes")
    slices = [file for file in files if file.volume]
    volumes = [file for file in files if not file.volume]
    wanted = (slices or volumes) if partition is None else {"slices": slices, "volumes": volumes}[partition]
    if not wanted:
        raise ValueError(f"{root} holds no {partition}; choose the other partition or leave it out")
    if partition is None and slices and volumes:
        return slices, [f"the {len(slices)} slices were read; the {len(volumes)} volumes are partition volumes"]
    return wanted, []


def _numbered(files: Sequence[_File]) -> Iterator[tuple[_File, dict[str, Any]]]:
    """Each file with its columns; slices count from 0 within their volume, whatever the files' numbers start at."""
    first: dict[str, int] = {}
    for file in files:
        if file.volume:
            first[file.volume] = min(first.get(file.volume, file.slice_number), file.slice_number)
    for file in files:
        if file.volume:
            yield file, {"volume": file.volume, "slice_index": file.slice_number - first[file.volume]}
        else:
            yield file, {}


def _case(
    numbered: tuple[_File, dict[str, Any]],
    root: Path,
    domain: str,
    collection: _Collection,
    places: Mapping[str, _Place],
) -> Case:
    file, columns = numbered
    columns = {"source_file": relative(file.path, root), **columns}
    own = places.get(file.name)
    place = own or places.get(file.volume or "")
    if own and own.split == "train":
        columns = {**columns, "labeled_order": own.order}
    read: Callable[[], tuple[Pixels, Pixels | None]] = partial(_read, file, collection)
    split = place.split if place else ""
    return Case(domain, file.patient, file.name, split, file.path, read, has_spacing=False, columns=columns)


def _read_lists(paths: Sequence[Path], root: Path) -> tuple[dict[str, _Place], list[str]]:
    """Place of each listed name, and the names of the lists: those below `root`, or else those beside it."""
    found = [path for path in paths if _LIST.fullmatch(path.name)]
    for folder in (root.parent, root.parent.parent if root.name == "slices" else root.parent):
        found = found or sorted(path for path in folder.iterdir() if _LIST.fullmatch(path.name) and path.is_file())
    by_name: dict[str, Path] = {}
    places: dict[str, _Place] = {}
    for path in found:
        twin = by_name.setdefault(path.name.lower(), path)
        if twin is not path:
            raise ValueError(f"{path} and {twin} are both there; keep the list that counts")
        split = _LIST_SPLITS[_LIST.fullmatch(path.name)[1].lower()]
        for order, name in enumerate(_list_names(path)):
            old = places.setdefault(name, _Place(split, order, path))
            if old.split != split:
                raise ValueError(f"{path} and {old.file} both list {name!r}; a case has one split: remove it from one")
    return places, sorted(path.name for path in by_name.values())


def _list_names(path: Path) -> list[str]:
    """Names of a list, one a line, without the folders and endings that some copies write."""
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise ValueError(f"{path} is larger than a list of names can be ({_MAX_LIST_BYTES} bytes); remove it")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); write one case name a line") from error
    names = [line.strip().removesuffix(f"/{_LA_FILE}").removesuffix(".h5") for line in lines]
    return [name.rsplit("/", 1)[-1] for name in names if name]


def _read(file: _File, collection: _Collection) -> tuple[Pixels, Pixels | None]:
    h5py = require("h5py")
    ndim = 2 if file.volume else 3
    try:
        with h5py.File(file.path, "r") as source:
            image = _array(source, "image", ndim, file.path)
            if image is None:
                raise ValueError(f"{file.path} has no dataset 'image' (found: {sorted(source)[:10]}); replace it")
            label = _array(source, "label", ndim, file.path)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{file.path} cannot be read as HDF5 ({error}); fetch the file again") from error
    if label is not None and label.shape != image.shape:
        raise ValueError(
            f"{file.path}: image has shape {image.shape} and label {label.shape}; they must be equal: replace the file"
        )
    if image.dtype.kind == "f" or ndim == 2:
        image = image.astype(np.float32)
    if label is not None:
        label = remap(label, {index: index for index in collection.id2label}, file.path)
    if ndim == 2:
        return image, label
    return _volume(image, collection), None if label is None else _volume(label, collection)


def _volume(array: np.ndarray, collection: _Collection) -> Volume:
    return Volume(np.ascontiguousarray(array.T) if collection.slices_first else array, np.eye(4))


def _array(source: Any, key: str, ndim: int, path: Path) -> np.ndarray | None:
    """A dataset of numbers that lies in this very file; shape and type are checked before it is read."""
    h5py = require("h5py")
    name = key.encode()
    if not source.id.links.exists(name):
        return None
    # Looked at before it is followed: an external link would open any file that its author names.
    if source.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{path}: {key!r} is a link, which is not followed; store the array itself")
    data = source[key]
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise ValueError(f"{path}: {key!r} is no array; store it as a dataset of {ndim} dimensions")
    if data.is_virtual or data.external:
        raise ValueError(f"{path}: {key!r} takes its values from other files; store the array itself")
    if data.dtype.kind not in "biuf" or data.dtype.itemsize > 8:
        raise ValueError(f"{path}: {key!r} has values of type {data.dtype}; store integers or floats")
    if len(data.shape) != ndim or 0 in data.shape:
        raise ValueError(f"{path}: {key!r} has shape {data.shape}, but {ndim} dimensions are needed; replace the file")
    limit = MAX_VOXELS if ndim == 3 else MAX_PIXELS
    check_shape(data.shape, limit, path)
    if data.chunks:  # a whole chunk is decompressed even where the array is smaller
        check_shape(data.chunks, limit, path)
    stored = data.id.get_storage_size()
    if data.size * data.dtype.itemsize > MAX_DEFLATE_RATIO * max(stored, 1):
        raise ValueError(f"{path}: {key!r} promises {data.shape} values, but stores {stored} bytes; write it again")
    READING.charge(data.size * data.dtype.itemsize)
    return data[()]


SSL4MIS_H5 = Layout("ssl4mis-h5", _TREE, find_h5, ("partition", "domain"))
