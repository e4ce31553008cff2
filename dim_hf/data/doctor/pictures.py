"""Small pictures of images with their masks, as data URIs for a page that needs nothing else."""

import io
from dataclasses import dataclass

import numpy as np
import PIL.Image

from dim_hf.data.description import IGNORE_INDEX
from dim_hf.data.doctor.inspection import Inspector
from dim_hf.data.doctor.measures import channels_last
from dim_hf.data.doctor.reading import Content
from dim_hf.pages import data_uri

LONGEST = 160
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Of Okabe and Ito, for the classes 1, 2, ..., in turn."""
_IGNORED = "#FFFFFF"
_FILL, _LINE = 80, 255  # opacity inside a class and on its border, of 255
_THICK = 1.5  # slices are cut across an axis whose spacing is this much coarser than the finest


@dataclass(frozen=True)
class Picture:
    """An image and its mask as they are shown.

    Attributes:
        image: Data URI.
        overlay: Data URI of the colored mask, transparent elsewhere; empty without a mask.
        width: Pixels.
        height: Pixels.
    """

    image: str
    overlay: str
    width: int
    height: int


def draw(inspector: Inspector, index: int, ignore_index: int | None = IGNORE_INDEX) -> Picture | None:
    """A picture of at most 160 pixels of row `index`, or None if its image cannot be read or shown.

    Grey images and those of more than 8 bits are stretched from their 1st to their 99th percentile. Volumes show the
    slice with most of the mask, else the middle one, across their coarsest axis.
    """
    image, mask = inspector.contents(index)
    if image is None:
        return None
    try:
        if mask is not None and mask.array.shape not in _fitting(image):
            mask = None
        return _draw(image, mask, inspector.standard.spatial_dims or 2, ignore_index)
    except Exception:  # a picture less is no reason to lose the report
        return None


def _fitting(image: Content) -> tuple[tuple[int, ...], ...]:
    size = image.array.shape
    return size, size[1:], size[:-1]


def _draw(image: Content, mask: Content | None, spatial_dims: int, ignore_index: int | None) -> Picture | None:
    pixels = channels_last(image, mask, spatial_dims)
    labels = mask.array if mask is not None else None
    spacing = (1.0,) * (pixels.ndim - 1)
    if image.affine is not None and pixels.ndim == 4:
        spacing = tuple(np.linalg.norm(image.affine[:3, :3], axis=0))
    if pixels.ndim == 4:
        pixels, labels, spacing = _slice(pixels, labels, spacing, from_file=image.affine is not None)
    if pixels.ndim != 3:
        return None
    height, width = _shown_size(pixels.shape[:2], spacing)
    shown = PIL.Image.fromarray(_as_bytes(pixels)).resize((width, height), PIL.Image.Resampling.BOX)
    overlay = ""
    if labels is not None:
        codes = np.where(np.isin(labels, [0, ignore_index]), labels, (labels.astype(np.int64) - 1) % 250 + 1)
        small = PIL.Image.fromarray(codes.astype(np.uint8)).resize((width, height), PIL.Image.Resampling.NEAREST)
        overlay = _uri(_colored(np.asarray(small), ignore_index), "PNG")
    return Picture(_uri(shown, "JPEG"), overlay, width, height)


def _slice(
    pixels: np.ndarray, labels: np.ndarray | None, spacing: tuple[float, ...], from_file: bool
) -> tuple[np.ndarray, np.ndarray | None, tuple[float, ...]]:
    """One slice of a volume, with the second axis of a file upwards as in most viewers."""
    default = 2 if from_file else 0
    axis = int(np.argmax(spacing)) if max(spacing) >= _THICK * min(spacing) else default
    others = tuple(other for other in range(3) if other != axis)
    areas = np.zeros(1) if labels is None else (labels > 0).sum(axis=others)
    number = int(np.argmax(areas)) if areas.any() else pixels.shape[axis] // 2
    pixels = np.take(pixels, number, axis)
    labels = None if labels is None else np.take(labels, number, axis)
    spacing = tuple(spacing[other] for other in others)
    if not from_file:
        return pixels, labels, spacing
    turned = None if labels is None else labels.T[::-1]
    return pixels.transpose(1, 0, 2)[::-1], turned, spacing[::-1]


def _shown_size(size: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, int]:
    extent = np.array(size) * np.array(spacing)
    return tuple(int(side) for side in np.maximum(np.rint(LONGEST * extent / extent.max()), 1))


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8."""
    pixels = pixels if pixels.shape[-1] == 3 else pixels[..., 0]
    if pixels.dtype == np.uint8 and pixels.ndim == 3:
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32)
    low, high = np.percentile(values, [1, 99])
    if high <= low:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, 1e-12) * 255 if high > low else np.full_like(values, 127)
    return np.ascontiguousarray(np.clip(scaled, 0, 255).astype(np.uint8))


def _colored(labels: np.ndarray, ignore_index: int | None) -> PIL.Image.Image:
    palette = np.zeros((256, 4), dtype=np.uint8)
    for value in range(1, 256):
        color = _IGNORED if value == ignore_index else COLORS[(value - 1) % len(COLORS)]
        palette[value] = (*bytes.fromhex(color[1:]), _FILL)
    colored = palette[labels]
    inside = np.zeros(labels.shape, dtype=bool)
    inside[1:-1, 1:-1] = True
    for axis in (0, 1):
        for step in (-1, 1):
            inside &= np.roll(labels, step, axis) == labels
    colored[~inside & (labels > 0), 3] = _LINE
    return PIL.Image.fromarray(colored)


def _uri(picture: PIL.Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return data_uri(stream.getvalue(), kind.lower())
