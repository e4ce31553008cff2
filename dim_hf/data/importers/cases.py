"""What an importer finds in a layout, before any pixel is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.data.volumes.volume import Volume

Pixels = np.ndarray | Volume
"""A picture (H, W) or (H, W, 3), uint8 or uint16; or a volume."""


@dataclass(frozen=True)
class ImportOptions:
    """Choices of a user that change what is found or read; a layout ignores those that mean nothing to it.

    Attributes:
        domain: Name of the domain, for layouts that hold one; the layout's own default when None.
        patient_pattern: Regular expression with one group that finds the patient in a file's stem.
        class_names: Names of the classes 0..K-1, where the layout does not state them.
        structures: Nested structures, where the layout does not state them.
        label_map: Value in the masks → class id, where the layout does not state it.
        disc_crop: Side of the square cut about the optic disc, in units of the disc's larger extent; 0 keeps the
            whole image. Used by `drishti-gs1`.
        partition: Which published partition is read, e.g. "randomly" or "by_hospital" of RIM-ONE DL.
        modality: Index of the channel that is imported from images of several (nnU-Net, MSD), or None.
    """

    domain: str | None = None
    patient_pattern: str | None = None
    class_names: list[str] | None = None
    structures: dict[str, list[int]] | None = None
    label_map: dict[int, int] | None = None
    disc_crop: float = 1.42
    partition: str | None = None
    modality: int | None = None


@dataclass(frozen=True)
class Case:
    """One image or volume of a layout, with its label map where it has one.

    Attributes:
        domain: Scanner, site or cohort.
        patient: The patient, or the case's own name where patients are unknown.
        name: Unique within the domain.
        split: "train", "validation", "test", or "" where nothing is published.
        source: The file or folder that the image comes from; named in every error.
        read: Returns image and label map, the label map uint8 of the image's spatial shape with the classes
            0..K-1 (255: ignored), or None where there is none. Raises `ValueError` naming file, value and fix.
        copies: The image file may be taken as it is, byte for byte (a picture in a format of `images.EXTENSIONS`, or a
            NIfTI file), since `read` returns its pixels unchanged.
        has_spacing: A volume knows the size of its voxels; otherwise its affine is made up, and the row states none.
        columns: Free columns of the row, e.g. `{"source_file": "drishtiGS_001.png", "diagnosis": "glaucoma"}`.
    """

    domain: str
    patient: str
    name: str
    split: str
    source: Path
    read: Callable[[], tuple[Pixels, Pixels | None]]
    copies: bool = False
    has_spacing: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """All cases of a source, and what its masks mean.

    Attributes:
        cases: In a stated order, sorted by domain and name.
        id2label: Classes after remapping.
        structures: Nested structures that are scored.
        label_values: Value in the source's masks → class id, as it is recorded.
        num_channels: 1 or 3.
        spatial_dims: 2 or 3.
        split_rule: One sentence on where the splits come from.
        licence: Licence as the source states it, or "".
        origin: Where the data come from.
        notes: Remarks that belong into the description.
    """

    cases: list[Case]
    id2label: dict[int, str]
    structures: dict[str, list[int]]
    label_values: dict[str, int]
    num_channels: int
    spatial_dims: int
    split_rule: str
    licence: str = ""
    origin: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One layout of the field.

    Attributes:
        name: As the command line takes it.
        tree: The layout in one line, for help and errors.
        find: Finds the cases below a folder; raises `ValueError` naming what is missing.
        uses: Fields of `ImportOptions` that mean something to it.
    """

    name: str
    tree: str
    find: Callable[[Path, ImportOptions], Found]
    uses: tuple[str, ...] = ()
