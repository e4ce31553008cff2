"""Where do the errors of an inner structure come from: its size, a habit of sizes, or what the annotators call it?

python examples/structure_sizes.py runs/dim data/fundus --split train

For each domain: how large a network draws the inner of two nested structures, compared with the labels, and whether
its answer follows when the structure's size is changed in the image. A network with a habit of sizes answers a change
with too small a change; one that follows, yet draws another size than the labels, sees a border where other
annotators, on other patients, would draw none.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor

from dim_hf.cli.errors import user_errors

FACTORS = (0.8, 1.25)
HEADER = ("domain", "images", "drawn", "radius", "label", "area / label", "correlation")
_BATCH = 8

Nested = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Sizes:
    """Pixels of the inner and of the outer structure in N label maps; (N,) float64 each."""

    inner: Tensor
    outer: Tensor

    @classmethod
    def of(cls, labels: Tensor, nested: Nested) -> "Sizes":
        """Count the pixels of (N, *S) class ids; `nested` has those of the outer and of the inner structure."""
        outer, inner = (torch.isin(labels, torch.tensor(list(classes))).flatten(1).sum(1) for classes in nested)
        return cls(inner.double(), outer.double())

    def radii(self, spatial_dims: int) -> Tensor:
        """(N,), radius of the inner structure in radii of the outer one, by their numbers of pixels."""
        return (self.inner / self.outer) ** (1.0 / spatial_dims)


def size_cells(found: Sizes, true: Sizes, spatial_dims: int) -> list[float]:
    """How drawn sizes compare with the labels'.

    Returns:
        Images whose label has the inner structure; of these, those in which it was drawn; and over the latter: mean
        drawn and mean labeled radius in radii of the outer structure, drawn by labeled pixels, and the correlation of
        the pixels (NaN below three images).
    """
    labeled = true.inner > 0
    both = labeled & (found.inner > 0) & (found.outer > 0)
    drawn, wanted = found.inner[both], true.inner[both]
    enough = len(drawn) > 2
    return [
        int(labeled.sum()),
        int(both.sum()),
        found.radii(spatial_dims)[both].mean().item(),
        true.radii(spatial_dims)[both].mean().item(),
        (drawn.sum() / wanted.sum()).item(),
        torch.corrcoef(torch.stack([drawn, wanted]))[0, 1].item() if enough else math.nan,
    ]


def response(
    predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, before: Sizes, factor: float, nested: Nested
) -> tuple[float, float, int]:
    """How much the radius of the inner structure changed in the image, and how much in the answer.

    Images are left out whose structure is too small to be measured or too large to be changed, and those in which it
    is not drawn before or after the change.

    Args:
        predict: images (N, C, *S) → class ids (N, *S).
        images: (N, C, *S).
        labels: (N, *S), class ids, by which the structure is resized.
        before: of what it predicts for the images as they are.
        factor: of the radius, wanted.
        nested: class ids of the outer and of the inner structure.

    Returns:
        Geometric means of the factors of label and of answer over the images, NaN without any; how many they were.
    """
    from dim_hf.augmentations.structures import LARGEST_SIZE, MINIMUM_PIXELS, StructureDraws, StructureWarp

    dims = labels.dim() - 1
    warp = StructureWarp(size=(0.05, LARGEST_SIZE), probability=1.0)
    plain = Sizes.of(labels, nested)
    radii = plain.radii(dims).nan_to_num()
    chosen = (plain.inner >= MINIMUM_PIXELS) & (radii < warp.size[1]) & (radii * factor < warp.size[1])
    draws = StructureDraws(chosen, radii * factor, torch.zeros(len(labels), dims, dtype=torch.float64))
    warped, moved = warp.apply(images, labels, draws, *nested)
    after = Sizes.of(predict(warped), nested)
    chosen &= (before.inner >= MINIMUM_PIXELS) & (after.inner > 0)
    changes = [
        new.radii(dims)[chosen].log() - old.radii(dims)[chosen].log()
        for old, new in ((plain, Sizes.of(moved, nested)), (before, after))
    ]
    return changes[0].mean().exp().item(), changes[1].mean().exp().item(), int(chosen.sum())


def domain_cells(network: Any, images: Tensor, labels: Tensor, nested: Nested) -> list[str]:
    """A domain's cells of the table.

    Args:
        network: gives `logits` (N, K, *S'), at the images' resolution or a lower one.
        images: (N, C, *S).
        labels: (N, *S), class ids.
        nested: class ids of the outer and of the inner structure.
    """
    from dim_hf.losses import resize_logits

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        parts = images.split(_BATCH)
        return torch.cat([resize_logits(network(pixel_values=p).logits, p.shape[2:]).argmax(1) for p in parts])

    drawn = Sizes.of(predict(images), nested)
    sizes = size_cells(drawn, Sizes.of(labels, nested), labels.dim() - 1)
    cells = [str(count) for count in sizes[:2]] + ["–" if math.isnan(value) else f"{value:.2f}" for value in sizes[2:]]
    for factor in FACTORS:
        seen, answered, count = response(predict, images, labels, drawn, factor, nested)
        cells.append(f"{seen:.2f} → {answered:.2f} ({count})" if count else "–")
    return cells


def samples_by_domain(rows: Any, processor: Any, limit: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Images (N, C, *S) and label maps (N, *S) of each domain, from its first labeled rows.

    Raises:
        ValueError: without any labeled row, or for images of different sizes.
    """
    from dim_hf.data.datasets import SegmentationDataset
    from dim_hf.data.rows import is_present

    places: dict[str, list[int]] = {}
    for index, (domain, labeled) in enumerate(zip(rows["domain"], is_present(rows, "label"), strict=True)):
        if labeled and len(places.setdefault(domain, [])) < limit:
            places[domain].append(index)
    if not any(places.values()):
        raise ValueError(f"none of the {len(rows)} images has a mask: sizes can be compared with labels alone")
    for domain, found in places.items():
        samples = list(SegmentationDataset(rows.select(found), processor))
        shapes = sorted({tuple(sample["labels"].shape) for sample in samples})
        if len(shapes) > 1:
            raise ValueError(f"images of {shapes[0]} and of {shapes[1]} pixels in {domain}: give the processor a size")
        images, labels = (torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "labels"))
        yield domain, images, labels.long()


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.argument("dataset")
@click.option("--split", default="train", show_default=True, help="train, test, or all.")
@click.option("--images", default=48, show_default=True, type=click.IntRange(2), help="At most so many of a domain.")
def main(run: str, dataset: str, split: str, images: int) -> None:
    """Print the Markdown table of the network in RUN on the labeled images of DATASET."""
    from dim_hf.augmentations.structures import nested_pair
    from dim_hf.evaluation.loading import load_source_for
    from dim_hf.evaluation.runs import read_run, rows_to_score
    from dim_hf.inference.loading import load_network
    from dim_hf.metrics.trainer_metrics import class_structures
    from dim_hf.trainer.study_table import markdown_table

    with user_errors():
        network, processor = load_network(run)
        nested = nested_pair(class_structures(network.config))
        if nested is None:
            raise ValueError(f"{run} has no structure within another, as a cup in a disc: its config.json names none")
        facts = read_run(run)
        rows = rows_to_score(load_source_for(network, dataset, facts).rows, split, facts)
        lines = [
            (domain, *domain_cells(network, pixels, labels, nested))
            for domain, pixels, labels in samples_by_domain(rows, processor, images)
        ]
        click.echo(markdown_table((*HEADER, *(f"× {factor} → answer (images)" for factor in FACTORS)), lines))


if __name__ == "__main__":
    main()
