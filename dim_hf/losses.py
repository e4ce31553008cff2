"""The terms of the objective and their total: L = L_sup + λ_con w(t) L_con + λ_div w(t) L_div.

Our reconstruction of DiM (arXiv 2411.12350) from established parts; each function names its source.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dim_hf.models.loss_dim_unet import cross_entropy_and_dice, pixel_cross_entropy, soft_dice_loss

IGNORE_INDEX = 255

# Shares below one pixel in ten thousand are noise: their quotient is bounded by 1e4.
_SHARE_FLOOR = 1e-4


def resize_logits(logits: Tensor, spatial_shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Bring logits (N, K, *S') to the label maps' size (N, K, *S), in float32 at least.

    Networks such as SegFormer predict at a quarter of the input's resolution; bi- or trilinear
    interpolation of the logits, before the softmax, is how their authors train and score them.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[2:] == tuple(spatial_shape):
        return logits
    mode = "bilinear" if len(spatial_shape) == 2 else "trilinear"
    return F.interpolate(logits, size=tuple(spatial_shape), mode=mode, align_corners=False)


def supervised_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_sup: cross-entropy + soft Dice on labeled images, mean over images.

    Args:
        logits: (N, K, *S).
        labels: (N, *S) integers in 0..K-1; 255 is ignored.

    Returns:
        A scalar ≥ 0.
    """
    return cross_entropy_and_dice(logits, labels, ignore_index=IGNORE_INDEX)


def consistency_loss(logits: Tensor, pseudo_labels: Tensor, pseudo_label_mask: Tensor) -> Tensor:
    """L_con: masked cross-entropy + masked soft Dice of strong views against pseudo-labels.

    The cross-entropy of kept pixels is divided by the number of ALL pixels (FixMatch,
    arXiv 2001.07685, eq. 4), so that an image with few confident pixels weighs little.

    Args:
        logits: (N, K, *S), the student's on strong views.
        pseudo_labels: (N, *S) integers in 0..K-1, the teacher's most probable classes.
        pseudo_label_mask: (N, *S) booleans, True where the teacher is confident.

    Returns:
        A scalar ≥ 0; zero where nothing is kept.
    """
    cross_entropy = pixel_cross_entropy(
        logits, pseudo_labels, IGNORE_INDEX, weight=pseudo_label_mask, divide_by="pixels"
    )
    probabilities = torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
    return cross_entropy + soft_dice_loss(probabilities, pseudo_labels, pseudo_label_mask)


def ramp_up(step: int, rampup_steps: int) -> float:
    """w(t) = exp(-5 (1 - r')²), r' = min(t / rampup_steps, 1) (arXiv 1610.02242, section 2.1).

    Args:
        step: t ≥ 0, the number of the optimizer step.
        rampup_steps: length of the rise; 0 means full weight from the start.

    Returns:
        A weight in [exp(-5), 1].

    >>> [round(ramp_up(t, 100), 4) for t in (0, 50, 100, 200)]
    [0.0067, 0.2865, 1.0, 1.0]
    """
    progress = 1.0 if rampup_steps <= 0 else min(step / rampup_steps, 1.0)
    return math.exp(-5.0 * (1.0 - progress) ** 2)


@dataclass(frozen=True)
class LossTerms:
    """The three terms of one batch, unweighted scalars; a term that is off is zero."""

    supervised: Tensor
    consistency: Tensor
    divergence: Tensor

    def total(self, consistency_weight: float, divergence_weight: float) -> Tensor:
        """L = L_sup + λ_con w L_con + λ_div w L_div; the weights come with w(t) in them."""
        return self.supervised + consistency_weight * self.consistency + divergence_weight * self.divergence

    def ascent(self, objective: str, consistency_weight: float, divergence_weight: float) -> Tensor:
        """The loss whose gradient the perturbation climbs.

        Args:
            objective: one of `dim_hf.sharpness.ASCENT_OBJECTIVES`.
            consistency_weight: λ_con w(t), used by `total`.
            divergence_weight: λ_div w(t), used by `total`.

        Returns:
            A scalar; its scale does not matter, since the perturbation is normalised.
        """
        if objective == "supervised":
            return self.supervised
        if objective == "divergence":
            return self.divergence
        return self.total(consistency_weight, divergence_weight)

    def detached(self) -> dict[str, Tensor]:
        """The values for the log, without a graph."""
        return {
            "loss_supervised": self.supervised.detach(),
            "loss_consistency": self.consistency.detach(),
            "divergence": self.divergence.detach(),
        }


@torch.no_grad()
def adapt_to_image_shares(
    probabilities: Tensor, labeled_shares: Tensor, strength: float = 1.0, iterations: int = 10
) -> Tensor:
    """Replace the class shares that a network learned from its labels by those of each image.

    A network trained on labels with class shares π gives p(k|x) ∝ π_k p(x|k). In an image with other shares q the
    posterior is ∝ (q_k/π_k) p(k|x), and q is found by expectation maximisation, the mean of the corrected posteriors
    being the next q (Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a priori
    probabilities", Neural Computation 14, 2002). Ours: it is done for each image by itself, among the
    foreground classes alone (a pixel's background probability, class 0, stays: with it in, the background grows over
    whole structures), and weakened by a power. With one foreground class it changes nothing.

    Args:
        probabilities: (N, K, *S), sums of 1 over classes; class 0 is the background.
        labeled_shares: (K,), shares of all labeled pixels, π, ≥ 0.
        strength: power of q/π, in [0, 1]: 1 is the correction of maximum likelihood, 0 none.
        iterations: of the expectation maximisation.

    Returns:
        (N, K, *S), of the same type; the very same tensor at strength 0.
    """
    if strength == 0 or probabilities.shape[1] < 3:
        return probabilities
    foreground = probabilities[:, 1:]
    total = foreground.sum(1, keepdim=True)
    smallest = torch.finfo(probabilities.dtype).tiny
    prior = _shares(labeled_shares[1:].to(probabilities), dim=0)
    adapted = foreground
    for _ in range(iterations):
        ratios = (_shares(adapted.flatten(2).sum(2), dim=1) / prior) ** strength
        adapted = foreground * ratios.reshape(*ratios.shape, *[1] * (probabilities.ndim - 2))
        adapted = adapted * (total / adapted.sum(1, keepdim=True).clamp_min(smallest))
    return torch.cat([probabilities[:, :1], adapted], dim=1)


def _shares(mass: Tensor, dim: int) -> Tensor:
    """Masses as shares of their sum, none below the floor."""
    return (mass / mass.sum(dim, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)).clamp_min(_SHARE_FLOOR)


def class_shares(label_maps: Iterable[Tensor], num_labels: int) -> Tensor:
    """Share of each class among all labeled pixels.

    Args:
        label_maps: integer tensors of any shape with values in 0..K-1; 255 is ignored.
        num_labels: K.

    Returns:
        (K,) float64, sum 1.

    Raises:
        ValueError: if no pixel is labeled.
    """
    counts = torch.zeros(num_labels, dtype=torch.float64)
    for labels in label_maps:
        labels = labels.flatten().long()
        counts += torch.bincount(labels[labels != IGNORE_INDEX], minlength=num_labels)
    if not counts.sum():
        raise ValueError("no pixel of the labeled images has a class; share_adaptation needs their shares")
    return counts / counts.sum()


@torch.no_grad()
def make_pseudo_labels(teacher_logits: Tensor, confidence_threshold: float) -> tuple[Tensor, Tensor]:
    """Give ŷ = argmax p of p = softmax f_θ'(w(x_u)), kept where max p ≥ τ (FixMatch, arXiv 2001.07685, eq. 4).

    Args:
        teacher_logits: (N, K, *S) on weak views.
        confidence_threshold: τ in [0, 1].

    Returns:
        Pseudo-labels ŷ (N, *S), integers in 0..K-1, and their mask (N, *S), True where kept.
    """
    logits = teacher_logits.to(torch.promote_types(teacher_logits.dtype, torch.float32))
    confidence, pseudo_labels = torch.softmax(logits, dim=1).max(dim=1)
    return pseudo_labels, confidence >= confidence_threshold
