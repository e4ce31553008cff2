"""Steps at half the resolution: what is learned from the whole picture is learned there first, for less."""

import torch.nn.functional as F
from torch import Tensor

from dim_hf.data.sampler import LABELED, UNLABELED

_POOLS = {4: F.avg_pool2d, 5: F.avg_pool3d}


def at_half_resolution(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of `TwoStreamCollator` with images of half the sides: means of 2 x 2 (x 2) pixels.

    Label maps take the first pixel of each. An odd last row is dropped.

    Args:
        batch: images (N, C, *S), label maps (N, *S), and what has no pixels, which stays as it is.

    Raises:
        ValueError: for a side of one pixel.
    """
    halved = dict(batch)
    for stream in (LABELED, UNLABELED):
        name = f"{stream}_pixel_values"
        if name in batch:
            halved[name] = _half(batch[name])
    shape = halved[f"{LABELED}_pixel_values"].shape[2:]
    halved["labels"] = batch["labels"][(..., *(slice(0, 2 * side, 2) for side in shape))]
    return halved


def _half(images: Tensor) -> Tensor:
    if min(images.shape[2:]) < 2:
        raise ValueError(
            f"images of {tuple(images.shape[2:])} pixels have no half: set half_resolution_ratio to 0, or size higher"
        )
    return _POOLS[images.dim()](images, 2)
