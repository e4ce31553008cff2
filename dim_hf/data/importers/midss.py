"""The trees of MiDSS (CVPR 2024), in which the field keeps its Fundus and Prostate benchmarks of mixed domains."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from dim_hf.data.archives import visible
from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout
from dim_hf.data.importers.finding import PICTURES, base_folder, read_pictures, relative
from dim_hf.data.patients import compile_pattern, patient_of
from dim_hf.data.trees import Pair, by_stem, child, pairs_in

FUNDUS_TREE = "Domain{1..4}/{train,test}/ROIs/{image,mask}/*.png"
PROSTATE_TREE = "{BIDMC,BMC,HK,I2CVB,RUNMC,UCL}/{train,test}/{image,mask}/<case>_<slice>.png"
_FUNDUS_DOMAINS = {
    "Domain1": "drishti_gs",
    "Domain2": "rimone_r3",
    "Domain3": "refuge_train",
    "Domain4": "refuge_val",
}
_PROSTATE_DOMAINS = {site: site for site in ("BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL")}
_FUNDUS_VALUES = {255: 0, 128: 1, 0: 2}
_PROSTATE_VALUES = {255: 0, 0: 1}
_SPLITS = ("train", "test")
_SPLIT_RULE = "train and test as published by MiDSS"
_ORIGIN = (
    "Ma et al., Constructing and Exploring Intermediate Domains in Mixed Domain Semi-supervised Medical Image "
    "Segmentation, CVPR 2024"
)
# RIM-ONE r3 names an eye: G-10-L is the left one of patient G-10.
_EYE = re.compile(r"^([GNS]-\d+)-[LR]$")
_SLICE = re.compile(r"^(.+)_(\d+)$")


def find_fundus(root: Path, options: ImportOptions) -> Found:
    """Find the images of MiDSS's Fundus tree (`FUNDUS_TREE`), cropped to the disc by its authors.

    Args:
        root: Holds at least one of Domain1..Domain4, or a folder that does.
        options: `patient_pattern` is used.

    Raises:
        ValueError: If no domain is there, a part of one is missing, a mask has no image, or a name occurs twice.
    """
    base = base_folder(root, partial(_holds_domain, domains=_FUNDUS_DOMAINS), FUNDUS_TREE)
    pattern = compile_pattern(options.patient_pattern)
    cases = []
    for folder, pair in _pairs(base, _FUNDUS_DOMAINS, FUNDUS_TREE):
        patient = patient_of(pair.image, pair.stem, pattern)
        if pattern is None and pair.domain == "rimone_r3" and _EYE.match(pair.stem):
            patient = _EYE.match(pair.stem).group(1)
        cases.append(_case(pair, root, _FUNDUS_VALUES, patient, source_domain=folder))
    return Found(
        cases=sorted(cases, key=_order),
        id2label={0: "background", 1: "rim", 2: "cup"},
        structures={"disc": [1, 2], "cup": [2]},
        label_values=_recorded(_FUNDUS_VALUES),
        num_channels=3,
        spatial_dims=2,
        split_rule=_SPLIT_RULE,
        origin=f"{_ORIGIN}; images of Drishti-GS, RIM-ONE r3 and REFUGE",
        notes=_left_out(base, _FUNDUS_DOMAINS),
    )


def find_prostate(root: Path, options: ImportOptions) -> Found:
    """Find the slices of MiDSS's Prostate tree (`PROSTATE_TREE`).

    Args:
        root: Holds at least one of the six sites, or a folder that does.
        options: `patient_pattern` is used; it is searched in the name, such as `train_00_12`.

    Raises:
        ValueError: If no site is there, a part of one is missing, a mask has no image, or a name is not
            `<case>_<slice>`.
    """
    base = base_folder(root, partial(_holds_domain, domains=_PROSTATE_DOMAINS), PROSTATE_TREE)
    pattern = compile_pattern(options.patient_pattern)
    cases = []
    for _, pair in _pairs(base, _PROSTATE_DOMAINS, PROSTATE_TREE, number_anew=True):
        match = _SLICE.match(pair.stem)
        if match is None:
            raise ValueError(f"{pair.image} is not named <case>_<slice>, such as 00_12.png; rename or remove it")
        patient = match.group(1) if pattern is None else patient_of(pair.image, pair.stem, pattern)
        cases.append(_case(pair, root, _PROSTATE_VALUES, patient, slice_index=int(match.group(2))))
    return Found(
        cases=sorted(cases, key=_order),
        id2label={0: "background", 1: "prostate"},
        structures={"prostate": [1]},
        label_values=_recorded(_PROSTATE_VALUES),
        num_channels=1,
        spatial_dims=2,
        split_rule=_SPLIT_RULE,
        origin=f"{_ORIGIN}; slices of the six sites of Liu et al., SAML, MICCAI 2020",
        notes=(
            "cases are counted anew in train and in test: the names begin with the split, as train_00_12",
            *_left_out(base, _PROSTATE_DOMAINS),
        ),
    )


MIDSS_FUNDUS = Layout("midss-fundus", FUNDUS_TREE, find_fundus, ("patient_pattern",))
MIDSS_PROSTATE = Layout("midss-prostate", PROSTATE_TREE, find_prostate, ("patient_pattern",))


def _holds_domain(folder: Path, domains: Mapping[str, str]) -> bool:
    # By train or test too: a volume data set of the same sites has folders of the same names.
    found = [path for name in domains if (path := child(folder, name.lower()))]
    return any(child(path, split) for path in found for split in _SPLITS)


def _pairs(
    base: Path, domains: Mapping[str, str], tree: str, *, number_anew: bool = False
) -> Iterator[tuple[str, Pair]]:
    """Folder name and pair of every image; with `number_anew` the stems begin with the split."""
    for name, domain in domains.items():
        folder = child(base, name.lower())
        if folder is None:
            continue
        parts = [(split, part) for split in _SPLITS if (part := child(folder, split))]
        if not parts:
            raise ValueError(f"{folder} has no folder train or test; the layout is {tree}")
        found = []
        for split, part in parts:
            for pair in pairs_in(child(part, "rois") or part, PICTURES, tree):
                stem = f"{split}_{pair.stem}" if number_anew else pair.stem
                found.append(replace(pair, stem=stem, domain=domain, split=split))
        for group in _SPLITS if number_anew else [None]:
            images = [pair.image for pair in found if group in (None, pair.split)]
            by_stem(images, PICTURES, f"domain {domain!r}")
        yield from ((folder.name, pair) for pair in found)


def _case(pair: Pair, root: Path, values: Mapping[int, int], patient: str, **columns: str | int) -> Case:
    return Case(
        domain=pair.domain,
        patient=patient,
        name=pair.stem,
        split=pair.split,
        source=pair.image,
        read=partial(read_pictures, pair.image, pair.mask, values),
        copies=True,
        columns={"source_file": relative(pair.image, root), **columns},
    )


def _order(case: Case) -> tuple[str, str]:
    return case.domain, case.name


def _recorded(values: Mapping[int, int]) -> dict[str, int]:
    return {str(value): label for value, label in sorted(values.items())}


def _left_out(base: Path, domains: Mapping[str, str]) -> tuple[str, ...]:
    known = {name.lower() for name in domains}
    others = [path.name for path in visible(base) if path.is_dir() and path.name.lower() not in known]
    return (f"folders that are no domain of the layout were left out: {', '.join(others)}",) if others else ()
