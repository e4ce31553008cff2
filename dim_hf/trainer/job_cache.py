"""Where the decoded images of a job are kept: memory first, then a folder that goes with the job."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dim_hf.data.cache import SampleCache
from dim_hf.trainer.job_arguments import DataArguments, Job


@contextmanager
def job_cache(job: Job) -> Iterator[SampleCache]:
    """One cache for all images of a job and, on one machine, all its processes.

    Its folder is removed at the end, unless the job names one.
    """
    disk_bytes = int(job.data.cache_disk_gigabytes * 2**30)
    folder = job.data.cache_dir or (_private_folder(job) if disk_bytes else None)
    cache = SampleCache(memory_bytes(job.data), folder, disk_bytes=disk_bytes)
    try:
        yield cache
    finally:
        if folder and not job.data.cache_dir:
            cache.remove()
            with contextlib.suppress(OSError):  # another process of this machine may still use it
                Path(folder).rmdir()


def memory_bytes(data: DataArguments) -> int:
    """Memory that one process has for decoded images, in bytes."""
    return int(data.cache_gigabytes * 2**30)


def _private_folder(job: Job) -> Path | None:
    """A folder for temporary files that all processes of this run find; None if another user made it.

    Not in the run's own folder, which may be published: the files hold the images.
    """
    key = hashlib.sha256(str(Path(job.training.output_dir).absolute()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"dim_hf-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    is_own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    return folder if is_own else None
