"""Trees of volumes that the tests of the importers write, and how they ask for errors."""

import json

import numpy as np
import pytest
from PIL import Image

from dim_hf.data.importers.cases import ImportOptions
from dim_hf.data.volumes.volume import Volume, write_nifti

SHAPE = (3, 4, 5)
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])


def volume(path, values=(7,), dtype=np.int16, shape=SHAPE, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.array(values, dtype=dtype), shape)
    write_nifti(Volume(array, affine), path)
    return array


def mask(path, values=(0, 1), **kwargs):
    return volume(path, values, np.uint8, **kwargs)


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def describe(root, **values):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(values))


def found(layout, root, **options):
    result = layout.find(root, ImportOptions(**options))
    assert [case.domain + "/" + case.name for case in result.cases] == sorted(
        {case.domain + "/" + case.name for case in result.cases}
    )
    return result


def by_name(result):
    return {case.name: case for case in result.cases}


def refused(layout, root, *parts, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        layout.find(root, ImportOptions(**options))
    for part in parts:
        assert str(part) in str(caught.value)


def unreadable(case, *parts):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        case.read()
    for part in parts:
        assert str(part) in str(caught.value)
