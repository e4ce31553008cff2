"""Reads a folder for each domain, in the field's two plain layouts."""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from dim_hf.data.images import EXTENSIONS
from dim_hf.data.patients import compile_pattern, patient_of
from dim_hf.data.rows import COLUMNS, row_features
from dim_hf.data.trees import Formats, domain_pairs

_PICTURES = Formats("an image file", EXTENSIONS)


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
    pattern = compile_pattern(patient)
    table: dict[str, list] = {column: [] for column in COLUMNS}
    for pair in domain_pairs(Path(os.path.abspath(root)), _PICTURES, domains):
        values = (
            str(pair.image),
            str(pair.mask) if pair.mask else None,
            pair.domain,
            patient_of(pair.image, pair.stem, pattern),
            pair.stem,
            pair.split,
        )
        for column, value in zip(COLUMNS, values, strict=True):
            table[column].append(value)
    return datasets.Dataset.from_dict(table, features=row_features(datasets.Image()))
