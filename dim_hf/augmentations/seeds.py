"""Seeds: every draw is a pure function of the run's seed, the name of the stream and the sample's position in it."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample_seeds(seed: int, stream: str, positions: Sequence[int]) -> list[int]:
    """Derives one well-mixed seed for each sample of a stream.

    Args:
        seed: The run's seed, any integer.
        stream: Name of the stream the samples belong to, for example `"labeled"` or `"unlabeled"`.
        positions: Running numbers of the samples in their endless stream.

    Returns:
        One integer in [0, 2^63) for each position: 63 bits of BLAKE2b of (seed, stream, position), hence the same in
        every process, on every platform, and whatever the other positions are.

    >>> sample_seeds(0, "labeled", [7, 8])[1] == sample_seeds(0, "labeled", [8])[0]
    True
    """
    prefix = hashlib.blake2b(f"{int(seed)}/{len(stream)}/{stream}/".encode(), digest_size=8)
    seeds = []
    for position in positions:
        digest = prefix.copy()
        digest.update(str(int(position)).encode())
        seeds.append(int.from_bytes(digest.digest(), "little") >> 1)
    return seeds


def uniforms(seeds: Sequence[int], purpose: str, *counts: int) -> tuple[Tensor, ...]:
    """Draws uniform numbers in [0, 1) for each sample, on the CPU, without touching any global random state.

    Every draw has a fixed place in a sample's sequence, so a changed probability or range never moves other draws.

    Args:
        seeds: One seed for each of the N samples.
        purpose: What the numbers are for; the same seeds give unrelated numbers for another purpose.
        *counts: How many numbers each of the returned tensors holds for a sample.

    Returns:
        One float64 tensor (N, count) for each count.
    """
    salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    values = np.empty((len(seeds), sum(counts)))
    for row, seed in zip(values, seeds, strict=True):
        np.random.Generator(np.random.PCG64(np.random.SeedSequence((int(seed), salt)))).random(out=row)
    return torch.from_numpy(values).split(list(counts), dim=1)
