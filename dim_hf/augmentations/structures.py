"""Other sizes of a structure: the inner one of two nested structures is moved and resized within the outer one.

A network that learned the cups of one hospital draws cups of their size everywhere, whatever it sees. Labeled images
in which that size is drawn anew, evenly, leave it the picture to go by. Ours; no published method is claimed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dim_hf.augmentations.geometry import check_images, resample_in_place
from dim_hf.augmentations.ranges import check_probability, check_range, column, within
from dim_hf.augmentations.seeds import uniforms

# Below this many pixels an inner structure has no size that could be measured.
MINIMUM_PIXELS = 16
# The centers stay this far inside the outer structure, and an inner structure leaves it a rim, in radii of the outer.
_LARGEST_OFFSET = 0.6
LARGEST_SIZE = 0.92


@dataclass(frozen=True, eq=False)
class StructureDraws:
    """What was drawn for N samples with d spatial axes; tensors on the CPU.

    Attributes:
        warped: (N,), bool, whether the inner structure is changed at all.
        size: (N,), its wanted radius in radii of the outer structure.
        shift: (N, d), displacement of the rays' beginning along each axis, in radii of the outer structure.
    """

    warped: Tensor
    size: Tensor
    shift: Tensor


@dataclass(frozen=True)
class StructureWarp:
    """Ranges of the sizes and places that an inner structure is given within the outer one.

    The outer structure is taken as the ellipsoid with its center and its spread along each axis of the image, and
    everything outside that stays where it is (of an oblong structure that lies askew, its corners do, and some ground
    beside it moves). Inside, image and label map are resampled by one map: on each ray from the inner structure's
    center to the ellipsoid, the part up to the old size, as a share of the ray, becomes the part up to the new size,
    the rest is stretched to fill the ray, and the rays begin at the displaced center. Vessels stay connected, and no
    border is made that was not there.

    In the middle the inner structure so gets the radius that was drawn; away from it, one that is within about a
    fifth of it. Displaced by s, a structure of size q moves by about (1 - q) s: large ones have no room.

    Attributes:
        size: Range of the inner structure's radius in radii of the outer one, in [0.05, 0.92], drawn evenly. The
            radius of a structure is that of a ball as large.
        scale: Range of the factor between its old and new radius, in [0.1, 10]: farther draws are held at its ends.
        shift: Largest displacement of the rays' beginning along each axis, in radii of the outer structure, in
            [0, 0.6].
        probability: Share of the samples that are changed, in [0, 1].

    Raises:
        ValueError: If a field is outside its legal values.
    """

    size: tuple[float, float] = (0.1, 0.85)
    scale: tuple[float, float] = (0.2, 2.5)
    shift: float = 0.25
    probability: float = 0.7

    def __post_init__(self) -> None:
        check_probability("StructureWarp", "probability", self.probability)
        check_range("StructureWarp", "size", self.size, 0.05, LARGEST_SIZE)
        check_range("StructureWarp", "scale", self.scale, 0.1, 10.0)
        if not 0.0 <= self.shift <= _LARGEST_OFFSET:
            raise ValueError(f"StructureWarp.shift must lie in [0, {_LARGEST_OFFSET}], found {self.shift!r}")

    def draw(self, seeds: Sequence[int], spatial_dims: int = 2) -> StructureDraws:
        """Draws size and place for each sample from its seed alone.

        Args:
            seeds: One seed for each of the N samples, see `sample_seeds`.
            spatial_dims: d, 2 for images, 3 for volumes.

        Returns:
            The draws, on the CPU.
        """
        gate, size, shift = uniforms(seeds, "structure warp", 1, 1, spatial_dims)
        return StructureDraws(
            warped=gate[:, 0] < self.probability,
            size=within(size[:, 0], self.size),
            shift=within(shift, (-self.shift, self.shift)),
        )

    def apply(
        self, images: Tensor, masks: Tensor, draws: StructureDraws, outer: Sequence[int], inner: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Resizes and moves the inner structure of each drawn sample; the others come back bit for bit.

        A sample without a measurable inner structure, or whose inner structure fills the outer one, is left alone. A
        sample's result does not depend on the rest of the batch.

        Args:
            images: (N, C, *S), float32 or float64, resampled linearly.
            masks: (N, *S), integer class ids, on the same device; resampled by nearest neighbor.
            draws: The draws of these N samples.
            outer: Class ids of the outer structure, those of the inner one among them.
            inner: Class ids of the inner structure.

        Returns:
            New tensors of the same shapes, types and memory format.

        Raises:
            ValueError: If shapes or types do not fit.
        """
        count, spatial_dims = draws.shift.shape
        check_images(images, masks, count, spatial_dims)
        outside, inside = _Extent.of(_belongs(masks, outer)), _Extent.of(_belongs(masks, inner))
        old_size = (inside.pixels / outside.pixels.clamp(min=1)) ** (1.0 / spatial_dims)
        measurable = (inside.pixels >= MINIMUM_PIXELS) & (old_size < LARGEST_SIZE)
        chosen = (draws.warped & measurable).nonzero()[:, 0]
        moved, moved_masks = images.clone(), masks.clone()
        if len(chosen):
            size = old_size[chosen]
            factor = (draws.size[chosen] / size).clamp(*self.scale)
            rays = _Rays(outside, inside, chosen, draws.shift[chosen], size, (size * factor).clamp(max=LARGEST_SIZE))
            grid = rays.sampling_grid(images)
            resample_in_place(moved, moved_masks, chosen.to(images.device), grid, "border")
        return moved, moved_masks


def nested_pair(structures: Mapping[str, Sequence[int]]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The innermost of nested structures and the one just around it.

    Args:
        structures: name → class ids.

    Returns:
        Class ids of the outer and of the inner structure; None where no structure lies within another.

    Raises:
        ValueError: if two structures of equal rank lie within one, as a rim and a cup do within a disc.

    >>> nested_pair({"disc": [1, 2], "cup": [2]})
    ((1, 2), (2,))
    """
    sets = sorted({tuple(sorted(classes)) for classes in structures.values()}, key=len)
    pairs = [(outer, inner) for inner in sets for outer in sets if set(inner) < set(outer)]
    if not pairs:
        return None
    outer, inner = pairs[0]
    rivals = [other for around, other in pairs if around == outer and not set(other) >= set(inner)]
    if rivals:
        raise ValueError(
            f"of the structures {dict(structures)}, {list(inner)} and {list(rivals[0])} both lie within "
            f"{list(outer)}: name nested structures alone, to tell which one is to be resized"
        )
    return outer, inner


@dataclass(frozen=True, eq=False)
class _Extent:
    """Size, place and spread of a structure in N label maps, float64 on the CPU; lengths in half sides."""

    pixels: Tensor  # (N,)
    center: Tensor  # (N, d), from -1 to 1
    radius: Tensor  # (N, d), semi-axes of the ellipsoid with this spread

    @classmethod
    def of(cls, belongs: Tensor) -> "_Extent":
        """Measure (N, *S) booleans by sums of integers, which come out the same in any batch."""
        shape = belongs.shape[1:]
        pixels = belongs.flatten(1).sum(1).cpu()
        counted = pixels.clamp(min=1).double()
        centers, radii = [], []
        for axis, side in enumerate(shape):
            others = [1 + other for other in range(len(shape)) if other != axis]
            profile = belongs.sum(others).cpu()  # (N, side), int64
            place = torch.arange(side)
            mean = (profile * place).sum(1) / counted
            # A pixel is a box, not a point: 1/12 is the variance of a uniform number in it.
            variance = (profile * place**2).sum(1) / counted - mean**2 + 1.0 / 12.0
            centers.append((2.0 * mean + 1.0) / side - 1.0)
            radii.append(((len(shape) + 2) * variance).sqrt() * 2.0 / side)  # a ball's variance is r²/(d + 2)
        return cls(pixels, torch.stack(centers, 1), torch.stack(radii, 1))


@dataclass(frozen=True, eq=False)
class _Rays:
    """The map of the chosen samples, in coordinates in which the outer ellipsoid is the unit ball at the origin."""

    outside: _Extent
    inside: _Extent
    samples: Tensor  # (n,), which of the N
    shift: Tensor  # (n, d)
    old_size: Tensor  # (n,)
    new_size: Tensor  # (n,)

    def sampling_grid(self, images: Tensor) -> Tensor:
        """Gives, for each output pixel, where to look in the input: (n, *S, d), last axis first."""
        origin, radius = self.outside.center[self.samples], self.outside.radius[self.samples]
        old = (self.inside.center[self.samples] - origin) / radius
        new = _held(old + self.shift)
        old = _held(old)
        axes = range(old.shape[1])
        like = images[:, 0]
        places = [(self._pixels(axis, like) - column(origin[:, axis], like)) / column(radius[:, axis], like)
                  for axis in axes]  # fmt: skip
        # Along the unit direction u from the new center c, the ball ends at t = -c·u + √((c·u)² + 1 - |c|²).
        steps = [place - column(new[:, axis], like) for axis, place in enumerate(places)]
        length = sum(step * step for step in steps).sqrt().clamp(min=1e-6)
        along = sum(column(new[:, axis], like) * steps[axis] for axis in axes) / length
        end = (along * along + column(1.0 - (new * new).sum(1), like)).clamp(min=0.0).sqrt() - along
        share = length / end.clamp(min=1e-6)  # 0 at the center, 1 on the ball
        source = self._old_share(share, like)
        inside = share < 1.0
        grid = torch.empty((*share.shape, len(axes)), dtype=images.dtype, device=images.device)
        for axis in axes:
            on_ball = column(new[:, axis], like) + steps[axis] / length * end
            looked = column(old[:, axis], like)
            looked = looked + source * (on_ball - looked)
            place = torch.where(inside, looked, places[axis])
            grid[..., -1 - axis] = place * column(radius[:, axis], like) + column(origin[:, axis], like)
        return grid

    def _old_share(self, share: Tensor, like: Tensor) -> Tensor:
        """How far along its ray a pixel was: linear up to the inner structure's border, and from there to the end."""
        old, new = column(self.old_size, like), column(self.new_size, like)
        return torch.where(share < new, share * (old / new), old + (share - new) * ((1.0 - old) / (1.0 - new)))

    def _pixels(self, axis: int, like: Tensor) -> Tensor:
        """Places of the pixels along one axis, from -1 to 1, spread over the others."""
        side = like.shape[1 + axis]
        spread = [1] * like.ndim
        spread[1 + axis] = side
        place = (2.0 * torch.arange(side, dtype=like.dtype, device=like.device) + 1.0) / side - 1.0
        return place.reshape(spread).expand(len(self.samples), *like.shape[1:])


def _belongs(masks: Tensor, classes: Sequence[int]) -> Tensor:
    return torch.isin(masks, torch.tensor(list(classes), dtype=masks.dtype, device=masks.device))


def _held(offset: Tensor) -> Tensor:
    """(n, d), shortened where it is longer than a center may lie from the middle of the unit ball."""
    length = torch.tensor([math.hypot(*each) for each in offset.tolist()], dtype=offset.dtype)
    return offset * (_LARGEST_OFFSET / length.clamp(min=_LARGEST_OFFSET))[:, None]
