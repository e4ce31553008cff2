"""Imports that run at the same time into one folder, and locks that outlive no process."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from dim_hf.data.importers import importing
from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.locks import hold, release
from dim_hf.data.manifest import read_manifest
from tests.test_import import write_site


def held_by_child(path, ready):
    hold(path)
    ready.set()
    time.sleep(60)


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=held_by_child, args=(tmp_path / "lock", ready))
    child.start()
    assert ready.wait(60)
    assert hold(tmp_path / "lock") is None
    assert hold(tmp_path / "lock", shared=True) is None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    lock = hold(tmp_path / "lock")
    assert lock is not None
    release(lock, tmp_path / "lock", remove=True)
    assert os.listdir(tmp_path) == []


def test_shared_locks_keep_others_out_until_the_last_is_released(tmp_path):
    path = tmp_path / "lock"
    locks = [hold(path, shared=True) for _ in range(2)]
    assert None not in locks
    for lock in locks:
        assert hold(path) is None
        release(lock, path)
    release(hold(path), path)


def test_the_lock_of_a_file_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    import fcntl

    path, calls, flock = tmp_path / "lock", [], fcntl.flock

    def removing(lock, kind):
        calls.append(kind)
        if len(calls) == 1:
            path.unlink()
        return flock(lock, kind)

    monkeypatch.setattr(fcntl, "flock", removing)
    lock = hold(path)
    assert len(calls) == 2
    assert path.exists()
    assert hold(path) is None
    release(lock, path)


def test_a_link_is_no_lock(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"):
        hold(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


def test_of_two_appends_at_the_same_time_none_is_lost(tmp_path, monkeypatch):
    out = tmp_path / "out"
    import_dataset(ImportJob("folders", write_site(tmp_path / "one", "a"), out), progress=False)
    jobs = [ImportJob("folders", write_site(tmp_path / name, name), out, append=True) for name in ("bb", "ccc")]
    publish, inside, ahead = importing.publish, threading.Event(), threading.Event()

    def slow(*arguments):
        inside.set()
        assert ahead.wait(30)
        publish(*arguments)

    monkeypatch.setattr(importing, "publish", slow)
    first = threading.Thread(target=import_dataset, args=(jobs[0],), kwargs={"progress": False})
    first.start()
    assert inside.wait(30)
    with pytest.raises(ValueError, match=r"another import is writing to .*out; wait for it"):
        import_dataset(jobs[1], progress=False)
    ahead.set()
    first.join(30)
    import_dataset(jobs[1], progress=False)
    assert sorted(read_manifest(out / "manifest.csv").unique("domain")) == ["a", "bb", "ccc"]
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_an_import_that_ended_while_another_waited_is_not_written_over(tmp_path, monkeypatch):
    source, out = write_site(tmp_path / "src", "a"), tmp_path / "out"
    check = importing.check_target

    def late(*arguments, **options):
        """The other import ends between the first look and the lock."""
        check(*arguments, **options)
        monkeypatch.setattr(importing, "check_target", check)
        import_dataset(ImportJob("folders", source, out), progress=False)

    monkeypatch.setattr(importing, "check_target", late)
    with pytest.raises(ValueError, match="is there already"):
        import_dataset(ImportJob("folders", source, out), progress=False)
    assert len(read_manifest(out / "manifest.csv")) == 4
