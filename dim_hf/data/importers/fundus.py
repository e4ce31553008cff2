"""Drishti-GS1 and RIM-ONE DL as their authors publish them: color fundus images with optic disc and cup."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dim_hf.data.archives import visible
from dim_hf.data.images import read_mask, read_picture
from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout
from dim_hf.data.importers.finding import PICTURES, base_folder, count_of, relative, remap, require_equal_size
from dim_hf.data.parallel import parallel_map
from dim_hf.data.patients import compile_pattern, patient_of
from dim_hf.data.trees import by_stem, child, files_in

DRISHTI_TREE = (
    "{Training,Test}/Images/[ALL,GLAUCOMA,NORMAL/]<id>.png with "
    "{Training,Test}/GT/<id>/SoftMap/<id>_{ODsegSoftmap,cupsegSoftmap}.png"
)
RIMONE_TREE = (
    "RIM-ONE_DL_images/partitioned_{randomly,by_hospital}/{training_set,test_set}/{glaucoma,normal}/<id>.png with "
    "RIM-ONE_DL_reference_segmentations/{glaucoma,normal}/<id>-1-{Disc,Cup}-T.png"
)
ID2LABEL = {0: "background", 1: "rim", 2: "cup"}
STRUCTURES = {"disc": [1, 2], "cup": [2]}
PARTITIONS = ("randomly", "by_hospital")
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""

_DIAGNOSES = ("glaucoma", "normal")
_AGREED = 255
# Shares of the four experts who marked a pixel, times 255, rounded either way.
_SOFT_VALUES = {value: int(value == _AGREED) for value in (0, 63, 64, 127, 128, 191, 192, _AGREED)}
_DRISHTI_FOLDERS = {"train": ("training", "train"), "test": ("test", "testing")}
_DRISHTI_REFERENCES = ("gt", "training_gt", "train_gt", "test_gt")
_RIMONE_FOLDERS = {"train": ("training_set", "train"), "test": ("test_set", "test")}
_RIMONE_REFERENCES = "rim-one_dl_reference_segmentations"
_RIMONE_REFERENCE = re.compile(r"^(.+)-1-(disc|cup)-t\.png$", re.IGNORECASE)
_RIMONE_RELEASE = re.compile(r"^(r[123])_", re.IGNORECASE)
# r3_N-81-L_left_half is the left eye of patient N-81; the other releases name images only.
_RIMONE_EYE = re.compile(r"^r3_([GNS]-\d+)-[LR](?:_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class _Scan:
    stem: str
    image: Path
    split: str
    diagnosis: str | None = None
    disc: Path | None = None
    cup: Path | None = None


def rim_and_cup(disc: np.ndarray, cup: np.ndarray) -> np.ndarray:
    """Class map of two nested structures.

    Args:
        disc: (H, W) boolean.
        cup: (H, W) boolean; what lies outside the disc is ignored.

    Returns:
        (H, W) uint8: 0 background, 1 rim (disc without cup), 2 cup.
    """
    return disc.astype(np.uint8) + (disc & cup)


def square_about(mask: np.ndarray, scale: float) -> Box:
    """The square about a structure.

    Args:
        mask: (H, W) boolean, not empty.
        scale: Side in units of the larger extent of the structure's bounding box.

    Returns:
        A square centered on the bounding box, shifted to lie within the image; its side is at most the image's
        smaller one.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = min(round(scale * extent), *mask.shape)
    # (first + last + 1) / 2 is the center; rounded down once, so that a shift of the structure shifts the square.
    corner = [
        min(max((int(found[0] + found[-1]) + 1 - side) // 2, 0), length - side)
        for found, length in ((columns, mask.shape[1]), (rows, mask.shape[0]))
    ]
    return corner[0], corner[1], corner[0] + side, corner[1] + side


def find_drishti(root: Path, options: ImportOptions) -> Found:
    """Find the images of Drishti-GS1 (`DRISHTI_TREE`).

    Disc and cup are the pixels that all four experts marked (soft map 255), as in its benchmark. Only the discs' soft
    maps are read here, since the crop is a column of the row.

    Args:
        root: Holds Training or Test, or a folder that does.
        options: `domain` (by default "drishti"), `patient_pattern` and `disc_crop` are used.

    Raises:
        ValueError: If a folder is missing, an image has one soft map of two, an id occurs twice, or `disc_crop` is
            neither 0 nor at least 1.
    """
    if not (options.disc_crop == 0 or 1 <= options.disc_crop < np.inf):
        raise ValueError(f"disc_crop must be 0 (whole images) or at least 1, got {options.disc_crop}")
    base = base_folder(root, _is_drishti, DRISHTI_TREE)
    pattern = compile_pattern(options.patient_pattern)
    scans, notes = _drishti_scans(base)
    boxes = _crop_boxes(scans, options.disc_crop)
    cases = [
        Case(
            domain=options.domain or "drishti",
            patient=patient_of(scan.image, scan.stem, pattern),
            name=scan.stem,
            split=scan.split,
            source=scan.image,
            read=partial(_read_drishti, scan, boxes.get(scan.stem)),
            copies=scan.stem not in boxes,
            columns=_columns(scan, root, crop_box=",".join(map(str, boxes.get(scan.stem) or ()))),
        )
        for scan in scans
    ]
    if options.disc_crop:
        notes.insert(
            0,
            f"images are cut to a square about the disc of the reference, {options.disc_crop:g} times its larger "
            "extent; crop_box is left,top,right,bottom in pixels of the source",
        )
    return _found(
        cases,
        {"no expert agreement": 0, "disc 255, cup below": 1, "disc and cup 255": 2},
        "training and test as published by Drishti-GS1",
        "Sivaswamy et al., Drishti-GS: retinal image dataset for optic nerve head segmentation, ISBI 2014",
        notes,
    )


def find_rimone(root: Path, options: ImportOptions) -> Found:
    """Find the images of RIM-ONE DL (`RIMONE_TREE`); its three releases, from different cameras, are the domains.

    Copies with `partitioned_<name>/images/{train,test}/` are read as well.

    Args:
        root: Holds the folders of images and of reference segmentations, or a folder that does.
        options: `partition` ("randomly" or "by_hospital"; by default the first that is there) and `patient_pattern`
            are used.

    Raises:
        ValueError: If a folder or the partition is missing, an image has a disc without a cup or a cup without a
            disc, a name has no release, or an id occurs twice.
    """
    base = base_folder(root, lambda folder: bool(_partitions(folder)), RIMONE_TREE)
    pattern = compile_pattern(options.patient_pattern)
    partition = _choose_partition(base, options.partition)
    scans, notes = _rimone_scans(base, _partitions(base)[partition])
    cases = []
    for scan in scans:
        release, eye = _RIMONE_RELEASE.match(scan.stem), _RIMONE_EYE.match(scan.stem)
        if release is None:
            raise ValueError(f"{scan.image} does not begin with its release, r1_, r2_ or r3_; rename or remove it")
        patient = eye.group(1) if eye and pattern is None else patient_of(scan.image, scan.stem, pattern)
        cases.append(
            Case(
                domain=f"rimone_{release.group(1).lower()}",
                patient=patient,
                name=scan.stem,
                split=scan.split,
                source=scan.image,
                read=partial(_read_rimone, scan),
                copies=True,
                columns=_columns(scan, root),
            )
        )
    return _found(
        cases,
        {"disc 0": 0, "disc 255, cup 0": 1, "disc 255, cup 255": 2},
        f"training and test set of RIM-ONE DL, partitioned {partition.replace('_', ' ')}",
        "Fumero et al., RIM-ONE DL: a unified retinal image database for assessing glaucoma using deep learning, "
        "Image Analysis & Stereology 2020",
        notes,
    )


DRISHTI_GS1 = Layout("drishti-gs1", DRISHTI_TREE, find_drishti, ("disc_crop", "patient_pattern", "domain"))
RIMONE_DL = Layout("rimone-dl", RIMONE_TREE, find_rimone, ("patient_pattern", "partition"))


def _found(cases: list[Case], values: dict[str, int], split_rule: str, origin: str, notes: list[str]) -> Found:
    return Found(
        cases=sorted(cases, key=lambda case: (case.domain, case.name)),
        id2label=dict(ID2LABEL),
        structures={name: list(classes) for name, classes in STRUCTURES.items()},
        label_values=values,
        num_channels=3,
        spatial_dims=2,
        split_rule=split_rule,
        origin=origin,
        notes=tuple(notes),
    )


def _columns(scan: _Scan, root: Path, **columns: str) -> dict[str, str]:
    known = {"source_file": relative(scan.image, root), "diagnosis": scan.diagnosis, **columns}
    return {name: value for name, value in known.items() if value}


def _images(folder: Path, split: str) -> Iterator[_Scan]:
    """The pictures of a folder and of its subfolders `all`, `glaucoma` and `normal`."""
    parts = {name: part for name in ("all", *_DIAGNOSES) if (part := child(folder, name))}
    found = by_stem(files_in(folder, PICTURES, skip=parts.values()), PICTURES, str(folder))
    if "all" in parts:
        found |= by_stem(files_in(parts["all"], PICTURES), PICTURES, str(parts["all"]))
    sorted_out = [path for name in _DIAGNOSES if name in parts for path in files_in(parts[name], PICTURES)]
    diagnosed = by_stem(sorted_out, PICTURES, str(folder))
    # A copy may hold an image both under ALL and under its diagnosis.
    for stem, path in sorted((diagnosed | found).items()):
        diagnosis = diagnosed[stem].parent.name.lower() if stem in diagnosed else None
        yield _Scan(stem, path, split, diagnosis)


def _refuse_twice(scans: Sequence[_Scan], root: Path) -> None:
    by_stem([scan.image for scan in scans], PICTURES, str(root))
    if not scans:
        raise ValueError(f"{root} holds no images; add them or name another folder")


def _remarks(scans: Sequence[_Scan], lonely: Sequence[str]) -> list[str]:
    unlabeled = sum(scan.disc is None for scan in scans)
    notes = [f"{count_of(unlabeled, 'image')} without a reference"] if unlabeled else []
    if lonely:
        notes.append(f"{count_of(len(lonely), 'reference')} without an image left out, such as {min(lonely)}")
    return notes


def _complete(scan: _Scan) -> _Scan:
    if (scan.disc is None) != (scan.cup is None):
        there, missing = (scan.disc, "cup") if scan.disc else (scan.cup, "disc")
        raise ValueError(f"{there} has no {missing} beside it for {scan.stem}; add that file or remove this one")
    return scan


def _is_drishti(folder: Path) -> bool:
    parts = [child(folder, *names) for names in _DRISHTI_FOLDERS.values()]
    return any(part is not None and child(part, "images") for part in parts)


def _drishti_scans(base: Path) -> tuple[list[_Scan], list[str]]:
    scans, lonely = [], []
    for split, names in _DRISHTI_FOLDERS.items():
        part = child(base, *names)
        if part is None:
            continue
        images = child(part, "images")
        if images is None:
            raise ValueError(f"{part} has no folder Images; the layout is {DRISHTI_TREE}")
        folder = child(part, *_DRISHTI_REFERENCES)
        references = {path.name.lower(): path for path in visible(folder) if path.is_dir()} if folder else {}
        found = list(_images(images, split))
        for scan in found:
            reference = references.pop(scan.stem.lower(), None)
            scans.append(_complete(_with_soft_maps(scan, reference)))
        lonely += [path.name for path in references.values()]
    _refuse_twice(scans, base)
    return scans, _remarks(scans, lonely)


def _with_soft_maps(scan: _Scan, reference: Path | None) -> _Scan:
    folder = child(reference, "softmap") if reference else None
    files = {path.name.lower(): path for path in visible(folder)} if folder else {}
    disc, cup = (files.get(f"{scan.stem}_{part}segsoftmap.png".lower()) for part in ("od", "cup"))
    return _Scan(scan.stem, scan.image, scan.split, scan.diagnosis, disc, cup)


def _crop_boxes(scans: Sequence[_Scan], scale: float) -> dict[str, Box]:
    def box(scan: _Scan) -> Box | None:
        try:
            return square_about(_agreed_disc(scan.disc), scale)
        except ValueError:  # reading the case will say so, beside the other broken ones
            return None

    labeled = [scan for scan in scans if scan.disc and scale]
    boxes = parallel_map(box, labeled, description="finding discs", unit="image", progress=sys.stderr.isatty())
    return {scan.stem: found for scan, found in zip(labeled, boxes, strict=True) if found}


def _agreed(file: Path) -> np.ndarray:
    """Where a soft map is 255: all experts marked the pixel."""
    return remap(read_mask(file), _SOFT_VALUES, file).astype(bool)


def _agreed_disc(file: Path) -> np.ndarray:
    disc = _agreed(file)
    if not disc.any():
        raise ValueError(f"{file}: no pixel is 255 (disc to all experts); copy the soft map again or remove it")
    return disc


def _read_drishti(scan: _Scan, box: Box | None) -> tuple[np.ndarray, np.ndarray | None]:
    pixels = read_picture(scan.image)
    if scan.disc is None:
        return pixels, None
    disc, cup = _agreed_disc(scan.disc), _agreed(scan.cup)
    for mask, file in ((disc, scan.disc), (cup, scan.cup)):
        require_equal_size(pixels, mask, scan.image, file)
    label = rim_and_cup(disc, cup)
    if box is None:
        return pixels, label
    left, top, right, bottom = box
    return np.ascontiguousarray(pixels[top:bottom, left:right]), np.ascontiguousarray(label[top:bottom, left:right])


def _partitions(folder: Path) -> dict[str, Path]:
    images = child(folder, "rim-one_dl_images") or folder
    return {name: part for name in PARTITIONS if (part := child(images, f"partitioned_{name}"))}


def _choose_partition(base: Path, wanted: str | None) -> str:
    there = _partitions(base)
    if wanted is None:
        return next(iter(there))
    if wanted not in there:
        raise ValueError(f"partition {wanted!r} is not in {base}; choose from {', '.join(there)}")
    return wanted


def _rimone_scans(base: Path, partition: Path) -> tuple[list[_Scan], list[str]]:
    folder = child(base, _RIMONE_REFERENCES)
    if folder is None:
        raise ValueError(
            f"{base} has no folder RIM-ONE_DL_reference_segmentations, which is an archive of its own; unpack it there"
        )
    references = _rimone_references(folder)
    images = child(partition, "images") or partition
    parts = {split: child(images, *names) for split, names in _RIMONE_FOLDERS.items()}
    if None in parts.values():
        missing = next(split for split, part in parts.items() if part is None)
        raise ValueError(f"{images} has no folder {_RIMONE_FOLDERS[missing][0]}; the layout is {RIMONE_TREE}")
    scans = []
    for split, part in parts.items():
        for scan in _images(part, split):
            files = references.pop(scan.stem.lower(), {})
            known = next(iter(files.values())).parent.name.lower() if files else scan.diagnosis
            scans.append(_complete(_Scan(scan.stem, scan.image, split, known, files.get("disc"), files.get("cup"))))
    _refuse_twice(scans, partition)
    return scans, _remarks(scans, list(references))


def _rimone_references(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by structure, by the image's stem in lower case; the contours beside them (.txt) are not needed."""
    references: dict[str, dict[str, Path]] = {}
    for diagnosis in _DIAGNOSES:
        part = child(folder, diagnosis)
        for path in visible(part) if part else ():
            match = _RIMONE_REFERENCE.match(path.name)
            if match is None:
                continue
            files = references.setdefault(match.group(1).lower(), {})
            structure = match.group(2).lower()
            if structure in files:
                raise ValueError(f"{folder} holds {path.name} twice: {files[structure]} and {path}; remove one")
            files[structure] = path
    return references


def _read_rimone(scan: _Scan) -> tuple[np.ndarray, np.ndarray | None]:
    pixels = read_picture(scan.image)
    if scan.disc is None:
        return pixels, None
    masks = []
    for file in (scan.disc, scan.cup):
        masks.append(remap(read_mask(file), {0: 0, 255: 1}, file).astype(bool))
        require_equal_size(pixels, masks[-1], scan.image, file)
    return pixels, rim_and_cup(*masks)
