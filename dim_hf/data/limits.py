"""How large a file may be before it is refused, so that no file of a stranger fills the memory or the disk."""

import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

MAX_PIXELS = 2**27
"""Pixels of a picture; 11,585 x 11,585."""

MAX_VOXELS = 2**30
"""Voxels of a volume, over all its channels; 1,024 x 1,024 x 1,024."""

MAX_FILES = 1_000_000
"""Files and folders below a root, or entries of an archive."""

MAX_UNPACKED_BYTES = 64 * 2**30
"""Bytes that an archive may take when it is unpacked."""

MAX_DEFLATE_RATIO = 1032
"""No zlib or gzip stream unpacks to more bytes than this for each of its own."""

_MEMORY_IF_UNKNOWN = 2**33
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class SizeError(ValueError):
    """A file holds more than is read."""


def check_shape(shape: Sequence[int], limit: int, file: str | os.PathLike) -> None:
    """Refuse a shape of a header before anything is allocated for it.

    Args:
        shape: Extents as the header states them.
        limit: Largest allowed number of pixels or voxels.
        file: Named in the message.

    Raises:
        SizeError: If their product is above the limit.
        ValueError: If an extent is below 1.
    """
    extents = [int(extent) for extent in shape]
    size = " x ".join(map(str, extents))
    if not extents or min(extents) < 1:
        raise ValueError(f"{file} has no pixels (its size is {size or 'not given'}); copy or export the file again")
    if math.prod(extents) > limit:
        raise SizeError(f"{file} is too large ({size}, the limit is {limit} pixels); cut it or reduce its resolution")


def file_name(source: str | os.PathLike | bytes) -> str:
    """What errors call a file that is given by its path, or by its content."""
    return "the file" if isinstance(source, bytes) else os.fspath(source)


class ByteBudget:
    """Pixels that all threads together may hold at a time.

    A task says before it decodes a file how many bytes that takes, and waits until they fit beside those of the
    others; what it holds is given back at its end. A task that waits while no other one works goes on, so that no
    two can block each other and a file larger than the budget is read alone. So the threads hold no more than the
    budget and one file.

    Args:
        limit: The budget in bytes.

    Attributes:
        limit: The budget in bytes.
        lock: Taken by a task that needs more than the budget, where several processes each have one; None for none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lock: AbstractContextManager | None = None
        self._changed = threading.Condition()
        self._own = threading.local()
        self._used = 0
        self._working = 0  # tasks that hold something and do not wait

    @contextmanager
    def task(self) -> Iterator[None]:
        """What this thread charges within belongs to one task."""
        self._own.held = 0
        with ExitStack() as self._own.locks:
            try:
                yield
            finally:
                with self._changed:
                    self._used -= self._own.held
                    self._working -= self._own.held > 0
                    self._changed.notify_all()
                del self._own.held

    def charge(self, count: int) -> None:
        """Wait until `count` more bytes fit; outside of a task nothing is counted."""
        held = getattr(self._own, "held", None)
        if held is None or count <= 0:
            return
        if self.lock is not None and held <= self.limit < held + count:
            self._own.locks.enter_context(self.lock)
        with self._changed:
            self._working -= held > 0
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._used + count <= self.limit or not self._working)
            self._own.held += count
            self._used += count
            self._working += 1


def _memory() -> int:
    """Bytes of memory that this process may use."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        return _MEMORY_IF_UNKNOWN
    try:
        return min(memory, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one without a limit
        return memory


READING = ByteBudget(_memory() // 4)
"""Of the decoded files; working on them takes a few times as much."""
