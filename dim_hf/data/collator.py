"""Stacks samples into batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dim_hf.data.sampler import LABELED, UNLABELED


def collate(samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack samples for evaluation or prediction.

    Args:
        samples: `pixel_values` float (C, *S) and, in all of them or in none, `labels` integer (*S).

    Returns:
        `pixel_values` float32 (N, C, *S) and, where given, `labels` int64 (N, *S).

    Raises:
        ValueError: If the samples differ in size, or only some of them have labels.
    """
    with_labels = sum("labels" in sample for sample in samples)
    if with_labels not in (0, len(samples)):
        raise ValueError(
            f"only {with_labels} of the {len(samples)} images of a batch have a mask; "
            "score images with masks, or predict without"
        )
    batch = {"pixel_values": _stack(samples, "pixel_values")}
    if with_labels:
        batch["labels"] = _stack(samples, "labels").long()
    return batch


class TwoStreamCollator:
    """Stacks a batch of `TwoStreamDataset` samples, each stream into tensors of its own.

    Called with samples that hold `stream`, `index`, `position`, `pixel_values` and, in the labeled stream, `labels`,
    it returns `labeled_pixel_values` float32 (N, C, *S), `labels` int64 (N, *S), `labeled_positions` int64 (N,) and,
    where the batch has unlabeled images, `unlabeled_pixel_values` float32 (M, C, *S), `unlabeled_positions` and
    `unlabeled_indices` int64 (M,). The order within a stream is kept.

    Raises:
        ValueError: If the images of a stream differ in size, or there is no labeled one.
    """

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack the samples; see the class."""
        labeled = [sample for sample in samples if sample["stream"] == LABELED]
        unlabeled = [sample for sample in samples if sample["stream"] == UNLABELED]
        if not labeled:
            raise ValueError(
                "a batch holds no labeled image; if accelerate splits batches over the processes, "
                "set split_batches=False so that it deals whole batches"
            )
        batch = {
            "labeled_pixel_values": _stack(labeled, "pixel_values"),
            "labels": _stack(labeled, "labels").long(),
            "labeled_positions": _integers(labeled, "position"),
        }
        if unlabeled:
            batch["unlabeled_pixel_values"] = _stack(unlabeled, "pixel_values")
            batch["unlabeled_positions"] = _integers(unlabeled, "position")
            batch["unlabeled_indices"] = _integers(unlabeled, "index")
        return batch


def _integers(samples: Sequence[Mapping[str, Any]], key: str) -> torch.Tensor:
    return torch.tensor([sample[key] for sample in samples], dtype=torch.int64)


def _stack(samples: Sequence[Mapping[str, torch.Tensor]], key: str) -> torch.Tensor:
    shapes = sorted({tuple(sample[key].shape) for sample in samples})
    if len(shapes) > 1:
        raise ValueError(
            f"the {key} of a batch differ in shape: {', '.join(map(str, shapes))}; set a size in the image processor, "
            "so that all images are brought to it (and the same number of channels), or use batches of one image"
        )
    return torch.stack([sample[key] for sample in samples])
