"""Reads a folder for each domain, in the field's two plain layouts."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from dim_hf.data.rows import COLUMNS, row_features

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IMAGE_FOLDERS = ("images", "image")
MASK_FOLDERS = ("masks", "mask")
SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
LAYOUTS = "<domain>/{images,masks}/ or <domain>/{train,test}/{image,mask}/"
_LITTER = ("__macosx", "__pycache__", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path | None
    domain: str
    split: str


def read_folders(
    root: str | os.PathLike, *, patient: str | None = None, domains: Sequence[str] | None = None
) -> datasets.Dataset:
    r"""Read `<domain>/{images,masks}/` or `<domain>/{train,test}/{image,mask}/` below `root`.

    Each domain may have its own of the two layouts. Singular and plural folder names are both accepted, also `val`
    or `validation` beside `train` and `test`. An image and its mask have equal stems; an image without a mask is
    unlabeled, and the folder of masks may be missing. Nothing is decoded: the rows hold absolute paths. They are
    sorted by domain and name, whatever the order in which the file system lists them. Hidden files are skipped.

    Args:
        root: Folder that holds a folder for each domain.
        patient: Regular expression with one group, searched in the stem; the group is the patient, e.g.
            `r"^(.*)_\d+$"` for `<case>_<slice>`. Without it every image is a patient of its own.
        domains: Read only these domains; without it every folder is one.

    Returns:
        Rows with the columns `image`, `label` (None where there is no mask), `domain`, `patient`, `name` (the stem)
        and `split` (the folder's, or "").

    Raises:
        ValueError: If there is no domain, a domain has neither layout or both, a folder is empty, a file has another
            format, a mask has no image, a stem occurs twice in a domain, or `patient` is no pattern with one group
            or does not match.
    """
    root = Path(os.path.abspath(root))
    pattern = _compile(patient)
    table: dict[str, list] = {column: [] for column in COLUMNS}
    for folder in _domain_folders(root, domains):
        pairs = [pair for split, part in _parts(folder) for pair in _pairs(part, folder.name, split)]
        _refuse_duplicates([pair.image for pair in pairs], f"domain {folder.name!r}")
        for pair in sorted(pairs, key=lambda pair: pair.image.stem):
            values = (
                str(pair.image),
                str(pair.mask) if pair.mask else None,
                pair.domain,
                _patient_of(pair.image, pattern),
                pair.image.stem,
                pair.split,
            )
            for column, value in zip(COLUMNS, values, strict=True):
                table[column].append(value)
    return datasets.Dataset.from_dict(table, features=row_features(datasets.Image()))


def _compile(patient: str | None) -> re.Pattern | None:
    if patient is None:
        return None
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise ValueError(f"patient={patient!r} is not a regular expression ({error}); correct it") from error
    if pattern.groups != 1:
        raise ValueError(
            f"patient={patient!r} has {pattern.groups} groups; write exactly one, around the patient, "
            r"e.g. '^(.*)_\d+$' (use (?:...) for the others)"
        )
    return pattern


def _patient_of(image: Path, pattern: re.Pattern | None) -> str:
    if pattern is None:
        return image.stem
    match = pattern.search(image.stem)
    if match is None or not match.group(1):
        raise ValueError(
            f"{image}: the patient pattern {pattern.pattern!r} finds no patient in the stem {image.stem!r}; "
            "correct the pattern or rename the file"
        )
    return match.group(1)


def _domain_folders(root: Path, domains: Sequence[str] | None) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder that holds a folder for each domain")
    folders = {path.name: path for path in _visible(root) if path.is_dir()}
    if domains is not None:
        unknown = sorted(set(domains) - set(folders))
        if unknown:
            raise ValueError(f"{root} has no domains {unknown}; choose from {sorted(folders)}")
        folders = {name: folders[name] for name in domains}
    if not folders:
        raise ValueError(f"{root} holds no domain folders; the layout is {LAYOUTS}")
    if domains is None and {name.lower() for name in folders} <= {*IMAGE_FOLDERS, *MASK_FOLDERS, *SPLIT_FOLDERS}:
        raise ValueError(
            f"{root} holds {sorted(folders)}, so it looks like one domain; put it into a folder of its own "
            "(the domain's name) and give the folder above"
        )
    return [folders[name] for name in sorted(folders)]


def _parts(domain: Path) -> list[tuple[str, Path]]:
    """The (split, folder) pairs of a domain; a folder holds an image and perhaps a mask folder."""
    names = {path.name.lower(): path for path in _visible(domain) if path.is_dir()}
    splits = [(split, names[name]) for name, split in SPLIT_FOLDERS.items() if name in names]
    flat = any(name in names for name in IMAGE_FOLDERS)
    if flat == bool(splits):
        found = sorted(path.name for path in _visible(domain))
        problem = "both layouts at once" if flat else "an unknown layout"
        raise ValueError(
            f"{domain} has {problem} (it holds {found[:10]}); arrange it as {LAYOUTS}, "
            "or leave the folder out with domains=[...]"
        )
    return splits or [("", domain)]


def _pairs(folder: Path, domain: str, split: str) -> Iterator[_Pair]:
    image_folder = _only(folder, IMAGE_FOLDERS)
    if image_folder is None:
        raise ValueError(f"{folder} has no folder {' or '.join(IMAGE_FOLDERS)}; the layout is {LAYOUTS}")
    images = _files(image_folder)
    if not images:
        raise ValueError(f"{image_folder} is empty; add images ({', '.join(EXTENSIONS)}) or remove {folder}")
    mask_folder = _only(folder, MASK_FOLDERS)
    mask_files = _files(mask_folder) if mask_folder else []
    _refuse_duplicates(mask_files, str(mask_folder))
    masks = {path.stem: path for path in mask_files}
    without_image = sorted(set(masks) - {path.stem for path in images})
    if without_image:
        raise ValueError(
            f"{masks[without_image[0]]} is a mask without an image in {image_folder} ({len(without_image)} such "
            "masks); add the image under the same stem or remove the mask"
        )
    for image in images:
        yield _Pair(image, masks.get(image.stem), domain, split)


def _only(folder: Path, names: Sequence[str]) -> Path | None:
    found = [path for path in _visible(folder) if path.is_dir() and path.name.lower() in names]
    if len(found) > 1:
        raise ValueError(f"{folder} holds both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _files(folder: Path) -> list[Path]:
    files = _visible(folder)
    for path in files:
        if path.suffix.lower() not in EXTENSIONS:
            # Skipped silently, a mask in another format would turn its image into an unlabeled one.
            raise ValueError(
                f"{path} is not an image file that can be read here ({', '.join(EXTENSIONS)}); convert or remove it"
            )
    return files


def _refuse_duplicates(paths: Sequence[Path], where: str) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise ValueError(
                f"{where} has the stem {path.stem!r} twice: {seen[path.stem]} and {path}; rename or remove one"
            )
        seen[path.stem] = path


def _visible(folder: Path) -> list[Path]:
    names = [name for name in os.listdir(folder) if not name.startswith(".") and name.lower() not in _LITTER]
    return [folder / name for name in sorted(names)]
