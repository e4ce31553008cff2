"""Statistics of the sites that a network saw, from the images it was trained and validated on."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from dim_hf.augmentations.geometry import mirror_axes
from dim_hf.data.datasets import SegmentationDataset
from dim_hf.inference.drift import FALSE_ALARM_RATE, SiteStatistics, fit_statistics
from dim_hf.inference.drift_parts import DriftMeter, watched_logits

MAX_IMAGES = 500
"""Images behind the statistics, the same number of each site as far as it has them."""
_PIXELS_PER_PASS = 2**18


def fit_site_statistics(
    network: nn.Module,
    training: Sequence[SegmentationDataset],
    validation: Sequence[SegmentationDataset] = (),
    *,
    other: nn.Module | None = None,
    wanted_rate: float = FALSE_ALARM_RATE,
) -> SiteStatistics:
    """Describe the images that a network was trained and validated on, and calibrate the drift score on them.

    Each of at most `MAX_IMAGES` images goes through the network four times in 2D and eight times in 3D, since the
    disagreement of mirror images is calibrated, too.

    Args:
        network: The one that predicts, on the device to use; any semantic-segmentation model of transformers. Without
            hidden states, pixels and answers alone are described.
        training: Data sets that it learned from, with or without labels; their rows have domain and patient.
        validation: Data sets that it did not learn from, of the same sites.
        other: The network that predictions may compare it with.
        wanted_rate: Share of new images of the seen sites that may be flagged.

    Raises:
        ValueError: If there are too few images (see `drift.fit_statistics`), or one cannot be read.
    """
    places = [(part, index) for part in (*training, *validation) for index in range(len(part))]
    sites = [site for part in (*training, *validation) for site in part.rows["domain"]]
    patients = [patient or "" for part in (*training, *validation) for patient in part.rows["patient"]]
    held_out = np.arange(len(places)) >= sum(map(len, training))
    chosen = evenly(sites, held_out.tolist(), MAX_IMAGES)
    networks = [network] + ([other] if other is not None else [])
    was_training = [part.training for part in networks]
    try:
        values = _describe([part.eval() for part in networks], [places[index] for index in chosen])
    finally:
        for part, mode in zip(networks, was_training, strict=True):
            part.train(mode)
    return fit_statistics(
        values,
        [sites[index] for index in chosen],
        [patients[index] for index in chosen],
        held_out[chosen],
        wanted_rate,
    )


def evenly(sites: Sequence[str], held_out: Sequence[bool], most: int) -> list[int]:
    """Images of all sites in turn, up to `most`; within a site those held out first, then evenly spaced ones.

    Args:
        sites: Of each image.
        held_out: Whether an image is for validation.
        most: How many there may be.

    Returns:
        Sorted numbers of images.

    >>> evenly(["a"] * 5 + ["b"], [False] * 6, 4)
    [0, 1, 3, 5]
    """
    if len(sites) <= most:
        return list(range(len(sites)))
    left = {site: [i for i, own in enumerate(sites) if own == site] for site in sorted(set(sites))}
    quota = dict.fromkeys(left, 0)
    while most:  # an image a site in each round
        for site in [site for site in left if quota[site] < len(left[site])][:most]:
            quota[site] += 1
            most -= 1
    chosen = []
    for site, own in left.items():
        first = [i for i in own if held_out[i]][: quota[site]]
        rest = [i for i in own if not held_out[i]]
        count = quota[site] - len(first)
        chosen += first + [rest[place * len(rest) // count] for place in range(count)]
    return sorted(chosen)


def _describe(
    networks: Sequence[nn.Module], places: Sequence[tuple[SegmentationDataset, int]]
) -> dict[str, np.ndarray]:
    """Values by part, a row an image; parts that not all images have are left out."""
    found: list[dict[str, np.ndarray]] = [_measure(networks, batch) for batch in _batches(places)]
    common = set.intersection(*({*values} for values in found)) if found else set()
    widths = {name: {values[name].shape[1] for values in found} for name in common}
    return {
        name: np.concatenate([values[name] for values in found]) for name in sorted(common) if len(widths[name]) == 1
    }


def _batches(places: Sequence[tuple[SegmentationDataset, int]]) -> Iterator[torch.Tensor]:
    """Pixels (N, C, *S) of neighbors of one size, in order."""
    waiting: list[torch.Tensor] = []
    for dataset, index in places:
        pixels = dataset[index]["pixel_values"]
        full = (len(waiting) + 1) * pixels[0].numel() > _PIXELS_PER_PASS
        if waiting and (full or waiting[0].shape != pixels.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield torch.stack(waiting)


@torch.inference_mode()
def _measure(networks: Sequence[nn.Module], pixels: torch.Tensor) -> dict[str, np.ndarray]:
    flips = mirror_axes(pixels.ndim - 2)
    meter = DriftMeter(len(flips), len(networks))
    meter.see_pixels(pixels)
    for number, network in enumerate(networks):
        weight = next(network.parameters())
        for axes in flips if number == 0 else flips[:1]:
            turned = pixels.flip(axes).to(weight.device, weight.dtype)
            meter.see_logits(number, watched_logits(network, turned, meter if number == 0 else None).flip(axes))
    return meter.values()
