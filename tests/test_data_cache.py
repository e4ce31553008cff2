import errno
import multiprocessing
import os
import pickle
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dim_hf.data.cache import SampleCache
from dim_hf.data.fingerprints import fingerprint, processor_content, value_content

KEYS = [fingerprint(i) for i in range(40)]
SIZE = 4 * 100  # bytes of a sample in memory


def sample_of(number):
    return {"pixel_values": torch.full((1, 10, 10), number + 0.5)}


def disk_cache(folder, **limits):
    return SampleCache(0, folder, **{"reserve_bytes": 0, **limits})


def put(cache, numbers):
    for i in numbers:
        cache.put(KEYS[i], sample_of(i))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def bytes_on_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].numpy().tobytes() == second[name].numpy().tobytes()
        for name in first
    )


@pytest.mark.parametrize("where", ["memory", "disk"])
@settings(max_examples=60, deadline=None)
@given(
    pixels=arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)),
    labels=arrays.arrays(st.sampled_from([np.uint8, np.int64]), arrays.array_shapes(min_dims=1, max_side=5)),
)
def test_a_sample_comes_back_bit_for_bit(tmp_path_factory, where, pixels, labels):
    cache = SampleCache(2**20) if where == "memory" else disk_cache(tmp_path_factory.mktemp("cache"))
    sample = {"pixel_values": torch.from_numpy(pixels), "labels": torch.from_numpy(labels)}
    cache.put(KEYS[0], sample)
    assert same_bits(cache.get(KEYS[0]), sample)


@pytest.mark.parametrize("scale", [1 / 255, 1.0])
def test_any_layout_in_memory_is_kept(tmp_path, scale):
    pixels = (torch.arange(24.0).reshape(2, 3, 4) * scale).permute(2, 0, 1)
    cache = disk_cache(tmp_path)
    cache.put(KEYS[0], {"pixel_values": pixels, "labels": pixels.to(torch.int64)})
    assert torch.equal(cache.get(KEYS[0])["pixel_values"], pixels)
    assert torch.equal(cache.get(KEYS[0])["labels"], pixels.to(torch.int64))


@pytest.mark.parametrize(("levels", "share"), [(255, 4), (65535, 2)])
def test_pixels_of_whole_levels_take_a_part_of_the_room_and_come_back_bit_for_bit(tmp_path, levels, share):
    # As the image processor makes them; all levels occur.
    pixels = np.clip(np.arange(levels + 1, dtype=np.float32) / np.float32(levels), 0, 1)[None]
    sample = {"pixel_values": torch.from_numpy(pixels)}
    for cache in (SampleCache(2**20), disk_cache(tmp_path)):
        cache.put(KEYS[0], sample)
        assert same_bits(cache.get(KEYS[0]), sample)
    memory = SampleCache(2**20)
    memory.put(KEYS[0], sample)
    assert memory.memory_used * share == pixels.nbytes


@pytest.mark.parametrize("values", [[0.5], [-0.0], [1.5], [float("nan")], [float("inf"), 0.0], [1 / 255, 1 / 65535]])
def test_other_pixels_are_kept_as_they_are(values):
    cache = SampleCache(2**20)
    sample = {"pixel_values": torch.tensor(values)}
    cache.put("a", sample)
    assert same_bits(cache.get("a"), sample)
    assert cache.memory_used in (4 * len(values), 2 * len(values))


def test_memory_is_filled_to_the_limit_and_not_beyond():
    cache = SampleCache(3 * SIZE + SIZE // 2)
    for i in range(5):
        cache.put(f"k{i}", sample_of(i))
        cache.put(f"k{i}", sample_of(i))
    assert cache.memory_used == 3 * SIZE
    assert [cache.get(f"k{i}") is not None for i in range(5)] == [True] * 3 + [False] * 2


def test_the_disk_takes_what_memory_does_not(tmp_path):
    cache = SampleCache(2 * SIZE, tmp_path / "cache", reserve_bytes=0)
    put(cache, range(5))
    assert cache.memory_used == 2 * SIZE
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert all(same_bits(cache.get(KEYS[i]), sample_of(i)) for i in range(5))


def test_nothing_is_written_without_a_folder_or_a_lasting_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SampleCache(0).put(KEYS[0], sample_of(0))
    cache = disk_cache(tmp_path / "cache")
    for key in ("row 1", "../" + KEYS[0], KEYS[0].upper() + "/"):
        cache.put(key, sample_of(0))
        assert cache.get(key) is None
    assert not any(tmp_path.iterdir())


def test_a_later_run_finds_the_samples_and_takes_them_into_memory(tmp_path):
    disk_cache(tmp_path).put(KEYS[0], sample_of(0))
    later = SampleCache(SIZE, tmp_path)
    assert same_bits(later.get(KEYS[0]), sample_of(0))
    assert later.memory_used == SIZE
    shutil.rmtree(tmp_path)
    assert same_bits(later.get(KEYS[0]), sample_of(0))


def test_the_limit_of_the_disk_holds_over_runs_and_is_told_once(tmp_path):
    disk_cache(tmp_path).put(KEYS[0], sample_of(0))
    size = bytes_on_disk(tmp_path)
    cache = disk_cache(tmp_path, disk_bytes=4 * size + size // 2)
    with pytest.warns(RuntimeWarning, match="holds its limit of") as caught:
        put(cache, range(1, 10))
    assert len(caught) == 1
    assert str(tmp_path) in str(caught[0].message)
    assert bytes_on_disk(tmp_path) == 4 * size
    assert [cache.get(KEYS[i]) is not None for i in range(10)] == [True] * 4 + [False] * 6


def test_processes_together_keep_the_limit_of_the_disk(tmp_path):
    disk_cache(tmp_path).put(KEYS[0], sample_of(0))
    size = bytes_on_disk(tmp_path)
    # Two caches that know of each other only by the folder.
    caches = [disk_cache(tmp_path, disk_bytes=20 * size) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(1, 40):
            caches[i % 2].put(KEYS[i], sample_of(i))
    assert 18 * size <= bytes_on_disk(tmp_path) <= 21 * size


def test_the_reserve_of_the_disk_is_left_free(tmp_path):
    cache = SampleCache(0, tmp_path / "cache", reserve_bytes=2**62)
    with pytest.warns(RuntimeWarning, match="bytes free; free some or name another folder") as caught:
        put(cache, range(3))
    assert len(caught) == 1
    assert not files_of(tmp_path)


def test_a_failed_write_turns_the_disk_part_off_with_one_warning(tmp_path):
    folder = tmp_path / "cache"
    cache = disk_cache(folder)
    folder.write_text("in the way")
    with pytest.warns(RuntimeWarning, match="samples cannot be written") as caught:
        put(cache, range(3))
    assert len(caught) == 1
    assert folder.read_text() == "in the way"
    folder.unlink()
    cache.put(KEYS[0], sample_of(0))
    assert not folder.exists()


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal = pytest.importorskip("signal")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    cache = disk_cache(tmp_path)
    try:
        # A file may not grow beyond this: the write ends in the middle, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        with pytest.warns(RuntimeWarning, match=os.strerror(errno.EFBIG)):
            cache.put(KEYS[0], sample_of(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in files_of(tmp_path)] == ["CACHEDIR.TAG"]


def foreign(content):
    return lambda path: path.write_bytes(content)


def cut(length):
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def of_another_key(path):
    safetensors.torch.save_file(sample_of(9), path, metadata={"dim_hf.sample": KEYS[9]})


@pytest.mark.parametrize(
    "damage",
    [
        *map(cut, (0, 5, 8, 60, -1, -300)),
        foreign(b"no sample, but long enough for a header"),
        foreign(b"\xff" * 600),
        foreign(len(b"[1, 2]").to_bytes(8, "little") + b"[1, 2]"),
        foreign(safetensors.torch.save(sample_of(9))),
        of_another_key,
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_or_foreign_file_is_absent_and_replaced(tmp_path, damage):
    disk_cache(tmp_path).put(KEYS[0], sample_of(0))
    (path,) = tmp_path.rglob("*.safetensors")
    damage(path)
    cache = disk_cache(tmp_path)
    assert cache.get(KEYS[0]) is None
    cache.put(KEYS[0], sample_of(0))
    assert same_bits(cache.get(KEYS[0]), sample_of(0))
    assert same_bits(disk_cache(tmp_path).get(KEYS[0]), sample_of(0))


def write_and_check(folder, start):
    cache = disk_cache(folder)
    order = [*range(start, len(KEYS)), *range(start)]
    for i in order:
        found = cache.get(KEYS[i])
        assert found is None or same_bits(found, sample_of(i))
        cache.put(KEYS[i], sample_of(i))
    assert all(same_bits(cache.get(KEYS[i]), sample_of(i)) for i in order)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs cheap processes")
def test_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_and_check, args=(tmp_path, start)) for start in (0, 0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(files_of(tmp_path)) == len(KEYS) + 1


def test_remove_deletes_the_files_of_all_runs_and_no_other(tmp_path):
    disk_cache(tmp_path).put(KEYS[0], sample_of(0))
    cache = SampleCache(SIZE, tmp_path, reserve_bytes=0)
    put(cache, range(1, 9))
    folder = next(tmp_path.glob("??"))
    (folder / f".{KEYS[0]}.12-0123abcd.tmp").write_bytes(b"of a process that was killed")
    kept = {
        tmp_path / "notes.txt": b"mine",
        tmp_path / "ab" / f"ab{KEYS[0][2:]}.safetensors": safetensors.torch.save(sample_of(0)),
        tmp_path / "cd" / f"{fingerprint('elsewhere')}.safetensors": b"",
        folder / "model.safetensors": b"weights",
        tmp_path / "models" / "a.safetensors": b"weights",
    }
    for path, content in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    cache.remove()
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == kept
    assert cache.memory_used == 0
    assert all(cache.get(KEYS[i]) is None for i in range(9))


def test_remove_leaves_an_empty_folder_and_a_cache_that_works(tmp_path):
    cache = disk_cache(tmp_path)
    cache.remove()
    cache.put(KEYS[0], sample_of(0))
    cache.remove()
    assert not any(tmp_path.iterdir())
    cache.put(KEYS[0], sample_of(0))
    assert cache.get(KEYS[0]) is not None
    SampleCache(10).remove()


def test_a_pickled_cache_is_empty_and_knows_the_folder(tmp_path):
    cache = SampleCache(SIZE, tmp_path, disk_bytes=10**6, reserve_bytes=0)
    put(cache, range(2))
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.memory_used == 0
    assert copy.get(KEYS[0]) is None
    assert same_bits(copy.get(KEYS[1]), sample_of(1))
    assert (copy.memory_bytes, copy.disk_bytes, copy.reserve_bytes) == (SIZE, 10**6, 0)


def test_relative_folders_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = disk_cache("cache")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    cache.put(KEYS[0], sample_of(0))
    assert (tmp_path / "cache").is_dir()


def test_wrong_arguments_are_refused(tmp_path):
    for name in ("memory_bytes", "disk_bytes", "reserve_bytes"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            SampleCache(**{name: -1})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file, .*; name a folder"):
        SampleCache(0, tmp_path / "file")


parts = st.recursive(
    st.one_of(st.none(), st.text(max_size=3), st.binary(max_size=3), st.integers(-2, 12)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(parts, parts)
def test_fingerprints_are_equal_where_the_parts_are(first, second):
    assert (fingerprint(first) == fingerprint(second)) == (repr(first) == repr(second))


def test_a_fingerprint_is_the_same_in_every_run():
    assert fingerprint("a", 1, None, [b"x"]) == "284678b6109073810802b371d3717e9c"


def test_the_content_of_a_file_is_its_path_size_and_time(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"abc")
    content = partial(value_content, {"path": str(path), "bytes": None})
    seen = [content()]
    assert content() == seen[0]
    path.write_bytes(b"abcd")
    seen.append(content())
    os.utime(path, ns=(0, 1))
    seen.append(content())
    shutil.copy2(path, tmp_path / "copy.png")
    seen.append(value_content({"path": str(tmp_path / "copy.png"), "bytes": None}))
    assert len(set(seen)) == 4
    assert value_content({"path": f"gzip://image::{path}", "bytes": None}) is not None
    path.unlink()
    assert content() is None


def test_the_content_of_other_values_is_what_they_hold():
    values = [None, {"path": "a", "bytes": b"1"}, {"path": "a", "bytes": b"2"}]
    values += [np.zeros(4), np.ones(4), np.zeros((2, 2)), np.zeros(4, np.float32), np.zeros(8, np.float32)]
    assert len({fingerprint(value_content(value)) for value in values}) == len(values)
    assert value_content({"path": "b", "bytes": b"1"}) == value_content(values[1])


class Processor:
    def __init__(self, **settings):
        self.settings = settings

    def to_dict(self):
        return self.settings


class OtherProcessor(Processor):
    pass


def test_the_content_of_a_processor_is_its_class_and_settings():
    one = processor_content(Processor(size=1, mode="a"))
    assert processor_content(Processor(mode="a", size=1)) == one
    others = [Processor(size=2, mode="a"), OtherProcessor(size=1, mode="a")]
    assert len({fingerprint(one), *(fingerprint(processor_content(other)) for other in others)}) == 3
    with pytest.raises(ValueError, match=r"function has no to_dict\(\).*or the cache no directory"):
        processor_content(lambda image: image)
