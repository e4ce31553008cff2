"""Building blocks of the phantoms: keyed generators, smooth random fields, soft shapes and detector effects.

Coordinates are physical (millimetres, or fractions of the image width), never pixels, so that a scene keeps its
anatomy when it is rendered at another size.
"""

import functools
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Mean of the squared cubic B-spline weights over one cell: white coefficients lose this variance along each axis.
_SPLINE_VARIANCE = 151 / 315


def generator_for(*key: int | str) -> np.random.Generator:
    """Return the generator of one key, equal in every process and independent of other keys.

    Args:
        key: non-negative integers and strings; strings enter by their CRC-32.

    Raises:
        ValueError: an integer of the key is negative.
    """
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    if min(numbers) < 0:
        raise ValueError(f"phantom key {key}: negative numbers cannot seed a generator; use a seed and index >= 0")
    return np.random.default_rng(np.random.SeedSequence(numbers))


@functools.lru_cache(maxsize=64)
def _basis(positions: bytes, cells: int) -> Array:
    scaled = np.clip(np.frombuffer(positions, dtype=np.float32), 0.0, 1.0).astype(np.float64) * cells
    first = np.minimum(scaled.astype(np.int64), cells - 1)
    t = scaled - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    basis = np.zeros((len(scaled), cells + 3), dtype=np.float32)
    basis[np.arange(len(scaled)), first + np.arange(4)[:, None]] = weights
    basis.setflags(write=False)
    return basis


def spline_basis(positions: NDArray[np.floating], cells: int) -> Array:
    """Cubic B-spline weights of a regular lattice.

    Args:
        positions: (n,) in [0, 1]; positions outside are held at the border.
        cells: lattice cells over [0, 1].

    Returns:
        (n, cells + 3), rows sum to 1; read-only, since images of one size share it.
    """
    return _basis(np.ascontiguousarray(positions, dtype=np.float32).tobytes(), cells)


def noise_field(
    generator: np.random.Generator, cells: Sequence[int], positions: Sequence[NDArray[np.floating]]
) -> Array:
    """Smooth random field of about unit variance on an axis-aligned grid.

    The field does not depend on where it is read: two slices of one patient are cuts through the same field, and the
    generator is left in the same state.

    Args:
        generator: source of the lattice coefficients.
        cells: lattice cells along each axis; 1 / cells is the correlation length.
        positions: grid coordinates in [0, 1] along each axis.

    Returns:
        float32 of shape (len(positions[0]), len(positions[1]), ...).
    """
    bases = [spline_basis(axis, count) for count, axis in zip(cells, positions, strict=True)]
    shape = [count + 3 for count in cells]
    if len(cells) < 3:
        field = generator.standard_normal(shape, dtype=np.float32)
    else:
        # A plane of a 3D lattice has a key of its own, so that a thin slice draws only the planes it reads.
        key = int(generator.integers(2**62))
        planes = np.flatnonzero(bases[0].any(axis=0))
        drawn = [np.random.default_rng((key, int(plane))).standard_normal(shape[1:], np.float32) for plane in planes]
        field, bases[0] = np.stack(drawn), bases[0][:, planes]
    for basis in bases:
        # Contracts the leading axis and appends the result: after all axes the order is the original one.
        field = np.tensordot(field, basis, axes=(0, 1))
    return field * np.float32(_SPLINE_VARIANCE ** (-0.5 * len(cells)))


def octaves(
    generator: np.random.Generator,
    cells: Sequence[int],
    positions: Sequence[NDArray[np.floating]],
    count: int,
    persistence: float = 0.6,
) -> Array:
    """Sum of `count` noise fields of doubling frequency and falling amplitude, scaled to about unit variance."""
    total = np.zeros([len(axis) for axis in positions], dtype=np.float32)
    for octave in range(count):
        field = noise_field(generator, [number * 2**octave for number in cells], positions)
        total += np.float32(persistence**octave) * field
    return total / np.float32(np.sqrt(sum(persistence ** (2 * octave) for octave in range(count))))


def ellipsoid(offsets: Sequence[Array], radii: Sequence[float | Array]) -> Array:
    """Distance to an ellipsoid's surface to first order, negative inside, in the unit of `radii`.

    Args:
        offsets: coordinates relative to the centre along each axis, broadcastable.
        radii: semi-axes, numbers or fields, at least one of them a number.
    """
    level = np.sqrt(sum((offset / radius) ** 2 for offset, radius in zip(offsets, radii, strict=True)))
    scale = min(radius for radius in radii if isinstance(radius, float | int))
    for field in radii:
        scale = scale if isinstance(field, float | int) else np.minimum(field, scale)
    return (level - 1.0) * scale


def inside(distance: Array, softness: float) -> Array:
    """Soft membership in [0, 1]: 1 well inside (negative distance), ½ on the surface, over a ramp of `softness`."""
    ramp = np.clip(0.5 - distance / np.float32(softness), 0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def paint(image: Array, membership: Array, value: float | Array) -> None:
    """Blend `value` over `image` in place, by `membership` in [0, 1]."""
    image += membership * (value - image)


def quantize_blocks(image: Array, strength: float) -> Array:
    """Coarse 8 × 8 cosine-transform quantisation along the first two axes: the look of strong JPEG compression.

    Args:
        image: (H, W) or (H, W, C) in [0, 1].
        strength: quantisation step of the lowest frequencies, in image units; higher frequencies get up to 4 times it.
    """
    from scipy.fft import dctn, idctn

    height, width = image.shape[:2]
    pad = [(0, -height % 8), (0, -width % 8)] + [(0, 0)] * (image.ndim - 2)
    padded = np.pad(image, pad, mode="edge")
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8, -1)
    frequency = np.arange(8, dtype=np.float32)
    step = np.float32(strength) * (1 + 3 * (frequency[:, None] + frequency[None, :]) / 14)
    step = step[None, :, None, :, None]
    spectrum = dctn(blocks, axes=(1, 3), norm="ortho")
    blocks = idctn(np.round(spectrum / step) * step, axes=(1, 3), norm="ortho")
    return blocks.reshape(padded.shape)[:height, :width].astype(np.float32)
