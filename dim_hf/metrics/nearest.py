"""Distances from the border pixels of one mask to the nearest border pixel of another: exact, and fast in numpy.

A distance transform finds the nearest border pixel of every pixel of the image, though only few lie on the other
border. Here each border pixel gets its answer from the cheapest of four searches, which give the same distances:

1. Near: the neighbours are looked up, nearest first, for all pixels of a block at once; the first hit is the answer.
   Most border pixels of masks that agree, and nearly all of noisy ones, end here.
2. Further neighbours, pixel by pixel, where few pixels are left over.
3. A search tree over the other border, where few are left over still.
4. A separable transform for many (`separable`).

The distance is sqrt(Σ (offset · spacing)²), as in scipy and medpy up to the rounding of the sum.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dim_hf.metrics.separable import SLACK, Distances, Mask, Pixels, counts_in_whole_numbers, transform_distances

# About how many neighbours are looked up, by the number of axes: of all pixels, and of those left over.
NEAR = {2: 21, 3: 33}
FURTHER = {2: 81, 3: 257}

# But not beyond so many of the smallest pixel sides, which is how far masks are padded.
MARGIN = 8

# Pixels of a mask handled at once: few enough to stay in the processor's cache, enough to outweigh the calls.
BLOCK = 1 << 16


@dataclass(frozen=True)
class Costs:
    """What the searches take, in nanoseconds: only the choice among them depends on it, no distance.

    Attributes:
        further_start: to look up one further neighbour of any number of pixels.
        further: by pixel.
        tree_target: to build the search tree, by pixel of the target and axis.
        tree_query: to ask it for one pixel, by number of axes.
        lines_start: separable transform of a small image.
        lines_narrow: the same by pixel of the image, in 16-bit integers.
        lines_wide: the same in floating point.
    """

    further_start: float = 6000
    further: float = 16
    tree_target: float = 120
    tree_query: Mapping[int, float] = field(default_factory=lambda: {2: 1000, 3: 2000})
    lines_start: float = 1e6
    lines_narrow: float = 15
    lines_wide: float = 40


COSTS = Costs()

# Distances with the places of the neighbours at that distance, relative to a pixel in the flattened image.
Rings = list[tuple[float, list[int]]]


@lru_cache(maxsize=64)
def _neighbours(spacing: tuple[float, ...]) -> tuple[tuple[float, Pixels], ...]:
    """Distances in increasing order, the zero first, each with all offsets (n, ndim) that have it."""
    ndim = len(spacing)
    pixel, sphere = math.prod(spacing), math.pi if ndim == 2 else 4 / 3 * math.pi
    radius = np.clip((FURTHER[ndim] * pixel / sphere) ** (1 / ndim), min(spacing), MARGIN * min(spacing)) * SLACK
    axes = [np.arange(-int(radius / side), int(radius / side) + 1) for side in spacing]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, ndim)
    lengths = np.sqrt(((offsets * spacing) ** 2).sum(axis=1))
    return tuple((float(length), offsets[lengths == length]) for length in np.unique(lengths[lengths <= radius]))


def margins(spacing: Distances) -> tuple[int, ...]:
    """By axis, how many empty pixels `border_distances` needs between the borders and the edge of the array."""
    return tuple(np.max([offsets.max(axis=0) for _, offsets in _neighbours(tuple(spacing))], axis=0).tolist())


def _rings(image: Mask, spacing: Distances) -> tuple[Rings, Rings]:
    """The pixel itself and its nearest neighbours, nearest first, and those further away."""
    neighbours = _neighbours(tuple(spacing))
    rings = [(length, (offsets @ image.strides).tolist()) for length, offsets in neighbours]  # a boolean is one byte
    counts = np.cumsum([len(places) for _, places in rings])
    near = max(2, int(np.searchsorted(counts, NEAR[image.ndim], side="right")))
    return rings[:near], rings[near:]


def border_distances(source: Mask, target: Mask, spacing: Distances) -> Distances:
    """Distance of each border pixel of one mask to the nearest border pixel of the other.

    Args:
        source: border of the one mask, (H, W) or (D, H, W), boolean, contiguous, empty within `margins` of the edges.
        target: border of the other, of the same kind and shape, not empty.
        spacing: size of a pixel, (number of axes,).

    Returns:
        The distances in raster order of the source's pixels, in the unit of the spacing.
    """
    pixels = np.flatnonzero(source)
    near, further = _rings(source, spacing)
    distances = _look_around(source, target, near)[pixels]
    far = np.flatnonzero(np.isinf(distances))
    lines = COSTS.lines_start
    lines += source.size * (COSTS.lines_narrow if counts_in_whole_numbers(spacing) else COSTS.lines_wide)
    tree = COSTS.tree_target * source.ndim * np.count_nonzero(target)
    if far.size and _cost_of_looking(further, far.size) < min(lines, tree + COSTS.tree_query[source.ndim] * far.size):
        distances[far] = _look_further(pixels[far], target, further)
        far = far[np.isinf(distances[far])]
    if far.size:
        points = np.stack(np.unravel_index(pixels[far], source.shape), axis=1)
        if tree + COSTS.tree_query[source.ndim] * far.size >= lines:
            distances[far] = transform_distances(points, target, spacing)
        beyond = np.isinf(distances[far])
        if beyond.any():
            distances[far[beyond]] = _by_tree(points[beyond], target, spacing)
    return distances


def _cost_of_looking(rings: Rings, pixels: int) -> float:
    return sum(len(places) for _, places in rings) * (COSTS.further_start + COSTS.further * pixels)


def _look_around(source: Mask, target: Mask, rings: Rings) -> "_Lookup":
    """Distances of all source pixels, infinite where the rings hold no target."""
    edge = max(max(places) for _, places in rings)
    sources, targets = source.ravel(), target.ravel()
    classes = np.zeros(sources.size, np.uint8)
    for start in range(edge, sources.size - edge, BLOCK):
        stop = min(start + BLOCK, sources.size - edge)
        left = sources[start:stop].copy()
        for _, places in rings:
            if not left.any():
                break
            for place in places:
                np.greater(left, targets[start + place : stop + place], out=left)  # left, and no target there
            classes[start:stop] += left.view(np.uint8)
    return _Lookup(classes, np.array([*(length for length, _ in rings), np.inf]))


@dataclass(frozen=True)
class _Lookup:
    """Distances of the pixels of an image: for each, flattened, its class, and the distance by class."""

    classes: NDArray[np.uint8]
    lengths: Distances

    def __getitem__(self, pixels: Pixels) -> Distances:
        return self.lengths[self.classes[pixels]]


def _look_further(pixels: Pixels, target: Mask, rings: Rings) -> Distances:
    """Distances of the pixels, places in the flattened image, infinite where the rings hold no target."""
    targets = target.ravel()
    distances, left = np.full(pixels.size, np.inf), np.arange(pixels.size)
    for length, places in rings:
        found = targets[pixels + places[0]]
        for place in places[1:]:
            found |= targets[pixels + place]
        distances[left[found]] = length
        left, pixels = left[~found], pixels[~found]
    return distances


def _by_tree(points: Pixels, target: Mask, spacing: Distances) -> Distances:
    """Distances of the points (n, ndim) to the target."""
    targets = np.stack(np.unravel_index(np.flatnonzero(target), target.shape), axis=1)
    # The tree is asked once, so building it fast matters more than its shape.
    tree = KDTree(targets * spacing, leafsize=32, balanced_tree=False)
    nearest = targets[tree.query(points * spacing)[1]]
    return np.sqrt((((nearest - points) * spacing) ** 2).sum(axis=1))
