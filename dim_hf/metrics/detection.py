"""How well a score finds bad cases: the area under the ROC curve, with an interval over patients."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim_hf.metrics.resampling import BLOCK, LEVEL, RESAMPLES, Interval, count_clusters

Floats = NDArray[np.float64]


def detection_auc(
    scores: ArrayLike,
    is_bad: ArrayLike,
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int | Sequence[int] = 0,
) -> Interval:
    """Probability that a bad case has a higher score than a good one; equal scores count half.

    It is the area under the ROC curve (Hanley and McNeil, Radiology 143, 1982), with a percentile interval over
    resampled patients. Resamples without a bad or without a good case say nothing and are left out.

    Args:
        scores: (N,), finite.
        is_bad: (N,) booleans.
        patients: N names; "" is a patient of its own.
        resamples: Number of resamples.
        level: Of the interval, in (0, 1).
        seed: Of the resamples.

    Returns:
        Mean: the area, NaN where there are no bad or no good cases; its ends are NaN where fewer than two patients
        have a bad case, or a good one. The standard deviation is NaN.

    Raises:
        ValueError: If the three have different lengths, or a score is not finite.

    >>> detection_auc([0.9, 0.4, 0.5, 0.1], [True, True, False, False], ["a", "b", "c", "d"]).mean
    0.75
    """
    values, bad = np.asarray(scores, np.float64), np.asarray(is_bad, bool)
    if values.ndim != 1 or not len(values) == len(bad) == len(patients) or not np.isfinite(values).all():
        raise ValueError(
            f"{values.shape} scores, {len(bad)} verdicts and {len(patients)} patients; give one of each, finite"
        )
    names = [patient or f"\0{index}" for index, patient in enumerate(patients)]
    clusters = np.unique(names, return_inverse=True)[1] if names else np.zeros(0, np.int64)
    area = float(_areas(values, bad, np.ones((1, len(values))))[0]) if len(values) else math.nan
    low = high = math.nan
    if min(len(set(clusters[bad])), len(set(clusters[~bad]))) >= 2:
        found = _resampled(values, bad, clusters, resamples, np.random.default_rng(seed))
        low, high = (float(end) for end in np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(area, math.nan, low, high, len(values), count_clusters(list(patients)))


def _areas(values: Floats, bad: NDArray[np.bool_], weights: Floats) -> Floats:
    """(R,) areas with weights (R, N) of the cases; NaN where all weight is on one kind."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-math.inf) > 0)  # of equal scores
    of_bad, of_good = (np.add.reduceat(weights[:, order] * kind[order], starts, axis=1) for kind in (bad, ~bad))
    below = np.cumsum(of_good, axis=1) - of_good / 2
    with np.errstate(invalid="ignore"):
        return (of_bad * below).sum(axis=1) / (of_bad.sum(axis=1) * of_good.sum(axis=1))


def _resampled(
    values: Floats, bad: NDArray[np.bool_], clusters: NDArray[np.int64], resamples: int, generator: np.random.Generator
) -> Floats:
    count, step = int(clusters.max()) + 1, max(1, BLOCK // len(values))
    found = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        found.append(_areas(values, bad, times[:, clusters].astype(np.float64)))
    return np.concatenate(found)
