"""Where the decoded images of a job are kept: memory first, then a folder that goes with the job."""

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dim_hf.data.cache import SampleCache
from dim_hf.data.locks import hold, release
from dim_hf.trainer.job_arguments import DataArguments, Job

_PREFIX = "dim_hf-"
_LOCK = ".lock"  # shared by the processes that use the folder
_TRIES, _PAUSE_SECONDS = 50, 0.1


@contextmanager
def job_cache(job: Job) -> Iterator[SampleCache]:
    """One cache for all images of a job and, on one machine, all its processes.

    Its folder is removed when the last of them ends, unless the job names one; what processes left that were killed
    is removed when the next job begins.
    """
    disk_bytes = int(job.data.cache_disk_gigabytes * 2**30)
    if job.data.cache_dir or not disk_bytes:
        yield SampleCache(memory_bytes(job.data), job.data.cache_dir, disk_bytes=disk_bytes)
        return
    with _private_folder(job) as folder:
        yield SampleCache(memory_bytes(job.data), folder, disk_bytes=disk_bytes)


def memory_bytes(data: DataArguments) -> int:
    """Memory that one process has for decoded images, in bytes."""
    return int(data.cache_gigabytes * 2**30)


@contextmanager
def _private_folder(job: Job) -> Iterator[Path | None]:
    """A folder for temporary files that all processes of this run find; None if it cannot be had.

    Not in the run's own folder, which may be published: the files hold the images.
    """
    temporary = Path(tempfile.gettempdir())
    for folder in temporary.glob(f"{_PREFIX}*"):
        _remove_abandoned(folder)
    key = hashlib.sha256(os.fsencode(Path(job.training.output_dir).absolute())).hexdigest()[:16]
    folder = temporary / f"{_PREFIX}{key}"
    lock = _joined(folder)
    if lock is None:
        yield None
        return
    try:
        yield folder
    finally:
        release(lock, folder / _LOCK)
        _remove_abandoned(folder)


def _joined(folder: Path) -> int | None:
    """The shared lock of a folder, made if need be; None for a file, a link, or what another user made."""
    for _ in range(_TRIES):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = hold(folder / _LOCK, shared=True) if _is_own(folder) else None
        except FileNotFoundError:  # another process has just removed it
            continue
        except OSError:
            return None
        if lock is not None or not _is_own(folder):
            return lock
        time.sleep(_PAUSE_SECONDS)  # another process is about to remove it
    return None


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder of ours that no living process uses."""
    with contextlib.suppress(OSError):  # another process was faster, or has just joined
        if _is_own(folder) and (folder / _LOCK).is_file():
            lock = hold(folder / _LOCK)
            if lock is not None:
                try:
                    SampleCache(0, folder).remove()
                finally:
                    release(lock, folder / _LOCK, remove=True)
                folder.rmdir()


def _is_own(folder: Path) -> bool:
    """Whether this is a folder, no link to one, of this user."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
