"""What a domain looks like as a whole: counts, sizes, spacings, intensities, classes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dim_hf.data.description import DatasetDescription
from dim_hf.data.doctor.flips import suspect
from dim_hf.data.doctor.inspection import RowFacts
from dim_hf.data.doctor.measures import BINS, ImageFacts


@dataclass(frozen=True)
class Histogram:
    """Intensities of a domain, every image with the same weight.

    Attributes:
        low: Left end of the first bin.
        high: Right end of the last bin.
        shares: (channels, 32) shares of the pixels; each channel adds up to 1.
    """

    low: float
    high: float
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class DomainSummary:
    """One domain in numbers.

    Attributes:
        domain: Its name.
        images: Number of rows.
        readable: Number of those whose image can be used.
        labeled: Number of those with a mask.
        patients: Number of patients.
        splits: Split → number of rows; "" where nothing is stated.
        sizes: Size such as "256 x 320" (the array's axes) → number of images, most frequent first.
        channels: Number of channels → number of images.
        dtypes: Type of the stored numbers → number of images.
        spacings_mm: Spacing such as "1 x 1 x 3" → number of images, most frequent first; empty where unknown.
        orientations: Orientation such as "RAS" → number of volumes.
        histogram: Intensities; None without an image.
        class_shares: Class → share of all scored pixels of the domain's masks.
        class_images: Class → number of masks it occurs in.
        ignored_share: Share of the masks' pixels that are not scored.
        flip_lead: How clearly masks fit as they are, see `flips.Suspicion.lead`.
        flips_checked: Whether that is enough to suspect a flipped mask in this domain.
    """

    domain: str
    images: int
    readable: int
    labeled: int
    patients: int
    splits: dict[str, int]
    sizes: dict[str, int]
    channels: dict[int, int]
    dtypes: dict[str, int]
    spacings_mm: dict[str, int]
    orientations: dict[str, int]
    histogram: Histogram | None
    class_shares: dict[str, float]
    class_images: dict[str, int]
    ignored_share: float
    flip_lead: float
    flips_checked: bool

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return asdict(self)


def summarize(
    domain: str, rows: Sequence[RowFacts], description: DatasetDescription, ignore_index: int | None
) -> DomainSummary:
    """Numbers of one domain.

    Args:
        domain: Its name.
        rows: Facts of its rows.
        description: Names of the classes.
        ignore_index: Value of mask pixels that are not scored.
    """
    images = [row.image for row in rows if row.image is not None]
    masks = [row.counts for row in rows if row.counts is not None]
    pixels = Counter()
    for counts in masks:
        pixels.update(counts)
    ignored = pixels.pop(ignore_index, 0)
    scored = sum(pixels.values())
    known = [row for row in rows if row.fit is not None]
    suspicion = suspect([row.mask_size for row in known], [row.fit for row in known])
    return DomainSummary(
        domain=domain,
        images=len(rows),
        readable=len(images),
        labeled=sum(row.has_label for row in rows),
        patients=len({row.patient or row.name for row in rows}),
        splits=dict(sorted(Counter(row.split for row in rows).items())),
        sizes=_tally(" x ".join(map(str, image.size)) for image in images),
        channels=_tally(image.channels for image in images),
        dtypes=_tally(image.dtype for image in images),
        spacings_mm=_tally(_spacing(image.spacing_mm) for image in images if image.spacing_mm is not None),
        orientations=_tally(image.orientation for image in images if image.orientation),
        histogram=_histogram(images),
        class_shares={name: pixels[value] / max(scored, 1) for value, name in sorted(description.id2label.items())},
        class_images={
            name: sum(value in counts for counts in masks) for value, name in sorted(description.id2label.items())
        },
        ignored_share=ignored / max(ignored + scored, 1),
        flip_lead=round(suspicion.lead, 4),
        flips_checked=suspicion.can_tell,
    )


def _spacing(spacing_mm: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3g}" for value in spacing_mm)


def _tally(values: Iterable) -> dict:
    """Value → how often, most frequent first, then by value."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _histogram(images: Sequence[ImageFacts]) -> Histogram | None:
    """The mean of the images' histograms, those of the most frequent number of channels.

    8-bit images keep 0..255. Others share the range from the 5th percentile of their lowest to the 95th of their
    highest values, so that one outlier does not squeeze a domain into a single bin; what lies outside counts for the
    first or last bin.
    """
    if not images:
        return None
    channels = next(iter(_tally(image.channels for image in images)))
    images = [image for image in images if image.channels == channels]
    if all(image.dtype == "uint8" for image in images):
        low, high = 0.0, 256.0
    else:
        # Of halves: the span of the largest floats is none.
        low, high = (
            2 * float(np.percentile([_range(image)[end] / 2 for image in images], share))
            for end, share in ((0, 5), (1, 95))
        )
        high = high if high > low else low + max(1.0, abs(low) / 2)
    edges = _edges(low, high)
    total = np.zeros((channels, BINS))
    for image in images:
        total += _rebinned(image, edges)
    shares = total / len(images)
    return Histogram(low, high, tuple(tuple(round(float(value), 6) for value in row) for row in shares))


def _range(image: ImageFacts) -> tuple[float, float]:
    return (0.0, 256.0) if image.dtype == "uint8" else (image.low, image.high)


def _edges(low: float, high: float) -> np.ndarray:
    return 2 * np.linspace(low / 2, high / 2, BINS + 1)


def _rebinned(image: ImageFacts, edges: np.ndarray) -> np.ndarray:
    """Shares of an image in other bins, as if its values were spread evenly within each of its own."""
    low, high = _range(image)
    if low == high:
        return np.tile(np.histogram(np.clip(low, edges[0], edges[-1]), edges)[0], (len(image.histogram), 1))
    own = _edges(low, high)
    inner = edges[1:-1]
    sums = [np.interp(inner, own, np.concatenate([[0], np.cumsum(channel)])) for channel in image.histogram]
    return np.stack([np.diff(np.concatenate([[0], below, [1]])) for below in sums])
