"""Class probabilities from one or two networks and mirror images, and how far these disagree."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dim_hf.augmentations.geometry import mirror_axes
from dim_hf.inference.drift_parts import DriftMeter
from dim_hf.inference.options import PredictionOptions
from dim_hf.inference.sliding import Forward
from dim_hf.losses import resize_logits


@dataclass(frozen=True, eq=False)
class Answer:
    """What is said of one image, on its own grid.

    Attributes:
        probabilities: (K, *S) float32, on the CPU.
        uncertainty: (*S) float32 in [0, 1], on the CPU; None where it was not asked for.
        drift: In [0, 1], see `drift.SiteStatistics.scores`; None where there are no statistics.
    """

    probabilities: Tensor
    uncertainty: Tensor | None
    drift: float | None = None


@torch.inference_mode()
def answers(
    forwards: Sequence[Forward],
    pixels: Tensor,
    shapes: Sequence[Sequence[int]],
    options: PredictionOptions,
    meter: DriftMeter | None = None,
) -> list[Answer]:
    """Predict a batch.

    The probabilities are those of the first network: the mean over mirror images of the softmax of its logits, which
    are interpolated to the image's grid before (as in evaluation).

    Args:
        forwards: The network, and the one that it is compared with for the uncertainty "teacher-student".
        pixels: (N, C, *S').
        shapes: Size *S of each of the N images.
        options: `flips` and `uncertainty` count.
        meter: Sees the logits of all passes.
    """
    flips = mirror_axes(pixels.ndim - 2) if options.mirrored else [()]
    sees = [partial(meter.see_logits, number) if meter else None for number in range(len(forwards))]
    means = [
        _mean_probabilities(forward, pixels, shapes, flips, see) for forward, see in zip(forwards, sees, strict=True)
    ]
    found = []
    for of_image in zip(*means, strict=True):
        mean, mean_of_entropies = of_image[0]
        found.append(Answer(mean, _uncertainty(options.uncertainty, of_image, mean_of_entropies, len(flips))))
    return found


def entropy(probabilities: Tensor) -> Tensor:
    """-Σ p log p over the classes, (K, *S) → (*S), in nats."""
    return torch.special.entr(probabilities).sum(0)


def _mean_probabilities(
    forward: Forward,
    pixels: Tensor,
    shapes: Sequence[Sequence[int]],
    flips: Sequence[tuple[int, ...]],
    see: Callable[[Tensor], None] | None,
) -> list[tuple[Tensor, Tensor | None]]:
    """For each image the mean of its answers, and the mean of their entropies where there are several."""
    totals: list[Tensor | None] = [None] * len(shapes)
    entropies: list[Tensor | None] = [None] * len(shapes)
    for axes in flips:
        logits = forward(pixels.flip(axes)).flip(axes)
        if see is not None:
            see(logits)
        for index, shape in enumerate(shapes):
            scores = resize_logits(logits[index : index + 1], torch.Size(shape))[0].float().softmax(0).cpu()
            total, of_entropies = totals[index], entropies[index]
            if len(flips) > 1:
                spread = entropy(scores)
                entropies[index] = spread if of_entropies is None else of_entropies.add_(spread)
            totals[index] = scores if total is None else total.add_(scores)
    return [
        (total.div_(len(flips)), None if spread is None else spread.div_(len(flips)))
        for total, spread in zip(totals, entropies, strict=True)
        if total is not None
    ]


def _uncertainty(
    kind: str | None, networks: Sequence[tuple[Tensor, Tensor | None]], of_flips: Tensor | None, count: int
) -> Tensor | None:
    if kind is None:
        return None
    first = networks[0][0]
    if kind == "entropy":
        return _share(entropy(first), len(first))
    if kind == "flips":
        assert of_flips is not None
        return _share(entropy(first) - of_flips, min(len(first), count))
    second = networks[1][0]
    apart = entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2
    return _share(apart, 2)


def _share(value: Tensor, choices: int) -> Tensor:
    """Of the largest value, log of the number of choices; rounding must not leave [0, 1]."""
    return value.div(math.log(choices)).clamp_(0, 1)
