"""Where do the errors of an inner structure come from: its size, a habit of sizes, or what the annotators call it?

python examples/structure_sizes.py runs/dim data/fundus --split train

For each domain: how large a network draws the inner of two nested structures, compared with the labels, and whether
its answer follows when the structure's size is changed in the image. A network with a habit of sizes answers a change
with too small a change; one that follows, yet draws another size than the labels, sees a border where other
annotators, on other patients, would draw none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor

from dim_hf.cli.errors import user_errors

FACTORS = (0.8, 1.25)
_BATCH = 8


@dataclass(frozen=True)
class Sizes:
    """Pixels of the inner and of the outer structure in N label maps; (N,) float64 each."""

    inner: Tensor
    outer: Tensor

    @classmethod
    def of(cls, labels: Tensor, outer: Sequence[int], inner: Sequence[int]) -> "Sizes":
        """Count the pixels of (N, *S) class ids."""
        counts = [
            torch.isin(labels, torch.tensor(list(classes))).flatten(1).sum(1).double() for classes in (inner, outer)
        ]
        return cls(*counts)

    def radii(self, spatial_dims: int) -> Tensor:
        """(N,), radius of the inner structure in radii of the outer one, by their numbers of pixels."""
        return (self.inner / self.outer) ** (1.0 / spatial_dims)


def size_row(found: Sizes, true: Sizes, spatial_dims: int) -> dict[str, float]:
    """How drawn sizes compare with the labels', over the images that have the structure in both.

    Returns:
        `radius` drawn and `label`, means in radii of the outer structure; `area`, sum of drawn by sum of labeled
        pixels; `correlation` of the pixels.
    """
    both = (found.inner > 0) & (true.inner > 0) & (found.outer > 0)
    drawn, labeled = found.inner[both], true.inner[both]
    return {
        "radius": found.radii(spatial_dims)[both].mean().item(),
        "label": true.radii(spatial_dims)[both].mean().item(),
        "area": (drawn.sum() / labeled.sum()).item(),
        "correlation": torch.corrcoef(torch.stack([drawn, labeled]))[0, 1].item(),
    }


def response(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    factor: float,
    nested: tuple[Sequence[int], Sequence[int]],
) -> tuple[float, float]:
    """How much the radius of the inner structure changed in the image, and how much in the answer.

    Args:
        predict: images (N, C, *S) → class ids (N, *S).
        images: (N, C, *S).
        labels: (N, *S), class ids, by which the structure is resized.
        factor: of the radius, wanted; images in which the structure would outgrow the outer one are left out.
        nested: class ids of the outer and of the inner structure.

    Returns:
        Geometric means of the factors of label and of answer over the images; NaN without any.
    """
    from dim_hf.augmentations.structures import MINIMUM_PIXELS, StructureDraws, StructureWarp

    dims = labels.dim() - 1
    plain, before = Sizes.of(labels, *nested), Sizes.of(predict(images), *nested)
    wanted = plain.radii(dims) * factor
    chosen = (plain.inner >= MINIMUM_PIXELS) & (before.inner >= MINIMUM_PIXELS) & (wanted < 0.9)
    draws = StructureDraws(chosen, wanted.nan_to_num(), torch.zeros(len(labels), dims, dtype=torch.float64))
    warped, moved = StructureWarp(size=(0.05, 0.92), probability=1.0).apply(images, labels, draws, *nested)
    after = Sizes.of(predict(warped), *nested)
    chosen &= after.inner > 0
    changes = [
        new.radii(dims)[chosen].log() - old.radii(dims)[chosen].log()
        for old, new in ((plain, Sizes.of(moved, *nested)), (before, after))
    ]
    return tuple(change.mean().exp().item() for change in changes)


def domain_rows(network: Any, datasets: dict[str, Any], nested: tuple) -> list[tuple[str, ...]]:
    """A line of the table for each domain."""

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        logits = [network(pixel_values=part).logits for part in images.split(_BATCH)]
        return torch.cat([part.argmax(1) for part in logits])

    lines = []
    for domain, samples in datasets.items():
        images = torch.stack([sample["pixel_values"] for sample in samples])
        labels = torch.stack([sample["labels"] for sample in samples]).long()
        sizes = size_row(Sizes.of(predict(images), *nested), Sizes.of(labels, *nested), labels.dim() - 1)
        changes = [response(predict, images, labels, factor, nested) for factor in FACTORS]
        answers = [f"{seen:.2f} → {said:.2f}" for seen, said in changes]
        lines.append((domain, str(len(labels)), *(f"{value:.2f}" for value in sizes.values()), *answers))
    return lines


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.argument("dataset")
@click.option("--split", default="train", show_default=True, help="Rows of this split; all where there is no split.")
@click.option("--images", default=48, show_default=True, type=click.IntRange(2), help="At most so many of a domain.")
def main(run: str, dataset: str, split: str, images: int) -> None:
    """Print the Markdown table of the network in RUN on the labeled images of DATASET."""
    from dim_hf.augmentations.structures import nested_pair
    from dim_hf.data.datasets import SegmentationDataset
    from dim_hf.data.sources import load_source
    from dim_hf.inference.loading import load_network
    from dim_hf.metrics.trainer_metrics import class_structures
    from dim_hf.trainer.study_table import markdown_table

    with user_errors():
        network, processor = load_network(run)
        nested = nested_pair(class_structures(network.config))
        if nested is None:
            raise ValueError(f"{run} has no structure within another, as a cup in a disc: its config.json names none")
        rows = load_source(dataset).rows
        places: dict[str, list[int]] = {}
        splits = rows["split"] if "split" in rows.column_names else [split] * len(rows)
        for index, (domain, own) in enumerate(zip(rows["domain"], splits, strict=True)):
            if own == split and len(places.setdefault(domain, [])) < images:
                places[domain].append(index)
        if not places:
            raise ValueError(f"{dataset} has no row of split {split!r}; found {sorted(set(splits))}")
        datasets = {domain: SegmentationDataset(rows.select(found), processor) for domain, found in places.items()}
        changed = (f"answer to × {factor}" for factor in FACTORS)
        header = ("domain", "images", "radius drawn", "label", "area drawn / label", "correlation", *changed)
        click.echo(markdown_table(header, domain_rows(network.eval(), datasets, nested)))


if __name__ == "__main__":
    main()
