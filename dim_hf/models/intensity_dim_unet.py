"""Intensities of the image processor: raw values of one image to what the network sees, in numpy."""

import numpy as np

INTENSITIES = ("range", "zscore", "percentile", "local")
# Types whose whole span is the natural scale. Signed and wider integers have none: they must come with a range.
_DTYPE_RANGES = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
# A spread below this share of the largest magnitude is rounding noise of float32, not contrast.
_FLAT = 1e-6
_IN_TRAINING = "To train a model, set intensity_range=(low, high), or use intensity='zscore' or 'percentile'."
_SLACK = 1e-3  # by how much a float image may leave [0, 1]: interpolation overshoots a little
_LOCAL_WINDOW = 0.25  # half the window of "local" as a share of each axis
_LOCAL_FLOOR = 0.1  # added to the local deviation, in deviations of the image: flat regions stay flat


def default_range(image: np.ndarray, index: int) -> tuple[float, float]:
    """The span of the image's type; [0, 1] for floats, which must keep to it.

    Args:
        image: Of any numeric type.
        index: Of the image in its batch, for the message.

    Raises:
        ValueError: The type has no such span, or a float image leaves [0, 1].
    """
    bounds = _DTYPE_RANGES.get(image.dtype.name)
    if bounds is None and image.dtype.kind == "f":
        bounds = (0.0, 1.0)
        if image.min() < -_SLACK or image.max() > 1 + _SLACK:
            raise ValueError(
                f"image {index} is of {image.dtype} with values in [{image.min()}, {image.max()}]; the model expects "
                f"values in [0, 1]: rescale the image. {_IN_TRAINING}"
            )
    if bounds is None:
        raise ValueError(
            f"image {index} is of {image.dtype} with values in [{image.min()}, {image.max()}], a type without a "
            "range; the model expects values in [0, 255] of uint8, [0, 65535] of uint16 or [0, 1] of floats: "
            f"rescale the image to one of these. {_IN_TRAINING}"
        )
    return bounds


def as_sixteen_bits(image: np.ndarray) -> np.ndarray:
    """A picture of 32-bit integers as uint16 where its values allow: older releases of PIL open 16-bit files so."""
    return image.astype(np.uint16) if image.min() >= 0 and image.max() <= 65535 else image


def zscore(pixels: np.ndarray) -> np.ndarray:
    """Mean 0, standard deviation 1 over all of it; zeros where it is constant."""
    mean, deviation = pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)
    if deviation <= _FLAT * np.abs(pixels).max():
        return np.zeros_like(pixels)
    return ((pixels - mean) / deviation).astype(np.float32)


def to_unit(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] -> [0, 1], clipped; zeros where there is no spread."""
    if high - low <= _FLAT * max(abs(low), abs(high)):
        return np.zeros_like(pixels)
    return np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32)


def local_contrast(pixels: np.ndarray) -> np.ndarray:
    """Each pixel against its surroundings in its channel: (x - m) / (s + floor).

    m is the mean over a box about the pixel, half as long as the image along each axis; s² the box mean of (x - m)².
    The image continues mirrored beyond its borders. Divisive normalisation of this kind is that of Jarrett et al.,
    "What is the best multi-stage architecture for object recognition?", ICCV 2009, with a box for their Gaussian.

    Args:
        pixels: (C, *S), one image or volume.

    Returns:
        (C, *S) float32; zeros for a constant image.
    """
    values = zscore(pixels)  # of all channels together: a channel without contrast is not blown up to noise
    contrast = []
    for channel in values:
        centred = channel - _window_mean(channel)
        deviation = np.sqrt(np.maximum(_window_mean(centred**2), 0))  # rounding may leave -1e-16 for 0
        contrast.append(centred / (deviation + _LOCAL_FLOOR))
    return np.stack(contrast).astype(np.float32)


def _window_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a box about each pixel, in float64; one axis after the other, by running sums."""
    means = values.astype(np.float64)
    for axis, length in enumerate(values.shape):
        half = min(max(round(length * _LOCAL_WINDOW), 1), length - 1)
        padding = [(half, half) if i == axis else (0, 0) for i in range(values.ndim)]
        sums = np.cumsum(np.pad(means, padding, mode="reflect"), axis=axis)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis=axis)
        width, lower = 2 * half + 1, np.arange(length)
        means = (sums.take(lower + width, axis) - sums.take(lower, axis)) / width
    return means
