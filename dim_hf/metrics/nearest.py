"""Distances from the border pixels of one mask to the nearest border pixel of another: exact, and fast in numpy.

A distance transform finds the nearest border pixel of every pixel of the image, though only few lie on the other
border. Here each border pixel gets its answer from the cheapest of four searches, which give the same distances:

1. Near: the neighbours are looked up, nearest first, for all pixels of a block at once; the first hit is the answer.
   Most border pixels of masks that agree, and nearly all of noisy ones, end here.
2. Further neighbours, pixel by pixel, where few pixels are left over.
3. A search tree over the other border, where few are left over still.
4. A separable transform (Saito and Toriwaki 1994) for many: the squared distance is minimised along one axis after the
   other, in blocks of slices, and looks along each axis only as far as an upper bound of the block's distances says.

The distance is sqrt(Σ (offset · spacing)²), summed in the order of the axes as in scipy and medpy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]
Pixels = NDArray[np.intp]

# About how many neighbours are looked up, by the number of axes: of all pixels, and of those left over.
NEAR = {2: 21, 3: 33}
FURTHER = {2: 81, 3: 257}

# But not beyond so many of the smallest pixel sides, which is how far masks are padded.
MARGIN = 8

# Pixels of a mask handled at once, and bytes of squared distances: few enough to stay in the processor's cache, enough
# to outweigh the calls.
BLOCK = 1 << 16
BLOCK_BYTES = 1 << 18


# Every so many slices are looked at for upper bounds of the distances of all.
COARSE = 4


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

# In pixels: the squares of distances up to this one, and sums of two of them, fit into 16 bits.
NARROW_REACH = 127

# Room for rounding where lengths are compared to find out which pixels to look at.
SLACK = 1 + 1e-12

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
    lines += source.size * (COSTS.lines_narrow if _is_isotropic(spacing) else COSTS.lines_wide)
    tree = COSTS.tree_target * source.ndim * np.count_nonzero(target)
    if far.size and _cost_of_looking(further, far.size) < min(lines, tree + COSTS.tree_query[source.ndim] * far.size):
        distances[far] = _look_further(pixels[far], target, further)
        far = far[np.isinf(distances[far])]
    if far.size:
        points = np.stack(np.unravel_index(pixels[far], source.shape), axis=1)
        search = _by_tree if tree + COSTS.tree_query[source.ndim] * far.size < lines else _by_lines
        distances[far] = search(points, target, spacing)
    return distances


def _cost_of_looking(rings: Rings, pixels: int) -> float:
    return sum(len(places) for _, places in rings) * (COSTS.further_start + COSTS.further * pixels)


def _is_isotropic(spacing: Distances) -> bool:
    return bool((spacing == spacing[0]).all())


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


@dataclass(frozen=True)
class _Squares:
    """The numbers in which squared distances are compared: 16 bits in pixel units where the axes have one spacing.

    Attributes:
        sides: by axis, the length of a pixel.
        scale: length of the unit.
        reach: number of pixels that is looked at most along an axis.
        limit: squared distance that stands for itself and all larger ones, which are not told apart.
        kind: type of the squares.
        steps: type of a number of pixels.
    """

    sides: Distances
    scale: float
    reach: int
    limit: float
    kind: type[np.generic]
    steps: type[np.generic]

    @classmethod
    def of(cls, shape: tuple[int, ...], spacing: Distances) -> "_Squares":
        """For an image of this shape and spacing."""
        if _is_isotropic(spacing):
            sides = np.ones(spacing.size)
            return cls(sides, float(spacing[0]), NARROW_REACH, float(NARROW_REACH**2), np.uint16, np.uint8)
        beyond = float(((np.array(shape) * spacing) ** 2).sum())
        return cls(spacing, 1.0, max(shape), beyond, np.float64, np.int32)

    def reaches(self, square: float) -> list[int]:
        """By axis, the number of pixels within a squared distance."""
        return [min(self.reach, int(np.sqrt(square) / side * SLACK)) for side in self.sides]

    def steps_along_first_axis(self, target: Mask) -> NDArray:
        """Number of pixels to the nearest target on the same line, or more than the limit."""
        far = int(np.sqrt(self.limit) / self.sides[0]) + 2
        steps = np.where(target, self.steps(0), self.steps(far))
        shifted = np.empty_like(steps)
        stride = 1
        while stride <= min(self.reach, len(steps) - 1):  # strides 1, 2, 4, ... add up to any distance
            np.add(steps, self.steps(stride), out=shifted)
            np.minimum(steps[stride:], shifted[:-stride], out=steps[stride:])
            np.minimum(steps[:-stride], shifted[stride:], out=steps[:-stride])
            stride *= 2
        return steps

    def square(self, steps: NDArray) -> NDArray:
        """Squared length of a number of pixels of the first axis."""
        lengths = steps.astype(self.kind)
        if self.kind is np.float64:
            lengths *= self.sides[0]
        return np.minimum(np.multiply(lengths, lengths, out=lengths), self.kind(self.limit), out=lengths)

    def spread(self, squares: NDArray, offsets: Sequence[int], side: float) -> NDArray:
        """Minimum along the first axis of (n, m), over the offsets in both directions, of square plus offset²."""
        nearest, limit = squares.copy(), self.kind(self.limit)
        known = np.flatnonzero((squares < limit).any(axis=1))
        if known.size:
            first, last = int(known[0]), int(known[-1]) + 1
            squares = squares[first:last]  # all others have nothing to pass on
            shifted = np.empty_like(squares)
            for offset in offsets:
                up, down = min(last, len(nearest) - offset) - first, max(first, offset)
                if up <= 0 and down >= last:
                    break
                np.add(squares, self.kind((offset * side) ** 2), out=shifted)
                if up > 0:
                    there = nearest[first + offset : first + offset + up]
                    np.minimum(there, shifted[:up], out=there)
                if down < last:
                    there = nearest[down - offset : last - offset]
                    np.minimum(there, shifted[down - first :], out=there)
        return np.minimum(nearest, limit, out=nearest)

    def transform(self, squares: NDArray, offsets: Sequence[Sequence[int]]) -> NDArray:
        """`spread` along all axes but the first."""
        for axis in range(1, squares.ndim):
            lines = np.ascontiguousarray(np.moveaxis(squares, axis, 0))
            nearest = self.spread(lines.reshape(len(lines), -1), offsets[axis], self.sides[axis])
            squares = np.moveaxis(nearest.reshape(lines.shape), 0, axis)
        return squares


def _by_lines(points: Pixels, target: Mask, spacing: Distances) -> Distances:
    """Distances of the points (n, ndim), in raster order, to the target."""
    numbers = _Squares.of(target.shape, spacing)
    steps = numbers.steps_along_first_axis(target)
    # Any choice of offsets bounds a distance from above, and from slice to slice it grows at most by their distance.
    powers = [[1 << bit for bit in range(numbers.reach.bit_length())]] * target.ndim
    rows, *others = points.T
    coarse = _at_points(np.stack([rows // COARSE, *others], axis=1), steps[::COARSE], numbers, lambda _: powers)
    bounds = (np.sqrt(coarse) + rows % COARSE * numbers.sides[0]) ** 2
    bounds[coarse >= numbers.limit] = numbers.limit

    def within_bound(chosen: slice) -> list[range]:
        return [range(1, reach + 1) for reach in numbers.reaches(float(bounds[chosen].max()))]

    squares = _at_points(points, steps, numbers, within_bound)
    distances = np.sqrt(squares) * numbers.scale
    beyond = np.flatnonzero(squares >= numbers.limit)
    if beyond.size:
        distances[beyond] = _by_tree(points[beyond], target, spacing)
    return distances


def _at_points(
    points: Pixels, steps: NDArray, numbers: _Squares, offsets: Callable[[slice], Sequence[Sequence[int]]]
) -> Distances:
    """Squared distances of the points (n, ndim), by the offsets, for a range of points, along each axis."""
    found = np.empty(len(points))
    thickness = max(1, BLOCK_BYTES // (steps[0].size * np.dtype(numbers.kind).itemsize))
    starts = range(0, len(steps), thickness)
    ends = np.searchsorted(points[:, 0], [*starts, len(steps)])
    for start, (low, high) in zip(starts, pairwise(ends), strict=True):
        if low < high:
            squares = numbers.square(steps[start : start + thickness])
            rows, *others = points[low:high].T
            found[low:high] = numbers.transform(squares, offsets(slice(low, high)))[(rows - start, *others)]
    return found
