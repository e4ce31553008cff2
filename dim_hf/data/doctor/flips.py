"""Suspects masks that belong to the flipped or turned image, by how well they fit as they are and turned back.

Evidence. Image and mask are reduced to at most 128 pixels (volumes: 48 voxels) an axis. For the mask as it is and for
each of its variants (squares: the 7 other flips and quarter turns; other pictures: 3; volumes: the 7 flips of axes)

    evidence = η² + mean rank of the gradient's length on the borders of the mask

where η² is the share of the intensity's variance that lies between the classes, and ranks are in [0, 1]. All variants
have the same areas and outlines, so that they can be compared with each other.

Decision. In a domain of at least 8 images whose best variant typically leads the second one by 0.1 or more (the
median), an image is suspected if a variant is better than the mask as it is by more than half that lead, and by 0.1
at least. Where most images prefer the same variant, the domain is suspected instead. In other domains nothing is:
their structures are too round, too central or too faint to tell.

It is a suspicion and no proof. Measured with every mask right: no false alarm among 1 106 real pairs (621 images of
nuclei of four kinds, 485 fundus photographs) and 260 volumes of the hippocampus. Measured with 5 in 100 masks of the
nuclei flipped or turned by 180°, at random: 126 of 126 found; with 40 in 100: 99 in 100, again without a false alarm.
None can be found in photographs centered on the optic disc, or in volumes cropped tightly about an organ: silence says
nothing there, and the summary of a domain tells whether it was checked.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = {2: 128, 3: 48}
MIN_IMAGES = 8
MIN_LEAD = 0.1
_SAMPLES = 4  # of each block and axis that becomes one pixel


@dataclass(frozen=True)
class Variant:
    """One way to flip or turn a mask.

    Attributes:
        words: Completes "the mask fits better when ...".
        axes: Axes that are flipped, after the transposition.
        transposed: Rows and columns are exchanged first.
    """

    words: str
    axes: tuple[int, ...] = ()
    transposed: bool = False

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """The mask, flipped or turned."""
        return np.flip(mask.T if self.transposed else mask, self.axes)


_FLIPS = (
    Variant("left as it is"),
    Variant("flipped upside down", (0,)),
    Variant("flipped left to right", (1,)),
    Variant("turned by 180°", (0, 1)),
)
_TURNS = (
    Variant("mirrored at its diagonal (transposed)", (), True),
    Variant("turned by 90° counterclockwise", (0,), True),
    Variant("turned by 90° clockwise", (1,), True),
    Variant("mirrored at its other diagonal", (0, 1), True),
)
_VOLUME_FLIPS = tuple(
    Variant(f"flipped along {'axis' if len(axes) == 1 else 'the axes'} {', '.join(map(str, axes))}", axes)
    for count in range(4)
    for axes in itertools.combinations(range(3), count)
)


def variants(shape: tuple[int, ...]) -> tuple[Variant, ...]:
    """The ways to flip a mask of this shape, the mask as it is first; a square has all others and more."""
    if len(shape) == 3:
        return _VOLUME_FLIPS
    return _FLIPS + _TURNS if shape[0] == shape[1] else _FLIPS


def evidence(image: np.ndarray, mask: np.ndarray) -> tuple[float, ...] | None:
    """How well each variant of a mask fits its image; see the module.

    Args:
        image: (*S) or (*S, C), real and finite.
        mask: (*S) integers, S of 2 or 3 axes.

    Returns:
        A number in [0, 2] for each of `variants(mask.shape)`, or None where the reduced mask has one class only, or
        the image one value or values beyond float32.
    """
    if mask.ndim not in LONGEST:
        return None
    step = tuple(max(1, math.ceil(size / LONGEST[mask.ndim])) for size in mask.shape)
    if mask.ndim == 2 and mask.shape[0] == mask.shape[1]:
        step = (max(step),) * 2
    with np.errstate(over="ignore", invalid="ignore"):
        small = _reduced(image.reshape(*mask.shape, -1), step)
    if not np.isfinite(small).all():  # values beyond float32
        return None
    labels = mask[tuple(slice(s // 2, size // s * s, s) for size, s in zip(mask.shape, step, strict=True))]
    classes, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(small.shape[:-1])
    if len(classes) < 2 or min(labels.shape) < 2 or small.min() == small.max():
        return None
    channels = small.reshape(-1, small.shape[-1]).T.astype(np.float64)
    channels -= channels.mean(axis=1, keepdims=True)
    ranks, borders = _gradient_ranks(small), _borders(labels)
    scores = []
    for variant in variants(mask.shape):
        share = _between_share(channels, variant.apply(labels), len(classes))
        scores.append(share + float(ranks[variant.apply(borders)].mean()))
    return tuple(scores)


def _reduced(image: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
    """Means over blocks (of at most 4 samples an axis), float32."""
    image = image[tuple(slice(size // s * s) for size, s in zip(image.shape, step, strict=False))]
    for axis, s in enumerate(step):
        offsets = sorted({s * (2 * i + 1) // (2 * _SAMPLES) for i in range(_SAMPLES)})
        parts = [image[(slice(None),) * axis + (slice(offset, None, s),)] for offset in offsets]
        total = parts[0].astype(np.float32)
        for part in parts[1:]:
            total += part
        image = total / np.float32(len(parts))
    return image


def _between_share(channels: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """η²: variance between the classes over all variance, of all channels (C, N) of mean 0 together."""
    between = 0.0
    for value in range(num_classes):
        members = (labels == value).ravel().astype(np.float64)
        between += float(((channels @ members) ** 2).sum() / members.sum())
    return between / max(float((channels**2).sum()), 1e-12)


def _gradient_ranks(image: np.ndarray) -> np.ndarray:
    """Rank in [0, 1] of the gradient's length at each pixel, over all channels; equal lengths share one."""
    axes = range(image.ndim - 1)
    length = sum((np.gradient(image, axis=axis) ** 2).sum(axis=-1) for axis in axes)
    _, inverse, counts = np.unique(length, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - (counts + 1) / 2) / max(length.size - 1, 1))[inverse].reshape(length.shape)


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels beside one of another class."""
    found = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        low = tuple(slice(None, -1) if i == axis else slice(None) for i in range(labels.ndim))
        high = tuple(slice(1, None) if i == axis else slice(None) for i in range(labels.ndim))
        differs = labels[low] != labels[high]
        found[low] |= differs
        found[high] |= differs
    return found


@dataclass(frozen=True)
class Suspicion:
    """What the evidence of a domain says.

    Attributes:
        lead: Median over the images of the best variant's lead over the second best; 0 without images.
        can_tell: There are enough images, and the lead is large enough, to suspect any.
        most: The variant that most images prefer, or None where they are rightly left as they are.
        images: Number of the image within the domain → its better variant.
    """

    lead: float
    can_tell: bool
    most: Variant | None
    images: dict[int, Variant]


def suspect(shapes: Sequence[tuple[int, ...]], scores: Sequence[tuple[float, ...] | None]) -> Suspicion:
    """Judge the images of one domain together; see the module.

    Args:
        shapes: Shape of each mask.
        scores: `evidence` of each; None for those that have none.
    """
    known = [index for index, score in enumerate(scores) if score is not None]
    leads = [best - second for second, best in (sorted(scores[index])[-2:] for index in known)]
    lead = float(np.median(leads)) if leads else 0.0
    if len(known) < MIN_IMAGES or lead < MIN_LEAD:
        return Suspicion(lead, False, None, {})
    best = {index: variants(shapes[index])[int(np.argmax(scores[index]))] for index in known}
    most, count = min(Counter(best.values()).items(), key=lambda item: (-item[1], item[0].words))
    identity = _FLIPS[0]
    if most not in (identity, _VOLUME_FLIPS[0]) and 2 * count > len(known):
        return Suspicion(lead, True, most, {})
    gap = max(MIN_LEAD, lead / 2)
    found = {index: best[index] for index in known if max(scores[index]) - scores[index][0] > gap}
    return Suspicion(lead, True, None, found)
