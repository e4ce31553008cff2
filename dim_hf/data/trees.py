"""Walks folders of images and masks: sorted, without litter, folder names in upper or lower case."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dim_hf.data.archives import visible

IMAGE_FOLDERS = ("images", "image")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "segmentations", "segmentation")
MASK_ENDING = "_segmentation"  # of a mask beside its image, after the image's name
SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
PLAIN_TREE = "<domain>/{images,masks}/ or <domain>/{train,test}/{image,mask}/"


@dataclass(frozen=True)
class Formats:
    """The files that a folder may hold.

    Attributes:
        noun: What one file is called in errors, with its article.
        extensions: Lower case, with the dot; may have two parts.
        companions: Extensions of files that another file refers to, such as the voxels beside a header; skipped.
    """

    noun: str
    extensions: tuple[str, ...]
    companions: tuple[str, ...] = ()

    def accepts(self, path: Path) -> bool:
        """Whether the name ends in one of the extensions, in upper or lower case."""
        return path.name.lower().endswith(self.extensions)

    def stem(self, path: Path) -> str:
        """Name without its extension, the longest that fits."""
        fitting = [extension for extension in self.extensions if path.name.lower().endswith(extension)]
        return path.name[: -max(map(len, fitting))] if fitting else path.stem


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        stem: Common to both files.
        image: File of the image.
        mask: File of the mask, or None.
        domain: Name of the folder of the domain, or "".
        split: "train", "validation", "test" or "".
    """

    stem: str
    image: Path
    mask: Path | None
    domain: str = ""
    split: str = ""


def child(folder: Path, *names: str) -> Path | None:
    """The one subfolder that has one of `names` (lower case), in upper or lower case, or None.

    Raises:
        ValueError: If there are two.
    """
    found = [path for path in visible(folder) if path.name.lower() in names and path.is_dir()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def files_in(folder: Path, formats: Formats, skip: Iterable[Path] = ()) -> list[Path]:
    """The files of a folder, sorted.

    Args:
        folder: The folder.
        formats: What it may hold.
        skip: Paths in it that are something else, such as subfolders.

    Raises:
        ValueError: Naming the first that is of another format. Were it skipped silently, a mask in another format
            would turn its image into an unlabeled one.
    """
    skipped = set(skip)
    found = []
    for path in visible(folder):
        if path in skipped or (formats.companions and path.name.lower().endswith(formats.companions)):
            continue
        if not formats.accepts(path):
            raise ValueError(
                f"{path} is not {formats.noun} that can be read here ({', '.join(formats.extensions)}); "
                "convert or remove it"
            )
        found.append(path)
    return found


def by_stem(paths: Iterable[Path], formats: Formats, where: str) -> dict[str, Path]:
    """Files by their stems.

    Args:
        paths: The files.
        formats: Their formats.
        where: Subject of the error, e.g. "domain 'a'".

    Raises:
        ValueError: If a stem occurs twice.
    """
    found: dict[str, Path] = {}
    for path in paths:
        stem = formats.stem(path)
        if stem in found:
            raise ValueError(f"{where} has the stem {stem!r} twice: {found[stem]} and {path}; rename or remove one")
        found[stem] = path
    return found


def pairs_in(folder: Path, formats: Formats, tree: str) -> list[Pair]:
    """Images and masks of equal stem below a folder with an image folder and perhaps a mask folder.

    Args:
        folder: Holds `images` or `image`, and perhaps `masks` or `mask`.
        formats: Of images and masks.
        tree: The layout, for errors.

    Raises:
        ValueError: If the image folder is missing or empty, a file has another format, a mask has no image, or a stem
            occurs twice among the masks.
    """
    image_folder = child(folder, *IMAGE_FOLDERS)
    if image_folder is None:
        raise ValueError(f"{folder} has no folder {' or '.join(IMAGE_FOLDERS)}; the layout is {tree}")
    images = files_in(image_folder, formats)
    if not images:
        raise ValueError(f"{image_folder} is empty; add images ({', '.join(formats.extensions)}) or remove {folder}")
    mask_folder = child(folder, *MASK_FOLDERS)
    others = [path.name for path in visible(folder) if path.is_dir() and path not in (image_folder, mask_folder)]
    if others:  # masks under another name, perhaps: their images would become unlabeled ones
        raise ValueError(
            f"{folder} also holds the folder {others[0]!r}; if it holds the masks, call it masks, else move it away"
        )
    masks = by_stem(files_in(mask_folder, formats), formats, str(mask_folder)) if mask_folder else {}
    without_image = sorted(set(masks) - {formats.stem(path) for path in images})
    if without_image:
        raise ValueError(
            f"{masks[without_image[0]]} is a mask without an image in {image_folder} ({len(without_image)} such "
            "masks); add the image under the same stem or remove the mask"
        )
    return [Pair(stem, image, masks.get(stem)) for image in images for stem in [formats.stem(image)]]


def domain_pairs(root: Path, formats: Formats, domains: Sequence[str] | None = None) -> list[Pair]:
    """All pairs of the two plain layouts (`PLAIN_TREE`), sorted by domain and stem.

    Args:
        root: Holds a folder for each domain.
        formats: Of images and masks.
        domains: Read only these; without it every folder is one.

    Raises:
        ValueError: If there is no domain, a domain has neither layout or both, a stem occurs twice in a domain, or as
            `pairs_in`.
    """
    found: list[Pair] = []
    for folder in _domain_folders(root, domains):
        own = [
            replace(pair, domain=folder.name, split=split)
            for split, part in _parts(folder)
            for pair in pairs_in(part, formats, PLAIN_TREE)
        ]
        by_stem([pair.image for pair in own], formats, f"domain {folder.name!r}")
        found += sorted(own, key=lambda pair: pair.stem)
    return found


def _domain_folders(root: Path, domains: Sequence[str] | None) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder that holds a folder for each domain")
    folders = {path.name: path for path in visible(root) if path.is_dir()}
    if domains is not None:
        unknown = sorted(set(domains) - set(folders))
        if unknown:
            raise ValueError(f"{root} has no domains {unknown}; choose from {sorted(folders)}")
        folders = {name: folders[name] for name in domains}
    if not folders:
        raise ValueError(f"{root} holds no domain folders; the layout is {PLAIN_TREE}")
    if domains is None and {name.lower() for name in folders} <= {*IMAGE_FOLDERS, *MASK_FOLDERS, *SPLIT_FOLDERS}:
        raise ValueError(
            f"{root} holds {sorted(folders)}, so it looks like one domain; put it into a folder of its own "
            "(the domain's name) and give the folder above"
        )
    return [folders[name] for name in sorted(folders)]


def _parts(domain: Path) -> list[tuple[str, Path]]:
    """The (split, folder) pairs of a domain; a folder holds an image and perhaps a mask folder."""
    names = {path.name.lower(): path for path in visible(domain) if path.is_dir()}
    splits = [(split, names[name]) for name, split in SPLIT_FOLDERS.items() if name in names]
    flat = any(name in names for name in IMAGE_FOLDERS)
    if flat == bool(splits):
        found = sorted(path.name for path in visible(domain))
        problem = "both layouts at once" if flat else "an unknown layout"
        raise ValueError(
            f"{domain} has {problem} (it holds {found[:10]}); arrange it as {PLAIN_TREE}, or move the folder elsewhere"
        )
    return splits or [("", domain)]
