"""What the first batches of a training must be like, so that a mistake in the data is named before a step."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from dim_hf.losses import IGNORE_INDEX


def check_batch(batch: Mapping[str, Tensor], config: PreTrainedConfig) -> None:
    """Refuse a batch of `TwoStreamCollator` that the model or its losses cannot take.

    Args:
        batch: `labeled_pixel_values` (N, C, *S), `labels` (N, *S) and perhaps `unlabeled_pixel_values` (M, C, *S).
        config: Of the model; says the number of classes and perhaps `num_channels`.

    Raises:
        ValueError: If channels, sizes or classes do not fit the model or each other.
    """
    labeled, unlabeled = batch["labeled_pixel_values"], batch.get("unlabeled_pixel_values")
    for name, images in (("labeled", labeled), ("unlabeled", unlabeled)):
        if images is not None:
            _check_channels(name, images, getattr(config, "num_channels", None))
    if unlabeled is not None and labeled.shape[1:] != unlabeled.shape[1:]:
        raise ValueError(
            f"labeled images have the shape {tuple(labeled.shape[1:])} and unlabeled ones "
            f"{tuple(unlabeled.shape[1:])}, but the model sees both at once: bring them to one size and one number of "
            "channels, by one image processor"
        )
    _check_labels(batch["labels"], labeled, config.num_labels)


def _check_channels(name: str, images: Tensor, num_channels: object) -> None:
    """Against what the model states; a network around a backbone may state nothing."""
    if images.ndim not in (4, 5):
        raise ValueError(
            f"pixel_values of the {name} images have the shape {tuple(images.shape[1:])}: give (channels, height, "
            "width), or (channels, depth, height, width) for volumes"
        )
    found = images.shape[1]
    if isinstance(num_channels, int) and found != num_channels:
        raise ValueError(
            f"the {name} images have {found} channel{'s' * (found != 1)}, but the model takes {num_channels}: "
            "set num_channels in the image processor, or make the model with as many"
        )


def _check_labels(labels: Tensor, images: Tensor, num_labels: int) -> None:
    if labels.shape[1:] != images.shape[2:]:
        raise ValueError(
            f"labels have the shape {tuple(labels.shape[1:])}, but their images {tuple(images.shape[2:])}: give one "
            "class id a pixel"
        )
    wrong = labels[(labels != IGNORE_INDEX) & ((labels < 0) | (labels >= num_labels))]
    if len(wrong):
        found = torch.unique(wrong).tolist()
        raise ValueError(
            f"labels hold {', '.join(map(str, found[:5]))}{', ...' if len(found) > 5 else ''}, but the model has the "
            f"classes 0..{num_labels - 1} ({IGNORE_INDEX} is ignored): correct the masks, or make the model with more "
            "num_labels"
        )
