"""Batches from two endless streams, labeled and unlabeled, as a pure function of seed and batch number."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from dim_hf.data.permutation import seeded_permutation

LABELED = "labeled"
UNLABELED = "unlabeled"


class SampleKey(NamedTuple):
    """One sample of a batch.

    Attributes:
        stream: "labeled" or "unlabeled".
        index: Index into the stream's pool.
        position: Running number of the sample in its endless stream; with the seed and the stream it keys every
            random draw made for the sample.
    """

    stream: str
    index: int
    position: int


class SampleStream:
    """Endless shuffled stream over a pool, readable at any position.

    Without groups, pass k over the pool is the permutation drawn for (seed, stream, k), so that each pass covers the
    pool exactly once. With groups, each round of as many positions as there are groups visits every group once, in an
    order of its own, and each group is an endless stream of its own: every group has the same share of the samples,
    whatever its size, and no process of several keeps meeting the same groups.

    Args:
        name: Name of the stream, part of the key of its permutations.
        size: Number of samples in the pool.
        seed: Seed of the run.
        groups: The group (e.g. the domain) of each sample of the pool, for balanced streams.

    Raises:
        ValueError: If `groups` has another length than the pool.
    """

    def __init__(self, name: str, size: int, seed: int, groups: Sequence[str] | None = None) -> None:
        if groups is not None and len(groups) != size:
            raise ValueError(f"{name}_domains has {len(groups)} entries, but the {name} pool has {size} images")
        names = groups if groups is not None else [""] * size
        _, numbers, counts = np.unique(np.asarray(names, dtype=object), return_inverse=True, return_counts=True)
        self.name = name
        self.size = size
        self.seed = seed
        # By group, groups in the order of their names, each by index.
        self._members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
        self._round = (-1, np.zeros(1, dtype=np.int64))
        self._passes: dict[int, tuple[int, np.ndarray]] = {}

    def index_at(self, position: int) -> int:
        """Index into the pool of the sample at `position`."""
        turn, place = divmod(position, len(self._members))
        if len(self._members) > 1 and self._round[0] != turn:
            self._round = (turn, seeded_permutation(len(self._members), self.seed, self.name, "groups", turn))
        group = int(self._round[1][place])
        members = self._members[group]
        pass_number, offset = divmod(turn, len(members))
        if self._passes.get(group, (-1,))[0] != pass_number:
            order = seeded_permutation(len(members), self.seed, self.name, group, pass_number)
            self._passes[group] = (pass_number, order)
        return int(members[self._passes[group][1][offset]])


class TwoStreamBatchSampler(Sampler[list[SampleKey]]):
    """Batches of `labeled_batch_size` labeled keys followed by `unlabeled_batch_size` unlabeled ones.

    Batch b of the whole run takes the positions b·B to b·B + B - 1 of each stream (B the stream's batch size).
    Nothing else is state: `batch_at(b)` gives any batch, and `set_epoch(e)` only says that the next iteration starts
    at batch e·batches_per_epoch. How a run is cut into epochs therefore changes none of its batches. Near the end
    of a pass a batch may hold a sample of the next pass, so that within one batch a sample may repeat.

    Give it to a `DataLoader` as `batch_sampler`. Over several processes, accelerate deals whole batches in turn
    (`split_batches=False`); make `batches_per_epoch` a multiple of the number of processes, as `drop_last` leaves
    the remainder of an epoch out.

    Args:
        num_labeled: Size of the labeled pool.
        num_unlabeled: Size of the unlabeled pool; unused when `unlabeled_batch_size` is 0.
        labeled_batch_size: Labeled images of a batch, at least 1.
        unlabeled_batch_size: Unlabeled images of a batch; 0 for supervised training.
        batches_per_epoch: Batches of an epoch; by default one pass over the pool that needs more batches.
        seed: Seed of the permutations.
        labeled_domains: Domain of each labeled image; when given, every domain has the same share of the stream.
        unlabeled_domains: The same for the unlabeled images.

    Raises:
        ValueError: If a size is not positive, a batch is larger than its pool, or a list of domains does not fit.
    """

    # Read by accelerate: every batch is full, and an epoch's remainder over the processes is left out, not repeated.
    drop_last = True

    def __init__(
        self,
        num_labeled: int,
        num_unlabeled: int,
        labeled_batch_size: int,
        unlabeled_batch_size: int,
        *,
        batches_per_epoch: int | None = None,
        seed: int,
        labeled_domains: Sequence[str] | None = None,
        unlabeled_domains: Sequence[str] | None = None,
    ) -> None:
        _check_pool(LABELED, num_labeled, labeled_batch_size)
        if unlabeled_batch_size != 0:
            _check_pool(UNLABELED, num_unlabeled, unlabeled_batch_size)
        if batches_per_epoch is not None and batches_per_epoch < 1:
            raise ValueError(f"batches_per_epoch must be at least 1 or None, got {batches_per_epoch}")
        if seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {seed}")
        self.labeled_batch_size = labeled_batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self._streams = [(SampleStream(LABELED, num_labeled, seed, labeled_domains), labeled_batch_size)]
        if unlabeled_batch_size:
            stream = SampleStream(UNLABELED, num_unlabeled, seed, unlabeled_domains)
            self._streams.append((stream, unlabeled_batch_size))
        passes = [math.ceil(stream.size / batch_size) for stream, batch_size in self._streams]
        self.batches_per_epoch = max(passes) if batches_per_epoch is None else batches_per_epoch
        self.epoch = 0

    @property
    def batch_size(self) -> int:
        """Images of a batch, of both streams together."""
        return self.labeled_batch_size + self.unlabeled_batch_size

    @property
    def sampler(self) -> "TwoStreamBatchSampler":
        """Itself: accelerate hands `set_epoch` through its shard wrapper to `batch_sampler.sampler` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration start at batch `epoch * batches_per_epoch` of the run."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def batch_at(self, number: int) -> list[SampleKey]:
        """Batch `number` of the whole run, counted over all epochs and processes from 0."""
        return [
            SampleKey(stream.name, stream.index_at(position), position)
            for stream, size in self._streams
            for position in range(number * size, (number + 1) * size)
        ]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        start = self.epoch * self.batches_per_epoch
        for number in range(start, start + self.batches_per_epoch):
            yield self.batch_at(number)

    def __len__(self) -> int:
        return self.batches_per_epoch


def _check_pool(stream: str, num_images: int, batch_size: int) -> None:
    if batch_size < 1:
        hint = " (0 trains on the labeled images alone)" if stream == UNLABELED else ""
        raise ValueError(f"{stream}_batch_size must be at least 1{hint}, got {batch_size}")
    if num_images < 1:
        raise ValueError(f"there are no {stream} images (num_{stream} is {num_images}); add some to the data")
    if batch_size > num_images:
        raise ValueError(
            f"{stream}_batch_size is {batch_size}, but there are only {num_images} {stream} images; "
            f"lower {stream}_batch_size to at most {num_images} or add images"
        )
