"""A separable distance transform for some pixels of an image (after Saito and Toriwaki 1994), exact and in numpy.

The squared distance is minimised along one axis after the other, in blocks of slices, and looks along each axis only
as far as an upper bound of the block's distances says. Along axes of one spacing it counts in whole numbers of 16
bits; where one axis of three differs, as in most scans, it does so in the planes of the other two, and looks from
plane to plane for the asked pixels only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]
Pixels = NDArray[np.intp]

# Bytes of squared distances at once: few enough to stay in the processor's cache, enough to outweigh the calls.
BLOCK_BYTES = 1 << 18

# Every so many slices are looked at for upper bounds of the distances of all.
COARSE = 4

# In pixels: the squares of distances up to this one, and sums of two of them, fit into 16 bits.
NARROW_REACH = 127

# Room for rounding where lengths are compared to find out which pixels to look at.
SLACK = 1 + 1e-12


def counts_in_whole_numbers(spacing: Distances) -> bool:
    """Whether the transform is the fast one: all axes, or two of three, have one spacing.

    Args:
        spacing: size of a pixel, (number of axes,).

    >>> counts_in_whole_numbers(np.array([3.0, 0.7, 0.7])), counts_in_whole_numbers(np.array([0.7, 0.8]))
    (True, False)
    """
    return _is_isotropic(spacing) or _odd_axis(spacing) is not None


def transform_distances(points: Pixels, target: Mask, spacing: Distances) -> Distances:
    """Distances of points to the nearest target pixel.

    Args:
        points: places in the image, (n, ndim), in raster order.
        target: (H, W) or (D, H, W), boolean, not empty.
        spacing: size of a pixel, (ndim,).

    Returns:
        (n,), in the unit of the spacing; infinite where the transform does not reach.
    """
    by_planes = _odd_axis(spacing) is not None and not _is_isotropic(spacing)
    return (_by_planes if by_planes else _by_lines)(points, target, spacing)


def _is_isotropic(spacing: Distances) -> bool:
    return bool((spacing == spacing[0]).all())


def _odd_axis(spacing: Distances) -> int | None:
    """Of three axes one without which the others have one spacing; None where there is none."""
    for axis in range(spacing.size):
        one, *others = np.delete(spacing, axis)
        if others == [one]:
            return axis
    return None


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
    """Distances of the points (n, ndim), in raster order, to the target; infinite beyond the limit."""
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
    return np.where(squares < numbers.limit, np.sqrt(squares) * numbers.scale, np.inf)


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


def _by_planes(points: Pixels, target: Mask, spacing: Distances) -> Distances:
    """The same in three axes, two of which have one spacing."""
    across = _odd_axis(spacing)
    first, last = (axis for axis in range(3) if axis != across)
    order = (first, across, last)
    sides = spacing[[first, across]]
    numbers = _Squares.of(target.shape, np.ones(3))
    steps = numbers.steps_along_first_axis(np.ascontiguousarray(target.transpose(order)))
    places = points[:, order]
    arranged = np.argsort(places[:, 0], kind="stable")
    places = places[arranged]
    # As in `_by_lines`, from upper bounds at some of the rows.
    powers = [1 << bit for bit in range(numbers.reach.bit_length())]
    rows, *others = places.T
    rough = np.stack([rows // COARSE, *others], axis=1), steps[::COARSE]
    coarse = _at_planes(*rough, numbers, sides, lambda _: powers, powers)
    bounds = np.sqrt(coarse) / sides[0] + rows % COARSE
    bounds[coarse >= numbers.limit * sides[0] ** 2] = numbers.reach

    def within_bound(chosen: slice) -> range:
        return range(1, min(numbers.reach, int(bounds[chosen].max() * SLACK)) + 1)

    squares = _at_planes(places, steps, numbers, sides, within_bound, range(1, steps.shape[1]))
    distances = np.empty(len(points))
    distances[arranged] = np.where(squares < numbers.limit * sides[0] ** 2, np.sqrt(squares), np.inf)
    return distances


def _at_planes(
    points: Pixels,
    steps: NDArray,
    numbers: _Squares,
    sides: Distances,
    offsets: Callable[[slice], Sequence[int]],
    apart: Sequence[int],
) -> Distances:
    """Squared distances of the points (n, 3), whose second axis leads across the planes; sides within and across."""
    found = np.empty(len(points))
    thickness = max(1, BLOCK_BYTES // (steps[0].size * np.dtype(numbers.kind).itemsize))
    starts = range(0, len(steps), thickness)
    ends = np.searchsorted(points[:, 0], [*starts, len(steps)])
    for start, (low, high) in zip(starts, pairwise(ends), strict=True):
        if low < high:
            squares = numbers.square(steps[start : start + thickness])
            lines = np.ascontiguousarray(np.moveaxis(squares, -1, 0))
            within = numbers.spread(lines.reshape(len(lines), -1), offsets(slice(low, high)), 1.0).reshape(lines.shape)
            rows, planes, columns = points[low:high].T
            lines_of = columns * len(squares) + rows - start
            found[low:high] = _nearest_plane(within, lines_of, planes, sides, apart)
    return found


def _nearest_plane(
    within: NDArray, lines: Pixels, planes: Pixels, sides: Distances, apart: Sequence[int]
) -> Distances:
    """Minimum over the planes so far apart of squares within (lines, planes), in pixels, and across."""
    last = within.shape[-1] - 1
    squares, scale = within.reshape(-1), sides[0] ** 2
    starts_of, planes_of = lines * (last + 1), planes
    nearest = squares[starts_of + planes] * scale
    left, found = np.arange(planes.size), nearest.copy()
    for step in apart:
        across = (step * sides[1]) ** 2
        if step > last or not left.size:
            break
        if step.bit_count() == 1:  # now and then, those that are done are left out
            nearest[left] = found
            left = left[found > across]
            starts, planes, found = starts_of[left], planes_of[left], nearest[left]
        for other in (np.maximum(planes - step, 0), np.minimum(planes + step, last)):  # no nearer beyond the edge
            np.minimum(found, squares[starts + other] * scale + across, out=found)
    nearest[left] = found
    return nearest
