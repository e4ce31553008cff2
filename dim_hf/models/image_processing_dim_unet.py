"""Image processor of the U-Net: images and volumes to `pixel_values`, logits to label maps."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .intensity_dim_unet import INTENSITIES, as_sixteen_bits, default_range, local_contrast, to_unit, zscore

_AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}
_LINEAR = {2: "bilinear", 3: "trilinear"}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, the weights of PIL's mode "L"
_UNUSED_STEPS = ("do_rescale", "do_normalize", "do_center_crop", "do_pad")


class DimImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of `DimImageProcessor`; its docstring explains them."""

    size: int | list[int] | tuple[int, ...] | dict[str, int] | None
    num_channels: int
    spatial_dims: int
    intensity: str
    intensity_range: list[float | int] | tuple[float | int, ...] | None
    percentiles: list[float | int] | tuple[float | int, ...]


class DimImageProcessor(PilBackend):
    """Turns images and label maps into tensors for `DimUNetForSemanticSegmentation`, and its logits into label maps.

    An image is a PIL image, an array or a tensor, with or without a channel axis (first or last; where both could be,
    the one of length `num_channels`, else the first), or a list of these, or a batch with a leading axis. Volumes
    (`spatial_dims=3`) are arrays or tensors (D, H, W), (C, D, H, W) or (D, H, W, C). Steps, all in float32, so that
    16-bit and float images keep their depth:

    1. Channels: grey is repeated, colour becomes BT.601 luma, alpha is dropped, palettes are resolved. Images that
       already have `num_channels` channels are left alone.
    2. Resize, if `size` is given: PIL filters with antialiasing, each axis on its own, also in 3D. Label maps by
       nearest neighbour.
    3. Intensity, for each image and channel: "range" maps [low, high] to [0, 1] and clips; "zscore" gives mean 0 and
       standard deviation 1; "percentile" maps two percentiles to [0, 1] and clips; "local" subtracts the mean of a
       window about each pixel (half the image or volume along each axis) and divides by the standard deviation in it:
       uneven light and a camera's colours go, edges stay. A constant image becomes 0 under all but "range".

    `pipeline("image-segmentation")` converts what it loads to 8-bit RGB before this class sees it: give 16-bit images
    to the processor itself.

    Args:
        num_channels: Channels of `pixel_values`; 1, 3, or what the images have. Default 3.
        spatial_dims: 2 for images, 3 for volumes. Default 2.
        size: {"height", "width"}, for volumes also "depth" (missing: that axis is kept); an int means all axes, a
            sequence the axes in order; None keeps the size. Default None.
        do_resize: None means: if `size` is given. Default None.
        resample: PIL filter for images. Default bilinear.
        intensity: "range", "zscore", "percentile" or "local". Default "range".
        intensity_range: (low, high) for "range". Default None: 0..255, 0..65535, 0..1 for 8-bit, 16-bit and boolean
            or float images; other types, and float images outside [0, 1], are refused then.
        percentiles: (low, high) for "percentile", in percent. Default (1.0, 99.0).

    Raises:
        ValueError: A setting is not legal; the message names it, the value and the legal ones.

    Example:
        >>> processor = DimImageProcessor(num_channels=1, size={"height": 4, "width": 6})
        >>> batch = processor(np.full((8, 8), 51, dtype=np.uint8), return_tensors="pt")
        >>> tuple(batch["pixel_values"].shape), round(batch["pixel_values"].mean().item(), 6)
        ((1, 1, 4, 6), 0.2)
    """

    valid_kwargs = DimImageProcessorKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    num_channels = 3
    spatial_dims = 2
    size = None
    do_resize = None
    resample = PILImageResampling.BILINEAR
    intensity = "range"
    intensity_range = None
    percentiles = (1.0, 99.0)
    rescale_factor = default_to_square = None

    def _standardize_kwargs(self, **kwargs: object) -> dict:
        """Bring settings to their JSON form and check them; runs at construction and at each call."""
        _check_choice("spatial_dims", kwargs["spatial_dims"], tuple(_AXES))
        _check_choice("intensity", kwargs["intensity"], INTENSITIES)
        channels = kwargs["num_channels"]
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"num_channels must be a positive integer, got {channels!r}.")
        for step in _UNUSED_STEPS:
            if kwargs.get(step):
                raise ValueError(f"{step}=True is not a step of this processor; use `intensity` and `size`.")
        kwargs["size"] = _named_size(kwargs["size"], _AXES[kwargs["spatial_dims"]])
        if kwargs.get("do_resize") and kwargs["size"] is None:
            raise ValueError("do_resize=True needs a `size`.")
        if kwargs["intensity_range"] is not None:
            kwargs["intensity_range"] = _interval("intensity_range", kwargs["intensity_range"], -np.inf, np.inf)
        kwargs["percentiles"] = _interval("percentiles", kwargs["percentiles"], 0.0, 100.0)
        return kwargs

    def _validate_preprocess_kwargs(self, **kwargs: object) -> None:
        """Nothing is left to check: `_standardize_kwargs` knows the settings that exist here."""

    def preprocess(
        self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs: object
    ) -> BatchFeature:
        """Images, and label maps if given, to a batch.

        Args:
            images: One image or several; see the class.
            segmentation_maps: As many label maps, without channels and of the size of their images: integer arrays,
                tensors or PIL images of class ids (a palette's indices are the ids). Default None.
            kwargs: Settings that override those of the processor for this call; `input_data_format`
                ("channels_first", "channels_last") where the channel axis is not clear; `return_tensors` ("pt", "np").

        Returns:
            `pixel_values` (num_channels, *S) float32, and `labels` (*S) int64 if maps were given: lists of arrays, or
            tensors with a leading batch axis if `return_tensors` is set.

        Raises:
            ValueError: An image or map cannot be read, holds NaN or infinite values, or does not fit its partner; or
                sizes differ in a batch that is to be stacked.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self, images: ImageInput, segmentation_maps: ImageInput | None = None, **settings: object
    ) -> BatchFeature:
        dims = settings["spatial_dims"]
        images = [
            _channels_first(image, f"image {index}", dims, settings["num_channels"], settings["input_data_format"])
            for index, image in enumerate(_listed(images, dims))
        ]
        size = settings["size"] if settings["do_resize"] is not False else None
        data = {"pixel_values": [self._pixel_values(image, i, size, settings) for i, image in enumerate(images)]}
        if segmentation_maps is not None:
            data["labels"] = _label_maps(segmentation_maps, [image.shape[1:] for image in images], size)
        shapes = {pixels.shape[1:] for pixels in data["pixel_values"]}
        if settings["return_tensors"] is not None and len(shapes) > 1:
            raise ValueError(f"images of sizes {sorted(shapes)} cannot be stacked; set `size`, or pass them singly.")
        return BatchFeature(data=data, tensor_type=settings["return_tensors"])

    def _pixel_values(self, image: np.ndarray, index: int, size: dict | None, settings: Mapping) -> np.ndarray:
        """(C, *S) of any type -> (num_channels, *S') float32."""
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
            pixels = image.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise ValueError(f"image {index} holds NaN or infinite values; repair it or leave it out.")
        bounds = settings["intensity_range"]
        if settings["intensity"] == "range" and bounds is None:
            bounds = default_range(image, index)
        pixels = _to_channels(pixels, settings["num_channels"], index)
        if size is not None:
            pixels = np.stack([_resize(channel, size, settings["resample"]) for channel in pixels])
        if settings["intensity"] == "zscore":
            return np.stack([zscore(channel) for channel in pixels])
        if settings["intensity"] == "local":
            return local_contrast(pixels)
        if settings["intensity"] == "percentile":
            return np.stack([to_unit(pixel, *np.percentile(pixel, settings["percentiles"])) for pixel in pixels])
        return to_unit(pixels, *bounds)

    def post_process_semantic_segmentation(
        self,
        outputs: object,
        target_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        return_probabilities: bool = False,
    ) -> list[Tensor] | list[dict[str, Tensor]]:
        """Logits to label maps, in the original sizes if these are given.

        Logits are interpolated (linearly, in float32) before the most probable class is taken, so that borders are as
        smooth as the larger grid allows. Every value is a class: 255 never occurs.

        Args:
            outputs: What the model returned, or a mapping with "logits" (N, K, *S).
            target_sizes: One (H, W) or (D, H, W) for each image. Default None: the size of the logits.
            return_probabilities: Also return the softmax of the interpolated logits. Default False.

        Returns:
            For each image a label map (*S), int64, on the CPU; or, with probabilities, a dict of `segmentation` (*S)
            and `probabilities` (K, *S), float32, on the CPU.

        Raises:
            ValueError: The number of target sizes, or the number of axes of one, does not fit the logits.
        """
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        dims = logits.ndim - 2
        _check_choice("the number of spatial axes of the logits", dims, tuple(_AXES))
        if target_sizes is None:
            target_sizes = [logits.shape[2:]] * len(logits)
        sizes = [tuple(map(int, size)) for size in target_sizes]
        if len(sizes) != len(logits) or any(len(size) != dims for size in sizes):
            raise ValueError(f"target_sizes must be {len(logits)} sizes {_AXES[dims]}, got {target_sizes!r}.")
        results = []
        for scores, size in zip(logits, sizes, strict=True):
            scores = scores.detach().float()
            if scores.shape[1:] != torch.Size(size):
                scores = F.interpolate(scores[None], size=size, mode=_LINEAR[dims], align_corners=False)[0]
            segmentation = scores.argmax(0).cpu()
            if return_probabilities:
                results.append({"segmentation": segmentation, "probabilities": scores.softmax(0).cpu()})
            else:
                results.append(segmentation)
        return results


def _check_choice(name: str, value: object, legal: tuple) -> None:
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}.")


def _named_size(size: object, axes: tuple[str, ...]) -> dict[str, int] | None:
    """A size in any of its forms as {axis: pixels}; axes may be missing in a dict for volumes only."""
    if size is None:
        return None
    if isinstance(size, int):
        size = dict.fromkeys(axes, size)
    elif isinstance(size, list | tuple) and len(size) == len(axes):
        size = dict(zip(axes, size, strict=True))
    needed = {"height", "width"}
    legal = isinstance(size, Mapping) and needed <= set(size) <= set(axes)
    if not legal or not all(isinstance(length, int) and length > 0 for length in size.values()):
        raise ValueError(f"size must be None, an int or a dict of positive integers for {axes}, got {size!r}.")
    return dict(size)


def _interval(name: str, bounds: Sequence[float], lowest: float, highest: float) -> list[float]:
    legal = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(isinstance(bound, Real) for bound in bounds)
    if not legal or not lowest <= bounds[0] < bounds[1] <= highest or not np.isfinite(bounds).all():
        raise ValueError(f"{name} must be (low, high) with {lowest} <= low < high <= {highest}, got {bounds!r}.")
    return [float(bound) for bound in bounds]


def _listed(images: object, dims: int) -> list:
    """One image, a list or a batch array -> a list of images."""
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("no images were given: the list is empty.")
        return list(images)
    if isinstance(images, np.ndarray | Tensor) and images.ndim == dims + 2:
        return list(images)
    return [images]


def _as_array(image: object, name: str) -> np.ndarray:
    """A PIL image, array or tensor as an array of a native numeric type."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "buif":
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"{name} must be a PIL image, or a numeric array or tensor, got {kind}.")
    if 0 in image.shape:
        raise ValueError(f"{name} is empty: its shape is {image.shape}.")
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image as (H, W) or (H, W, C), 16-bit greys as uint16, palettes and other colour spaces as RGB."""
    if image.mode == "I":
        return as_sixteen_bits(np.asarray(image))
    if image.mode in ("1", "L", "LA", "RGB", "RGBA", "F") or image.mode.startswith("I;16"):
        return _as_array(np.asarray(image), name)
    return np.asarray(image.convert("RGB"))


def _channels_first(
    image: object, name: str, dims: int, num_channels: int, data_format: str | None = None
) -> np.ndarray:
    """Any image -> (C, *S) of its own type, alpha included."""
    if isinstance(image, Image.Image):
        if dims != 2:
            raise ValueError(f"{name} is a PIL image, but spatial_dims is 3; give arrays (D, H, W) or (C, D, H, W).")
        array, data_format = _from_pil(image, name), "channels_last"
    else:
        array = _as_array(image, name)
    if array.ndim == dims:
        return array[None]
    known = {1, 2, 3, 4, num_channels}
    if array.ndim == dims + 1:
        ends = {"channels_first": array.shape[0], "channels_last": array.shape[-1]}
        exact = [end for end, length in ends.items() if length == num_channels]
        likely = [end for end, length in ends.items() if length in known]
        data_format = getattr(data_format, "value", data_format) or next(iter(exact + likely), None)
        if data_format is not None:
            return array if data_format == "channels_first" else np.moveaxis(array, -1, 0)
    raise ValueError(
        f"{name} must have {dims} spatial axes and, first or last, at most a channel axis of length {sorted(known)}; "
        f"it has the shape {array.shape}; pass several images as a list, and volumes with spatial_dims=3."
    )


def _to_channels(pixels: np.ndarray, wanted: int, index: int) -> np.ndarray:
    """(C, *S) -> (wanted, *S): alpha dropped, grey repeated, colour to luma."""
    if len(pixels) == wanted:
        return pixels
    if len(pixels) in (2, 4):
        pixels = pixels[:-1]
    if len(pixels) == 1:
        return np.repeat(pixels, wanted, axis=0)
    if len(pixels) == 3 and wanted == 1:
        return np.tensordot(_LUMA, pixels, axes=1)[None]
    if len(pixels) == wanted:
        return pixels
    raise ValueError(f"image {index} has {len(pixels)} channels and cannot be turned into num_channels={wanted}.")


def _resize(pixels: np.ndarray, size: Mapping[str, int], resample: int) -> np.ndarray:
    """(*S) float32 -> (*S'), by PIL in float32: mode "F" does not quantise, and its filters are separable."""

    def plane(values: np.ndarray, height: int, width: int) -> np.ndarray:
        if values.shape == (height, width):
            return values
        return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize((width, height), resample))

    height, width = size["height"], size["width"]
    if pixels.ndim == 2:
        return plane(pixels, height, width)
    pixels = np.stack([plane(values, height, width) for values in pixels])
    depth = size.get("depth", len(pixels))
    return plane(pixels.reshape(len(pixels), -1), depth, height * width).reshape(depth, height, width)


def _label_maps(maps: object, shapes: list[tuple[int, ...]], size: Mapping[str, int] | None) -> list[np.ndarray]:
    """Label maps -> (*S) int64 each, resized by nearest neighbour."""
    dims = len(shapes[0])
    is_batch = isinstance(maps, np.ndarray | Tensor) and maps.ndim == dims + 1 and len(maps) == len(shapes)
    maps = list(maps) if is_batch else _listed(maps, dims)
    if len(maps) != len(shapes):
        raise ValueError(f"{len(shapes)} images and {len(maps)} segmentation maps were given; they must go in pairs.")
    return [
        _label_map(label, f"segmentation map {index}", shape, size)
        for index, (label, shape) in enumerate(zip(maps, shapes, strict=True))
    ]


def as_label_map(label: object, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One label map on the grid of its image, without an axis of one channel, of integers.

    Args:
        label: A PIL image, array or tensor.
        name: Of the map, for messages.
        shape: Of its image, (*S).

    Returns:
        (*S), of its own integer type, or int64 for whole floats.

    Raises:
        ValueError: If the shape is another, or a value is no integer.
    """
    array = _as_array(np.asarray(label) if isinstance(label, Image.Image) else label, name)
    if array.ndim == len(shape) + 1 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, its image {shape}; a map is one class id for each pixel.")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise ValueError(f"{name} holds values that are not integers; class ids are.")
    return array.astype(np.int64) if array.dtype.kind == "f" else array


def _label_map(label: object, name: str, shape: tuple[int, ...], size: Mapping[str, int] | None) -> np.ndarray:
    """One label map -> (*S') int64."""
    array = as_label_map(label, name, shape).astype(np.int64)
    if size is None:
        return array
    for axis, length in enumerate(shape):
        target = size.get(_AXES[len(shape)][axis], length)
        # The pixel under the centre of the new one, as PIL's nearest neighbour takes it.
        array = array.take((np.arange(target) * 2 + 1) * length // (2 * target), axis=axis)
    return array


__all__ = ["DimImageProcessor"]
