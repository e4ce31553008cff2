"""Borders of masks, and the distances of two masks' borders to each other, in 2D or 3D.

The border of a mask is what an erosion with the cross-shaped neighbourhood (`connectivity=1`) takes away. What lies
outside the image counts as background, so that a mask cut by the image's edge has a border there.

Cropping: all border pixels of both masks lie in the joint bounding box, so the distances inside of it are exact.
Outside of the box there is no foreground, so the border at its edge is the border in the whole image.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from dim_hf.metrics.nearest import Distances, border_distances, margins
from dim_hf.metrics.overlap import Mask, Spacing, as_masks, as_spacing


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from each border pixel of one mask to the border of the other, in mm (pixels without a spacing).

    Attributes:
        to_reference: (number of border pixels of the prediction,).
        to_prediction: (number of border pixels of the reference,).
    """

    to_reference: Distances
    to_prediction: Distances

    @property
    def pooled(self) -> Distances:
        """Both directions, one after the other."""
        return np.concatenate([self.to_reference, self.to_prediction])


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    axes = range(mask.ndim)
    box = []
    for axis in axes:
        # Each axis looks only at what the axes before it have left.
        occupied = np.flatnonzero(mask[tuple(box)].any(axis=tuple(other for other in axes if other != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


@lru_cache(maxsize=256)
def _places(shape: tuple[int, ...], connectivity: int) -> list[int]:
    """How far the neighbours that differ in 1 to `connectivity` axes lie ahead in the flattened image."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    offsets = (offset for offset in product((-1, 0, 1), repeat=len(shape)) if np.count_nonzero(offset) <= connectivity)
    places = (sum(step * stride for step, stride in zip(offset, strides, strict=True)) for offset in offsets)
    return [place for place in places if place > 0]


def border(mask: ArrayLike, connectivity: int = 1) -> Mask:
    """Pixels of a mask that have a neighbour outside of it; beyond the edge of the image all is outside.

    Args:
        mask: (H, W) or (D, H, W), boolean.
        connectivity: number of axes, 1 to all, in which neighbours may differ; 1 is 4 neighbours in 2D and 6 in 3D.

    Returns:
        Boolean array of the same shape.

    Raises:
        ValueError: if `connectivity` is out of range.
    """
    mask = np.asarray(mask, dtype=np.bool_)
    if connectivity not in range(1, mask.ndim + 1):
        raise ValueError(f"connectivity is {connectivity!r}; choose 1 to {mask.ndim} for a {mask.ndim}D mask")
    if min(mask.shape) < 3:
        return mask.copy()
    pixels = mask.ravel()
    inner = pixels.copy()
    for place in _places(mask.shape, connectivity):  # and as far behind
        inner[place:] &= pixels[:-place]
        inner[:-place] &= pixels[place:]
    inner = inner.reshape(mask.shape)
    # At the edge the places lead around it to other lines, and to what lies outside.
    for axis in range(mask.ndim):
        np.moveaxis(inner, axis, 0)[[0, -1]] = False
    return np.greater(mask, inner, out=inner)


@dataclass(frozen=True)
class Borders:
    """Borders of two masks that are not empty, in their joint bounding box with margins.

    Attributes:
        prediction: border of the prediction, boolean.
        reference: border of the reference, of the same shape.
        spacing: size of a pixel, (number of axes,).
    """

    prediction: Mask
    reference: Mask
    spacing: Distances

    @classmethod
    def of(cls, prediction: Mask, reference: Mask, spacing: Distances, connectivity: int) -> "Borders":
        """Of two masks of one shape; see `border` for the connectivity."""
        box = _bounding_box(prediction | reference)
        around = margins(spacing)
        shape = [side.stop - side.start + 2 * margin for side, margin in zip(box, around, strict=True)]
        inside = tuple(slice(margin, size - margin) for size, margin in zip(shape, around, strict=True))
        borders = []
        for mask in (prediction, reference):
            framed = np.zeros(shape, np.bool_)
            framed[inside] = mask[box]
            borders.append(border(framed, connectivity))
        return cls(*borders, spacing)

    def to_reference(self) -> Distances:
        """From each border pixel of the prediction, in raster order."""
        return border_distances(self.prediction, self.reference, self.spacing)

    def distances(self) -> SurfaceDistances:
        """In both directions."""
        there = self.to_reference()
        return SurfaceDistances(there, border_distances(self.reference, self.prediction, self.spacing))


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, spacing_mm: Spacing | None = None, *, connectivity: int = 1
) -> SurfaceDistances:
    """Distances from each border pixel of one mask to the border of the other, for both directions.

    Args:
        prediction: predicted mask, (H, W) or (D, H, W), not empty.
        reference: reference mask of the same shape, not empty.
        spacing_mm: size of a pixel in mm.
        connectivity: see `border`.

    Returns:
        The distances in raster order of the border pixels, in mm; in pixels without a spacing.

    Raises:
        ValueError: if a mask is empty, and see `as_masks`, `as_spacing` and `border`.
    """
    prediction, reference = as_masks(prediction, reference)
    spacing = as_spacing(spacing_mm, prediction.ndim)
    for mask, name in ((prediction, "prediction"), (reference, "reference")):
        if not mask.any():
            raise ValueError(f"{name} is empty and has no border; surface_metrics scores it by an empty_policy")
    return Borders.of(prediction, reference, spacing, connectivity).distances()
