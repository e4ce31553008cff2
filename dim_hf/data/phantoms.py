"""Multi-site phantoms: synthetic fundus photographs and pelvic MRI with exact labels and a domain gap.

They stand in for the data sets of the field where none is at hand: the same nesting of structures, number of sites
and grouping by patient. Nothing measured on them says anything about patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .phantom_fundus import CAMERAS, render_fundus
from .phantom_prostate import (
    SCANNERS,
    SLICES_PER_PATIENT,
    render_slice,
    render_volume,
    slice_spacing,
    volume_shape,
    volume_spacing,
)

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Phantom:
    """One kind of phantom.

    Args:
        name: the key in `PHANTOMS`.
        domains: sites, the one meant to be labeled first.
        id2label: exclusive classes of the label map.
        structures: classes of each scored structure; a structure may contain another.
        num_channels: channels of the image, 3 for RGB and 1 for grey.
        spatial_dims: 2 for images, 3 for volumes.
        minimum_size: smallest width in pixels at which every structure can be drawn.
        images_per_patient: consecutive images of a domain that share a patient.
        render: `render(domain, index, size, seed)` gives image and label map as arrays.
        spacing_mm: `spacing_mm(domain, size)` gives the sampling distances in millimetres, slowest axis first.
    """

    name: str
    domains: tuple[str, ...]
    id2label: dict[int, str]
    structures: dict[str, list[int]]
    num_channels: int
    spatial_dims: int
    minimum_size: int
    images_per_patient: int
    render: Callable[[str, int, int, int], tuple[np.ndarray, np.ndarray]]
    spacing_mm: Callable[[str, int], tuple[float, ...]] | None = None


PHANTOMS: dict[str, Phantom] = {
    phantom.name: phantom
    for phantom in (
        Phantom(
            name="fundus",
            domains=tuple(CAMERAS),
            id2label={0: "background", 1: "rim", 2: "cup"},
            structures={"disc": [1, 2], "cup": [2]},
            num_channels=3,
            spatial_dims=2,
            minimum_size=32,
            images_per_patient=1,
            render=render_fundus,
        ),
        Phantom(
            name="prostate",
            domains=tuple(SCANNERS),
            id2label={0: "background", 1: "gland"},
            structures={"gland": [1]},
            num_channels=1,
            spatial_dims=2,
            minimum_size=32,
            images_per_patient=SLICES_PER_PATIENT,
            render=render_slice,
            spacing_mm=slice_spacing,
        ),
        Phantom(
            name="prostate_3d",
            domains=tuple(SCANNERS),
            id2label={0: "background", 1: "gland"},
            structures={"gland": [1]},
            num_channels=1,
            spatial_dims=3,
            minimum_size=16,
            images_per_patient=1,
            render=render_volume,
            spacing_mm=volume_spacing,
        ),
    )
}


def get_phantom(kind: str) -> Phantom:
    """Return the record of one kind.

    Raises:
        ValueError: the kind is unknown; the message lists the known ones.
    """
    if kind not in PHANTOMS:
        raise ValueError(f"unknown phantom kind {kind!r}; choose one of {', '.join(PHANTOMS)}")
    return PHANTOMS[kind]


def split_of(patient: int, test_fraction: float, validation_fraction: float = 0.0) -> str:
    """Split of a patient: test and validation patients are spread evenly and do not depend on how many there are.

    Args:
        patient: number of the patient within its domain.
        test_fraction: share of all patients whose split is "test".
        validation_fraction: share of all patients whose split is "validation".

    Returns:
        "train", "validation" or "test".
    """

    def count(share: float, patients: int) -> int:
        # The small term keeps 10 × 0.1 from falling below 1.
        return int(np.floor(patients * share + 1e-9))

    if count(test_fraction, patient + 1) > count(test_fraction, patient):
        return "test"
    rank = patient - count(test_fraction, patient)
    share = validation_fraction / (1 - test_fraction)
    return "validation" if count(share, rank + 1) > count(share, rank) else "train"


def render_phantom(kind: str, *, domain: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one image and its label map, equal to row `index` of `domain` in `make_phantom`.

    Args:
        kind: a key of `PHANTOMS`.
        domain: one of the kind's domains.
        index: number of the image within the domain, from 0.
        size: width and height in pixels; volumes have a quarter as many slices, at least 8.
        seed: seed of the whole phantom, at least 0.

    Returns:
        The image: uint8 (H, W, 3) for `fundus`, uint8 (H, W) for `prostate`, float32 (D, H, W) in [0, 1] for
        `prostate_3d`; and the label map: uint8 class ids over the same positions.

    Raises:
        ValueError: unknown kind or domain, a size below the kind's minimum, a negative index or seed.
    """
    phantom = get_phantom(kind)
    _check(phantom, domains=[domain], size=size, seed=seed)
    if index < 0:
        raise ValueError(f"index is {index}; images of a domain are numbered from 0")
    return phantom.render(domain, index, size, seed)


def _check(phantom: Phantom, domains: Sequence[str], size: int, seed: int) -> None:
    unknown = [domain for domain in domains if domain not in phantom.domains]
    if unknown:
        raise ValueError(f"{phantom.name} has no domain {unknown[0]!r}; choose from {', '.join(phantom.domains)}")
    if size < phantom.minimum_size:
        raise ValueError(f"size is {size}; {phantom.name} needs at least {phantom.minimum_size} pixels")
    if seed < 0:
        raise ValueError(f"seed is {seed}; use an integer of at least 0")


def _check_amounts(
    phantom: Phantom, images: int, domains: Sequence[str], test_fraction: float, validation_fraction: float
) -> None:
    if images < 1:
        raise ValueError(f"images_per_domain is {images}; use at least 1")
    if isinstance(domains, str) or not domains or len(set(domains)) < len(domains):
        raise ValueError(f"domains is {domains!r}; give a list of different domains of {', '.join(phantom.domains)}")
    for name, share in (("test_fraction", test_fraction), ("validation_fraction", validation_fraction)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} is {share}; use a share of the patients in [0, 1)")
    if test_fraction + validation_fraction >= 1:
        raise ValueError(
            f"test_fraction {test_fraction} and validation_fraction {validation_fraction} leave no patient to train "
            "on; their sum must be below 1"
        )


def make_phantom(
    kind: str,
    *,
    images_per_domain: int,
    size: int,
    seed: int,
    domains: Sequence[str] | None = None,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.0,
) -> datasets.Dataset:
    """Render a multi-site phantom as rows.

    An image depends on seed, kind, domain and its number only: asking for more images, fewer domains or another split
    changes none of them. Splits are by patient, and patients never cross domains.

    Args:
        kind: a key of `PHANTOMS`.
        images_per_domain: images of each domain over all splits; slices of `prostate` come in patients of
            `SLICES_PER_PATIENT`.
        size: width and height in pixels; volumes have a quarter as many slices, at least 8.
        seed: seed of the whole phantom, at least 0.
        domains: domains to render, in this order; all of the kind when None.
        test_fraction: share of each domain's patients in the split "test".
        validation_fraction: share of each domain's patients in the split "validation".

    Returns:
        Rows `image`, `label`, `domain`, `patient`, `name`, `split`, domain after domain. Images are `datasets.Image`,
        volumes `datasets.Array3D` of shape (D, H, W). The prostate kinds have `spacing_mm`, one number an axis.

    Raises:
        ValueError: unknown kind or domain, a size below the kind's minimum, a negative seed, no image, or shares that
            leave no patient to train on.
    """
    phantom = get_phantom(kind)
    domains = phantom.domains if domains is None else domains
    _check_amounts(phantom, images_per_domain, domains, test_fraction, validation_fraction)
    _check(phantom, domains, size, seed)
    columns: dict[str, list] = {name: [] for name in ("image", "label", "domain", "patient", "name", "split")}
    for domain in domains:
        for index in range(images_per_domain):
            patient, number = divmod(index, phantom.images_per_patient)
            image, label = phantom.render(domain, index, size, seed)
            name = f"case{patient:04d}" + (f"_{number}" if phantom.images_per_patient > 1 else "")
            split = split_of(patient, test_fraction, validation_fraction)
            values = (image, label, domain, f"{domain}_{patient:04d}", name, split)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return _as_dataset(phantom, columns, size)


def _as_dataset(phantom: Phantom, columns: dict[str, list], size: int) -> datasets.Dataset:
    import datasets

    from .rows import row_features

    if phantom.spatial_dims == 3:
        shape = volume_shape(size)
        features = row_features(datasets.Array3D(shape, "float32"), datasets.Array3D(shape, "uint8"))
    else:
        features = row_features(datasets.Image())
    if phantom.spacing_mm is not None:
        columns["spacing_mm"] = [list(phantom.spacing_mm(domain, size)) for domain in columns["domain"]]
        features["spacing_mm"] = datasets.List(datasets.Value("float32"), length=phantom.spatial_dims)
    return datasets.Dataset.from_dict(columns, features=features)
