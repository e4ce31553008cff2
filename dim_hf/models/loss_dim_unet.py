"""Losses on label maps: cross-entropy and soft Dice, each a mean over images of one value per image.

Because a batch counts only through that mean, the mean of the losses of equal micro-batches is the loss of the whole
batch: gradient accumulation and data parallelism need no correction. Everything is computed in float32 (float64 stays
float64), whatever the type of the input.

Labels are not checked here: a look at the values would stall a GPU at each step. A label that is neither 0..K-1 nor
`ignore_index` makes cross-entropy fail (IndexError on the CPU, a device-side assertion on a GPU); check label maps
where they are read.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_SMOOTHING = 1.0
"""Added to numerator and denominator of the soft Dice of each class, in pixels. One pixel is small beside a structure,
yet keeps a gradient on the false positives of a class that the image lacks, which a tiny constant would not."""


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check_shapes(scores: Tensor, labels: Tensor, weight: Tensor | None) -> None:
    expected = (scores.shape[0], *scores.shape[2:])
    for name, value in (("labels", labels), ("weight", weight)):
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(
                f"{name} must have shape {expected} to go with logits of shape {tuple(scores.shape)}, got "
                f"{tuple(value.shape)}; interpolate the logits to the size of the label map first."
            )


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    *,
    weight: Tensor | None = None,
    divide_by: Literal["weight", "pixels"] = "weight",
) -> Tensor:
    """Mean over images of each image's weighted cross-entropy.

    For one image, with w = `weight` (1 if None) and w = 0 on ignored pixels: Σ w · (-log p_label) / D, where D is Σ w
    (`divide_by="weight"`: the mean over the pixels that count) or the number of all pixels of the image, ignored ones
    included (`divide_by="pixels"`, as FixMatch, arXiv 2001.07685, does: few confident pixels then weigh little).
    An image with D = 0 contributes 0 and is still counted among the images.

    Args:
        logits: (N, K, *S), any floating type.
        labels: (N, *S), integer, exclusive classes 0..K-1 or `ignore_index`.
        ignore_index: Label of pixels that do not count.
        weight: (N, *S), bool or float in [0, ∞); None counts every pixel once.
        divide_by: "weight" or "pixels".

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: Shapes do not fit together, or `divide_by` is unknown.
    """
    if divide_by not in ("weight", "pixels"):
        raise ValueError(f"divide_by must be 'weight' or 'pixels', got {divide_by!r}.")
    _check_shapes(logits, labels, weight)
    logits = _at_least_float32(logits)
    labels = labels.long()
    # F.cross_entropy is 0 on ignored pixels, so their weight only matters in the denominator.
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    counts = (labels != ignore_index).to(losses.dtype)
    if weight is not None:
        counts = counts * weight.to(losses.dtype)
    totals = (losses * counts).flatten(1).sum(1)
    if divide_by == "pixels":
        return (totals / counts[0].numel()).mean()
    divisors = counts.flatten(1).sum(1)
    return (totals / torch.where(divisors > 0, divisors, torch.ones_like(divisors))).mean()


def soft_dice_loss(
    probabilities: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    ignore_index: int = 255,
    smoothing: float = DICE_SMOOTHING,
) -> Tensor:
    """Mean over images of one minus the soft Dice, averaged over all classes, background included.

    For one image and class, with p the probabilities, t the target (0 or 1) and w the mask (0 on ignored pixels):
    Dice = (2 Σ w p t + s) / (Σ w p² + Σ w t² + s), the squared form of V-Net (arXiv 1606.04797), s = `smoothing`. A
    class that neither has is right: its Dice is 1. So is everything where the mask is 0.

    Args:
        probabilities: (N, K, *S) in [0, 1], any floating type: a softmax of the logits.
        targets: (N, *S), integer, exclusive classes 0..K-1 or `ignore_index`; or (N, K, *S), probabilities.
        mask: (N, *S), bool or float weights in [0, ∞); None counts every pixel once.
        ignore_index: Label of pixels that do not count (with integer targets).
        smoothing: s, in pixels.

    Returns:
        Scalar in [0, 1], float32 or float64.

    Raises:
        ValueError: Shapes do not fit together.
    """
    probabilities = _at_least_float32(probabilities)
    if targets.ndim == probabilities.ndim and targets.is_floating_point():
        _check_shapes(probabilities, targets[:, 0], mask)
        expected, counts = targets.to(probabilities.dtype), None
    else:
        _check_shapes(probabilities, targets, mask)
        classes = torch.arange(probabilities.shape[1], device=targets.device)
        classes = classes.view(1, -1, *[1] * (targets.ndim - 1))
        # A comparison rather than F.one_hot or scatter: no look at the values, deterministic on every device, and
        # the ignored label needs no stand-in.
        expected = (targets.unsqueeze(1) == classes).to(probabilities.dtype)  # (N, K, *S)
        counts = (targets != ignore_index).unsqueeze(1).to(probabilities.dtype)  # (N, 1, *S)
    if mask is not None:
        weights = mask.unsqueeze(1).to(probabilities.dtype)
        counts = weights if counts is None else counts * weights
    weighted = probabilities if counts is None else probabilities * counts
    overlap = (weighted * expected).flatten(2).sum(2)  # (N, K)
    predicted = (weighted * probabilities).flatten(2).sum(2)
    present = (expected * expected if counts is None else expected * expected * counts).flatten(2).sum(2)
    dice = (2 * overlap + smoothing) / (predicted + present + smoothing)
    return 1 - dice.mean(1).mean()


def cross_entropy_and_dice(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean over images of cross-entropy (over the pixels that are not ignored) plus soft Dice loss.

    Args:
        logits: (N, K, *S), any floating type.
        labels: (N, *S), integer, exclusive classes 0..K-1 or `ignore_index`.
        ignore_index: Label of pixels that do not count.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: Shapes do not fit together.

    Example:
        >>> labels = torch.tensor([[[0, 1], [1, 255]]])
        >>> float(cross_entropy_and_dice(torch.tensor([[[[9.0, -9], [-9, 0]], [[-9, 9], [9, 0]]]]), labels)) < 1e-6
        True
    """
    logits = _at_least_float32(logits)
    cross_entropy = pixel_cross_entropy(logits, labels, ignore_index)
    return cross_entropy + soft_dice_loss(logits.softmax(1), labels, ignore_index=ignore_index)


__all__ = ["cross_entropy_and_dice", "pixel_cross_entropy", "soft_dice_loss"]
