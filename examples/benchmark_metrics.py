"""Measures the metrics side by side with medpy, on masks of many kinds, and prints Markdown tables.

python examples/benchmark_metrics.py
python examples/benchmark_metrics.py --quick

Each cell is the median time of medpy over the median time of `dim_hf.metrics`, both measured in turns in one process;
"all" is all six metrics of one case. Before a cell is timed, the values are compared.
"""

import statistics
import time
from collections.abc import Callable

import click
import numpy as np
from scipy.ndimage import gaussian_filter

Masks = tuple[np.ndarray, np.ndarray]
CASES = {
    "2D, 384 × 384, pixels": ((384, 384), None),
    "3D, 256 × 256 × 64, pixels": ((256, 256, 64), None),
    "3D, 256 × 256 × 64, 0.7 × 0.7 × 3 mm": ((256, 256, 64), (0.7, 0.7, 3.0)),
}
QUICK_CASES = {
    "2D, 96 × 96, pixels": ((96, 96), None),
    "3D, 48 × 48 × 16, 0.7 × 0.7 × 3 mm": ((48, 48, 16), (0.7, 0.7, 3.0)),
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
        "disc": (disc, other),
        "identical": (smooth, smooth.copy()),
        "shifted": (smooth, np.roll(smooth, shape[1] // 12, axis=1)),
        "near-full": (full, fuller),
        "near-full with holes": (full & waves[0], fuller & waves[1]),
        "large disc": (_ellipsoid(shape, middle, 0.49, 6), _ellipsoid(shape, middle, 0.48, 7)),
        "small": (_ellipsoid(shape, middle, 0.04), _ellipsoid(shape, (0.52,) * len(shape), 0.045)),
        "two blobs, one missed": (_ellipsoid(shape, low, 0.13), blobs),
        "far apart": (_ellipsoid(shape, (0.15,) * len(shape), 0.12), _ellipsoid(shape, (0.85,) * len(shape), 0.12)),
        "near-full against small": (full, _ellipsoid(shape, middle, 0.05)),
        "noise, 50 %": (generator.random(shape) < 0.5, generator.random(shape) < 0.5),
        "noise, 2 %": (generator.random(shape) < 0.02, generator.random(shape) < 0.02),
        "disc and 5 % noise": (smooth ^ specks, smooth),
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


def functions(masks: Masks, spacing: tuple[float, ...] | None) -> dict[str, tuple[Callable, Callable]]:
    """By name of the metric, medpy's and this package's function of the masks.

    Args:
        masks: prediction and reference.
        spacing: size of a pixel in mm; None is pixels.

    Returns:
        Functions without arguments; those of "all" give the six values.
    """
    from medpy.metric import binary as medpy

    from dim_hf.metrics import overlap, surface

    pairs = {
        "dc": (lambda: medpy.dc(*masks), lambda: overlap.dice(*masks)),
        "jc": (lambda: medpy.jc(*masks), lambda: overlap.jaccard(*masks)),
    }
    for name in ("hd95", "hd", "asd", "assd"):
        theirs, ours = getattr(medpy, name), getattr(surface, name)
        pairs[name] = (lambda f=theirs: f(*masks, spacing), lambda f=ours: f(*masks, spacing))

    def all_of_ours() -> list[float]:
        ratios, distances = overlap.overlap_metrics(*masks), surface.surface_metrics(*masks, spacing)
        return [ratios.dice, ratios.jaccard, distances.hd95, distances.hd, distances.asd, distances.assd]

    alone = [pair[0] for pair in pairs.values()]
    return pairs | {"all": (lambda: [function() for function in alone], all_of_ours)}


def ratio(theirs: Callable, ours: Callable, repeats: int) -> float:
    """How many times faster `ours` is.

    Args:
        theirs: function without arguments.
        ours: the same.
        repeats: number of runs of each, in turns; short ones are run more often.

    Returns:
        Ratio of the medians.

    Raises:
        ValueError: if their values differ.
    """
    if not np.allclose(theirs(), ours(), rtol=1e-12):
        raise ValueError(f"medpy's value is {theirs()} and ours {ours()}")
    start = time.perf_counter()
    theirs()
    many = max(repeats, min(200, int(0.02 / (time.perf_counter() - start))))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(many):
        for function, found in zip((theirs, ours), times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


@click.command()
@click.option("--quick", is_flag=True, help="Small images, to see that it runs.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each function.")
def main(quick: bool, repeats: int) -> None:
    """Print how many times faster than medpy the metrics are."""
    for title, (shape, spacing) in (QUICK_CASES if quick else CASES).items():
        columns: list[str] = []
        for kind, masks in mask_pairs(shape).items():
            pairs = functions(masks, spacing)
            if not columns:
                columns = list(pairs)
                click.echo(f"\nTimes faster than medpy: {title}\n")
                click.echo(f"| masks | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
            cells = [f"{ratio(*pair, repeats):.1f}" for pair in pairs.values()]
            click.echo(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
