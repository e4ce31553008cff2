"""Measures the metrics side by side with medpy, on masks of many kinds, and prints a Markdown table.

python examples/benchmark_metrics.py
python examples/benchmark_metrics.py --quick

A cell is how many times faster `dim_hf.metrics` is than medpy: the medians of both, measured in turns in one process;
"all" is all six metrics of one case (of medpy, the sum of the six), also in milliseconds. Before a cell is timed, the
values are compared. The first masks are what segmentation gives; those marked "hard" are what makes distances slow.
"""

import math
import statistics
import time
from collections.abc import Callable

import click
import numpy as np
from scipy.ndimage import gaussian_filter

Masks = tuple[np.ndarray, np.ndarray]
DISTANCES = ("hd95", "hd", "asd", "assd")
METRICS = ("dc", "jc", *DISTANCES)
CASES = {
    "384², px": ((384, 384), None),
    "256 × 256 × 64, px": ((256, 256, 64), None),
    "256 × 256 × 64, 0.7 × 0.7 × 3 mm": ((256, 256, 64), (0.7, 0.7, 3.0)),
}
QUICK_CASES = {
    "96², px": ((96, 96), None),
    "48 × 48 × 16, 0.7 × 0.7 × 3 mm": ((48, 48, 16), (0.7, 0.7, 3.0)),
}


def mask_pairs(shape: tuple[int, ...]) -> dict[str, Masks]:
    """Pairs of masks that a good, a bad and a broken model would give, by name.

    Args:
        shape: (H, W) or (H, W, D).

    Returns:
        (prediction, reference), boolean, of that shape.
    """
    generator = np.random.default_rng(0)
    middle, low, high = ((position,) * len(shape) for position in (0.5, 0.3, 0.7))
    disc, other, smooth = (_ellipsoid(shape, middle, *of) for of in ((0.25, 1), (0.24, 2), (0.25,)))
    full, fuller = _inner(shape, 4), _inner(shape, 2)
    waves = [_waves(shape, seed) < 2.0 for seed in (3, 4)]
    specks = generator.random(shape) < 0.05
    blobs = _ellipsoid(shape, low, 0.12) | _ellipsoid(shape, high, 0.15, 5)
    return {
        "lobed disc": (disc, other),
        "identical": (smooth, smooth.copy()),
        "shifted": (smooth, np.roll(smooth, shape[1] // 12, axis=1)),
        "small": (_ellipsoid(shape, middle, 0.04), _ellipsoid(shape, (0.52,) * len(shape), 0.045)),
        "two blobs, one missed": (_ellipsoid(shape, low, 0.13), blobs),
        "far apart": (_ellipsoid(shape, (0.15,) * len(shape), 0.12), _ellipsoid(shape, (0.85,) * len(shape), 0.12)),
        "large lobed disc (hard)": (
            _ellipsoid(shape, middle, 0.49, 6),
            _ellipsoid(shape, middle, 0.48, 7),
        ),
        "near-full (hard)": (full, fuller),
        "near-full with holes (hard)": (full & waves[0], fuller & waves[1]),
        "near-full against small (hard)": (full, _ellipsoid(shape, middle, 0.05)),
        "noise, 50 % (hard)": (generator.random(shape) < 0.5, generator.random(shape) < 0.5),
        "noise, 2 % (hard)": (generator.random(shape) < 0.02, generator.random(shape) < 0.02),
        "disc and 5 % noise (hard)": (smooth ^ specks, smooth),
    }


def _inner(shape: tuple[int, ...], margin: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(margin, size - margin) for size in shape)] = True
    return mask


def _waves(shape: tuple[int, ...], seed: int) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), [size / 12 for size in shape])
    return field / field.std()


def _ellipsoid(
    shape: tuple[int, ...], centre: tuple[float, ...], radius: float, seed: int | None = None
) -> np.ndarray:
    """Centre and radius relative to the image; a lobed border with a seed."""
    grids = np.ogrid[tuple(slice(0, size) for size in shape)]
    squares = sum(((g / size - c) / radius) ** 2 for g, size, c in zip(grids, shape, centre, strict=True))
    return squares + (0 if seed is None else 0.2 * _waves(shape, seed)) <= 1


def functions(
    masks: Masks, spacing: tuple[float, ...] | None
) -> tuple[dict[str, tuple[Callable, Callable]], Callable]:
    """By name of the metric, medpy's and this package's function of the masks.

    Args:
        masks: prediction and reference.
        spacing: size of a pixel in mm; None is pixels.

    Returns:
        Functions without arguments, and this package's one that gives all six values.
    """
    from medpy.metric import binary as medpy

    from dim_hf.metrics import overlap, surface

    pairs = {
        "dc": (lambda: medpy.dc(*masks), lambda: overlap.dice(*masks)),
        "jc": (lambda: medpy.jc(*masks), lambda: overlap.jaccard(*masks)),
    }
    for name in DISTANCES:
        theirs, ours = getattr(medpy, name), getattr(surface, name)
        pairs[name] = (lambda f=theirs: f(*masks, spacing), lambda f=ours: f(*masks, spacing))

    def all_of_ours() -> list[float]:
        ratios, distances = overlap.overlap_metrics(*masks), surface.surface_metrics(*masks, spacing)
        return [ratios.dice, ratios.jaccard, distances.hd95, distances.hd, distances.asd, distances.assd]

    return pairs, all_of_ours


def medians(theirs: Callable, ours: Callable, repeats: int) -> tuple[float, float]:
    """What both take.

    Args:
        theirs: function without arguments.
        ours: the same.
        repeats: number of runs of each, in turns; short ones are run more often.

    Returns:
        Medians in seconds, theirs first.

    Raises:
        ValueError: if their values differ.
    """
    start = time.perf_counter()
    value = theirs()
    many = max(repeats, min(200, int(0.02 / (time.perf_counter() - start))))
    if not np.allclose(value, ours(), rtol=1e-12):
        raise ValueError(f"medpy's value is {value} and ours {ours()}")
    times = [(seconds(theirs), seconds(ours)) for _ in range(many)]
    return tuple(map(statistics.median, zip(*times, strict=True)))


def seconds(function: Callable) -> float:
    """What one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@click.command()
@click.option("--quick", is_flag=True, help="Small images, to see that it runs.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs of each function.")
def main(quick: bool, repeats: int) -> None:
    """Print how many times faster than medpy the metrics are."""
    header = ["image", "masks", *METRICS, "all", "all: medpy, ms", "all: ours, ms"]
    click.echo(f"| {' | '.join(header)} |\n|---|---|{'--:|' * (len(header) - 2)}")
    lowest = {"typical": (math.inf, ""), "hard": (math.inf, "")}
    for image, (shape, spacing) in (QUICK_CASES if quick else CASES).items():
        for kind, masks in mask_pairs(shape).items():
            pairs, all_of_ours = functions(masks, spacing)
            found = {name: medians(*pair, repeats) for name, pair in pairs.items()}
            together = statistics.median(seconds(all_of_ours) for _ in range(max(repeats, 3)))
            found["all"] = sum(theirs for theirs, _ in found.values()), together
            ratios = {name: theirs / ours for name, (theirs, ours) in found.items()}
            cells = [f"{value:.1f}" for value in ratios.values()] + [f"{1000 * part:.1f}" for part in found["all"]]
            click.echo(f"| {image} | {kind} | {' | '.join(cells)} |")
            group = "hard" if kind.endswith("(hard)") else "typical"
            worst = min((value, f"{name} of {kind}, {image}") for name, value in ratios.items() if name in DISTANCES)
            lowest[group] = min(lowest[group], worst)
    for group, (value, where) in lowest.items():
        click.echo(f"\nLowest ratio of a distance, {group} masks: {value:.1f} ({where}).")


if __name__ == "__main__":
    main()
