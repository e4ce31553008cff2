"""Predicts images and volumes with one model, each on its own grid."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dim_hf.data.images import pixels_of
from dim_hf.data.texts import first_line
from dim_hf.data.volumes.resampling import at_spacing
from dim_hf.data.volumes.slices import slice_axis, slice_dtype
from dim_hf.data.volumes.volume import Volume, resample_back
from dim_hf.inference.components import keep_largest_components
from dim_hf.inference.drift import SiteStatistics, combine_slices
from dim_hf.inference.drift_file import find_statistics
from dim_hf.inference.drift_parts import DriftMeter
from dim_hf.inference.geometry import as_stored, classes_on_grid, cut_some, depth_first, place_some
from dim_hf.inference.inputs import read_image
from dim_hf.inference.loading import content_hash, find_other_network, find_plane, find_spacing, load_network
from dim_hf.inference.measurements import measure
from dim_hf.inference.memory import is_out_of_memory
from dim_hf.inference.options import PredictionOptions
from dim_hf.inference.prediction import Prediction
from dim_hf.inference.probabilities import Answer, answers
from dim_hf.inference.sliding import Forward, in_windows, whole
from dim_hf.metrics.trainer_metrics import class_structures

# Pixels of a forward pass: with 64 channels at full resolution a U-Net takes about 3 kB for each. On the CPU the
# volume lies in the same memory, and one of 512 x 512 x 1000 shall be predicted within 2 GiB.
_PIXELS_ON_CPU, _PIXELS_ON_DEVICE = 2**18, 2**19


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture or slice.

    Attributes:
        array: (H, W) or (H, W, C).
        spacing_mm: (H, W); None where it is unknown.
    """

    array: np.ndarray
    spacing_mm: tuple[float, ...] | None = None


class Predictor:
    """A model that turns images and volumes into masks on their own grids.

    2D models go through volumes slice by slice in the plane of their training, 3D models see them whole, or window by
    window where `PredictionOptions.window` says so. Images are decoded, turned, resampled and scaled as in training.
    Research software, not a medical device.

    Args:
        network: Gives `logits` (N, K, *S') for `pixel_values`; has a `config` with `id2label`. Used in evaluation
            mode, on the device where it is.
        processor: Its image processor.
        options: How images are predicted; the defaults when None.
        other: Network that the uncertainty "teacher-student" compares with.
        trained_plane: Plane of the slices of the training, where it is known.
        trained_spacing_mm: Left-right, back-front and foot-head, to which volumes were resampled for the training;
            None where they kept their own.
        statistics: Of the sites that the network saw: with them each prediction says how unlike those it is.

    Attributes:
        options: How images are predicted.
        statistics: Of the sites that the network saw; None where they are not known.
        id2label: Name of each class.
        structures: Class ids by structure.
        plane: Plane in which a 2D model goes through volumes.
        spacing_mm: To which volumes are resampled for the network; None leaves them as they are.

    Raises:
        ValueError: If the uncertainty is "teacher-student" and there is no other network, or it has other classes.

    Example:
        >>> predictor = Predictor.from_pretrained("runs/prostate", flips=True)  # doctest: +SKIP
        >>> predictor("case.nii.gz").labels.shape  # doctest: +SKIP
        (320, 320, 24)
    """

    def __init__(
        self,
        network: nn.Module,
        processor: Callable[..., dict[str, Tensor]],
        options: PredictionOptions | None = None,
        *,
        other: nn.Module | None = None,
        trained_plane: str | None = None,
        trained_spacing_mm: Sequence[float] | None = None,
        statistics: SiteStatistics | None = None,
    ) -> None:
        options = options or PredictionOptions()
        config: Any = network.config
        self.id2label = {int(index): str(name) for index, name in sorted(config.id2label.items())}
        if len(self.id2label) < 2:
            raise ValueError(f"the model has the classes {self.id2label}; a mask needs two at least")
        self.structures = class_structures(config)
        self.options = options
        self.statistics = statistics
        self.processor = processor
        self.spatial_dims = int(getattr(config, "spatial_dims", 2))
        _refuse_useless(options, self.spatial_dims)
        self._channels = int(getattr(config, "num_channels", None) or 3)
        self.plane = options.plane or trained_plane or "auto"
        self.spacing_mm = None if trained_spacing_mm is None else tuple(map(float, trained_spacing_mm))
        compared = options.uncertainty == "teacher-student"
        if compared and (other is None or len(other.config.id2label) != len(self.id2label)):
            raise ValueError(
                "the uncertainty teacher-student compares the two networks of a run, and here is only one; keep a "
                "checkpoint of the run beside the model, or choose entropy or flips"
            )
        self.networks = [part.eval() for part in ((network, other) if compared and other is not None else (network,))]
        self._dtype = np.uint8 if len(self.id2label) <= 256 else np.uint16

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> "Predictor":
        """Load a model and its processor. Nothing is unpickled.

        Args:
            model: Folder of a run or model, or a name on the Hub.
            revision: Commit, branch or tag on the Hub.
            device: Where the network runs; the first GPU, else the CPU, when None.
            trust_remote_code: Run the code that lies beside the weights.
            **settings: Fields of `PredictionOptions`.

        Raises:
            ValueError: If the model cannot be loaded, or a setting is not legal or does not fit it.
        """
        name = os.fspath(model)
        options = PredictionOptions(**settings)
        network, processor = load_network(name, revision, trust_remote_code)
        other = find_other_network(name) if options.uncertainty == "teacher-student" else None
        place = _device(device)
        return cls(
            network.to(place),
            processor,
            options,
            other=load_network(str(other), None, trust_remote_code)[0].to(place) if other else None,
            trained_plane=find_plane(name, network.config),
            trained_spacing_mm=find_spacing(name, network.config),
            statistics=find_statistics(name, revision),
        )

    def __call__(
        self,
        image: "str | os.PathLike | Volume | PIL.Image.Image | np.ndarray",
        *,
        spacing_mm: Sequence[float] | None = None,
    ) -> Prediction:
        """Predict one image.

        Args:
            image: File of a picture or volume, folder of one DICOM series; a `Volume`; a picture as a PIL image,
                read as its file would be, or as an array (H, W) or (H, W, C).
            spacing_mm: Of a picture, (H, W); a volume knows its own.

        Raises:
            ValueError: If the image cannot be read or brought to the network's input, or the spacing is not two
                lengths above 0.
            ImportError: If it needs a package of the extra `volumes` that is not installed.
        """
        if isinstance(image, str | os.PathLike):
            image = read_image(Path(image), self.options.channel)
        if isinstance(image, Volume):
            return self.predict_volume(image)
        array = _pixels(image) if isinstance(image, PIL.Image.Image) else np.asarray(image)
        return self.predict_pictures([Picture(array, None if spacing_mm is None else _lengths(spacing_mm))])[0]

    @property
    def model_hash(self) -> str:
        """Names weights and settings of all that takes part."""
        return content_hash(self.networks, self.processor)

    def predict_pictures(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Predict pictures, several in a forward pass where their inputs have one size.

        Raises:
            ValueError: If the model is one of volumes, a picture is no picture or cannot be brought to the network's
                input, or a spacing is not two lengths above 0.
        """
        if self.spatial_dims != 2:
            raise ValueError("this model segments volumes, not pictures; give a volume (NIfTI, MHA, NRRD, DICOM)")
        for picture in pictures:
            self._refuse_picture(picture)
        found: list[Prediction | None] = [None] * len(pictures)
        for index, answer in self._answers([picture.array for picture in pictures]):
            labels = answer.probabilities.argmax(0).numpy().astype(self._dtype)
            maps = (answer.probabilities.numpy() if self.options.probabilities else None, _numpy(answer.uncertainty))
            found[index] = self._finished(labels, pictures[index].spacing_mm, None, maps, answer.drift)
        return [prediction for prediction in found if prediction is not None]

    def predict_volume(self, volume: Volume, *, progress: bool = False) -> Prediction:
        """Predict a volume; memory beside the result does not grow with the number of slices of a 2D model.

        Where volumes were resampled for the training, so is this one, and the probabilities are interpolated back to
        its own grid; they are then held in memory. Its drift is combined from those of the slices by
        `drift.combine_slices`.

        Args:
            volume: The volume, as stored.
            progress: Show a bar over the slices.

        Raises:
            ValueError: If the volume cannot be brought to the network's input.
            MemoryError: If a 3D model has too little memory for it, with a word on windows.
        """
        seen = at_spacing(volume, self.spacing_mm, is_label=False) if self.spacing_mm else volume
        keep = self.options.probabilities or seen is not volume
        if self.spatial_dims == 3:
            labels, drift, kept, doubt = self._at_once(seen, keep)
        else:
            labels, drift, kept, doubt = self._slice_by_slice(seen, keep, progress)
        if seen is not volume and kept is not None:
            labels, kept = classes_on_grid(kept, seen, volume, self._dtype, keep=self.options.probabilities)
            doubt = None if doubt is None else resample_back(Volume(doubt, seen.affine), volume).array
        return self._finished(labels, volume.spacing_mm, volume.affine, (kept, doubt), drift)

    def _slice_by_slice(
        self, volume: Volume, keep: bool, progress: bool
    ) -> tuple[np.ndarray, float | None, np.ndarray | None, np.ndarray | None]:
        shape, affine = volume.array.shape, volume.affine
        axis, dtype = slice_axis(volume, self.plane), slice_dtype(volume.array)
        # In the order of most files, so that what is written later is read in one go.
        labels = np.zeros(shape, self._dtype, order="F")
        kept = np.zeros((len(self.id2label), *shape), np.float32) if keep else None
        doubt = np.zeros(shape, np.float32, order="F") if self.options.uncertainty else None
        step, drifts = self.options.batch_size, []
        with tqdm(total=shape[axis], unit="slice", leave=False, disable=not progress) as bar:
            for start in range(0, shape[axis], step):
                cuts = cut_some(volume, self.plane, axis, start, min(start + step, shape[axis]), dtype)
                found = [answer for _, answer in sorted(self._answers(cuts), key=lambda pair: pair[0])]
                classes = [answer.probabilities.argmax(0).numpy().astype(self._dtype) for answer in found]
                place_some(labels, classes, affine, axis, start)
                drifts += [answer.drift for answer in found if answer.drift is not None]
                if kept is not None:
                    for index, target in enumerate(kept):
                        parts = [answer.probabilities[index].numpy() for answer in found]
                        place_some(target, parts, affine, axis, start)
                if doubt is not None:
                    place_some(doubt, [_numpy(answer.uncertainty) for answer in found], affine, axis, start)
                bar.update(len(cuts))
        return labels, combine_slices(drifts) if drifts else None, kept, doubt

    def _at_once(
        self, volume: Volume, keep: bool
    ) -> tuple[np.ndarray, float | None, np.ndarray | None, np.ndarray | None]:
        try:
            ((_, answer),) = self._answers([depth_first(volume)])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(_advice_on_windows(volume.array.shape, self.options.window)) from error
        classes = answer.probabilities.argmax(0).numpy().astype(self._dtype)
        kept = None
        if keep:
            kept = np.stack([as_stored(part.numpy(), volume.affine) for part in answer.probabilities])
        doubt = None if answer.uncertainty is None else as_stored(answer.uncertainty.numpy(), volume.affine)
        return as_stored(classes, volume.affine), answer.drift, kept, doubt

    def _answers(self, arrays: Sequence[np.ndarray]) -> Iterator[tuple[int, Answer]]:
        """Number and answer of each array, in batches of one size that fit the memory."""
        inputs = [self._input(array) for array in arrays]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, pixels in enumerate(inputs):
            by_size.setdefault(tuple(pixels.shape), []).append(index)
        for size, indices in by_size.items():
            step = self._per_pass(size[1:])
            for start in range(0, len(indices), step):
                batch = indices[start : start + step]
                shapes = [arrays[index].shape[: self.spatial_dims] for index in batch]
                pixels = torch.stack([inputs[index] for index in batch])
                yield from zip(batch, self._with_drift(pixels, shapes), strict=True)

    def _with_drift(self, pixels: Tensor, shapes: Sequence[Sequence[int]]) -> list[Answer]:
        if self.statistics is None:
            return answers(self._forwards(), pixels, shapes, self.options)
        meter = DriftMeter(2**self.spatial_dims if self.options.mirrored else 1, len(self.networks))
        meter.see_pixels(pixels)
        found = answers(self._forwards(meter), pixels, shapes, self.options, meter)
        scores = self.statistics.scores(meter.values())
        return [replace(answer, drift=float(score)) for answer, score in zip(found, scores, strict=True)]

    def _input(self, array: np.ndarray) -> Tensor:
        """(C, *S') float32 as in training, where pictures of 8 bits come as PIL images."""
        is_plain = array.dtype == np.uint8 and (array.ndim == 2 or array.shape[2:] == (3,))
        image = PIL.Image.fromarray(array) if self.spatial_dims == 2 and is_plain else array
        # A picture of three rows has its channels at the end, too.
        about = (
            {"input_data_format": "channels_last"}
            if image is array and array.ndim == self.spatial_dims + 1 == 3
            else {}
        )
        return self.processor(image, return_tensors="pt", **about)["pixel_values"][0].to(torch.float32)

    def _refuse_picture(self, picture: Picture) -> None:
        shape, known = picture.array.shape, sorted({1, 2, 3, 4, self._channels})
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in known):
            raise ValueError(
                f"a picture has the shape {shape}, and must have (height, width) or (height, width, channels) with "
                f"{', '.join(map(str, known))} channels; move the channels to the end, and give pictures one by one"
            )
        if picture.spacing_mm is not None:
            _lengths(picture.spacing_mm)

    def _per_pass(self, size: Sequence[int]) -> int:
        device = next(self.networks[0].parameters()).device
        fitting = (_PIXELS_ON_CPU if device.type == "cpu" else _PIXELS_ON_DEVICE) // int(np.prod(size))
        return max(1, min(self.options.batch_size, fitting))

    def _forwards(self, meter: DriftMeter | None = None) -> list[Forward]:
        meters = [meter, None][: len(self.networks)]  # only features of the network that predicts are known
        window = self.options.window
        if self.spatial_dims == 2 or window is None:
            return [whole(*pair) for pair in zip(self.networks, meters, strict=True)]
        about = (window, self.options.overlap, self._per_pass(window))
        return [in_windows(network, *about, own) for network, own in zip(self.networks, meters, strict=True)]

    def _finished(
        self,
        labels: np.ndarray,
        spacing_mm: tuple[float, ...] | None,
        affine: np.ndarray | None,
        maps: Sequence[np.ndarray | None],
        drift: float | None,
    ) -> Prediction:
        if self.options.largest_component:
            labels = keep_largest_components(labels, self.structures)
        measurements = measure(labels, self.structures, spacing_mm)
        review = None if drift is None or self.statistics is None else self.statistics.is_strange(drift)
        about = (self.id2label, self.structures, spacing_mm, affine, measurements)
        return Prediction(labels, *about, *maps, drift=drift, review=review)


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = first_line(error)
        raise ValueError(f"device {name!r} cannot be used here ({said}); choose cpu, or another one") from error
    return device


def _pixels(image: PIL.Image.Image) -> np.ndarray:
    """As `read_picture` reads a file; values beyond 16 bits stay, for a model with a range of its own."""
    array = pixels_of(image)
    fits = array.dtype.kind == "i" and array.min() >= 0 and array.max() <= np.iinfo(np.uint16).max
    return array.astype(np.uint16) if fits else array


def _lengths(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Two finite lengths above 0."""
    try:
        found = tuple(map(float, spacing_mm))
    except (TypeError, ValueError):
        found = ()
    if len(found) != 2 or not all(math.isfinite(length) and length > 0 for length in found):
        raise ValueError(f"spacing_mm is {spacing_mm!r}; give height and width of a pixel in mm, both above 0")
    return found


def _refuse_useless(options: PredictionOptions, spatial_dims: int) -> None:
    """Refuse what would be obeyed by doing nothing."""
    if spatial_dims == 2 and options.window is not None:
        raise ValueError(f"window is {options.window}, but this model is 2D and sees slices whole: leave window out")
    if spatial_dims == 3 and options.plane is not None:
        raise ValueError(f"plane is {options.plane!r}, but this model is 3D and cuts no slices: leave plane out")


def _advice_on_windows(shape: Sequence[int], window: Sequence[int] | None) -> str:
    if window is None:
        size = " x ".join(map(str, shape))
        return f"one pass over {size} voxels; windows need less: give --window D H W, like --window 96 96 96"
    return f"--window {' '.join(map(str, window))} in batches; give a smaller window, or a smaller batch size"


def _numpy(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy()
