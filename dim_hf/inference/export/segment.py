"""Outlines one image with an exported model: onnxruntime and numpy are all it needs.

    python segment.py image.png mask.png     # pictures need Pillow; arrays (.npy) need nothing

Research software, not a medical device. The input of a model of volumes is an array (D, H, W), turned to RAS+ before:
foot to head, back to front, left to right.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

try:
    from intensity_dim_unet import default_range, local_contrast, to_unit, zscore
except ImportError:  # within the package
    from dim_hf.models.intensity_dim_unet import default_range, local_contrast, to_unit, zscore

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BILINEAR = 2
_LOSSLESS = (".png", ".tif", ".tiff", ".npy")
_GREYS, _DEEP = ("1", "L", "LA", "La"), ("I", "F")  # modes of Pillow; others become RGB, but for those of 16 bits
_ORIENTATION, _EXCHANGED = 274, (5, 6, 7, 8)  # of TIFF; width and height


def prepare(image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """An image as the network takes it.

    Args:
        image: (H, W), (H, W, C) or (C, H, W); (D, H, W) and the like for volumes. Integers, or floats in [0, 1].
        settings: The processor's, as `preprocessor_config.json` and the model's metadata hold them.

    Returns:
        (1, num_channels, *S) float32.

    Raises:
        ValueError: If the image does not fit the settings.
    """
    dims, channels = settings["spatial_dims"], settings["num_channels"]
    image = _channels_first(image, dims, channels)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        pixels = image.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("the image holds NaN or infinite values; repair it")
    pixels = _to_channels(pixels, channels)
    size = settings.get("size") if settings.get("do_resize") is not False else None
    if size:
        if settings.get("resample", _BILINEAR) != _BILINEAR:
            raise ValueError(f"the filter {settings['resample']} is not known here; resize the image before")
        axes = ("depth", "height", "width")[-dims:]
        lengths = [size.get(axis, length) for axis, length in zip(axes, pixels.shape[1:], strict=True)]
        pixels = resize(pixels, lengths, antialias=True).astype(np.float32)
    kind = settings["intensity"]
    if kind == "zscore":
        pixels = np.stack([zscore(channel) for channel in pixels])
    elif kind == "percentile":
        pixels = np.stack([to_unit(one, *np.percentile(one, settings["percentiles"])) for one in pixels])
    elif kind == "local":
        pixels = local_contrast(pixels)
    elif kind == "range":
        pixels = to_unit(pixels, *(settings.get("intensity_range") or default_range(image, 0)))
    else:
        raise ValueError(f"the intensity {kind!r} is not known here")
    return pixels[None]


def _channels_first(image: np.ndarray, dims: int, channels: int) -> np.ndarray:
    if image.ndim == dims:
        return image[None]
    if image.ndim != dims + 1:
        raise ValueError(f"the image has the shape {image.shape}; give {dims} axes, and one of channels at most")
    known = {1, 2, 3, 4, channels}
    ends = {"first": image.shape[0], "last": image.shape[-1]}
    exact = [end for end, length in ends.items() if length == channels]
    likely = [end for end, length in ends.items() if length in known]
    return image if (exact + likely + ["last"])[0] == "first" else np.moveaxis(image, -1, 0)


def _to_channels(pixels: np.ndarray, wanted: int) -> np.ndarray:
    if len(pixels) == wanted:
        return pixels
    if len(pixels) in (2, 4):  # the last one is transparency
        pixels = pixels[:-1]
    if len(pixels) == 1:
        return np.repeat(pixels, wanted, axis=0)
    if len(pixels) == 3 and wanted == 1:
        return np.tensordot(_LUMA, pixels, axes=1)[None]
    if len(pixels) != wanted:
        raise ValueError(f"the image has {len(pixels)} channels, the model takes {wanted}")
    return pixels


def resize(array: np.ndarray, lengths: list[int], *, antialias: bool) -> np.ndarray:
    """Linear interpolation of (C, *S) to (C, *lengths), one axis after the other.

    With antialiasing it is Pillow's bilinear filter, without it that of `torch.nn.functional.interpolate`.
    """
    for axis, target in enumerate(lengths, start=1):
        length = array.shape[axis]
        if target == length:
            continue
        width = max(length / target, 1.0) if antialias else 1.0
        centers = (np.arange(target) + 0.5) * length / target
        weights = np.maximum(1 - np.abs(np.arange(length) + 0.5 - centers[:, None]) / width, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        array = np.moveaxis(np.tensordot(weights, array, axes=(1, axis)), 0, axis)
    return array


def segment(session: Any, image: np.ndarray) -> np.ndarray:
    """The mask of an image, on the image's own grid.

    Args:
        session: `onnxruntime.InferenceSession` of the exported model.
        image: See `prepare`.

    Returns:
        (*S) class ids; `session.get_modelmeta().custom_metadata_map["id2label"]` names them.
    """
    settings = json.loads(session.get_modelmeta().custom_metadata_map["preprocessor_config"])
    shape = _channels_first(image, settings["spatial_dims"], settings["num_channels"]).shape[1:]
    (logits,) = session.run(["logits"], {"pixel_values": prepare(image, settings)})
    mask = resize(logits[0], list(shape), antialias=False).argmax(axis=0)
    return mask.astype(np.uint8 if len(logits[0]) <= 256 else np.uint16)


def read_picture(path: str) -> np.ndarray:
    """A picture as the model's own tools read it: upright, without transparency, palettes and CMYK as RGB.

    Args:
        path: PNG, JPEG, TIFF or BMP.

    Returns:
        uint8 (H, W) or (H, W, 3); uint16 or float32 (H, W).

    Raises:
        ValueError: If the file holds several pages, or something that is not read here.
    """
    from PIL import Image, ImageOps

    with Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as image:
        if image.format in ("PNG", "TIFF") and getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{path} holds {image.n_frames} pages or frames; save each as a file of its own")
        is_raw = image.format == "TIFF" and any(tile[0] == "raw" for tile in image.tile)
        if is_raw and image.tag_v2.get(_ORIENTATION) in _EXCHANGED:  # Pillow exchanges width and height
            raise ValueError(f"{path} is an uncompressed TIFF that lies on its side; save it upright, or as PNG")
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode in _GREYS:
        return np.asarray(upright.convert("L"))
    if upright.mode not in _DEEP and not upright.mode.startswith("I;16"):
        return np.asarray(upright.convert("RGB"))
    array = np.asarray(upright)
    if array.dtype.kind == "i":
        if array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"{path} has values from {array.min()} to {array.max()}; save it with 16 bits")
        return array.astype(np.uint16)
    return array.astype(array.dtype.newbyteorder("="))


def read_array(path: str) -> np.ndarray:
    """An array of numbers from a `.npy` file.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        return np.load(path, allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path} is empty; save the array again") from error


def main(model: Path, source: str, target: str) -> None:
    """Read an image, segment it and write the mask.

    Raises:
        ValueError: If the image cannot be read, does not fit the model, or the mask's format would lose class ids.
    """
    import onnxruntime

    if not target.lower().endswith(_LOSSLESS):
        raise ValueError(f"{target} must end with {', '.join(_LOSSLESS)}; other formats lose class ids")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    settings = json.loads(session.get_modelmeta().custom_metadata_map["preprocessor_config"])
    is_array = source.lower().endswith(".npy")
    if settings["spatial_dims"] == 3 and not is_array:
        raise ValueError("this model segments volumes, not pictures; give an array (.npy)")
    if settings["spatial_dims"] == 3 and not target.lower().endswith(".npy"):
        raise ValueError(f"{target} cannot hold the mask of a volume; give an array (.npy)")
    image = read_array(source) if is_array else read_picture(source)
    mask = segment(session, image)
    if target.lower().endswith(".npy"):
        np.save(target, mask)
    else:
        from PIL import Image

        Image.fromarray(mask).save(target)
    names = json.loads(session.get_modelmeta().custom_metadata_map["id2label"])
    for index, name in names.items():
        print(f"{name}: {int((mask == int(index)).sum())} pixels")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(__file__).with_name("model.onnx"), sys.argv[1], sys.argv[2])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(str(error))
