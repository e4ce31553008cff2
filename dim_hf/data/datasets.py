"""Rows as torch data sets: samples decoded and processed once, and kept as far as a cache has room."""

import importlib.util
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from dim_hf.data.cache import SampleCache
from dim_hf.data.fingerprints import fingerprint, processor_content, value_content
from dim_hf.data.rows import column_view, is_present, require_columns, row_name
from dim_hf.data.sampler import LABELED, UNLABELED, SampleKey
from dim_hf.data.volumes.nifti import unit_mm


@dataclass(frozen=True, eq=False)
class RawSample:
    """A decoded row, before any processing.

    Attributes:
        image: A PIL image, or an array; NIfTI volumes in RAS+ order as (..., Z, Y, X).
        label: Likewise, of the same spatial shape; None for an image without a mask.
        spacing_mm: Size of a pixel along the spatial axes, (H, W) or (D, H, W); None where it is unknown.
    """

    image: object
    label: object
    spacing_mm: tuple[float, ...] | None


class SegmentationDataset(Dataset):
    """Processed images, with their label maps where the rows have them.

    Item i is `{"pixel_values": float32 (C, *S), "labels": uint8 (*S)}` (int64 where the processor gives values
    outside 0..255), without `labels` for an image without a mask. Samples are decoded and processed once and kept
    while the cache has room; those beyond it are decoded each time. With or without a cache they are the same, bit
    for bit. They may be shared with the cache: do not change them in place.

    NIfTI volumes are brought to the closest RAS+ orientation (axes are flipped and permuted, no voxel is changed) and
    handed over with reversed axes, (x, y, z) as (z, y, x) = (D, H, W): slices from foot to head, their rows from back
    to front, their columns from left to right. Further axes come first, as channels. Nothing is resampled.

    Args:
        rows: Rows with an `image` and perhaps a `label` column. They and the processor are taken as fixed.
        processor: Called with one PIL image or array as `processor(image, segmentation_maps=..., return_tensors="pt")`
            (`segmentation_maps` None for an image without a mask); gives `pixel_values` (1, C, *S) and `labels`
            (1, *S).
        cache: Where samples are kept; one cache may serve several data sets.
        cache_bytes: Shorthand for a cache of this data set alone, in memory, of so many bytes; 0 keeps none, None
            (where there is no `cache` either) stands for 1 GiB.

    Attributes:
        rows: The rows.
        has_label: Which rows have a mask, boolean (len(rows),).
        domains: Domain of each row; None where the rows have no such column.

    A row that cannot be read or processed is named, with its files, in a ValueError.

    Raises:
        ValueError: If the rows have no `image` column, `cache_bytes` is negative or given beside `cache`, or the
            cache has a folder and the processor does not tell its settings.
        ImportError: If the rows hold NIfTI volumes and nibabel is not installed.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: Callable[..., dict[str, torch.Tensor]],
        *,
        cache: SampleCache | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        require_columns(rows, ["image"])
        _require_nibabel(rows)
        self.rows = rows
        self.processor = processor
        self.cache = _cache(cache, cache_bytes)
        self.has_label = is_present(rows, "label")
        self._columns = {"image": np.ones(len(rows), dtype=bool), "label": self.has_label}
        self._views = {name: column_view(rows, name) for name, present in self._columns.items() if present.any()}
        self._files: dict[str, datasets.Dataset] = {}
        self._origin: tuple = ()
        if self.cache.directory is not None:
            self._files = {name: column_view(rows, name, decode=False) for name in self._views}
            self._origin = (processor_content(processor), [str(rows.features[name]) for name in self._views])
        self._token = uuid.uuid4().hex
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        # A plain loop over the data set ends at the IndexError.
        index = range(len(self))[index]
        key = self._key(index)
        sample = self.cache.get(key)
        if sample is None:
            sample = self._load(index)
            self.cache.put(key, sample)
        return dict(sample)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_keys": {}}

    @property
    def domains(self) -> list[str] | None:
        """Domain of each row; None where the rows have no such column."""
        return list(self.rows["domain"]) if "domain" in self.rows.column_names else None

    def _key(self, index: int) -> str:
        """Name of a sample: where it may outlive the process, by its files and all that is done to them."""
        if self.cache.directory is None:
            return f"{self._token}/{index}"
        if index not in self._keys:
            values = [self._value(self._files, name, index) for name in self._columns]
            content = [value_content(value) for value in values]
            sure = None not in content
            self._keys[index] = fingerprint(self._origin, content) if sure else f"{self._token}/{index}"
        return self._keys[index]

    def _value(self, views: dict[str, datasets.Dataset], column: str, index: int) -> object:
        return views[column][index][column] if self._columns[column][index] else None

    def raw(self, index: int) -> RawSample:
        """Image and mask as they are stored, decoded, volumes turned; on the image's own grid.

        Raises:
            ValueError: If they cannot be read, naming row and files.
        """
        with self._named_if_unreadable(index):
            image, label = (self._value(self._views, column, index) for column in self._columns)
            spacing = _spacing_mm(image) if hasattr(image, "dataobj") else self._stated_spacing(index)
            return RawSample(_raw(image), _raw(label), tuple(spacing) if spacing else None)

    def _stated_spacing(self, index: int) -> list[float] | None:
        known = "spacing_mm" in self.rows.column_names
        return self.rows.select_columns(["spacing_mm"])[index]["spacing_mm"] if known else None

    def process(self, image: object, label: object, index: int) -> dict[str, torch.Tensor]:
        """A decoded image, and its mask or None, as a sample.

        Args:
            image: As `raw` gives it.
            label: Likewise.
            index: Row that they are of, for the message.

        Raises:
            ValueError: If the processor cannot bring them to the network's input, naming row and files.
        """
        try:
            processed = self.processor(image, segmentation_maps=label, return_tensors="pt")
        except ValueError as error:
            raise ValueError(f"{row_name(self.rows, index)} cannot be brought to the network: {error}") from error
        # Copies, as a view would keep the whole batch of one in memory; laid out as a cache gives them back.
        layout = torch.contiguous_format
        sample = {"pixel_values": processed["pixel_values"][0].to(torch.float32, copy=True, memory_format=layout)}
        if label is not None:
            sample["labels"] = _compact(processed["labels"][0])
        return sample

    def _load(self, index: int) -> dict[str, torch.Tensor]:
        with self._named_if_unreadable(index):
            image, label = (_raw(self._value(self._views, column, index)) for column in self._columns)
        return self.process(image, label, index)

    @contextmanager
    def _named_if_unreadable(self, index: int) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # decoders fail in many ways
            raise ValueError(
                f"{row_name(self.rows, index)} cannot be read: {error}; replace the file, or leave the row out"
            ) from error


class TwoStreamDataset(Dataset):
    """Labeled and unlabeled samples by `SampleKey`.

    An item is the sample of the key's stream with the key's `stream`, `index` and `position` added; unlabeled ones
    have no `labels`.

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
        sample = {**pools[key.stream][key.index], **key._asdict()}
        if key.stream == UNLABELED:
            sample.pop("labels", None)
        return sample


def _cache(cache: SampleCache | None, cache_bytes: int | None) -> SampleCache:
    if cache is None:
        cache_bytes = 2**30 if cache_bytes is None else cache_bytes
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}")
        return SampleCache(cache_bytes)
    if cache_bytes is not None:
        raise ValueError("give either a cache or cache_bytes: a cache has limits of its own")
    return cache


def _require_nibabel(rows: datasets.Dataset) -> None:
    has_volumes = any(isinstance(feature, datasets.Nifti) for feature in rows.features.values())
    if has_volumes and importlib.util.find_spec("nibabel") is None:
        raise ImportError("the rows hold NIfTI volumes, which nibabel reads: pip install dim-hf[volumes]")


def _raw(value: object) -> object:
    """A decoded value as the processor takes it: PIL images and arrays as they are, NIfTI images as (D, H, W)."""
    return _depth_first(value) if hasattr(value, "dataobj") else value


def _spacing_mm(image: Any) -> list[float]:
    """Voxel size of a NIfTI image in mm in RAS+ order, along (Z, Y, X)."""
    import nibabel

    # The affine is in the unit of the file, which need not be mm.
    sizes = nibabel.affines.voxel_sizes(image.affine) * unit_mm(image.header)
    axes = nibabel.io_orientation(image.affine)[:, 0].astype(int)
    return [float(sizes[list(axes).index(axis)]) for axis in (2, 1, 0)]


def _depth_first(image: Any) -> np.ndarray:
    """Voxels of a NIfTI image (X, Y, Z, ...) in RAS+ order as (..., Z, Y, X)."""
    import nibabel

    array = np.asanyarray(image.dataobj)
    array = array.reshape(array.shape + (1,) * (3 - array.ndim))
    orientation = nibabel.io_orientation(image.affine)
    if np.isnan(orientation).any():
        raise ValueError(
            f"the volume {image.get_filename() or ''} has the affine {image.affine.tolist()}, which leaves an axis "
            "without direction; write it with its voxel spacing and orientation"
        )
    return np.ascontiguousarray(nibabel.apply_orientation(array, orientation).T)


def _compact(labels: torch.Tensor) -> torch.Tensor:
    fits = labels.numel() == 0 or (int(labels.min()) >= 0 and int(labels.max()) <= 255)
    return labels.to(torch.uint8 if fits else torch.int64, copy=True, memory_format=torch.contiguous_format)
