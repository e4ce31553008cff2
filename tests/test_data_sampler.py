import math
from collections import Counter
from itertools import chain

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from dim_hf.data.permutation import seeded_permutation
from dim_hf.data.sampler import SampleStream, TwoStreamBatchSampler


def make(num_labeled=5, num_unlabeled=12, labeled=2, unlabeled=3, seed=1, **kwargs):
    return TwoStreamBatchSampler(num_labeled, num_unlabeled, labeled, unlabeled, seed=seed, **kwargs)


@st.composite
def samplers(draw):
    sizes = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    batch_sizes = [draw(st.integers(1, size)) for size in sizes]
    return {
        "num_labeled": sizes[0],
        "num_unlabeled": sizes[1],
        "labeled": batch_sizes[0],
        "unlabeled": batch_sizes[1],
        "seed": draw(st.integers(0, 2**40)),
    }


def epochs(sampler, count):
    for epoch in range(count):
        sampler.set_epoch(epoch)
        yield list(sampler)


@settings(max_examples=50, deadline=None)
@given(samplers())
def test_each_pass_covers_the_pool_exactly_once(sizes):
    sampler = make(**sizes)
    batches = [sampler.batch_at(number) for number in range(30)]
    for stream, size in (("labeled", sizes["num_labeled"]), ("unlabeled", sizes["num_unlabeled"])):
        keys = [key for batch in batches for key in batch if key.stream == stream]
        assert [key.position for key in keys] == list(range(len(keys)))
        for start in range(0, len(keys) - size + 1, size):
            assert sorted(key.index for key in keys[start : start + size]) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(samplers(), st.integers(1, 7), st.integers(1, 7))
def test_batches_do_not_depend_on_how_the_run_is_cut_into_epochs(sizes, first, second):
    length = first * second
    by_first = chain.from_iterable(epochs(make(**sizes, batches_per_epoch=first), second))
    by_second = chain.from_iterable(epochs(make(**sizes, batches_per_epoch=second), first))
    assert list(by_first) == list(by_second) == list(make(**sizes, batches_per_epoch=length))


@settings(max_examples=30, deadline=None)
@given(samplers(), st.lists(st.integers(0, 40), max_size=8))
def test_a_batch_does_not_depend_on_what_was_read_before(sizes, visited):
    used = make(**sizes)
    for number in visited:
        used.batch_at(number)
    assert used.batch_at(3) == make(**sizes).batch_at(3)


def test_labeled_keys_come_first_and_batches_are_full():
    sampler = make()
    for batch in sampler:
        assert [key.stream for key in batch] == ["labeled"] * 2 + ["unlabeled"] * 3
        assert len(batch) == sampler.batch_size == 5


def test_passes_seeds_and_streams_differ():
    orders = {
        tuple(SampleStream(name, 20, seed).index_at(position) for position in range(start, start + 20))
        for name in ("labeled", "unlabeled")
        for seed in (0, 1)
        for start in (0, 20)
    }
    assert len(orders) == 8


@pytest.mark.parametrize(
    ("pools", "batch_sizes", "expected"), [((5, 12), (2, 3), 4), ((9, 3), (2, 3), 5), ((6, 0), (4, 0), 2)]
)
def test_an_epoch_is_one_pass_over_the_stream_that_needs_more_batches(pools, batch_sizes, expected):
    sampler = TwoStreamBatchSampler(*pools, *batch_sizes, seed=0)
    assert len(sampler) == len(list(sampler)) == expected


def test_supervised_batches_hold_labeled_keys_alone():
    sampler = make(num_unlabeled=0, unlabeled=0)
    assert {key.stream for batch in sampler for key in batch} == {"labeled"}
    # The labeled half of the batches is that of the semi-supervised run with the same seed.
    assert sampler.batch_at(4) == make().batch_at(4)[:2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=15), st.integers(1, 4))
def test_balanced_streams_take_each_domain_equally_often(domains, batch_size):
    sampler = make(num_unlabeled=len(domains), unlabeled=batch_size, unlabeled_domains=domains)
    names = sorted(set(domains))
    keys = [key for number in range(60) for key in sampler.batch_at(number) if key.stream == "unlabeled"]
    drawn = [domains[key.index] for key in keys]
    for start in range(0, len(drawn) - len(names), len(names)):
        assert sorted(drawn[start : start + len(names)]) == names
    for name in names:
        size = domains.count(name)
        own = [key.index for key in keys if domains[key.index] == name]
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size


def test_balanced_shares_are_exact_whatever_the_sizes():
    domains = ["small"] * 2 + ["large"] * 97 + ["middle"] * 11
    sampler = make(num_unlabeled=len(domains), unlabeled=3, unlabeled_domains=domains, labeled_domains=list("aaaab"))
    counts = Counter(domains[key.index] for n in range(40) for key in sampler.batch_at(n)[2:])
    assert counts == {"small": 40, "large": 40, "middle": 40}
    # Every batch that is a multiple of the number of domains is balanced by itself.
    assert all(len({domains[key.index] for key in sampler.batch_at(n)[2:]}) == 3 for n in range(40))
    labeled = Counter("aaaab"[key.index] for n in range(40) for key in sampler.batch_at(n)[:2])
    assert labeled == {"a": 40, "b": 40}
    # Within a domain every image comes equally often, up to one.
    drawn = Counter(key.index for n in range(110) for key in sampler.batch_at(n)[2:])
    assert {drawn[i] for i in range(2)} == {55}
    assert {drawn[i] for i in range(99, 110)} == {10}
    assert {drawn[i] for i in range(2, 99)} == {1, 2}


def test_a_balanced_stream_visits_the_domains_in_changing_order():
    # In a fixed order, one of two processes would see the first two domains only, the other the last two.
    domains = list("abcd") * 3
    sampler = make(num_unlabeled=12, unlabeled=2, unlabeled_domains=domains, batches_per_epoch=40)
    for rank in range(2):
        counts = Counter(domains[key.index] for batch in shard_of(sampler, 0, rank, 2) for key in batch[2:])
        assert min(counts[name] for name in "abcd") > 0


@settings(max_examples=30, deadline=None)
@given(samplers(), st.integers(1, 3), st.integers(0, 2), st.sampled_from([2, 3]))
def test_shards_are_disjoint_and_make_up_the_batches_of_one_process(sizes, rounds, epoch, processes):
    sampler = make(**sizes, batches_per_epoch=processes * rounds)
    sampler.set_epoch(epoch)
    shards = [list(BatchSamplerShard(sampler, processes, rank)) for rank in range(processes)]
    assert [batch for step in zip(*shards, strict=True) for batch in step] == list(sampler)


@settings(max_examples=30, deadline=None)
@given(samplers(), st.integers(1, 3), st.sampled_from([2, 3]))
def test_processes_never_see_the_same_part_of_a_stream(sizes, rounds, processes):
    sampler = make(**sizes, batches_per_epoch=processes * rounds)
    seen = [
        {
            (key.stream, key.position)
            for epoch in range(3)
            for key in chain.from_iterable(shard_of(sampler, epoch, r, processes))
        }
        for r in range(processes)
    ]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 3 * processes * rounds * sampler.batch_size
    # Together they go through each stream without a gap.
    for stream, size in (("labeled", sizes["labeled"]), ("unlabeled", sizes["unlabeled"])):
        positions = sorted(position for name, position in set.union(*seen) if name == stream)
        assert positions == list(range(3 * processes * rounds * size))


def shard_of(sampler, epoch, rank, processes):
    sampler.set_epoch(epoch)
    return list(BatchSamplerShard(sampler, processes, rank))


@settings(max_examples=30, deadline=None)
@given(samplers(), st.sampled_from([2, 3]))
def test_within_a_pass_processes_share_no_image(sizes, processes):
    sampler = make(
        **sizes, batches_per_epoch=processes * max(1, sizes["num_unlabeled"] // sizes["unlabeled"] // processes)
    )
    shards = [shard_of(sampler, 0, rank, processes) for rank in range(processes)]
    indices = [
        {
            key.index
            for batch in shard
            for key in batch
            if key.stream == "unlabeled" and key.position < sizes["num_unlabeled"]
        }
        for shard in shards
    ]
    assert len(set.union(*indices)) == sum(map(len, indices))


def test_the_remainder_of_an_epoch_over_the_processes_is_left_out_not_repeated():
    sampler = make(batches_per_epoch=5)
    shards = [list(BatchSamplerShard(sampler, 2, rank)) for rank in range(2)]
    assert [len(shard) for shard in shards] == [2, 2]
    assert [len(BatchSamplerShard(sampler, 2, rank)) for rank in range(2)] == [2, 2]


class Keys(Dataset):
    def __len__(self):
        return 17

    def __getitem__(self, key):
        return key


def stack(keys):
    return {
        "positions": torch.tensor([key.position for key in keys]),
        "indices": torch.tensor([key.index for key in keys]),
    }


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(True)


def as_lists(loader):
    return [(batch["positions"].tolist(), batch["indices"].tolist()) for batch in loader]


def expected(sampler, epoch):
    start = epoch * len(sampler)
    batches = [sampler.batch_at(number) for number in range(start, start + len(sampler))]
    return [([key.position for key in batch], [key.index for key in batch]) for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_prepared_loader_gives_the_batches_of_its_epoch_for_any_number_of_workers(accelerator, workers):
    sampler = make()
    loader = accelerator.prepare(DataLoader(Keys(), batch_sampler=sampler, collate_fn=stack, num_workers=workers))
    assert len(loader) == len(sampler)
    assert loader.total_batch_size == 5
    for epoch in (0, 1, 4):
        loader.set_epoch(epoch)
        assert as_lists(loader) == expected(sampler, epoch)


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_skipping_the_first_batches_gives_the_tail_of_the_epoch(accelerator, skipped):
    sampler = make()
    loader = accelerator.prepare(DataLoader(Keys(), batch_sampler=sampler, collate_fn=stack))
    sampler.set_epoch(2)
    loader.set_epoch(2)
    assert as_lists(skip_first_batches(loader, skipped)) == expected(sampler, 2)[skipped:]


@pytest.mark.parametrize(("processes", "step"), [(1, 0), (1, 4), (2, 3), (3, 1), (3, 5)])
def test_a_run_that_goes_on_in_the_middle_equals_one_that_was_not_stopped(accelerator, processes, step):
    def loaders():
        sampler = make(batches_per_epoch=6)
        return sampler, [
            prepare_data_loader(DataLoader(Keys(), batch_sampler=sampler, collate_fn=stack), None, processes, rank)
            for rank in range(processes)
        ]

    def read(loader, epoch, done=0):
        # As the Trainer does: the loader is told, and so is the sampler, which a skipping loader hides.
        loader.set_epoch(epoch)
        loader = skip_first_batches(loader, done) if done else loader
        sampler.set_epoch(epoch)
        return as_lists(loader)

    sampler, running = loaders()
    uninterrupted = [[batch for epoch in range(3) for batch in read(loader, epoch)] for loader in running]
    epoch, done = divmod(step, 6 // processes)
    sampler, restarted = loaders()
    for rank, loader in enumerate(restarted):
        rest = read(loader, epoch, done) + [batch for later in range(epoch + 1, 3) for batch in read(loader, later)]
        assert rest == uninterrupted[rank][step:]
        assert rest == [at for e in range(3) for at in expected(sampler, e)][rank::processes][step:]


def test_the_epoch_reaches_the_sampler_through_the_shards_of_a_prepared_loader(accelerator):
    sampler = make(batches_per_epoch=6)
    for rank in range(2):
        loader = prepare_data_loader(
            DataLoader(Keys(), batch_sampler=sampler, collate_fn=stack), num_processes=2, process_index=rank
        )
        loader.set_epoch(3)
        assert as_lists(loader) == expected(sampler, 3)[rank::2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeled": 6}, "labeled_batch_size is 6, but there are only 5 labeled images"),
        ({"unlabeled": 13}, "unlabeled_batch_size is 13, but there are only 12"),
        ({"num_labeled": 0}, "there are no labeled images"),
        ({"num_unlabeled": 0}, "there are no unlabeled images"),
        ({"labeled": 0}, "labeled_batch_size must be at least 1"),
        ({"unlabeled": -1}, "unlabeled_batch_size must be at least 1"),
        ({"batches_per_epoch": 0}, "batches_per_epoch must be at least 1"),
        ({"seed": -1}, "seed must be a non-negative"),
        ({"labeled_domains": ["a"]}, "labeled_domains has 1 entries, but the labeled pool has 5"),
    ],
)
def test_impossible_batches_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_negative_epoch_is_refused():
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        make().set_epoch(-1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 50), st.integers(0, 2**70), st.lists(st.one_of(st.integers(0, 9), st.text(max_size=4))))
def test_permutations_are_permutations(size, seed, key):
    assert sorted(seeded_permutation(size, seed, *key).tolist()) == list(range(size))


def test_permutations_are_uniform():
    # Chi-square over the 24 orders of 4 elements, 23 degrees of freedom: 49.7 is its 99.9 % point.
    counts = {}
    draws = 2400
    for number in range(draws):
        order = tuple(seeded_permutation(4, 0, "stream", number).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == math.factorial(4)
    assert sum((count - draws / 24) ** 2 / (draws / 24) for count in counts.values()) < 49.7


def test_a_negative_permutation_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        seeded_permutation(3, -1)


@given(st.lists(st.sampled_from(["b", "a", "ä", "B", ""]), min_size=1, max_size=30))
def test_members_of_a_group_are_those_of_its_name(groups):
    stream = SampleStream("labeled", len(groups), 0, groups)
    expected = [[i for i, group in enumerate(groups) if group == name] for name in sorted(set(groups))]
    assert [members.tolist() for members in stream._members] == expected
