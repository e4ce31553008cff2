"""Means of columns of values in bootstrap resamples of clusters: the machinery under `statistics`.

Cases of one patient (slices, visits, both eyes) resemble each other, so patients and not cases are resampled: the
cluster bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13; Field and Welsh,
"Bootstrapping clustered data", J. R. Stat. Soc. B 69, 2007). Each resample draws as many clusters as there are, with
replacement and with all their cases; an interval lies between two percentiles of the resampled means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2000

# Entries of the weights that are held at once: 10 000 clusters need 16 MB instead of 160 MB.
BLOCK = 1 << 20

Clusters = Sequence[Any] | NDArray[Any] | None


@dataclass(frozen=True)
class Interval:
    """A mean with its spread and its confidence interval, in the unit of the values; NaN where undefined.

    Attributes:
        mean: mean of the defined values; NaN if there are none.
        sd: sample standard deviation (divisor n - 1) of the values, or of the groups' means; NaN for fewer than two.
        low: lower end of the interval; NaN for fewer than two clusters.
        high: upper end of the interval; NaN for fewer than two clusters.
        cases: number of defined values.
        clusters: number of clusters (patients) with a defined value.
    """

    mean: float
    sd: float
    low: float
    high: float
    cases: int
    clusters: int


@dataclass(frozen=True, eq=False)
class ResampledMeans:
    """Means of M columns of values and what they are in each of R resamples.

    Attributes:
        means: (M,) float; NaN where nothing is defined.
        sds: (M,) sample standard deviations; NaN for fewer than two values.
        replicates: (R, M) means of the resamples; NaN where a resample has no defined value, and all NaN where fewer
            than two clusters have one.
        cases: (M,) number of defined values.
        clusters: (M,) number of clusters with a defined value.
    """

    means: NDArray[np.float64]
    sds: NDArray[np.float64]
    replicates: NDArray[np.float64]
    cases: NDArray[np.int64]
    clusters: NDArray[np.int64]

    def intervals(self, level: float = LEVEL) -> list[Interval]:
        """The mean of each column with its percentile interval.

        Args:
            level: probability of the interval, in (0, 1).

        Returns:
            One interval a column.

        Raises:
            ValueError: if the level is not in (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level!r}; choose a probability between 0 and 1, such as 0.95")
        ends = np.full((2, len(self.means)), math.nan)
        known = np.isfinite(self.replicates).any(axis=0)
        ends[:, known] = np.nanquantile(self.replicates[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
        columns = (self.means, self.sds, *ends, self.cases, self.clusters)
        return [Interval(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def count_clusters(clusters: Sequence[Any]) -> int:
    """Number of clusters of which one name each is given; "" and None are a cluster of their own each time.

    Args:
        clusters: names.

    Returns:
        The number.

    >>> count_clusters(["a", "b", "a", "", ""])
    4
    """
    named = [str(name) for name in clusters if name is not None and str(name) != ""]
    return len(set(named)) + len(clusters) - len(named)


def in_order(values: NDArray[np.float64], clusters: Clusters) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows that hold a value with the number of their cluster, in an order that depends on names and values only.

    Args:
        values: (N, M) float; rows of NaN alone are left out.
        clusters: N names, or None, as for `resample_means`.

    Returns:
        The K rows that are left, (K, M), and their clusters' numbers, (K,), ascending from 0 without gaps.

    Raises:
        ValueError: if the number of clusters is not N.
    """
    names = [""] * len(values) if clusters is None else ["" if name is None else str(name) for name in clusters]
    if len(names) != len(values):
        raise ValueError(f"there are {len(values)} values and {len(names)} clusters; pass one cluster a value")
    index = {name: number for number, name in enumerate(sorted(set(names) - {""}))}
    numbers = np.array([index.get(name, len(index)) for name in names], dtype=np.int64)
    filled = np.isfinite(values).any(axis=1)
    values, numbers = values[filled], numbers[filled]
    order = np.lexsort((*values.T[::-1], numbers))
    values, numbers = values[order], numbers[order]
    unnamed = numbers == len(index)
    numbers[unnamed] += np.arange(np.count_nonzero(unnamed))
    return values, np.unique(numbers, return_inverse=True)[1]


def cluster_sums(
    values: NDArray[np.float64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the defined values by cluster and column.

    Args:
        values: (K, M) float, at least one row.
        numbers: (K,) the rows' clusters, as `in_order` gives them.

    Returns:
        Sums and numbers, (C, M) float each.
    """
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    defined = np.isfinite(values)
    sums = np.add.reduceat(np.where(defined, values, 0.0), starts, axis=0)
    return sums, np.add.reduceat(defined.astype(np.float64), starts, axis=0)


def _resample(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means of the columns in each resample of the clusters, (R, M)."""
    clusters, columns = sums.shape
    replicates = np.empty((resamples, columns))
    block = max(1, BLOCK // clusters)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(0, clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        # How often each cluster was drawn (a multinomial count): weighted sums of clusters instead of copies of cases.
        weights = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0: no defined value in this resample
            replicates[start : start + size] = (weights @ sums) / (weights @ counts)
    return replicates


def _moments(values: NDArray[np.float64]) -> tuple[float, float, int]:
    """Mean, sample standard deviation and number of the defined values."""
    defined = values[np.isfinite(values)]
    number = len(defined)
    # Exact sums do not depend on the order.
    mean = math.fsum(defined) / number if number else math.nan
    sd = math.sqrt(math.fsum((defined - mean) ** 2) / (number - 1)) if number > 1 else math.nan
    return mean, sd, number


def resample_means(
    values: ArrayLike, clusters: Clusters = None, *, resamples: int = RESAMPLES, seed: int | Sequence[int] = 0
) -> ResampledMeans:
    """Means of several columns over the same cases, with the same resamples of clusters for all of them.

    Args:
        values: (N, M) float, a row a case; NaN where undefined.
        clusters: N names of clusters; None, and any name that is "" or None, is a cluster of its own.
        resamples: number of resamples R.
        seed: of the resamples: an integer from 0, or several.

    Returns:
        The means with their resamples; columns without values are NaN.

    Raises:
        ValueError: if the values are not an (N, M) array, one is infinite, the number of clusters is not N, or there
            is no resample.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"values have shape {values.shape}; pass a row a case and a column a metric")
    if np.isinf(values).any():
        raise ValueError("a value is infinite; pass NaN for what is undefined")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples!r}; draw at least one, better {RESAMPLES}")
    values, numbers = in_order(values, clusters)
    columns = values.shape[1]
    moments = np.array([_moments(column) for column in values.T]).reshape(columns, 3)
    if len(values) == 0:
        replicates, counts = np.full((resamples, columns), math.nan), np.zeros((0, columns))
    else:
        sums, counts = cluster_sums(values, numbers)
        replicates = _resample(sums, counts, resamples, np.random.default_rng(seed))
    held = np.count_nonzero(counts, axis=0)
    replicates[:, held < 2] = math.nan
    return ResampledMeans(moments[:, 0], moments[:, 1], replicates, moments[:, 2].astype(np.int64), held)


def mean_of_resampled(parts: Sequence[ResampledMeans]) -> ResampledMeans:
    """Mean with equal weight for each part, column by column; parts without a defined value are left out.

    Args:
        parts: at least one, with equal numbers of resamples and columns. Of parts drawn by different seeds the
            resamples are independent, as those of domains; parts drawn together stay together.

    Returns:
        The means; `sds` is the spread between the parts' means, `cases` and `clusters` are sums. Where a part has a
        mean but no interval, the whole has none.
    """
    means = np.stack([part.means for part in parts])
    defined = np.isfinite(means)
    number = defined.sum(axis=0)
    replicates = np.stack([part.replicates for part in parts])
    moments = np.array([_moments(column) for column in means.T]).reshape(means.shape[1], 3)
    with np.errstate(invalid="ignore"):
        averaged = replicates.sum(axis=0, where=defined[:, None, :]) / number
    cases, clusters = (np.sum([getattr(part, name) for part in parts], axis=0) for name in ("cases", "clusters"))
    return ResampledMeans(moments[:, 0], moments[:, 1], averaged, cases, clusters)
