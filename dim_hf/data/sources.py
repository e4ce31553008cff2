"""One name for any data: a phantom, a manifest, a folder, or a data set of the Hub."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets

from dim_hf.data.description import FILE_NAME, DatasetDescription, read_description
from dim_hf.data.folders import read_folders
from dim_hf.data.hub.load import load_hub_dataset
from dim_hf.data.manifest import find_manifest, read_manifest
from dim_hf.data.phantoms import PHANTOMS, make_phantom
from dim_hf.metrics.cases import default_structures

PHANTOM_PREFIX = "phantom:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """Rows, and what they mean.

    Attributes:
        rows: The rows.
        description: Their classes and more.
        is_described: Whether the data came with a description; otherwise it is what the caller said, or a guess.
    """

    rows: datasets.Dataset
    description: DatasetDescription
    is_described: bool = True


@dataclass(frozen=True)
class PhantomOptions:
    """Number, size and seed of a phantom's images."""

    images_per_domain: int = 60
    size: int = 128
    seed: int = 0


def load_source(
    dataset: str,
    *,
    class_names: Sequence[str] | None = None,
    structures: dict[str, list[int]] | None = None,
    patient_pattern: str | None = None,
    phantom: PhantomOptions = PhantomOptions(),
) -> Source:
    """Read the rows that `dataset` names; no image is decoded.

    What is on this machine comes first: a manifest, a folder that holds one, a folder of domains. A name of the form
    `org/name` or `org/name@revision` that is neither is a data set of the Hub.

    Args:
        dataset: `phantom:fundus`, `phantom:prostate`, `phantom:prostate_3d`; a manifest (.csv, .parquet) or a folder
            that holds one; a folder as `folders.read_folders` reads it; or a data set of the Hub.
        class_names: Names of the classes 0..K-1 where the data come without a description; background and foreground
            when None. With a description, they must be as many as its classes and rename them.
        structures: Nested structures; by default the description's, or each class but the first by itself.
        patient_pattern: See `folders.read_folders`; folders only.
        phantom: For phantoms only.

    Raises:
        ValueError: If nothing of that name is found, it cannot be read, or names and structures do not fit it.
    """
    if dataset.startswith(PHANTOM_PREFIX):
        return _phantom(dataset.removeprefix(PHANTOM_PREFIX), phantom)
    rows, description = _rows_and_description(dataset, patient_pattern)
    described = _described(rows, description, class_names, structures, dataset)
    return Source(rows, described, is_described=description is not None)


def _phantom(kind: str, options: PhantomOptions) -> Source:
    rows = make_phantom(kind, images_per_domain=options.images_per_domain, size=options.size, seed=options.seed)
    phantom = PHANTOMS[kind]
    return Source(
        rows,
        DatasetDescription(
            phantom.id2label,
            phantom.structures,
            phantom.num_channels,
            phantom.spatial_dims,
            source=["drawn by dim_hf"],
        ),
    )


def _rows_and_description(
    dataset: str, patient_pattern: str | None
) -> tuple[datasets.Dataset, DatasetDescription | None]:
    try:
        path = Path(dataset).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"dataset {dataset!r} lies in the home of a user who is not known here; correct it"
        ) from error
    manifest = find_manifest(path)
    if manifest:
        beside = manifest.parent / FILE_NAME
        return read_manifest(manifest), read_description(beside) if beside.is_file() else None
    if path.is_dir():
        return read_folders(path, patient=patient_pattern), None
    if _HUB_NAME.fullmatch(dataset) and not path.exists():
        name, _, revision = dataset.partition("@")
        try:
            return load_hub_dataset(name, revision=revision or None)
        except ConnectionError as error:  # perhaps a folder was meant
            raise ConnectionError(f"there is no folder {dataset} here, and {error}") from error
    raise ValueError(
        f"dataset {dataset!r} is neither a manifest (.csv, .parquet), nor a folder, nor a data set of the Hub "
        "(org/name), nor a phantom (phantom:fundus); correct the name, or make a manifest with `dim-hf import`"
    )


def _described(
    rows: datasets.Dataset,
    description: DatasetDescription | None,
    class_names: Sequence[str] | None,
    structures: dict[str, list[int]] | None,
    dataset: str,
) -> DatasetDescription:
    """The description, with what the user says differently."""
    if description is None:
        id2label = dict(enumerate(class_names or ("background", "foreground")))
        is_volume = not isinstance(rows.features["image"], datasets.Image)
        description = DatasetDescription(
            id2label,
            default_structures(id2label),
            num_channels=1 if is_volume else 3,
            spatial_dims=3 if is_volume else 2,
            intensity="zscore" if is_volume else "range",
        )
    elif class_names is not None:
        if len(class_names) != description.num_labels:
            raise ValueError(
                f"{dataset} has the {description.num_labels} classes {list(description.id2label.values())}; give as "
                f"many class_names or none, not {list(class_names)}"
            )
        description = replace(description, id2label=dict(enumerate(class_names)))
    return replace(description, structures=structures) if structures else description
