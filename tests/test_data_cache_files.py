"""Files of the sample cache that are not what was written."""

import os
import time

import pytest
import torch

from dim_hf.data.cache import SampleCache
from dim_hf.data.fingerprints import value_content

KEY = "0123456789abcdef" * 2


def on_disk(folder, sample=None):
    """A cache that keeps nothing in memory, with one sample on disk, and the sample's file."""
    cache = SampleCache(0, folder, reserve_bytes=0)
    cache.put(KEY, sample or {"pixel_values": torch.arange(256, dtype=torch.uint8)})
    (path,) = folder.glob("*/*.safetensors")
    return cache, path


def test_a_file_with_a_flipped_bit_is_taken_as_absent_and_replaced(tmp_path):
    cache, path = on_disk(tmp_path / "cache")
    whole = path.read_bytes()
    for place in (len(whole) - 1, len(whole) - 200):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        assert cache.get(KEY) is None
    cache.put(KEY, {"pixel_values": torch.arange(256, dtype=torch.uint8)})
    assert torch.equal(cache.get(KEY)["pixel_values"], torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64, torch.float16])
def test_every_type_and_shape_has_a_checksum(tmp_path, dtype):
    sample = {
        "a": torch.ones(3, 2, dtype=dtype),
        "b": torch.tensor(1, dtype=dtype),
        "c": torch.ones(0, 4, dtype=dtype),
    }
    cache, _ = on_disk(tmp_path / "cache", sample)
    found = cache.get(KEY)
    assert all(torch.equal(found[name], tensor) and found[name].dtype == dtype for name, tensor in sample.items())


def test_links_in_the_folder_are_not_followed(tmp_path):
    cache, path = on_disk(tmp_path / "cache")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.get(KEY) is None
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    assert cache.get(KEY) is not None
    path.parent.rename(tmp_path / "other")
    path.parent.symlink_to(tmp_path / "other")
    assert cache.get(KEY) is None
    with pytest.warns(RuntimeWarning, match="is a link"):
        cache.put(KEY.replace("4", "5"), {"a": torch.ones(3)})
    assert [file.name for file in (tmp_path / "other").iterdir()] == [path.name]


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path):
    cache, path = on_disk(tmp_path / "cache")
    path.unlink()
    os.mkfifo(path)
    assert cache.get(KEY) is None


def test_a_file_that_was_changed_and_dated_back_has_another_fingerprint(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    before, status = value_content({"path": str(path), "bytes": None}), path.stat()
    time.sleep(0.05)  # the clock of files ticks slowly
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert value_content({"path": str(path), "bytes": None}) != before
