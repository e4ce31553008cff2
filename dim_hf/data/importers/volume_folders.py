"""Reads folders of volumes whose masks lie beside them: the prostate collections SAML and PROMISE12."""

import gzip
import os
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from dim_hf.data.archives import walk
from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout
from dim_hf.data.importers.finding import relative, remap
from dim_hf.data.patients import compile_pattern, patient_of
from dim_hf.data.trees import MASK_ENDING
from dim_hf.data.volumes.volume import Volume, is_volume_file, read_volume, volume_stem

NIFTI = (".nii", ".nii.gz")
_ID2LABEL = {0: "background", 1: "prostate"}
_SAML_VALUES = {0: 0, 1: 1, 2: 1}  # some sites mark the peripheral and the transition zone
_PROMISE12_VALUES = {0: 0, 1: 1}
_SAML_ORIGIN = "prostate MR of several sites, as Liu et al., SAML, MICCAI 2020, collected it"
_PROMISE12_ORIGIN = "PROMISE12 (Litjens et al., Medical Image Analysis 2014)"


def read_pair(
    image: Path, label: Path | None, label_values: Mapping[int, int], channel: int | None = None
) -> tuple[Volume, Volume | None]:
    """Read a volume and its mask, each with the affine of its own file.

    Args:
        image: A volume file.
        label: Its mask, or None.
        label_values: Value in the mask → class id.
        channel: Index of the channel to take from an image of four axes.

    Returns:
        The volume, and its label map (uint8) or None.

    Raises:
        ValueError: If a file cannot be read, or the mask holds another value.
    """
    volume = read_volume(image, channel=channel)
    if label is None:
        return volume, None
    mask = read_volume(label)
    return volume, Volume(remap(mask.array, label_values, label), mask.affine)


_HEADER_BYTES = 348  # of NIfTI-1
_UNKNOWN_UNIT, _MILLIMETERS = 0, 2  # of xyzt_units


def copies(image: Path) -> bool:
    """Whether a manifest can hold the file as it is: plain NIfTI of 3 axes in mm, packed if its name says so."""
    if not image.name.lower().endswith(NIFTI):
        return False
    is_gz = image.name.lower().endswith(".gz")
    try:
        with (gzip.open if is_gz else open)(image, "rb") as file:
            head = file.read(_HEADER_BYTES)  # not by a library, which would follow what the header promises
    except (OSError, EOFError):
        return False  # reading the case will say what is wrong
    if len(head) < _HEADER_BYTES or head[344:347] != b"n+1":
        return False
    order = "<" if int.from_bytes(head[:4], "little") == _HEADER_BYTES else ">"
    (axes,) = struct.unpack(f"{order}h", head[40:42])
    return axes == 3 and head[123] & 7 in (_UNKNOWN_UNIT, _MILLIMETERS)


def pair_up(paths: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """Pair the volumes of one folder with their masks, `<stem>_segmentation` in any case.

    Returns:
        (image, mask or None), sorted by the image's name.

    Raises:
        ValueError: If two files have one stem, or a mask has no image.
    """
    stems: dict[str, Path] = {}
    for path in sorted(paths):
        twin = stems.setdefault(volume_stem(path).casefold(), path)
        if twin is not path:
            raise ValueError(f"{path} and {twin} have one name; rename or remove one")
    masks = {stem.removesuffix(MASK_ENDING): stem for stem in stems if stem.endswith(MASK_ENDING)}
    for stem, mask in masks.items():
        if stem not in stems:
            raise ValueError(f"{stems[mask]} is a mask without an image; add the volume {stem} or remove the mask")
    images = [stem for stem in stems if not stem.endswith(MASK_ENDING)]
    return [(stems[stem], stems[masks[stem]] if stem in masks else None) for stem in sorted(images)]


def find_saml(root: Path, options: ImportOptions) -> Found:
    """Find the cases of SAML: each folder of volumes is a site, or `root` is the only one and the options name it.

    Args:
        root: Holds a folder for each site.
        options: `domain` (of a single site) and `patient_pattern` are used.

    Raises:
        ValueError: If there are no volumes, a mask has no image, or a name occurs twice.
    """
    root = Path(os.path.abspath(root))
    sites = _volume_folders(root)
    if root in sites and (len(sites) > 1 or options.domain is None):
        raise ValueError(
            f"{sites[root][0]} lies in no site's folder; give the folder that holds a folder for each site, or name "
            "the one site with --domain"
        )
    cases = []
    names: dict[str, Path] = {}
    for folder, paths in sites.items():
        name = (options.domain if folder == root else None) or folder.name
        if names.setdefault(name, folder) is not folder:
            raise ValueError(f"{folder} and {names[name]} are both site {name!r}; rename one")
        cases += [_case(root, pair, name, options, _SAML_VALUES) for pair in pair_up(paths)]
    return _found(cases, _SAML_VALUES, "nothing is published; the split is open", _SAML_ORIGIN, ())


def find_promise12(root: Path, options: ImportOptions) -> Found:
    """Find the cases of PROMISE12: those of the test set lie below a folder with "test" in its name.

    Their numbers repeat those of the training cases, so their names begin with `test_`.

    Args:
        root: Holds the volumes, in folders or not.
        options: `domain` and `patient_pattern` are used.

    Raises:
        ValueError: If there are no volumes, a mask has no image, or a name occurs twice.
    """
    root = Path(os.path.abspath(root))
    domain = options.domain or "promise12"
    cases: dict[str, Case] = {}
    for folder, paths in _volume_folders(root).items():
        is_test = any("test" in part.casefold() for part in folder.relative_to(root).parts)
        for pair in pair_up(paths):
            case = _case(root, pair, domain, options, _PROMISE12_VALUES, is_test)
            if cases.setdefault(case.name, case) is not case:
                raise ValueError(
                    f"{case.source} and {cases[case.name].source} are both case {case.name!r}; rename or remove one"
                )
    unlabeled = sum(name.startswith("test_") and not case.split for name, case in cases.items())
    notes = [f"{unlabeled} test cases have no mask, so they are unlabeled images and not scored"] * bool(unlabeled)
    rule = "cases of the test folder that have a mask are test; the others are open"
    return _found(list(cases.values()), _PROMISE12_VALUES, rule, _PROMISE12_ORIGIN, tuple(notes))


def _volume_folders(root: Path) -> dict[Path, list[Path]]:
    """The volumes below `root` by folder, sorted."""
    folders: dict[Path, list[Path]] = {}
    for path in walk(root):
        if is_volume_file(path):
            folders.setdefault(path.parent, []).append(path)
    if not folders:
        raise ValueError(f"{root} holds no volumes; the layout is {SAML.tree} or {PROMISE12.tree}")
    return folders


def _case(
    root: Path,
    pair: tuple[Path, Path | None],
    domain: str,
    options: ImportOptions,
    label_values: Mapping[int, int],
    is_test: bool = False,
) -> Case:
    image, label = pair
    stem, prefix = volume_stem(image), "test_" if is_test else ""
    return Case(
        domain=domain,
        patient=prefix + patient_of(image, stem, compile_pattern(options.patient_pattern)),
        name=prefix + stem,
        split="test" if is_test and label else "",
        source=image,
        read=partial(read_pair, image, label, label_values),
        copies=copies(image),
        columns={"source_file": relative(image, root)},
    )


def _found(
    cases: list[Case], label_values: Mapping[int, int], rule: str, origin: str, notes: tuple[str, ...]
) -> Found:
    return Found(
        cases=sorted(cases, key=lambda case: (case.domain, case.name)),
        id2label=dict(_ID2LABEL),
        structures={"prostate": [1]},
        label_values={str(value): index for value, index in label_values.items()},
        num_channels=1,
        spatial_dims=3,
        split_rule=rule,
        origin=origin,
        notes=notes,
    )


SAML = Layout(
    "saml", "<site>/CaseXX.nii.gz and <site>/CaseXX_segmentation.nii.gz", find_saml, ("domain", "patient_pattern")
)
PROMISE12 = Layout(
    "promise12",
    "CaseXX.mhd, CaseXX_segmentation.mhd; flat or in TrainingData and TestData",
    find_promise12,
    ("domain", "patient_pattern"),
)
