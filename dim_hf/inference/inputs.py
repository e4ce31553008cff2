"""Finds what is to be predicted: files, folders, manifests, DICOM series; nothing is decoded before its turn."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from dim_hf.data.archives import is_litter
from dim_hf.data.images import EXTENSIONS, read_picture
from dim_hf.data.importers.writer import safe_name
from dim_hf.data.limits import MAX_FILES
from dim_hf.data.manifest import find_manifest, read_manifest
from dim_hf.data.rows import column_view
from dim_hf.data.texts import printable
from dim_hf.data.trees import IMAGE_FOLDERS, MASK_FOLDERS
from dim_hf.data.volumes.header import require
from dim_hf.data.volumes.locales import kept_locale
from dim_hf.data.volumes.volume import (
    VOLUME_EXTENSIONS,
    Volume,
    find_dicom_series,
    is_volume_file,
    read_dicom_series,
    read_volume,
    volume_stem,
)
from dim_hf.inference.left_out import MASKS, holds_voxels, kind_of, masks_beside

_DICOM_EXTENSIONS = (".dcm", ".dicom", ".ima")
_DICOM_MAGIC = b"DICM"
_MAGIC_AT = 128
_LONGEST = 120  # characters of a part of a path that is written
_MAP_ENDING = re.compile(r"\.(prob\d+|uncertainty)$")
READ_HERE = ", ".join((*EXTENSIONS, *VOLUME_EXTENSIONS, "DICOM series"))


@dataclass(frozen=True)
class Case:
    """One image or volume to predict.

    Attributes:
        name: What it is called: its path below the input, or domain/name of a manifest.
        files: Its file, or those of a DICOM series.
        target: Path of its mask below the output, without extension; safe to write.
        spacing_mm: Of a picture, where a manifest states it.
    """

    name: str
    files: tuple[Path, ...]
    target: str
    spacing_mm: tuple[float, ...] | None = None

    @property
    def is_series(self) -> bool:
        """Whether the files are DICOM slices."""
        return _extension(self.files[0]) not in (*EXTENSIONS, *VOLUME_EXTENSIONS)

    @property
    def is_picture(self) -> bool:
        """Whether it is a file of one picture."""
        return _extension(self.files[0]) in EXTENSIONS

    def read(self, channel: int | None = None) -> np.ndarray | Volume:
        """Decode it.

        Args:
            channel: Of a volume that has several.

        Raises:
            ValueError: If it cannot be read.
        """
        if self.is_series:
            return read_dicom_series(self.files)
        return read_picture(self.files[0]) if self.is_picture else read_volume(self.files[0], channel=channel)


@dataclass
class Found:
    """What an input holds.

    Attributes:
        cases: In the order of their names.
        faults: Name and sentence of what looked like an image and is none.
        left_out: Number of files of other kinds, by `left_out.kind_of`, and of masks beside images.
    """

    cases: list[Case] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def ignored(self) -> int:
        """Number of all files that were left out."""
        return sum(self.left_out.values())


def read_image(path: Path, channel: int | None = None) -> np.ndarray | Volume:
    """Decode the one image that a path names: a file, or a folder of one DICOM series.

    Raises:
        ValueError: If there is none, or the folder holds several series.
    """
    if not path.is_dir():
        return _single(path).read(channel)
    series = list(find_dicom_series(path).values())
    if len(series) != 1:
        raise ValueError(f"{path} holds {len(series)} DICOM series; give the folder of one, or a file")
    return read_dicom_series(series[0])


def find_cases(source: str | os.PathLike, leave_out: Path | None = None) -> Found:
    """Everything below `source` that can be predicted.

    A manifest, or a folder that holds one, gives its images. Of another folder all pictures, volumes and DICOM series
    are taken, at any depth, in the order of their names; folders of masks beside folders of images are not, nor masks
    `<name>_segmentation` beside the image `<name>`.

    Args:
        source: File, folder or manifest.
        leave_out: Folder below it that holds no input, such as the output.

    Raises:
        ValueError: If there is nothing of that name, or nothing to predict in it.
    """
    source = Path(source).expanduser()
    manifest = find_manifest(source)
    if manifest is not None:
        found = Found(list(_of_manifest(manifest)))
    elif source.is_dir():
        found = _of_folder(source, leave_out)
    elif source.is_file():
        found = Found([_single(source)])
    else:
        raise ValueError(f"{source} does not exist; give a file, a folder or a manifest")
    if not found.cases and not found.faults:
        raise ValueError(f"{source} holds nothing to predict; read here are {READ_HERE}")
    return replace(found, cases=_without_clashes(found.cases))


def safe_target(parts: Iterable[str]) -> str:
    """Path of an output that cannot leave its folder, whatever the names of the input are.

    >>> safe_target(["site 1", "scan.7"]).split("_")[0], safe_target(["..", "a"]).endswith("/a")
    ('site', True)
    """
    return str(PurePosixPath(*(_shortened(safe_name(part)) for part in parts)))


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}_{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def _extension(path: Path) -> str:
    name = path.name.lower()
    return max((end for end in (*EXTENSIONS, *VOLUME_EXTENSIONS) if name.endswith(end)), key=len, default="")


def _stem(path: Path) -> str:
    return volume_stem(path) if is_volume_file(path) else path.stem


def _case(path: Path, name: str) -> Case:
    parts = PurePosixPath(name).parts
    return Case(name, (path,), safe_target((*parts[:-1], _stem(path))))


def _single(path: Path) -> Case:
    if path.is_file() and not _extension(path) and not _looks_like_dicom(path):
        raise ValueError(f"{path} is no image that can be read here ({READ_HERE}); convert it")
    return _case(path, path.name)


def _of_manifest(manifest: Path) -> Iterator[Case]:
    rows = read_manifest(manifest)
    files = column_view(rows, "image", decode=False)
    spacings = rows["spacing_mm"] if "spacing_mm" in rows.column_names else [None] * len(rows)
    for domain, name, file, spacing in zip(rows["domain"], rows["name"], files["image"], spacings, strict=True):
        target = safe_target((domain, *PurePosixPath(name.replace("\\", "/").lstrip("/")).parts))
        yield Case(f"{domain}/{name}", (Path(file["path"]),), target, tuple(spacing) if spacing else None)


def _of_folder(root: Path, leave_out: Path | None) -> Found:
    found = Found()
    slices: dict[Path, list[Path]] = {}
    for number, path in enumerate(_files(root, root.resolve(), leave_out, found), start=1):
        if number > MAX_FILES:
            raise ValueError(f"{root} holds more than {MAX_FILES} files; give a folder further down")
        if _extension(path):
            found.cases.append(_case(path, path.relative_to(root).as_posix()))
        elif _looks_like_dicom(path):
            slices.setdefault(path.parent, []).append(path)
        else:
            found.left_out[kind_of(path.name)] += 1
    if slices:
        found.cases += _series_cases(root, slices, found)
    found.cases.sort(key=lambda case: PurePosixPath(case.name).parts)
    return found


def _files(folder: Path, real_root: Path, leave_out: Path | None, found: Found) -> Iterator[Path]:
    """The files below a folder, sorted; what cannot be entered or named is a fault of its own and stops nothing."""
    try:
        names = sorted(name for name in os.listdir(folder) if not is_litter(name))
    except OSError as error:
        found.faults.append((str(folder), f"{folder} cannot be listed ({error.strerror}); allow it to be read"))
        return
    has_images = any(name.lower() in IMAGE_FOLDERS for name in names)
    masks = masks_beside({name: _stem(Path(name)) for name in names if _extension(Path(name))})
    for name in names:
        path = folder / name
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            found.faults.append((printable(path), f"{printable(path)} has a name that is no text in UTF-8; rename it"))
        elif path.is_dir():
            real = path.resolve()
            if path.is_symlink() and (not real.is_relative_to(real_root) or folder.resolve().is_relative_to(real)):
                found.faults.append((str(path), f"{path} is a link out of the folder, or in a circle; remove it"))
            elif has_images and name.lower() in MASK_FOLDERS:
                found.left_out[MASKS] += sum(len(files) for _, _, files in os.walk(path))
            elif leave_out is None or real != leave_out.resolve():
                yield from _files(path, real_root, leave_out, found)
        elif path.is_file() and name in masks:
            found.left_out[MASKS] += 1
        elif path.is_file():
            if not holds_voxels(name, names):
                yield path
        elif path.is_symlink():
            found.faults.append((str(path), f"{path} is a link that leads nowhere; correct or remove it"))


def _looks_like_dicom(path: Path) -> bool:
    if path.suffix.lower() in _DICOM_EXTENSIONS:
        return True
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + len(_DICOM_MAGIC))[_MAGIC_AT:] == _DICOM_MAGIC
    except OSError:
        return False


def _series_cases(root: Path, slices: dict[Path, list[Path]], found: Found) -> list[Case]:
    """A case for each DICOM series, named after its folder, and its number where a folder holds several."""
    of_series = _find_series(slices)
    known = {path for files in of_series.values() for path in files}
    for files in slices.values():
        for path in files:
            if path not in known:
                name = path.relative_to(root).as_posix()
                found.faults.append((name, f"{path} is no DICOM image that can be read; copy it again or remove it"))
    homes = {uid: Path(os.path.commonpath([path.parent for path in files])) for uid, files in of_series.items()}
    named = {uid: home.relative_to(root).parts or (root.resolve().name or "series",) for uid, home in homes.items()}
    several = Counter(named.values())
    cases = []
    for uid, files in of_series.items():
        parts = named[uid]
        if several[parts] > 1:
            parts = (*parts[:-1], f"{parts[-1]}_{uid}")
        cases.append(Case("/".join(parts), tuple(files), safe_target(parts)))
    return cases


@kept_locale()
def _find_series(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Series number → files, over folders that hold DICOM files; a damaged file belongs to none."""
    sitk = require("SimpleITK")
    reader = sitk.ImageSeriesReader
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    of_series: dict[str, list[Path]] = {}
    for folder in folders:
        for uid in reader.GetGDCMSeriesIDs(str(folder)):
            names = reader.GetGDCMSeriesFileNames(str(folder), uid)
            of_series.setdefault(uid, []).extend(sorted(map(Path, names)))
    return of_series


def _without_clashes(cases: Sequence[Case]) -> list[Case]:
    """The same cases; targets that are equal but for case, or look like a map of another one, get a short hash."""
    count = Counter(case.target.casefold() for case in cases)
    return [
        replace(case, target=f"{case.target}_{_digest(case.name)}")
        if count[case.target.casefold()] > 1 or _MAP_ENDING.search(case.target)
        else case
        for case in cases
    ]
