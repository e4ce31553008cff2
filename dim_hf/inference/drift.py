"""How unlike the images of the sites that a model saw an image is: distances, their calibration, the flag for review.

An image is described by a few numbers of the pixels that the network sees, of the network's features and of its doubt
(`drift_parts`). For each of these parts its distance from the nearest site is a Mahalanobis distance with a covariance
that the sites share (Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018)
and that is shrunk, since there may be fewer images than numbers. Distances become one score by conformal prediction
(Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005): the share of the calibration images that
are less far. So at most a stated part of new images of the seen sites is flagged, whatever the distances' distribution
is, where validation images calibrate; where training images have to, about that part is.
Numpy only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FALSE_ALARM_RATE = 0.05
MIN_IMAGES = 8
"""Images without which there are no statistics."""
FOLDS = 10
LEAST_SPREAD = 1e-12
"""Of a number within the sites: differences over it stay finite."""
ONE_SIDED = ("flips", "teacher_student")
"""Parts that are distances already, a number an image: more is stranger, and less is not."""
VALIDATION, CROSS_FITTED = "validation images", "training and validation images, each left out of its own statistics"

# Spreads below this share of the numbers' size are rounding; they would make rounding look like a drift.
_LEAST_SHARE = 1e-3
_LEAST_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False)
class Moments:
    """Where the seen sites lie in one part's space.

    Attributes:
        means: (S, D), a row a site.
        spreads: (D,) standard deviations within the sites, from `LEAST_SPREAD` on.
        correlation: (D, D) within the sites, shrunk: symmetric, positive definite.
    """

    means: Floats
    spreads: Floats
    correlation: Floats

    def distances(self, values: Floats) -> Floats:
        """Distance of each image from the nearest site: √(zᵀ R⁻¹ z / D), z the difference over the spreads.

        Args:
            values: (N, D).

        Returns:
            (N,), about 1 for an image of a seen site.

        Raises:
            ValueError: If the images have another number of values.
        """
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.spreads):
            raise ValueError(
                f"an image has {values.shape[-1]} values where the site statistics have {len(self.spreads)}: they are "
                "those of another model; train again, or remove the file"
            )
        if not len(values):
            return np.zeros(0)
        found = np.full(len(values), math.inf)
        factor = np.linalg.cholesky(self.correlation)
        for mean in self.means:
            white = np.linalg.solve(factor, ((values - mean) / self.spreads).T)
            found = np.minimum(found, np.sqrt((white**2).mean(axis=0)))
        return found


def fit_moments(values: Floats, sites: Sequence[str]) -> Moments:
    """Means of the sites, and spreads and shrunk correlation within them.

    The correlation is shrunk towards independence by the oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero,
    IEEE Transactions on Signal Processing 58, 2010).

    Args:
        values: (N, D), at least two rows.
        sites: Site of each row; the rows of `means` are in their sorted order.

    Raises:
        ValueError: If there are fewer than two rows, or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"there are {len(values)} images, or values that are not finite; two finite rows are needed")
    names = sorted(set(sites))
    number = np.searchsorted(names, list(sites))
    means = np.stack([values[number == index].mean(axis=0) for index in range(len(names))])
    apart = values - means[number]
    freedom = max(1, len(values) - len(names))
    least = max(_LEAST_SHARE * math.sqrt(np.mean(values**2)), LEAST_SPREAD)
    spreads = np.maximum(np.sqrt((apart**2).sum(axis=0) / freedom), least)
    scaled = apart / spreads
    return Moments(means, spreads, shrunk(scaled.T @ scaled / freedom, freedom))


def shrunk(covariance: Floats, count: int) -> Floats:
    """(1 - ρ) S + ρ (tr S / D) I with the ρ of oracle approximating shrinkage, made positive definite.

    Args:
        covariance: (D, D), S.
        count: Independent rows behind it.
    """
    size = len(covariance)
    trace, trace_of_square = float(np.trace(covariance)), float((covariance**2).sum())
    if trace <= 0:
        return np.eye(size)
    above = (1 - 2 / size) * trace_of_square + trace**2
    below = (count + 1 - 2 / size) * (trace_of_square - trace**2 / size)
    # One dimension, or a multiple of the identity, has nothing to shrink.
    share = min(1.0, max(above / below, _LEAST_SHRINKAGE)) if below > 1e-12 * trace**2 else 1.0
    return (1 - share) * covariance + share * trace / size * np.eye(size)


def conformal_score(calibration: Floats, distances: Floats) -> Floats:
    """1 minus the conformal p-value: how many of the calibration images are less far, over their number plus one.

    Beyond the farthest calibration image, d_max, the last 1 / (n + 1) is filled by 1 - d_max / d, so that of two
    strange images the stranger one has the higher score, below 1.

    Args:
        calibration: (n,) distances, sorted, at least one.
        distances: (N,).

    Returns:
        (N,) in [0, 1).

    >>> conformal_score(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 2.5, 3.0, 6.0]))
    array([0.   , 0.25 , 0.5  , 0.5  , 0.875])
    """
    count, last = len(calibration), float(calibration[-1])
    score = np.searchsorted(calibration, distances, side="left") / (count + 1)
    beyond = distances > last
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = (count + 1 - np.maximum(last / distances, 1e-12)) / (count + 1)
    return np.where(beyond, np.minimum(tail, 1 - 1e-12), score)


def left_out_scores(distances: Floats) -> Floats:
    """`conformal_score` of each calibration image among the others, as a new image is scored among all.

    Scored among themselves, they could never lie beyond the farthest one, and new images would look too strange.

    Args:
        distances: (n,), at least two.

    Returns:
        (n,) in [0, 1).

    >>> left_out_scores(np.array([3.0, 1.0, 6.0]))
    array([0.33333333, 0.        , 0.83333333])
    """
    ranked, count = np.sort(distances), len(distances)
    score = np.searchsorted(ranked, distances, side="left") / count
    farthest = distances > ranked[-2]
    score[farthest] = conformal_score(ranked[:-1], distances[farthest])
    return score


def combine_slices(scores: Sequence[float]) -> float:
    """Score of a volume from those of its slices.

    p-values of slices of one volume depend on each other in an unknown way. Whatever it is, (n / k) times the k-th
    smallest of n is a p-value again (Rüger, "Das maximale Signifikanzniveau", Metrika 25, 1978); with k = ⌈n / 2⌉ it
    takes half of the slices to make a volume strange, and a few odd ones at its ends do not count.

    Args:
        scores: Of the slices, at least one, in [0, 1].

    Returns:
        max(0, 1 - (n / k) p₍ₖ₎), p = 1 - score: that of the slice where there is one only.

    >>> combine_slices([0.99, 0.98, 0.2]), combine_slices([0.75])
    (0.97, 0.75)
    """
    p_values = np.sort(1 - np.asarray(scores, np.float64))
    place = math.ceil(len(p_values) / 2)
    return float(max(0.0, 1 - len(p_values) / place * p_values[place - 1]))


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """What a model remembers of the sites it saw, and what is usual there.

    Attributes:
        sites: Names, sorted, with the number of images behind the statistics of each.
        moments: Of the parts that are no distances yet, by part.
        calibration: (n,) distances of the calibration images, by part; the images in one order in all of them.
        calibrated_on: `VALIDATION` or `CROSS_FITTED`.
        wanted_rate: Share of new images of the seen sites that may be flagged.
    """

    sites: Mapping[str, int]
    moments: Mapping[str, Moments]
    calibration: Mapping[str, Floats]
    calibrated_on: str
    wanted_rate: float = FALSE_ALARM_RATE

    @cached_property
    def images(self) -> int:
        """Number of calibration images."""
        return len(next(iter(self.calibration.values())))

    @cached_property
    def _rank(self) -> int:
        """Calibration images that must be less far than one that is flagged: ⌈(1 - α)(n + 1)⌉, at most all."""
        return min(math.ceil(round((1 - self.wanted_rate) * (self.images + 1), 9)), self.images)

    @property
    def threshold(self) -> float:
        """Scores from here on are flagged for review."""
        return self._rank / (self.images + 1)

    @property
    def false_alarm_rate(self) -> float:
        """Share of new images of the seen sites that is flagged, on average over calibrations; at most, if `is_bound`.

        At most `wanted_rate`; 1 / (n + 1) where so few calibration images cannot tell less.
        """
        return 1 - self.threshold

    @property
    def is_bound(self) -> bool:
        """Whether `false_alarm_rate` is a bound: images calibrate that the network has not learned from."""
        return self.calibrated_on == VALIDATION

    @property
    def is_coarse(self) -> bool:
        """Whether there are too few calibration images for the wanted rate of false alarms."""
        return self.false_alarm_rate > self.wanted_rate + 1e-9

    def distances(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Distances of images in the parts that both they and the statistics have.

        Args:
            values: (N, D) by part.

        Raises:
            ValueError: If a part has another number of values than the statistics.
        """
        return {name: self._distance(name, values[name]) for name in self.calibration if name in values}

    def _distance(self, name: str, values: Floats) -> Floats:
        return one_sided(values) if name in ONE_SIDED else self.moments[name].distances(values)

    def scores(self, values: Mapping[str, Floats]) -> Floats:
        """Score of each image, in [0, 1): the share of calibration images of the seen sites that are less strange.

        Each part's distance becomes a p-value by `conformal_score`; strangeness is the sum of -log p over the parts
        (Fisher's rule); since parts depend on each other, it is calibrated once more in the same way.

        Args:
            values: (N, D) by part; parts that the statistics lack do not count.

        Raises:
            ValueError: If no part is known, or one has another number of values than the statistics.
        """
        distances = self.distances(values)
        if not distances:
            raise ValueError(f"there are {sorted(values)} of an image, and statistics of {sorted(self.calibration)}")
        names = sorted(distances)  # a sum of floats depends on its order
        usual = sum(-np.log1p(-left_out_scores(self.calibration[name])) for name in names)
        scores = (conformal_score(np.sort(self.calibration[name]), distances[name]) for name in names)
        return conformal_score(np.sort(usual), sum(-np.log1p(-score) for score in scores))

    def is_strange(self, score: float) -> bool:
        """Whether an image of that score is to be reviewed."""
        return bool(score >= self.threshold)


def one_sided(values: Floats) -> Floats:
    """(N, 1), a distance already, as (N,).

    Raises:
        ValueError: If there is more than one value an image.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[1] != 1:
        raise ValueError(f"a part that is a distance has one value an image, not the shape {values.shape}")
    return values[:, 0]


def fit_statistics(
    values: Mapping[str, Floats],
    sites: Sequence[str],
    patients: Sequence[str],
    is_validation: Sequence[bool],
    wanted_rate: float = FALSE_ALARM_RATE,
) -> SiteStatistics:
    """Statistics of images of the seen sites, calibrated on validation where it suffices.

    It suffices where each site has 1 / α - 1 validation images. Otherwise all images calibrate: each one's distance is
    taken from statistics of the other patients, ten parts in turn (cross-fitting); a site of one patient is known, but
    calibrates nothing. The network has learned from
    training images, so that new ones may be a little stranger to it than these are.

    Args:
        values: (N, D) by part, of training and validation images.
        sites: Of each image.
        patients: Of each image; "" is a patient of its own. Their images stay together.
        is_validation: Whether an image had no part in the training.
        wanted_rate: α, in (0, 1).

    Raises:
        ValueError: If there are fewer than `MIN_IMAGES` images, in cross-fitting of sites of two patients or more, or
            a value is not finite.
    """
    held_out = np.asarray(is_validation, bool)
    if len(held_out) < MIN_IMAGES or not 0 < wanted_rate < 1:
        raise ValueError(
            f"{len(held_out)} images, false alarms {wanted_rate}: at least {MIN_IMAGES} images and a rate between 0 "
            "and 1 make statistics of the seen sites"
        )
    names = np.asarray(sites, dtype=object)
    needed = math.ceil(1 / wanted_rate - 1e-9) - 1
    enough = all((held_out & (names == site)).sum() >= needed for site in set(sites)) and (~held_out).sum() >= 2
    kept = ~held_out if enough else np.ones(len(names), bool)
    moments = {n: fit_moments(part[kept], names[kept]) for n, part in values.items() if n not in ONE_SIDED}
    if enough:
        calibration = {name: part.distances(values[name][held_out]) for name, part in moments.items()}
    else:
        folds = make_folds(sites, patients)
        # Without its only patient a site is unknown, and that patient's images are as far from all as a new site's.
        divided = {site for site in set(sites) if len(set(folds[names == site])) > 1}
        held_out = np.array([site in divided for site in sites])
        if held_out.sum() < MIN_IMAGES:
            raise ValueError(
                f"{held_out.sum()} images are of a site with two patients or more; at least {MIN_IMAGES} make "
                "statistics of the seen sites"
            )
        calibration = {name: _cross_fitted(values[name], names, folds)[held_out] for name in moments}
    calibration |= {n: one_sided(values[n][held_out]) for n in values if n in ONE_SIDED}
    order = np.lexsort([calibration[name] for name in sorted(calibration)])  # that of the images says nothing then
    calibration = {name: part[order] for name, part in calibration.items()}
    counts = {site: int((kept & (names == site)).sum()) for site in sorted(set(sites))}
    return SiteStatistics(counts, moments, calibration, VALIDATION if enough else CROSS_FITTED, wanted_rate)


def make_folds(sites: Sequence[str], patients: Sequence[str], count: int = FOLDS) -> NDArray[np.int64]:
    """Number of the part of each image: patients in sorted order in turn, so that each part has its share of a site.

    Raises:
        ValueError: If there are fewer than two patients.
    """
    keys = [(site, patient or f"\0{i}") for i, (site, patient) in enumerate(zip(sites, patients, strict=True))]
    order = {key: place % count for place, key in enumerate(sorted(set(keys)))}
    if len(order) < 2:
        raise ValueError("all images are of one patient; statistics of the seen sites need two at least")
    return np.array([order[key] for key in keys])


def _cross_fitted(values: Floats, sites: NDArray, folds: NDArray[np.int64]) -> Floats:
    found = np.zeros(len(values))
    for fold in np.unique(folds):
        own = folds == fold
        found[own] = fit_moments(values[~own], sites[~own]).distances(values[own])
    return found
