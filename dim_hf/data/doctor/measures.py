"""Small facts about pixels: what is kept of every image and mask, and what is wrong with them."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dim_hf.data.doctor.findings import Problem
from dim_hf.data.doctor.reading import Content, FaultError
from dim_hf.data.volumes.header import VolumeHeader, check_affine
from dim_hf.data.volumes.volume import same_grid

BINS = 32
GRID_TOLERANCE_MM = 0.01
_HISTOGRAM_PIXELS = 2**16
_COUNTABLE = 2**16
_CHUNK = 2**20  # pixels; counting takes eight bytes of each
_MANY = 2**16  # different values


@dataclass(frozen=True, slots=True, eq=False)
class ImageFacts:
    """What is kept of an image.

    Attributes:
        size: Length of each spatial axis in pixels, in the order of the array.
        channels: Number of channels without alpha.
        dtype: Type of the stored numbers, e.g. "uint8".
        low: Smallest value.
        high: Largest value.
        histogram: (channels, 32) shares of the pixels, over 0..255 for 8-bit images and over low..high for others;
            counted on a regular grid of about 65 536 pixels.
        digest: Hash of shape, type and pixels: equal for copies in another lossless format.
        spacing_mm: Distance of neighboring pixels along each axis in mm, or None where it is not known.
        orientation: Where the axes of a volume point to, e.g. "RAS"; empty where it is not known.
    """

    size: tuple[int, ...]
    channels: int
    dtype: str
    low: float
    high: float
    histogram: np.ndarray
    digest: bytes
    spacing_mm: tuple[float, ...] | None = None
    orientation: str = ""


def check_image(content: Content) -> None:
    """Refuse what no training can use.

    Raises:
        FaultError: If a pixel is NaN or infinite, the values are no real numbers, or there is no pixel.
    """
    image = content.array
    if image.dtype.kind not in "biuf":
        raise FaultError("unreadable-file", f"the pixels are of type {image.dtype}, which is no real number")
    if image.size == 0:
        raise FaultError("unreadable-file", f"the image has no pixels (its shape is {image.shape})")
    if image.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):  # a sum may also be infinite for large values
        total = float(image.sum(dtype=np.float64))
    if not math.isfinite(total):
        count = int(image.size - np.isfinite(image).sum())
        if count:
            raise FaultError("not-finite", f"{count} of {image.size} pixels are NaN or infinite")


def check_mask(content: Content) -> None:
    """Refuse a mask of pictures that has channels.

    Raises:
        FaultError: Stating how many.
    """
    if content.ndim is not None and content.array.ndim != content.ndim:
        raise FaultError("mask-channels", f"the mask has {content.array.shape[-1]} channels")


def compare(image: Content, mask: Content) -> Problem | None:
    """What keeps mask and image from lying on one grid; an image may have channels before or after its axes."""
    size, mask_size = image.array.shape, mask.array.shape
    if mask_size not in (size, size[1:], size[:-1]):
        return Problem("mask-size", f"the mask has shape {mask_size}, but its image {size}", "label")
    if image.affine is None or mask.affine is None or len(mask_size) != 3:
        return None
    grids = [VolumeHeader(mask_size, np.dtype(np.uint8), content.affine) for content in (image, mask)]
    difference = same_grid(*grids, tolerance_mm=GRID_TOLERANCE_MM)
    return difference and Problem("mask-affine", f"mask and image differ: {difference}", "label")


def check_place(image: Content) -> Problem | None:
    """Whether the affine of a volume, if it has one, is finite and has a volume."""
    try:
        if image.affine is not None:
            check_affine(image.affine, "the volume")
    except ValueError:
        return Problem("invalid-affine", f"its affine is singular or not finite ({image.affine[:3].tolist()})")
    return None


def check_axes(image: Content, mask: Content | None, spatial_dims: int) -> Problem | None:
    """Whether an image has the axes that the data set states, and perhaps up to 4 channels."""
    array = channels_last(image, mask, spatial_dims)
    if array.ndim == spatial_dims + 1 and array.shape[-1] <= 4:
        return None
    return Problem(
        "wrong-dimensions", f"the image has shape {image.array.shape}, but those of the data set {spatial_dims} axes"
    )


def channels_last(image: Content, mask: Content | None, spatial_dims: int) -> np.ndarray:
    """The pixels as (*S, C), S as the mask says, else the data set; only arrays may have channels first."""
    array = image.array
    ndim = image.ndim or (mask.array.ndim if mask is not None else spatial_dims)
    if array.ndim != ndim + 1:
        return array[..., None]
    first = array.shape[0] < array.shape[-1] if mask is None else array.shape[1:] == mask.array.shape
    is_file = image.ndim is not None or image.affine is not None
    return np.moveaxis(array, 0, -1) if first and not is_file else array


def measure(array: np.ndarray, affine: np.ndarray | None, spacing_mm: object = None) -> ImageFacts:
    """Facts about an image (*S, C).

    Args:
        array: The pixels, finite.
        affine: (4, 4) voxel → mm of a volume, or of the volume that a slice was cut from.
        spacing_mm: What the row states; counts only where the file has no affine of its own.
    """
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    size = array.shape[:-1]
    low, high = float(array.min()), float(array.max())
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist() if affine is not None and len(size) == 3 else spacing_mm
    return ImageFacts(
        size,
        array.shape[-1],
        str(array.dtype),
        low,
        high,
        _histogram(array, low, high),
        _digest(array),
        _spacing(spacing, len(size)),
        _orientation(affine),
    )


def _histogram(array: np.ndarray, low: float, high: float) -> np.ndarray:
    size = array.shape[:-1]
    step = max(1, math.ceil((math.prod(size) / _HISTOGRAM_PIXELS) ** (1 / len(size))))
    sample = array[(slice(step // 2 if min(size) > step // 2 else 0, None, step),) * len(size)]
    if array.dtype == np.uint8:
        bins = sample // (256 // BINS)
    else:
        span = high / 2 - low / 2  # halves: the whole span of the largest floats is infinite
        shares = (sample.astype(np.float64) / 2 - low / 2) / (span if span > 0 else 1.0)
        bins = np.minimum(shares * BINS, BINS - 1).astype(np.uint8)
    counts = [np.bincount(bins[..., channel].ravel(), minlength=BINS) for channel in range(array.shape[-1])]
    return (np.stack(counts) / max(sample[..., 0].size, 1)).astype(np.float32)


def _digest(array: np.ndarray) -> bytes:
    if array.shape[-1] == 3 and all(np.array_equal(array[..., 0], array[..., channel]) for channel in (1, 2)):
        array = array[..., :1]  # grey stored as color
    digest = hashlib.blake2b(f"{array.shape} {array.dtype.str}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _spacing(values: object, ndim: int) -> tuple[float, ...] | None:
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != ndim:
        return None
    spacing = tuple(round(float(value), 6) for value in values)
    return spacing if all(math.isfinite(value) and value > 0 for value in spacing) else None


def _orientation(affine: np.ndarray | None) -> str:
    if affine is None or not np.isfinite(affine).all():
        return ""
    import nibabel

    return "".join(code or "?" for code in nibabel.aff2axcodes(affine))


def count_values(mask: np.ndarray, num_labels: int, ignore_index: int | None) -> dict[int, int]:
    """Value → number of pixels of a mask.

    Raises:
        FaultError: If a value is no integer, or no class and not `ignore_index`.
    """
    if mask.dtype.kind not in "biuf":
        raise FaultError("unreadable-file", f"the pixels are of type {mask.dtype}, which is no real number")
    counts: Counter[int] = Counter()
    flat = mask.ravel(order="K")  # "K": no copy of a volume in Fortran order
    for start in range(0, flat.size, _CHUNK):
        counts.update(_counts(flat[start : start + _CHUNK]))
        if len(counts) > _MANY:
            break  # no label map: the first of its values are refused below
    allowed = set(range(num_labels)) | ({ignore_index} - {None})
    if set(counts) - allowed:
        classes = f"0..{num_labels - 1}" + (f" (or {ignore_index} to ignore)" if ignore_index is not None else "")
        values = sorted(set(counts) - allowed)
        raise FaultError("mask-values", f"the mask has the values {_listed(values)} outside {classes}")
    return dict(counts)


def _counts(values: np.ndarray) -> dict[int, int]:
    if values.dtype.kind == "f":
        broken = ~np.isfinite(values) | (values != np.trunc(values))
        if broken.any():
            found = np.unique(values[broken])
            raise FaultError("mask-not-integer", f"the mask has values that are no integers ({_listed(found)})")
    if values.dtype == np.bool_:
        values = values.view(np.uint8)
    if values.dtype == np.uint8 or (values.min() >= 0 and values.max() < _COUNTABLE):
        found = np.bincount(values.astype(np.intp, copy=False))
        return {int(value): int(found[value]) for value in np.flatnonzero(found)}
    found, numbers = np.unique(values, return_counts=True)
    return {int(value): int(number) for value, number in zip(found, numbers, strict=True)}


def _listed(values: Collection[float]) -> str:
    shown = [str(value) for value in list(values)[:5]]
    return ", ".join(shown + ["..."] * (len(values) > 5))
