"""Small data sets of pictures, clean or with one fault, for the tests of the doctor."""

import datasets
import numpy as np
from PIL import Image

from dim_hf.data.description import DatasetDescription
from dim_hf.data.doctor.diagnosis import examine
from dim_hf.data.rows import COLUMNS, row_features

DESCRIPTION = DatasetDescription({0: "background", 1: "rim", 2: "cup"}, {"cup": [2]}, num_channels=3)


def picture(path, seed=0, shape=(8, 10, 3), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)).save(path)
    return str(path)


def mask(path, values=(0, 1, 2), shape=(8, 10), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, dtype), shape)).save(path)
    return str(path)


def rows_of(table, feature=None, **free):
    """Rows from tuples (image, label, domain, patient, name, split)."""
    columns = dict(zip(COLUMNS, map(list, zip(*table, strict=True)), strict=True))
    features = row_features(feature or datasets.Image(), free=free)
    return datasets.Dataset.from_dict({**columns, **free}, features=features)


def diagnose(table, description=DESCRIPTION, **kwargs):
    return examine(rows_of(table, **kwargs), description, progress=False)


def clean_rows(folder):
    """Four clean rows of one domain."""
    return [
        (picture(folder / f"i{n}.png", n), mask(folder / f"m{n}.png"), "site", f"p{n}", f"n{n}", split)
        for n, split in enumerate(["train", "train", "", "test"])
    ]
