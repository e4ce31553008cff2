"""Predicts rows one batch at a time, on the grid of the network or of the images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from tqdm.auto import tqdm

from dim_hf.augmentations.geometry import mirror_axes
from dim_hf.data.datasets import SegmentationDataset
from dim_hf.data.rows import row_name
from dim_hf.inference.drift import SiteStatistics
from dim_hf.inference.drift_parts import DriftMeter, watched_logits
from dim_hf.inference.options import PredictionOptions
from dim_hf.inference.probabilities import answers
from dim_hf.models.image_processing_dim_unet import as_label_map


@dataclass(frozen=True, eq=False)
class PredictedCase:
    """One image with what a model says of it, all on one grid.

    Attributes:
        index: Row of the data set.
        image: (*S) or (*S, C), as decoded or as the network saw it.
        reference: (*S) class ids; None for an image without a mask.
        prediction: (*S) uint8 class ids.
        probabilities: (K, *S) float32.
        spacing_mm: Size of a pixel along the axes of S; None where it is unknown.
        drift: In [0, 1], see `inference.drift`; None without statistics of the seen sites.
    """

    index: int
    image: np.ndarray
    reference: np.ndarray | None
    prediction: np.ndarray
    probabilities: np.ndarray
    spacing_mm: tuple[float, ...] | None
    drift: float | None = None


def predict_rows(
    model: nn.Module,
    processor: Callable[..., dict[str, Tensor]],
    rows: datasets.Dataset,
    *,
    native: bool,
    indices: Sequence[int] | None = None,
    batch_size: int = 8,
    progress: bool = True,
    autocast: Callable[[], Any] = nullcontext,
    statistics: SiteStatistics | None = None,
    flips: bool = False,
) -> Iterator[PredictedCase]:
    """Predict rows in order.

    Args:
        model: Semantic-segmentation model; gives `logits` (N, K, *S'), which are interpolated linearly to the scored
            grid before the most probable class is taken. Used in evaluation mode, on the device where it is.
        processor: Brings images to the network's input.
        rows: Rows with `image`, perhaps `label` and `spacing_mm`.
        native: Score on the image's own grid; otherwise on the network's input.
        indices: Rows to predict; all when None.
        batch_size: Images for one forward pass; images of other input sizes get passes of their own.
        progress: Show a progress bar.
        autocast: Context of the forward pass.
        statistics: Of the sites that the model saw, for the drift score of each image.
        flips: Average the probabilities over mirror images.

    Raises:
        ValueError: If a file cannot be read, or an image not be brought to the network's input, naming row and file.
    """
    dataset = SegmentationDataset(rows, processor, cache_bytes=0)
    indices = list(range(len(rows)) if indices is None else indices)
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(indices), desc="predicting", unit="image", disable=not progress) as bar:
            for start in range(0, len(indices), batch_size):
                chunk = [_load(dataset, index) for index in indices[start : start + batch_size]]
                for batch in _of_one_size(chunk):
                    yield from _predict(model, batch, native, autocast, statistics, flips)
                    bar.update(len(batch))
    finally:
        model.train(was_training)


@dataclass(frozen=True, eq=False)
class _Loaded:
    index: int
    image: np.ndarray
    label: np.ndarray | None
    sample: dict[str, Tensor]
    spacing_mm: tuple[float, ...] | None


def _load(dataset: SegmentationDataset, index: int) -> _Loaded:
    raw = dataset.raw(index)
    sample = dataset.process(raw.image, raw.label, index)
    image = np.asarray(raw.image)
    shape = _spatial(image, sample["pixel_values"].ndim - 1)
    try:
        label = None if raw.label is None else as_label_map(raw.label, "the mask", shape)
    except ValueError as error:
        raise ValueError(f"{row_name(dataset.rows, index)}: {error}") from error
    return _Loaded(index, image, label, sample, raw.spacing_mm)


def _of_one_size(loaded: Sequence[_Loaded]) -> list[list[_Loaded]]:
    groups: dict[tuple[int, ...], list[_Loaded]] = {}
    for item in loaded:
        groups.setdefault(tuple(item.sample["pixel_values"].shape), []).append(item)
    return list(groups.values())


@torch.inference_mode()
def _predict(
    model: nn.Module,
    batch: Sequence[_Loaded],
    native: bool,
    autocast: Callable[[], Any],
    statistics: SiteStatistics | None,
    flips: bool,
) -> Iterator[PredictedCase]:
    reference_weight = next(model.parameters())
    pixels = torch.stack([item.sample["pixel_values"] for item in batch])
    dims = pixels.ndim - 2
    meter = None if statistics is None else DriftMeter(len(mirror_axes(dims)) if flips else 1)

    def forward(images: Tensor) -> Tensor:
        with autocast():
            return watched_logits(model, images.to(reference_weight.device, reference_weight.dtype), meter)

    shapes = [_spatial(item.image, dims) if native else tuple(pixels.shape[2:]) for item in batch]
    found = answers([forward], pixels, shapes, PredictionOptions(flips=flips), meter)
    drifts: list[float | None] = [None] * len(batch)
    if statistics is not None and meter is not None:
        meter.see_pixels(pixels)
        drifts = statistics.scores(meter.values()).tolist()
    for item, answer, drift in zip(batch, found, drifts, strict=True):
        probabilities = answer.probabilities.numpy()
        if native:
            image, label = item.image, item.label
        else:
            image = np.moveaxis(item.sample["pixel_values"].numpy(), 0, -1)
            label = item.sample["labels"].numpy() if "labels" in item.sample else None
        yield PredictedCase(
            item.index,
            image,
            label,
            probabilities.argmax(0).astype(np.uint8),
            probabilities,
            item.spacing_mm if native and item.spacing_mm and len(item.spacing_mm) == dims else None,
            drift,
        )


def _spatial(image: np.ndarray, dims: int) -> tuple[int, ...]:
    """Spatial shape of a decoded image, whose channels may come last (pictures) or first (volumes)."""
    shape = image.shape
    if len(shape) == dims:
        return shape
    return shape[:-1] if dims == 2 else shape[1:]


def process_state() -> PartialState:
    """The processes that `accelerate launch` started, on CPUs too.

    Without being told of CPUs, `PartialState` on a machine without a GPU takes each process for the only one.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def shares_of(total: int, rank: int, world_size: int) -> list[int]:
    """Indices that one process predicts: every `world_size`-th, so that each image is predicted once.

    Example:
        >>> shares_of(5, 1, 2)
        [1, 3]
    """
    return list(range(rank, total, world_size))
