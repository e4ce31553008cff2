"""Keeps the largest connected part of each structure."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from dim_hf.inference.measurements import count_values


def keep_largest_components(labels: np.ndarray, structures: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Remove all but the largest connected part of each structure.

    Pixels are connected across edges and corners. Structures that hold others come first; what is removed becomes the
    class around it: of a nested structure (cup in disc) the rest of the smallest one that holds it, else background.

    Args:
        labels: (*S) class ids; not changed.
        structures: Class ids by structure.

    Returns:
        Class ids of the same type; `labels` itself where nothing is removed.
    """
    for classes in sorted(structures.values(), key=len, reverse=True):
        surplus = _surplus(labels, classes)
        if surplus is None:
            continue
        box, removed = surplus
        labels = labels.copy()
        labels[box][removed] = _class_around(classes, structures)
    return labels


def _surplus(labels: np.ndarray, classes: Sequence[int]) -> tuple[tuple[slice, ...], np.ndarray] | None:
    """A box, and which of its pixels belong to parts that are not the largest; None where there is one part."""
    mask = _mask(labels, classes)
    box = bounding_box(mask)
    if box is None:
        return None
    parts, count = ndimage.label(mask[box], structure=np.ones((3,) * mask.ndim))
    if count < 2:
        return None
    sizes = count_values(parts)
    sizes[0] = 0
    return box, (parts != 0) & (parts != sizes.argmax())


def _mask(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Class by class, in a byte a pixel; `np.isin` takes several times as much."""
    mask = np.zeros(labels.shape, np.bool_)
    for index in classes:
        mask |= labels == index
    return mask


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds all of a mask; None if it is empty."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(filled):
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _class_around(classes: Sequence[int], structures: Mapping[str, Sequence[int]]) -> int:
    around = [set(other) - set(classes) for other in structures.values() if set(other) > set(classes)]
    return min(min(around, key=len)) if around else 0
