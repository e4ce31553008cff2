"""Keeps the locale that GDCM, the DICOM library, sets to "C" in the whole process."""

import locale
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_saved = ""


@contextmanager
def kept_locale() -> Iterator[None]:
    """Restore the process's locale at the end; of several threads inside, the last one does.

    Without it Python would read and write every later text file as ASCII. Also a decorator: `@kept_locale()`.
    """
    global _inside, _saved
    with _lock:
        if _inside == 0:
            _saved = locale.setlocale(locale.LC_ALL)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                locale.setlocale(locale.LC_ALL, _saved)
