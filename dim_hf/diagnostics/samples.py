"""Which images a diagnosis looks at, and how they come to a model: drawn by a seed, sorted before, in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

from dim_hf.data.collator import collate
from dim_hf.data.datasets import SegmentationDataset
from dim_hf.data.permutation import seeded_permutation
from dim_hf.data.rows import COLUMNS, is_present, require_columns
from dim_hf.inference.loading import refuse_missing_folder
from dim_hf.losses import IGNORE_INDEX
from dim_hf.models import DimImageProcessor


@dataclass(frozen=True)
class DomainRows:
    """The images of a domain that are looked at.

    Attributes:
        labeled: rows with masks, on which losses are taken; may be empty.
        unlabeled: rows without the `label` column, on which predictions are compared.
        halves: for each unlabeled row 0 or 1, so that no patient is in both halves.
    """

    labeled: datasets.Dataset
    unlabeled: datasets.Dataset
    halves: tuple[int, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, in float32, with what prepares its images."""

    name: str
    network: PreTrainedModel
    processor: Any
    device: torch.device


def choose_rows(
    rows: datasets.Dataset, *, images: int, unlabeled_images: int, seed: int, split: str | None = None
) -> dict[str, DomainRows]:
    """Draw images of each domain; the draw depends on the names in the domain and the seed alone.

    Args:
        rows: rows of a source.
        images: labeled images of each domain, at most, ≥ 1.
        unlabeled_images: images of each domain, at most, whose masks are not looked at, ≥ 1.
        seed: of the draw, ≥ 0.
        split: draw from the rows of this split only ("train", "validation" or "test"); from all when None.

    Returns:
        By domain, sorted.

    Raises:
        ValueError: if a number is out of range, the split has no row, or no image has a mask.
    """
    require_columns(rows, [column for column in COLUMNS if column != "label"])
    if images < 1 or unlabeled_images < 1:
        raise ValueError(f"images and unlabeled_images must be at least 1, got {images} and {unlabeled_images}")
    has_label = is_present(rows, "label")
    places: dict[str, list[tuple[str, int]]] = {}
    for index, (domain, name, part) in enumerate(zip(rows["domain"], rows["name"], rows["split"], strict=True)):
        if split is None or part == split:
            places.setdefault(domain, []).append((name, index))
    if not places:
        found = sorted({part or "" for part in rows["split"]})
        raise ValueError(f"no row is of the split {split!r} (found: {found}); leave split out to draw from all rows")
    chosen = {}
    for domain, named in sorted(places.items()):
        own = [index for _, index in sorted(named)]
        with_label = [index for index in own if has_label[index]]
        labeled = rows.select(_draw(with_label, images, seed, "labeled", domain))
        unlabeled = _without_masks(rows.select(_draw(own, unlabeled_images, seed, "unlabeled", domain)))
        halves = _halves(
            [patient or name for patient, name in zip(unlabeled["patient"], unlabeled["name"], strict=True)]
        )
        chosen[domain] = DomainRows(labeled, unlabeled, halves)
    if not any(len(part.labeled) for part in chosen.values()):
        raise ValueError("no image has a mask, so no loss can be taken: give at least one domain masks")
    return chosen


def _without_masks(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.remove_columns("label") if "label" in rows.column_names else rows


def _draw(indices: Sequence[int], count: int, seed: int, purpose: str, domain: str) -> list[int]:
    order = seeded_permutation(len(indices), seed, "diagnose", purpose, domain)
    return [indices[place] for place in order[:count].tolist()]


def _halves(patients: Sequence[str]) -> tuple[int, ...]:
    """0 or 1 for each image: patients in the order of the draw, to the half that has fewer images."""
    half_of: dict[str, int] = {}
    sizes = [0, 0]
    for patient in dict.fromkeys(patients):
        half = int(sizes[1] < sizes[0])
        half_of[patient] = half
        sizes[half] += patients.count(patient)
    return tuple(half_of[patient] for patient in patients)


def load_model(name: str, device: torch.device) -> LoadedModel:
    """Load a model and its image processor, from a folder or the Hub.

    Args:
        name: folder or name on the Hub.
        device: where it runs.

    Raises:
        OSError: if there is no such model or it has no image processor.
        ValueError: if it is a folder without a model, or no model for semantic segmentation.
    """
    refuse_missing_folder(name)
    processor = AutoImageProcessor.from_pretrained(name)
    return LoadedModel(name, load_network(name, device), processor, device)


def load_network(folder: str | Path, device: torch.device) -> PreTrainedModel:
    """Load weights alone, in evaluation mode and float32: small rises of the loss need all its digits."""
    network = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32)
    if not any(weight.dim() == 5 for weight in network.parameters()):
        network = network.to(memory_format=torch.channels_last)  # nearly twice as fast on a CPU
    return network.to(device).eval()


def dataset_for(model: LoadedModel, rows: datasets.Dataset) -> SegmentationDataset:
    """The rows as the model's processor gives them."""
    if isinstance(rows.features["image"], datasets.Image) and not isinstance(model.processor, DimImageProcessor):
        # Processors of other models take three channels; ours brings images to the model's own.
        rows = rows.cast_column("image", datasets.Image(mode="RGB"))
    return SegmentationDataset(rows, model.processor)


def batches_of(samples: SegmentationDataset, batch_size: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Batches in the order of the rows; one ends early where the next image has another size.

    Yields:
        What `collate` gives, on the device.

    Raises:
        ValueError: if an image cannot be prepared; the message names it.
    """
    batch: list[dict[str, Tensor]] = []
    for index in range(len(samples)):
        sample = samples[index]
        full = len(batch) == batch_size
        if batch and (full or batch[0]["pixel_values"].shape != sample["pixel_values"].shape):
            yield _on_device(batch, device)
            batch = []
        batch.append(sample)
    if batch:
        yield _on_device(batch, device)


def labeled_batches(model: LoadedModel, rows: datasets.Dataset, batch_size: int) -> list[dict[str, Tensor]]:
    """All labeled images in memory, as the measures take them again and again.

    Raises:
        ValueError: if a mask holds a class that the model does not have, or lies on another grid than its image.
    """
    batches = list(batches_of(dataset_for(model, rows), batch_size, model.device))
    num_labels = model.network.config.num_labels
    for batch in batches:
        labels = batch["labels"]
        highest = int(labels[labels != IGNORE_INDEX].max()) if (labels != IGNORE_INDEX).any() else 0
        if highest >= num_labels or int(labels.min()) < 0:
            raise ValueError(
                f"a mask of domain {rows[0]['domain']!r} holds the class {highest}, but the model {model.name} has "
                f"the classes 0..{num_labels - 1}; diagnose it on the data set that it was trained for"
            )
    return batches


def _on_device(samples: Sequence[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in collate(samples).items()}
