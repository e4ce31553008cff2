"""How many images a second the data path delivers: decoded each time, kept in memory or on disk, and by PIL alone.

python examples/benchmark_data.py --images 64 --size 256 --workers 0,2

Without --dataset the images are phantoms of fundus photographs, PNG files of 800 x 800 pixels with masks. "PIL" is the
benchmark's way, written anew here as a yardstick: each worker decodes an image and makes its weak and strong view,
image by image, with PIL and scipy. Ours keeps decoded samples and makes the views of a whole batch at once, on the GPU
where there is one. All numbers are of a stream that has been running for a while; the first pass always decodes.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import datasets
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from dim_hf import DimImageProcessor
from dim_hf.augmentations.geometry import WeakView
from dim_hf.augmentations.intensity import FUNDUS_STRONG
from dim_hf.augmentations.seeds import sample_seeds
from dim_hf.data.cache import SampleCache
from dim_hf.data.collator import TwoStreamCollator
from dim_hf.data.datasets import SegmentationDataset, TwoStreamDataset
from dim_hf.data.phantoms import PHANTOMS, render_phantom
from dim_hf.data.rows import COLUMNS, column_view, is_present, row_features
from dim_hf.data.sampler import LABELED, TwoStreamBatchSampler

BATCH_SIZE = 8
SOURCE_SIZE = 800
# Workers see the images in random order and keep what they have seen: after k passes a share of 1 - 2^-k with two.
WARM_PASSES = 4


class PilPipeline(Dataset):
    """The yardstick: each item is decoded, resized, and moved and recolored by PIL and scipy."""

    def __init__(self, rows: datasets.Dataset, size: int) -> None:
        self.columns = [column_view(rows, name, decode=False) for name in ("image", "label")]
        self.size = size
        self.drawn = 0

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.drawn += 1
        rng = np.random.default_rng([index, self.drawn])
        image, mask = (_open(view[index][name]) for view, name in zip(self.columns, ("image", "label"), strict=True))
        image = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        mask = mask.resize((self.size, self.size), Image.Resampling.NEAREST)
        image, mask = pil_weak_view(image, mask, rng)
        strong = pil_strong_view(image, rng)
        return {"weak": _as_tensor(image), "strong": _as_tensor(strong), "labels": torch.from_numpy(np.array(mask))}


def pil_weak_view(image: Image.Image, mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Zoom and crop (each side by 1 to 1.5), rotation (to 20 degrees), flip, elastic; each with probability 1/2."""
    bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    width, height = image.size
    if rng.random() < 0.5:
        large = [round(side * rng.uniform(1, 1.5)) for side in (width, height)]
        left, top = (int(rng.integers(0, new - old + 1)) for new, old in zip(large, (width, height), strict=True))
        box = (left, top, left + width, top + height)
        image, mask = image.resize(large, bilinear).crop(box), mask.resize(large, nearest).crop(box)
    if rng.random() < 0.5:
        angle = rng.uniform(-20, 20)
        image, mask = image.rotate(angle, bilinear), mask.rotate(angle, nearest)
    if rng.random() < 0.5:
        image, mask = (picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in (image, mask))
    if rng.random() < 0.5:
        image, mask = _pil_elastic(image, mask, rng)
    return image, mask


def _pil_elastic(
    image: Image.Image, mask: Image.Image, rng: np.random.Generator, amount: float = 2.0, smoothness: float = 0.08
) -> tuple[Image.Image, Image.Image]:
    """White noise, smoothed over a share of the side, moves every pixel."""
    pixels, labels = np.asarray(image), np.asarray(mask)
    side = labels.shape[1]
    noise = rng.uniform(-1, 1, (2, *labels.shape))
    shift = [ndimage.gaussian_filter(axis, smoothness * side) * amount * side for axis in noise]
    places = np.indices(labels.shape) + shift
    channels = [ndimage.map_coordinates(pixels[..., c], places, order=1, mode="reflect") for c in range(3)]
    labels = ndimage.map_coordinates(labels, places, order=0, mode="reflect")
    return Image.fromarray(np.stack(channels, axis=-1)), Image.fromarray(labels)


def pil_strong_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness and contrast by 0.5 to 1.5, Gaussian blur of 0.1 to 2 pixels."""
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.5, 1.5))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.5, 1.5))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))


def our_views(batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """Weak and strong views of a whole batch, as the trainer makes them."""
    images = batch["labeled_pixel_values"].to(device, non_blocking=True)
    labels = batch["labels"].to(device, non_blocking=True)
    seeds = sample_seeds(0, LABELED, batch["labeled_positions"].tolist())
    weak, _ = WeakView().apply(images, labels, WeakView().draw(seeds))
    strong = FUNDUS_STRONG.apply(weak, FUNDUS_STRONG.draw(seeds, images.shape[1]))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return strong


def _open(value: dict) -> Image.Image:
    return Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).movedim(-1, 0)


def write_photographs(folder: Path, count: int) -> datasets.Dataset:
    """PNG files of phantoms with the noise of a camera, so that they take as long to decode as photographs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2, (SOURCE_SIZE, SOURCE_SIZE, 3)).astype(np.float32)
    scenes = [
        [
            Image.fromarray(array).resize((SOURCE_SIZE, SOURCE_SIZE), how)
            for array, how in zip(arrays, (2, 0), strict=True)
        ]
        for domain in PHANTOMS["fundus"].domains
        for arrays in [render_phantom("fundus", domain=domain, index=0, size=256, seed=0)]
    ]
    values = []
    for number in range(count):
        image, mask = scenes[number % len(scenes)]
        pixels = np.asarray(image, dtype=np.float32) + np.roll(noise, tuple(rng.integers(0, SOURCE_SIZE, 2)), (0, 1))
        paths = [str(folder / f"{kind}{number:05d}.png") for kind in ("image", "mask")]
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[0], compress_level=1)
        mask.save(paths[1], compress_level=1)
        values.append((*paths, "phantom", f"p{number}", f"n{number}", "train"))
    columns = dict(zip(COLUMNS, map(list, zip(*values, strict=True)), strict=True))
    return datasets.Dataset.from_dict(columns, features=row_features(datasets.Image()))


def our_batches(dataset: Dataset, workers: int) -> Iterator[dict[str, Tensor]]:
    """An endless stream of batches, through the sampler and the collator of training."""
    sampler = TwoStreamBatchSampler(len(dataset), 0, BATCH_SIZE, 0, batches_per_epoch=10**9, seed=0)
    return iter(
        DataLoader(
            TwoStreamDataset(dataset), batch_sampler=sampler, collate_fn=TwoStreamCollator(), num_workers=workers
        )
    )


def pil_batches(dataset: Dataset, workers: int) -> Iterator[dict[str, Tensor]]:
    """The same for the yardstick."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=10**9)
    return iter(DataLoader(dataset, batch_size=BATCH_SIZE, sampler=sampler, num_workers=workers))


def speed(
    batches: Iterator[dict[str, Tensor]],
    warm: int,
    seconds: float,
    use: Callable[[dict[str, Tensor]], object] | None = None,
) -> tuple[float, float]:
    """Pass over `warm` batches, then count for some seconds.

    Returns:
        Images a second, and milliseconds of processor time that this process alone took for an image.
    """
    for _ in range(warm):
        next(batches)
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        batch = next(batches)
        if use is not None:
            use(batch)
        done += BATCH_SIZE
    return done / (time.perf_counter() - start), 1000 * (time.process_time() - cpu) / done


def measure(
    rows: datasets.Dataset, size: int, workers: int, seconds: float, folder: Path
) -> dict[str, tuple[float, float]]:
    """`speed` of each way, by its name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = DimImageProcessor(size={"height": size, "width": size})
    a_pass = -(-len(rows) // BATCH_SIZE)
    warm = WARM_PASSES * a_pass if workers else a_pass

    def ours(cache: SampleCache) -> Iterator[dict[str, Tensor]]:
        return our_batches(SegmentationDataset(rows, processor, cache=cache), workers)

    results = {
        "PIL: decode, weak and strong view": speed(pil_batches(PilPipeline(rows, size), workers), 2, seconds),
        "decode each time": speed(ours(SampleCache(0)), 2, seconds),
        "disk cache": speed(ours(SampleCache(0, folder / "cache")), a_pass, seconds),
    }
    # The limit is shared out among the workers, each of which holds every image after a while.
    enough = 2**20 + max(workers, 1) * len(rows) * size * size * 13
    kept = ours(SampleCache(enough))
    results["memory cache"] = speed(kept, warm, seconds)
    name = f"memory cache, weak and strong views of the batch ({device.type})"
    results[name] = speed(kept, 2, seconds, lambda batch: our_views(batch, device))
    return results


def load(dataset: str | None, images: int, folder: Path) -> datasets.Dataset:
    """The images to measure with, at least a batch of them, all with masks."""
    if dataset is None:
        return write_photographs(folder, images)
    from dim_hf.data.sources import load_source

    rows = load_source(dataset).rows
    rows = rows.select(np.flatnonzero(is_present(rows, "label"))[:images])
    if len(rows) < BATCH_SIZE:
        raise click.UsageError(f"{dataset} has {len(rows)} images with masks; {BATCH_SIZE} are needed")
    return rows


@click.command()
@click.option("--images", default=64, show_default=True, type=click.IntRange(min=BATCH_SIZE), help="Images used.")
@click.option("--size", default=256, show_default=True, help="Pixels of each side of the samples.")
@click.option("--dataset", default=None, help="Real images instead of phantoms: whatever `dim-hf train` takes.")
@click.option("--workers", default="0,2", show_default=True, help="Comma-separated numbers of DataLoader workers.")
@click.option("--seconds", default=2.5, show_default=True, help="Time of each measurement.")
def main(images: int, size: int, dataset: str | None, workers: str, seconds: float) -> None:
    """Print images a second, and how many times the yardstick's that is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = load(dataset, images, folder)
        counts = [int(word) for word in workers.split(",")]
        tables = [measure(rows, size, count, seconds, folder / str(count)) for count in counts]
    click.echo(
        f"{len(rows)} images to {size} x {size}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch\n"
    )
    header = [f"{count} workers, images/s (x PIL)" for count in counts]
    click.echo("| | " + " | ".join(header) + " | CPU ms an image, main process |")
    click.echo("|---" * (len(counts) + 2) + "|")
    baseline = next(iter(tables[0]))
    # What other programs on the machine leave unchanged; with workers it is the smaller part.
    for way, (_, cpu) in tables[0].items():
        rates = [(table[way][0], table[way][0] / table[baseline][0]) for table in tables]
        cells = [f"{rate:.0f} ({ratio:.1f})" for rate, ratio in rates]
        click.echo(f"| {way} | " + " | ".join(cells) + f" | {cpu:.1f} |")


if __name__ == "__main__":
    main()
