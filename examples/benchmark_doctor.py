"""Measures the doctor: seconds for 1 000 images, and how well it finds flipped masks in a data set without any.

python examples/benchmark_doctor.py speed
python examples/benchmark_doctor.py flips data/nuclei --fraction 0.05
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import PIL.Image


@click.group()
def main() -> None:
    """Measure the doctor."""


@main.command()
@click.option("--images", default=1000, show_default=True)
@click.option("--size", default=512, show_default=True)
def speed(images: int, size: int) -> None:
    """Write IMAGES color PNGs with masks to a temporary folder, and time the whole command on them."""
    import subprocess
    import sys

    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "site", images, size)
        for attempt in ("first", "again"):
            start = time.perf_counter()
            command = [sys.executable, "-c", "from dim_hf.cli import main; main()", "doctor", folder, "--no-progress"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            click.echo(f"{attempt}: {images} images of {size} x {size} in {time.perf_counter() - start:.1f} s")


def _write(folder: Path, images: int, size: int) -> None:
    """Smooth color noise with a disc, which packs as photographs do."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(images):
        coarse = PIL.Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        noise = generator.integers(-4, 5, (size, size, 3))
        centre, radius = generator.uniform(0.3, 0.7, 2) * size, generator.uniform(0.1, 0.25) * size
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        picture = np.asarray(coarse.resize((size, size))) // 2 + 90 * disc[..., None] + noise
        PIL.Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / "images" / f"{index:04d}.png")
        PIL.Image.fromarray(disc.astype(np.uint8)).save(folder / "masks" / f"{index:04d}.png")


@main.command()
@click.argument("dataset")
@click.option("--fraction", default=0.05, show_default=True, help="Share of the masks that are flipped.")
@click.option("--seed", default=0, show_default=True)
def flips(dataset: str, fraction: float, seed: int) -> None:
    """Flip or turn masks of DATASET, taken for right, at random, and count those that are suspected."""
    from dim_hf.data.doctor.flips import evidence, suspect
    from dim_hf.data.sources import load_source

    rows = load_source(dataset).rows
    generator = np.random.default_rng(seed)
    domains: dict[str, list] = {}
    for row in rows:
        if row["label"] is None:
            continue
        image, mask = _arrays(row["image"]), _arrays(row["label"])
        axes = [(0,), (1,), (0, 1)][generator.integers(3)]
        is_flipped = bool(generator.uniform() < fraction)
        score = evidence(image, np.flip(mask, axes) if is_flipped else mask)
        domains.setdefault(row["domain"], []).append((mask.shape, score, is_flipped))
    for domain, cases in domains.items():
        shapes, scores, truth = zip(*cases, strict=True)
        suspicion = suspect(shapes, scores)
        found = sum(truth[index] for index in suspicion.images)
        said = (
            f"found {found} of {sum(truth)}, {len(suspicion.images) - found} false"
            if suspicion.can_tell
            else "cannot tell"
        )
        click.echo(f"{domain}: {len(cases)} masks, {sum(truth)} flipped: {said}")


def _arrays(value: object) -> np.ndarray:
    return np.asarray(value.dataobj if hasattr(value, "dataobj") else value)


if __name__ == "__main__":
    main()
