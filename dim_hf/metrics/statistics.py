"""Means of cases with bootstrap intervals over patients, and paired comparisons of two methods on the same cases.

Patients and not cases are resampled (`resampling` says why and by which method). With fewer than about 20 patients
percentile intervals are too narrow: read them as a lower bound of the uncertainty. Undefined values (NaN) are left out
of every mean, and how many are left is stated. Results depend on the seed, not on the order of the cases.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim_hf.metrics.resampling import (
    LEVEL,
    RESAMPLES,
    Clusters,
    Interval,
    cluster_sums,
    in_order,
    mean_of_resampled,
    resample_means,
)

__all__ = [
    "LEVEL",
    "MIN_PAIRS",
    "RESAMPLES",
    "Interval",
    "PairedComparison",
    "bootstrap_mean",
    "bootstrap_mean_of_groups",
    "compare_paired",
    "compare_paired_groups",
]

# Of five pairs no outcome of the two-sided signed-rank test is below 0.0625: it could never reject at 0.05.
MIN_PAIRS = 6

# Differences this much smaller than the largest value are rounding errors of the metric: equal, or tied.
TIE_DIGITS = 12


@dataclass(frozen=True)
class PairedComparison:
    """Two methods A and B on the same cases.

    Attributes:
        difference: mean of A minus B over cases, with its interval over patients, in the unit of the metric.
        p_value: two-sided Wilcoxon signed-rank test of the patients' mean differences; NaN where it has no sense.
        pairs: number of patients in the test: `better + worse + equal`.
        better: patients for whom A is better on average.
        worse: patients for whom B is better on average.
        equal: patients for whom both are equal.
        undefined: cases that were left out because a value of A or of B is NaN.
    """

    difference: Interval
    p_value: float
    pairs: int
    better: int
    worse: int
    equal: int
    undefined: int = 0


def _column(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values have shape {array.shape}; pass one value a case")
    return array[:, None]


def bootstrap_mean(
    values: ArrayLike, clusters: Clusters = None, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over cases with a percentile bootstrap interval over clusters.

    Every case has the same weight, so that the mean is the one of `report.site_table`; a patient with many cases
    weighs more.

    Args:
        values: one a case; NaN is left out.
        clusters: name of each case's cluster (patient); None, and any name that is "" or None, is a cluster alone.
        level: probability of the interval, in (0, 1).
        resamples: number of resamples.
        seed: of the resamples, an integer from 0.

    Returns:
        The mean with its interval; all NaN for no defined value, the interval NaN for a single cluster.

    Raises:
        ValueError: if a value is infinite, the lengths differ, or level or resamples are not legal.

    >>> bootstrap_mean([0.5, 1.0, float("nan")], ["a", "a", "b"])
    Interval(mean=0.75, sd=0.3535533905932738, low=nan, high=nan, cases=2, clusters=1)
    """
    return resample_means(_column(values), clusters, resamples=resamples, seed=seed).intervals(level)[0]


def bootstrap_mean_of_groups(
    groups: Sequence[tuple[ArrayLike, Clusters]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of the groups' (domains') means with equal weight for each, whatever their sizes.

    Each group's clusters are resampled by themselves and the groups stay: the interval is for new patients of the same
    domains and says nothing of a new domain.

    Args:
        groups: (values, clusters) of each group, as for `bootstrap_mean`; keep their order, since each place has its
            own resamples. Groups without a defined value are left out.
        level: probability of the interval, in (0, 1).
        resamples: number of resamples.
        seed: of the resamples, an integer from 0.

    Returns:
        The mean with its interval; `sd` is the spread between the groups' means. The interval is NaN where a group
        has a single cluster; all is NaN for no group.

    Raises:
        ValueError: see `bootstrap_mean`.
    """
    parts = [
        resample_means(_column(values), clusters, resamples=resamples, seed=(seed, place))
        for place, (values, clusters) in enumerate(groups or [((), None)])
    ]
    return mean_of_resampled(parts).intervals(level)[0]


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    """P value of the two-sided signed-rank test; differences of 0 are dropped, equal ones share their mean rank."""
    from scipy.stats import wilcoxon

    different = differences[differences != 0]
    if len(differences) and not len(different):
        return 1.0
    if len(differences) < MIN_PAIRS:
        return math.nan
    return float(wilcoxon(different, correction=True).pvalue)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Differences of one group: A minus B by case, (N,), their means by cluster, (C,), and the largest value."""

    differences: NDArray[np.float64]
    clusters: Clusters
    means: NDArray[np.float64]
    scale: float


def _pair(a: ArrayLike, b: ArrayLike, clusters: Clusters) -> _Pairs:
    first, second = _column(a), _column(b)
    if first.shape != second.shape:
        raise ValueError(f"A has {len(first)} cases and B {len(second)}; score both on the same cases")
    if np.isinf(first).any() or np.isinf(second).any():
        raise ValueError("a value is infinite; pass NaN for what is undefined")
    differences = first - second
    values, numbers = in_order(differences, clusters)
    if len(values) == 0:
        return _Pairs(differences[:, 0], clusters, np.zeros(0), 0.0)
    sums, counts = cluster_sums(values, numbers)
    return _Pairs(differences[:, 0], clusters, (sums / counts)[:, 0], float(np.nanmax(np.abs([first, second]))))


def _compare(
    pairs: Sequence[_Pairs], interval_of: Callable[[int], Interval], higher_is_better: bool
) -> PairedComparison:
    """The comparison; `interval_of(1)` is the interval of A minus B and `interval_of(-1)` that of B minus A."""
    # Both ways have the same distribution; their mean is exactly the opposite when A and B change places.
    forth, back = interval_of(1), interval_of(-1)
    difference = replace(forth, low=(forth.low - back.high) / 2, high=(forth.high - back.low) / 2)
    scale = max((group.scale for group in pairs), default=0.0) or 1.0
    means = np.round(np.concatenate([np.zeros(0), *(group.means for group in pairs)]) / scale, TIE_DIGITS)
    positive, negative = int(np.count_nonzero(means > 0)), int(np.count_nonzero(means < 0))
    better, worse = (positive, negative) if higher_is_better else (negative, positive)
    return PairedComparison(
        difference,
        p_value=_wilcoxon(means),
        pairs=len(means),
        better=better,
        worse=worse,
        equal=len(means) - positive - negative,
        undefined=int(sum(np.isnan(group.differences).sum() for group in pairs)),
    )


def compare_paired(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Clusters = None,
    *,
    higher_is_better: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Compares two methods on the same cases: mean difference with interval, and Wilcoxon signed-rank test.

    The test (Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1, 1945) has a difference a
    patient, the mean over the patient's cases, so that its observations are independent. Differences of 0 are dropped
    (Wilcoxon's own treatment) and ties share their mean rank. The p value is exact up to 50 patients without zeros and
    ties and up to 13 different ones with ties, otherwise from the normal approximation with continuity correction
    (`scipy.stats.wilcoxon`). It is 1 where no patient differs, and NaN for fewer than `MIN_PAIRS` patients, where no
    outcome could be significant at 0.05. Differences below 1e-12 of the largest value count as 0.

    Args:
        a: a value a case of method A; a case that is NaN in A or B is left out and counted.
        b: values of method B for the same cases in the same order.
        clusters: name of each case's patient; None, and any name that is "" or None, is a patient alone.
        higher_is_better: False for distances.
        level: probability of the interval, in (0, 1).
        resamples: number of resamples.
        seed: of the resamples, an integer from 0.

    Returns:
        The comparison; exchanging A and B changes signs and `better` with `worse`, and nothing else.

    Raises:
        ValueError: if the lengths differ, or for what `bootstrap_mean` refuses.

    >>> compare_paired([0.5, 0.9], [0.5, 0.9]).p_value
    1.0
    """
    pair = _pair(a, b, clusters)

    def interval_of(sign: int) -> Interval:
        return bootstrap_mean(sign * pair.differences, clusters, level=level, resamples=resamples, seed=seed)

    return _compare([pair], interval_of, higher_is_better)


def compare_paired_groups(
    groups: Sequence[tuple[ArrayLike, ArrayLike, Clusters]],
    *,
    higher_is_better: bool = True,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """Compares two methods on several groups (domains), with equal weight for each in the mean difference.

    Args:
        groups: (a, b, clusters) of each group, as for `compare_paired`; keep their order.
        higher_is_better: False for distances.
        level: probability of the interval, in (0, 1).
        resamples: number of resamples.
        seed: of the resamples, an integer from 0.

    Returns:
        The comparison: the interval as `bootstrap_mean_of_groups`; the test pools the patients of all groups, which
        weigh alike in it.

    Raises:
        ValueError: see `compare_paired`.
    """
    pairs = [_pair(a, b, clusters) for a, b, clusters in groups]

    def interval_of(sign: int) -> Interval:
        signed = [(sign * pair.differences, pair.clusters) for pair in pairs]
        return bootstrap_mean_of_groups(signed, level=level, resamples=resamples, seed=seed)

    return _compare(pairs, interval_of, higher_is_better)
