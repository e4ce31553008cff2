"""Before torch is imported: one thread a test process, since the processes share the cores, and no hub."""

import locale
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(autouse=True)
def _the_locale_stays() -> Iterator[None]:
    """GDCM, the DICOM library, sets the process's locale to "C"; after that Python reads text files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    after = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, before)
    assert after == before, f"the locale was {before} and became {after}; read DICOM inside kept_locale()"
