"""Mixing of labeled with unlabeled images: boxes pasted in both directions, and low-frequency amplitudes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dim_hf.augmentations.ranges import check_probability, check_range, column, where_drawn, within
from dim_hf.augmentations.seeds import uniforms


@dataclass(frozen=True, eq=False)
class MixingBoxes:
    """One box for each of N pairs of images of one spatial shape; on the CPU.

    Attributes:
        bounds: (N, d, 2), int64, first pixel and one past the last along each axis; empty (0, 0) for no mixing.
        spatial_shape: Spatial shape S of the images that the boxes belong to.
    """

    bounds: Tensor
    spatial_shape: tuple[int, ...]

    def inside(self, device: torch.device | str = "cpu") -> Tensor:
        """(N, *S), bool: the pixels of each pair's box."""
        inside = torch.ones((), dtype=torch.bool, device=device)
        bounds = self.bounds.to(device)
        for axis, side in enumerate(self.spatial_shape):
            spread = [1] * (len(self.spatial_shape) + 1)
            spread[axis + 1] = side
            pixel = torch.arange(side, device=device)
            within_axis = (pixel >= bounds[:, axis, :1]) & (pixel < bounds[:, axis, 1:])
            spread[0] = len(bounds)
            inside = inside & within_axis.reshape(spread)
        return inside


def draw_boxes(
    seeds: Sequence[int],
    spatial_shape: Sequence[int],
    ratio: tuple[float, float] = (0.25, 0.75),
    probability: float = 1.0,
) -> MixingBoxes:
    """Draws one box for each pair of a labeled and an unlabeled image, from the pair's seed alone.

    Args:
        seeds: One seed for each of the N pairs, see `sample_seeds`.
        spatial_shape: Spatial shape S of the images.
        ratio: Range of a box side as a fraction of the image's, in [0, 1], drawn for each axis by itself; its place is
            uniform over the image.
        probability: Probability that a pair is mixed, in [0, 1].

    Returns:
        The boxes.

    Raises:
        ValueError: If `ratio` or `probability` is outside its legal values.
    """
    check_range("draw_boxes", "ratio", ratio, 0.0, 1.0)
    check_probability("draw_boxes", "probability", probability)
    shape = tuple(int(side) for side in spatial_shape)
    gate, side, place = uniforms(seeds, "mixing boxes", 1, len(shape), len(shape))
    sides = torch.tensor(shape, dtype=torch.float64)
    lengths = torch.round(within(side, ratio) * sides)
    starts = torch.floor(place * (sides - lengths + 1.0))
    bounds = torch.stack([starts, starts + lengths], dim=-1)
    return MixingBoxes(where_drawn(gate, probability, bounds, 0.0).long(), shape)


def partners(count: int, others: int) -> Tensor:
    """Which of `others` images each of `count` images meets: image i the one at i · others / count, rounded down.

    A batch cut into whole parts so has the partners that it had as a whole.

    Args:
        count: of the one stream, at least 1.
        others: of the other stream.

    Returns:
        (count,), int64, on the CPU.

    >>> partners(2, 8).tolist(), partners(4, 2).tolist()
    ([0, 4], [0, 0, 1, 1])
    """
    return torch.arange(count) * others // count


def cutmix(labeled: Tensor, unlabeled: Tensor, boxes: MixingBoxes) -> tuple[Tensor, Tensor]:
    """Pastes each pair's box in both directions (BCP, arXiv 2305.00673).

    Pair i of P is labeled image i N/P with unlabeled image i M/P: image i with image i where there are equally many.
    Of the larger of two streams, a multiple of the smaller, the images between come back as they are, so that a batch
    cut into whole parts has the same pairs. Images, label maps, pseudo-labels and masks are mixed by the same call.

    Args:
        labeled: (N, *S) or (N, C, *S).
        unlabeled: (M, *S) or (M, C, *S); N is a multiple of M, or M of N, otherwise alike.
        boxes: The boxes of the P = min(N, M) pairs.

    Returns:
        The labeled images with the unlabeled ones' boxes in them, and the unlabeled with the labeled ones'.

    Raises:
        ValueError: If the shapes differ from each other or from what the boxes were drawn for.
    """
    pairs = len(boxes.bounds)
    counts = len(labeled), len(unlabeled)
    if labeled.shape[1:] != unlabeled.shape[1:] or min(counts) != pairs or pairs == 0 or max(counts) % pairs:
        raise ValueError(
            f"labeled {tuple(labeled.shape)} and unlabeled {tuple(unlabeled.shape)} do not make {pairs} pairs: give "
            "images of one shape, as many of the one as a multiple of the other, and a box for each of the fewer"
        )
    spatial_dims = len(boxes.spatial_shape)
    if labeled.ndim not in (spatial_dims + 1, spatial_dims + 2):
        raise ValueError(
            f"tensors of shape {tuple(labeled.shape)} do not fit boxes with {spatial_dims} spatial axes; expected "
            "(N, *S) or (N, C, *S)"
        )
    if tuple(labeled.shape[-spatial_dims:]) != boxes.spatial_shape:
        raise ValueError(
            f"tensors of spatial shape {tuple(labeled.shape[-spatial_dims:])} do not fit boxes drawn for "
            f"{boxes.spatial_shape}; resize them (logits: to the size of the images) first"
        )
    inside = boxes.inside(labeled.device)
    if labeled.ndim == spatial_dims + 2:
        inside = inside.unsqueeze(1)
    return _pasted(labeled, unlabeled, inside), _pasted(unlabeled, labeled, inside)


def _pasted(images: Tensor, others: Tensor, inside: Tensor) -> Tensor:
    """`images` with the boxes of their partners among `others`."""
    if len(images) == len(others):  # the usual case, without a copy of both
        return torch.where(inside, others, images)
    pairs = len(inside)
    own, other = (partners(pairs, count).to(inside.device) for count in (len(images), len(others)))
    mixed = torch.where(inside, others[other], images[own])
    return mixed if len(images) == pairs else images.index_copy(0, own, mixed)


def unmix(logits_a: Tensor, logits_b: Tensor, boxes: MixingBoxes) -> tuple[Tensor, Tensor]:
    """Puts the outputs for mixed images back together, so that each pixel of each image appears once.

    Args:
        logits_a: (N, K, *S), output for the labeled images with unlabeled boxes, the first of `cutmix`.
        logits_b: (N, K, *S), output for the unlabeled images with labeled boxes, the second of `cutmix`.
        boxes: The boxes that they were mixed with.

    Returns:
        The output at the labeled images' pixels, (N, K, *S), and that at the unlabeled images' pixels, (M, K, *S).

    Raises:
        ValueError: As `cutmix`.
    """
    return cutmix(logits_a, logits_b, boxes)  # exchanging the boxes' contents is its own inverse


@dataclass(frozen=True)
class AmplitudeMixing:
    """Low-frequency amplitudes of labeled images mixed with those of unlabeled ones, phases kept.

    FDA (arXiv 2004.05498) with a random share of the other amplitude, as in MiDSS (arXiv 2404.08951): the labeled
    image keeps its anatomy and takes on some of the other scanner's look.

    Attributes:
        beta: Half width of the window of low frequencies as a fraction of each side, in [0, 0.5], FDA's beta; a
            frequency of k cycles an image is mixed where |k| <= floor(beta * side). 0 mixes the mean alone.
        ratio: Range of the share of the other image's amplitude, in [0, 1].
        probability: Probability that a sample is mixed, in [0, 1].

    Raises:
        ValueError: If a field is outside its legal values.
    """

    beta: float = 0.05
    ratio: tuple[float, float] = (0.0, 1.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 0.5:
            raise ValueError(f"AmplitudeMixing.beta must lie in [0, 0.5], found {self.beta!r}")
        check_range("AmplitudeMixing", "ratio", self.ratio, 0.0, 1.0)
        check_probability("AmplitudeMixing", "probability", self.probability)

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Draws each sample's share of the other amplitude, (N,), float64 on the CPU; 0 is no mixing."""
        gate, ratio = uniforms(seeds, "amplitude mixing", 1, 1)
        return where_drawn(gate, self.probability, within(ratio[:, 0], self.ratio), 0.0)

    def apply(self, images: Tensor, others: Tensor, ratios: Tensor) -> Tensor:
        """Mixes the amplitudes of `others` into `images`, image i with image i; see `mix_amplitudes`."""
        return mix_amplitudes(images, others, ratios, self.beta)


def mix_amplitudes(images: Tensor, others: Tensor, ratios: Tensor, beta: float) -> Tensor:
    """Mixes low-frequency Fourier amplitudes: A <- (1 - r) A + r A_other for |k| <= floor(beta * side), phase kept.

    Args:
        images: (N, C, *S), float32 or float64, any scale; the result is not clamped.
        others: The same shape.
        ratios: (N,), r in [0, 1]; images with r = 0 come back bit for bit.
        beta: Half width of the window as a fraction of each side, in [0, 0.5].

    Returns:
        (N, C, *S), new and real.

    Raises:
        ValueError: If the shapes differ.
    """
    if images.shape != others.shape or ratios.shape != images.shape[:1]:
        raise ValueError(
            f"images {tuple(images.shape)}, others {tuple(others.shape)} and ratios {tuple(ratios.shape)} do not fit; "
            "expected (N, C, *S), the same, and (N,)"
        )
    mixed = images.clone()
    samples = ratios.nonzero()[:, 0].to(images.device)
    if len(samples) == 0:
        return mixed
    shape = images.shape[2:]
    axes = tuple(range(2, images.ndim))
    spectrum = torch.fft.rfftn(images[samples], dim=axes)
    window = _low_frequencies(shape, beta, images.device)
    low = spectrum[(..., *window)]
    other = torch.fft.rfftn(others[samples], dim=axes)[(..., *window)]
    share = column(ratios, images)[samples]
    amplitude = low.abs() * (1.0 - share) + other.abs() * share
    spectrum[(..., *window)] = torch.polar(amplitude, low.angle())
    mixed[samples] = torch.fft.irfftn(spectrum, s=shape, dim=axes)
    return mixed


def _low_frequencies(shape: Sequence[int], beta: float, device: torch.device) -> list[Tensor]:
    """Places of the low frequencies in a real transform's half spectrum, as one open mesh of indices."""
    window = []
    for axis, side in enumerate(shape):
        width = int(beta * side)
        if axis == len(shape) - 1:
            places = torch.arange(min(width, side // 2) + 1)
        else:
            places = torch.arange(-width, width + 1).remainder(side).unique()
        spread = [1] * len(shape)
        spread[axis] = -1
        window.append(places.to(device).reshape(spread))
    return window
