"""Locks of files that the system drops when their owner ends, however it ends."""

import errno
import os
from pathlib import Path

# File systems without such locks: there, nothing is known of other processes.
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def hold(path: Path, *, shared: bool = False) -> int | None:
    """Take the lock of a file, which is made if need be, without waiting.

    Args:
        path: The file; in a folder that exists.
        shared: Others may hold it too, if they share it.

    Returns:
        What `release` takes, or None while another process (or another call in this one) holds it.

    Raises:
        OSError: If the file cannot be made, or is a link.
    """
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno not in _UNSUPPORTED:
                os.close(lock)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        if _is_there(lock, path):
            return lock
        os.close(lock)  # its last owner has just removed the file: this lock would keep nobody out


def release(lock: int, path: Path, *, remove: bool = False) -> None:
    """Give a lock back, also where a child process has inherited it.

    Args:
        lock: From `hold`.
        path: The file.
        remove: Delete the file first; for a lock that is not shared.
    """
    import fcntl

    if remove:
        path.unlink(missing_ok=True)
    try:
        fcntl.flock(lock, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(lock)


def _is_there(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(path))
    except FileNotFoundError:
        return False
