"""Rows as torch data sets: decoded and processed samples, kept in memory up to a limit."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from dim_hf.data.rows import column_view, is_present, require_columns
from dim_hf.data.sampler import LABELED, UNLABELED, SampleKey


class SegmentationDataset(Dataset):
    """Processed images, with their label maps where the rows have them.

    Item i is `{"pixel_values": float32 (C, *S), "labels": uint8 (*S)}` (int64 where the processor gives values
    outside 0..255), without `labels` for an image without a mask. Samples are decoded and processed once and kept
    until they fill `cache_bytes`; those beyond it are decoded each time. Each of W `DataLoader` workers keeps up to
    `cache_bytes / W` of its own, and loses it with the worker, so use `persistent_workers=True`. Samples are shared
    with the cache: do not change them in place.

    NIfTI volumes are handed over with reversed axes, (x, y, z) as (z, y, x) = (D, H, W), channels first.

    Args:
        rows: Rows with an `image` and perhaps a `label` column.
        processor: Called with one PIL image or array as `processor(image, segmentation_maps=..., return_tensors="pt")`
            (`segmentation_maps` None for an image without a mask); gives `pixel_values` (1, C, *S) and `labels`
            (1, *S).
        cache_bytes: Memory for samples in bytes; 0 keeps none.

    Raises:
        ValueError: If the rows have no `image` column or `cache_bytes` is negative.
    """

    def __init__(
        self, rows: datasets.Dataset, processor: Callable[..., dict[str, torch.Tensor]], *, cache_bytes: int = 2**30
    ) -> None:
        require_columns(rows, ["image"])
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
        self.rows = rows
        self.processor = processor
        self.cache_bytes = cache_bytes
        self.has_label = is_present(rows, "label")
        self._images = column_view(rows, "image")
        self._labels = column_view(rows, "label") if self.has_label.any() else None
        self._cache: dict[int, dict[str, torch.Tensor]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        # A plain loop over the data set ends at the IndexError.
        index = range(len(self))[index]
        sample = self._cache.get(index)
        if sample is None:
            sample = self._load(index)
            self._keep(index, sample)
        return dict(sample)

    def __getstate__(self) -> dict[str, Any]:
        # Workers start with an empty cache: sending a full one takes longer than decoding.
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0}

    def _load(self, index: int) -> dict[str, torch.Tensor]:
        image = _raw(self._images[index]["image"])
        label = _raw(self._labels[index]["label"]) if self.has_label[index] else None
        processed = self.processor(image, segmentation_maps=label, return_tensors="pt")
        # Copies, as a view would keep the whole batch of one in memory.
        sample = {"pixel_values": processed["pixel_values"][0].to(torch.float32, copy=True)}
        if label is not None:
            sample["labels"] = _compact(processed["labels"][0])
        return sample

    def _keep(self, index: int, sample: dict[str, torch.Tensor]) -> None:
        worker = get_worker_info()
        limit = self.cache_bytes // (worker.num_workers if worker else 1)
        size = sum(tensor.numel() * tensor.element_size() for tensor in sample.values())
        if self._cached_bytes + size <= limit:
            self._cache[index] = sample
            self._cached_bytes += size


class TwoStreamDataset(Dataset):
    """Labeled and unlabeled samples by `SampleKey`.

    An item is the sample of the key's stream with `stream` and `position` added; unlabeled ones have no `labels`.

    Args:
        labeled: Samples with `labels`.
        unlabeled: Samples whose labels, if any, are left out; None for supervised training.

    Raises:
        ValueError: If `labeled` is a `SegmentationDataset` with an image without a mask.
    """

    def __init__(self, labeled: Dataset, unlabeled: Dataset | None = None) -> None:
        has_label = getattr(labeled, "has_label", None)
        if has_label is not None and not has_label.all():
            raise ValueError(
                f"{int((~has_label).sum())} of {len(has_label)} labeled images have no mask (the first is row "
                f"{int(np.argmin(has_label))}); move them to the unlabeled ones"
            )
        self.labeled = labeled
        self.unlabeled = unlabeled

    def __len__(self) -> int:
        return len(self.labeled) + (len(self.unlabeled) if self.unlabeled is not None else 0)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        pools = {LABELED: self.labeled, UNLABELED: self.unlabeled}
        sample = {**pools[key.stream][key.index], "stream": key.stream, "position": key.position}
        if key.stream == UNLABELED:
            sample.pop("labels", None)
        return sample


def _raw(value: object) -> object:
    """A decoded value as the processor takes it: PIL images and arrays as they are, NIfTI images as (D, H, W)."""
    if hasattr(value, "dataobj"):
        return np.ascontiguousarray(np.asanyarray(value.dataobj).T)
    return value


def _compact(labels: torch.Tensor) -> torch.Tensor:
    fits = labels.numel() == 0 or (int(labels.min()) >= 0 and int(labels.max()) <= 255)
    return labels.to(torch.uint8 if fits else torch.int64, copy=True)
