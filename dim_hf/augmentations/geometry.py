"""The weak view: zoom-crop, rotation, flip and elastic deformation, image and label map moved together."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dim_hf.augmentations.fields import MINIMUM_CONTROL_POINTS, smooth_field
from dim_hf.augmentations.ranges import (
    check_probability,
    check_range,
    column,
    one_by_one,
    where_drawn,
    within,
)
from dim_hf.augmentations.seeds import uniforms

PADDINGS = ("reflection", "border")


@dataclass(frozen=True, eq=False)
class WeakDraws:
    """What was drawn for the weak view of N samples with d spatial axes; tensors on the CPU.

    Attributes:
        zoom: (N, d), magnification of each side; 1 keeps it.
        shift: (N, d), where the crop's center lies, in half sides from the image's center; 0 is the center.
        angle: (N,), counter-clockwise rotation in the plane of the last two axes, in radians.
        flip: (N, d), whether the axis is reversed.
        elastic: (N, d, *g), displacement at the control points along each axis, as a fraction of that side.
    """

    zoom: Tensor
    shift: Tensor
    angle: Tensor
    flip: Tensor
    elastic: Tensor

    @classmethod
    def identity(cls, count: int, spatial_dims: int = 2, elastic_points: int = MINIMUM_CONTROL_POINTS) -> "WeakDraws":
        """Gives the draws of `count` samples that leave everything where it is."""
        pair = (count, spatial_dims)
        return cls(
            zoom=torch.ones(pair, dtype=torch.float64),
            shift=torch.zeros(pair, dtype=torch.float64),
            angle=torch.zeros(count, dtype=torch.float64),
            flip=torch.zeros(pair, dtype=torch.bool),
            elastic=torch.zeros((*pair, *[elastic_points] * spatial_dims), dtype=torch.float64),
        )

    @property
    def warped(self) -> Tensor:
        """(N,), whether a sample needs interpolation; flips alone do not."""
        moved = (self.zoom != 1).any(1) | (self.shift != 0).any(1) | (self.angle != 0)
        return moved | self.elastic.flatten(1).ne(0).any(1)


@dataclass(frozen=True)
class WeakView:
    """Ranges and probabilities of the weak view; the defaults are the benchmark's (MiDSS, arXiv 2404.08951).

    In the order of application: a crop of the image zoomed to full size, a rotation, an elastic deformation, flips.
    The first three are one resampling; pixels are taken as isotropic in the plane of rotation.

    Attributes:
        zoom: Range of the magnification, drawn for each side by itself; the crop's place is uniform.
        zoom_probability: Probability of the zoom, in [0, 1].
        rotation_degrees: Largest rotation to either side in degrees, in [0, 180]. Volumes turn about their first
            spatial (slice) axis.
        rotation_probability: Probability of the rotation.
        flip_axes: Axes that may be flipped, each by itself, counted from the last: -1 is left-right.
        flip_probability: Probability of the flip of each of those axes.
        elastic_shift: Largest displacement of a control point as a fraction of each side, in [0, 0.5]. The slope of
            the displacement is at most 2 * elastic_shift * (elastic_points - 3): 0.4 by default, so nothing folds.
        elastic_points: Control points along each axis, at least 4.
        elastic_probability: Probability of the deformation.
        padding: What lies outside the image: `"reflection"` or `"border"` (the nearest pixel), the same for images
            and label maps, so labels stay true to what is seen there.

    Raises:
        ValueError: If a field is outside its legal values.
    """

    zoom: tuple[float, float] = (1.0, 1.5)
    zoom_probability: float = 0.5
    rotation_degrees: float = 20.0
    rotation_probability: float = 0.5
    flip_axes: tuple[int, ...] = (-1,)
    flip_probability: float = 0.5
    elastic_shift: float = 0.05
    elastic_points: int = 7
    elastic_probability: float = 0.5
    padding: str = "reflection"

    def __post_init__(self) -> None:
        for name in ("zoom_probability", "rotation_probability", "flip_probability", "elastic_probability"):
            check_probability("WeakView", name, getattr(self, name))
        check_range("WeakView", "zoom", self.zoom, 0.1, 10.0)
        if not 0.0 <= self.rotation_degrees <= 180.0:
            raise ValueError(f"WeakView.rotation_degrees must lie in [0, 180], found {self.rotation_degrees!r}")
        if not 0.0 <= self.elastic_shift <= 0.5:
            raise ValueError(f"WeakView.elastic_shift must lie in [0, 0.5] of a side, found {self.elastic_shift!r}")
        if self.elastic_points < MINIMUM_CONTROL_POINTS:
            raise ValueError(f"WeakView.elastic_points must be at least 4, found {self.elastic_points!r}")
        if len(set(self.flip_axes)) != len(self.flip_axes) or not set(self.flip_axes) <= {-1, -2, -3}:
            raise ValueError(f"WeakView.flip_axes must be different axes among -1, -2, -3, found {self.flip_axes!r}")
        if self.padding not in PADDINGS:
            raise ValueError(f"WeakView.padding must be one of {', '.join(PADDINGS)}, found {self.padding!r}")

    def draw(self, seeds: Sequence[int], spatial_dims: int = 2) -> WeakDraws:
        """Draws the weak view of each sample from its seed alone.

        Args:
            seeds: One seed for each of the N samples, see `sample_seeds`.
            spatial_dims: 2 for images, 3 for volumes.

        Returns:
            The draws, on the CPU.

        Raises:
            ValueError: If `spatial_dims` is neither 2 nor 3, or too small for `flip_axes`.
        """
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims!r}")
        if any(-axis > spatial_dims for axis in self.flip_axes):
            raise ValueError(f"WeakView.flip_axes {self.flip_axes!r} do not fit {spatial_dims} spatial axes")
        grid = [self.elastic_points] * spatial_dims
        gates, zoom, shift, angle, flip, elastic = uniforms(
            seeds, "weak view", 3, spatial_dims, spatial_dims, 1, spatial_dims, spatial_dims * math.prod(grid)
        )
        zoom = where_drawn(gates[:, :1], self.zoom_probability, within(zoom, self.zoom), 1.0)
        flippable = torch.zeros(spatial_dims, dtype=torch.bool)
        flippable[list(self.flip_axes)] = True
        largest = math.radians(self.rotation_degrees)
        displacement = within(elastic, (-self.elastic_shift, self.elastic_shift))
        return WeakDraws(
            zoom=zoom,
            # A crop of 1/zoom of the side has its center anywhere within 1 - 1/zoom half sides of the image's.
            shift=within(shift, (-1.0, 1.0)) * (1.0 - 1.0 / zoom),
            angle=where_drawn(gates[:, 1:2], self.rotation_probability, within(angle[:, 0], (-largest, largest)), 0.0),
            flip=(flip < self.flip_probability) & flippable,
            elastic=where_drawn(gates[:, 2:], self.elastic_probability, displacement, 0.0).unflatten(
                1, (spatial_dims, *grid)
            ),
        )

    def apply(self, images: Tensor, masks: Tensor | None, draws: WeakDraws) -> tuple[Tensor, Tensor | None]:
        """Moves images and their label maps by one sampling grid a sample.

        A sample whose draws are the identity comes back bit for bit, flips alone move pixels without interpolation,
        and a sample's result does not depend on the rest of the batch.

        Args:
            images: (N, C, *S), float32 or float64, resampled linearly.
            masks: (N, *S), integers below 2^24, on the same device, or None; resampled by nearest neighbor, so only
                ids that were there come back (255 = ignore among them).
            draws: The draws of these N samples.

        Returns:
            New tensors of the same shapes, types and memory format; None for no masks.

        Raises:
            ValueError: If shapes or types do not fit.
        """
        check_images(images, masks, *draws.zoom.shape)
        moved = images.clone()
        moved_masks = None if masks is None else masks.clone()
        warped = draws.warped.nonzero()[:, 0]
        if len(warped):
            index = warped.to(images.device)
            grid = _sampling_grid(draws, warped, images)
            resample_in_place(moved, moved_masks, index, grid, self.padding)
        for axis, flipped in enumerate(draws.flip.unbind(1)):
            index = flipped.nonzero()[:, 0].to(images.device)
            if len(index):
                moved.index_copy_(0, index, moved.index_select(0, index).flip(axis + 2))
                if moved_masks is not None:
                    moved_masks.index_copy_(0, index, moved_masks.index_select(0, index).flip(axis + 1))
        return moved, moved_masks


def resample_in_place(images: Tensor, masks: Tensor | None, index: Tensor, grid: Tensor, padding: str) -> None:
    """Replace some samples by what a sampling grid looks up in them: images linearly, label maps by nearest neighbor.

    Args:
        images: (N, C, *S), changed.
        masks: (N, *S), integers below 2^24, changed; or None.
        index: (n,), which samples.
        grid: (n, *S, d), places from -1 to 1, last axis first.
        padding: what lies outside, as `grid_sample` names it.
    """
    part = F.grid_sample(images.index_select(0, index), grid, "bilinear", padding, align_corners=False)
    images.index_copy_(0, index, part)
    if masks is not None:
        part = masks.index_select(0, index).unsqueeze(1).to(images.dtype)
        part = F.grid_sample(part, grid, "nearest", padding, align_corners=False)
        masks.index_copy_(0, index, part[:, 0].to(masks.dtype))


def check_images(images: Tensor, masks: Tensor | None, count: int, spatial_dims: int) -> None:
    """Refuse images and label maps that do not fit each other or what was drawn for them.

    Args:
        images: (N, C, *S), float32 or float64.
        masks: (N, *S), integers, or None.
        count: N, samples of the draws.
        spatial_dims: spatial axes of the draws.

    Raises:
        ValueError: If they do not; the message names shape or type.
    """
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64, found {images.dtype}; convert them first")
    if images.ndim != spatial_dims + 2 or len(images) != count:
        raise ValueError(
            f"images of shape {tuple(images.shape)} do not fit draws of {count} samples with {spatial_dims} spatial "
            "axes; expected (N, C, *S)"
        )
    if masks is None:
        return
    if masks.shape != (count, *images.shape[2:]):
        raise ValueError(
            f"masks must have shape {(count, *images.shape[2:])} like the images, found {tuple(masks.shape)}"
        )
    if masks.is_floating_point() or masks.is_complex():
        raise ValueError(f"masks must be integer class ids, found {masks.dtype}")


def _pull_back(draws: WeakDraws, samples: Tensor, shape: Sequence[int]) -> Tensor:
    """Gives the matrices (n, d, d), float64, from output pixels to input places, both from the image's center.

    Looking up runs against the order of application: from the output back through the rotation, then the crop. Input
    places are in half sides, so -1 and 1 are the outer edges, as `grid_sample` wants them.
    """
    spatial_dims = len(shape)
    turn = torch.eye(spatial_dims, dtype=torch.float64).repeat(len(samples), 1, 1)
    angle = draws.angle[samples]
    cosine, sine = one_by_one(math.cos, angle), one_by_one(math.sin, angle)
    turn[:, -2, -2], turn[:, -2, -1], turn[:, -1, -2], turn[:, -1, -1] = cosine, sine, -sine, cosine
    scale = 2.0 / (draws.zoom[samples] * torch.tensor(shape, dtype=torch.float64))
    return turn * scale.unsqueeze(2)


def _sampling_grid(draws: WeakDraws, samples: Tensor, images: Tensor) -> Tensor:
    """Gives, for each output pixel, where to look in the input: (n, *S, d), last axis first.

    Only elementwise operations and what `smooth_field` does, so a sample's grid is the same bit for bit whatever the
    rest of the batch drew.
    """
    shape = images.shape[2:]
    spatial_dims = len(shape)
    matrix = _pull_back(draws, samples, shape)
    grid = torch.empty((len(samples), *shape, spatial_dims), dtype=images.dtype, device=images.device)
    centers = []
    for axis, side in enumerate(shape):
        spread = [1] * (spatial_dims + 1)
        spread[axis + 1] = side
        center = torch.arange(side, dtype=images.dtype, device=images.device) - (side - 1) / 2
        centers.append(center.reshape(spread))
    for axis in range(spatial_dims):
        place = column(draws.shift[samples, axis], images[:, 0])
        for other, center in enumerate(centers):
            place = place + center * column(matrix[:, axis, other], images[:, 0])
        grid[..., spatial_dims - 1 - axis] = place
    bent = draws.elastic[samples].flatten(1).ne(0).any(1).nonzero()[:, 0]
    if len(bent):
        # The field is linear in its control points: a few of them are turned and scaled instead of every pixel.
        pixels = draws.elastic[samples[bent]].flatten(2) * torch.tensor(shape, dtype=torch.float64)[:, None]
        control = (matrix[bent] @ pixels).unflatten(2, draws.elastic.shape[2:])
        field = smooth_field(control.flatten(0, 1), shape, images).unflatten(0, (-1, spatial_dims))
        grid.index_add_(0, bent.to(grid.device), field.flip(1).movedim(1, -1))
    return grid


def mirror_axes(dims: int) -> list[tuple[int, ...]]:
    """Axes of (N, C, *S) to flip, for the image itself and each of its mirror images.

    >>> mirror_axes(2)
    [(), (2,), (3,), (2, 3)]
    """
    axes = range(2, dims + 2)
    return [chosen for count in range(dims + 1) for chosen in itertools.combinations(axes, count)]
