"""The folder of a job's decoded images: gone when the job is, however it ended."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from dim_hf.trainer.job_cache import job_cache

KEY = "0123456789abcdef" * 2


@pytest.fixture
def tmp(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def job_of(tmp_path, name="run", **changes):
    data = {"cache_disk_gigabytes": 0.1, "cache_gigabytes": 0, "cache_dir": None, **changes}
    return SimpleNamespace(data=SimpleNamespace(**data), training=SimpleNamespace(output_dir=str(tmp_path / name)))


def filled(cache):
    cache.reserve_bytes = 0
    cache.put(KEY, {"pixel_values": torch.ones(9)})
    assert len(list(cache.directory.glob("*/*.safetensors"))) == 1


def killed(tmp_path, ready):
    import tempfile

    tempfile.tempdir = str(tmp_path / "tmp")
    with job_cache(job_of(tmp_path, "killed")) as cache:
        filled(cache)
        ready.set()
        time.sleep(60)


def test_images_of_a_killed_job_are_removed_when_the_next_one_begins(tmp, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=killed, args=(tmp_path, ready))
    child.start()
    assert ready.wait(120)
    with job_cache(job_of(tmp_path)):
        assert len(os.listdir(tmp)) == 2  # it lives
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert len(list(tmp.glob("*/*/*.safetensors"))) == 1
    with job_cache(job_of(tmp_path)) as cache:
        assert os.listdir(tmp) == [cache.directory.name]
        filled(cache)
    assert os.listdir(tmp) == []


def test_the_last_process_of_a_run_removes_the_folder(tmp, tmp_path):
    with job_cache(job_of(tmp_path)) as first:
        with job_cache(job_of(tmp_path)) as second:
            assert first.directory == second.directory
            filled(second)
        assert first.get(KEY) is not None
    assert os.listdir(tmp) == []


@pytest.mark.parametrize("make", ["file", "link", "broken link"])
def test_what_is_no_folder_of_ours_is_left_alone(tmp, tmp_path, make):
    with job_cache(job_of(tmp_path)) as cache:
        folder = cache.directory
    (tmp_path / "other").mkdir()
    if make == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(tmp_path / ("other" if make == "link" else "nowhere"))
    with job_cache(job_of(tmp_path)) as cache:
        assert cache.directory is None
    assert os.listdir(tmp) == [folder.name]
    assert os.listdir(tmp_path / "other") == []


def test_a_named_folder_stays_and_no_disk_needs_none(tmp, tmp_path):
    with job_cache(job_of(tmp_path, cache_dir=str(tmp_path / "kept"))) as cache:
        filled(cache)
    assert cache.get(KEY) is not None
    with job_cache(job_of(tmp_path, cache_disk_gigabytes=0)) as cache:
        assert cache.directory is None
    assert os.listdir(tmp) == []


def test_other_folders_of_that_name_are_left_alone(tmp, tmp_path):
    (tmp / "dim_hf-mine").mkdir()
    (tmp / "dim_hf-mine" / "thesis.txt").write_text("do not delete")
    (tmp / "dim_hf-locked").mkdir()
    for name in (".lock", "thesis.txt"):
        (tmp / "dim_hf-locked" / name).write_text("")
    with job_cache(job_of(tmp_path)):
        pass
    assert (tmp / "dim_hf-mine" / "thesis.txt").exists()
    assert (tmp / "dim_hf-locked" / "thesis.txt").exists()
