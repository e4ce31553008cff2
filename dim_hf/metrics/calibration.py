"""Whether probabilities mean what they say: confidence against accuracy by bin, gathered image by image.

The confidence of a pixel is the largest of its class probabilities. Pixels are sorted into M bins of equal width by
confidence; of calibrated probabilities the mean confidence of each bin is the share of its pixels that are right.
The expected calibration error is Σ_m n_m / N · |accuracy_m - confidence_m| (Naeini, Cooper and Hauskrecht, "Obtaining
well calibrated probabilities using Bayesian binning", AAAI 2015; bins ((m - 1) / M, m / M] as Guo, Pleiss, Sun and
Weinberger, "On calibration of modern neural networks", ICML 2017).

In segmentation most pixels are easy background, which makes the error small; compare it between methods on the same
images, not between data sets.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Probabilities from half-precision networks are off by this much.
TOLERANCE = 1e-2


def _as_pixels(
    probabilities: ArrayLike, labels: ArrayLike, ignore_index: int | None
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Probabilities (K, N) and labels (N,) of the pixels that are not ignored, checked."""
    scores, classes = np.asarray(probabilities), np.asarray(labels)
    if scores.ndim < 2 or scores.shape[0] < 2 or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(
            f"probabilities have shape {scores.shape} and type {scores.dtype}; pass floats (K, *S) of K >= 2 classes"
        )
    if scores.shape[1:] != classes.shape:
        raise ValueError(
            f"probabilities have shape {scores.shape} and labels {classes.shape}; pass labels of shape "
            f"{scores.shape[1:]}, one image a call"
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"labels have type {classes.dtype}; pass integer class ids")
    valid = np.ones(classes.shape, dtype=bool) if ignore_index is None else classes != ignore_index
    scores, classes = scores[:, valid], classes[valid]
    illegal = classes[(classes < 0) | (classes >= len(scores))]
    if illegal.size:
        raise ValueError(
            f"labels hold the class {illegal[0]} and there are {len(scores)} classes; pass ids below {len(scores)}, "
            "or the id of ignored pixels as ignore_index"
        )
    # Written so that NaN fails too.
    if not (scores >= -TOLERANCE).all() or not (np.abs(scores.sum(axis=0, dtype=np.float64) - 1) <= TOLERANCE).all():
        raise ValueError("probabilities do not sum to 1 over the first axis; pass the softmax of the logits")
    return scores, classes


class Reliability:
    """Confidence, accuracy and number of pixels by bin of confidence; a running sum, so that no image is kept.

    Args:
        num_bins: number M of bins of equal width over [0, 1].

    Raises:
        ValueError: if there is no bin.

    >>> reliability = Reliability(num_bins=2)
    >>> reliability.update([[0.75, 0.75], [0.25, 0.25]], [0, 1])
    >>> reliability.expected_calibration_error
    0.25
    """

    def __init__(self, num_bins: int = 15) -> None:
        if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
            raise ValueError(f"num_bins is {num_bins!r}; choose at least one, such as 15")
        self.num_bins = num_bins
        self._counts = np.zeros(num_bins, dtype=np.int64)
        self._correct = np.zeros(num_bins, dtype=np.int64)
        self._confidence = np.zeros(num_bins)

    def update(self, probabilities: ArrayLike, labels: ArrayLike, ignore_index: int | None = 255) -> None:
        """Adds the pixels of one image or volume.

        Args:
            probabilities: (K, *S) float, in [0, 1] and with sum 1 over the K >= 2 classes.
            labels: (*S) reference class ids, integer.
            ignore_index: label of pixels that are left out; None where there is none.

        Raises:
            ValueError: if shapes or types do not fit, a label is no class, or the probabilities do not sum to 1.
        """
        scores, classes = _as_pixels(probabilities, labels, ignore_index)
        confidence = scores.max(axis=0).astype(np.float64).clip(0.0, 1.0)
        correct = scores.argmax(axis=0) == classes
        # Bins are closed at their upper end: 0.5 of two bins belongs to the first.
        inner = np.linspace(0.0, 1.0, self.num_bins + 1)[1:-1]
        bins = np.searchsorted(inner, confidence, side="left")
        self._counts += np.bincount(bins, minlength=self.num_bins)
        self._correct += np.bincount(bins[correct], minlength=self.num_bins)
        self._confidence += np.bincount(bins, weights=confidence, minlength=self.num_bins)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, (num_bins + 1,), from 0 to 1."""
        return np.linspace(0.0, 1.0, self.num_bins + 1)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of pixels by bin, (num_bins,)."""
        return self._counts.copy()

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Mean confidence by bin, (num_bins,), in [0, 1]; NaN in empty bins."""
        return self._per_pixel(self._confidence)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of pixels whose class is right by bin, (num_bins,), in [0, 1]; NaN in empty bins."""
        return self._per_pixel(self._correct)

    @property
    def expected_calibration_error(self) -> float:
        """Mean over pixels of |accuracy - confidence| of their bin, in [0, 1]; NaN without pixels."""
        pixels = int(self._counts.sum())
        return float(np.abs(self._correct - self._confidence).sum() / pixels) if pixels else float("nan")

    def _per_pixel(self, sums: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # 0 / 0: an empty bin
            return sums / self._counts

    def __add__(self, other: "Reliability") -> "Reliability":
        """What one object would hold that had seen the pixels of both, such as those of two processes or domains."""
        if not isinstance(other, Reliability):
            return NotImplemented
        if other.num_bins != self.num_bins:
            raise ValueError(f"num_bins is {self.num_bins} and {other.num_bins}; gather both with equal bins")
        merged = Reliability(self.num_bins)
        for name in ("_counts", "_correct", "_confidence"):
            setattr(merged, name, getattr(self, name) + getattr(other, name))
        return merged
