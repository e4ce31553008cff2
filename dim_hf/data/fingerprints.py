"""Names a decoded sample by all that it is made of: file, processor, settings, versions."""

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = "1"  # raised when samples of the same rows and settings change, so that kept ones are not used
_PACKAGES = ("dim-hf", "datasets", "numpy", "pillow", "torch", "transformers")


def fingerprint(*parts: object) -> str:
    """Name a sample by all that it is made of.

    Args:
        *parts: Texts, integers, bytes or None, nested in lists and tuples.

    Returns:
        128 bits of BLAKE2b as 32 hexadecimal digits; the same in every process and run.

    Example:
        >>> fingerprint("a", 1) == fingerprint("a", 1), fingerprint("a", 1) == fingerprint("a", "1")
        (True, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, parts)
    return digest.hexdigest()


def value_content(value: object) -> tuple | None:
    """What tells an undecoded value of a column from any other, for `fingerprint`.

    Args:
        value: None, `{"path", "bytes"}` of a file column, or an array.

    Returns:
        The content itself, or path, size and times of change of a local file (tools may set the first, and nobody the
        second); None where nothing is sure to tell, as
        for a file on another machine.
    """
    if value is None:
        return ("nothing",)
    if not isinstance(value, Mapping):
        array = np.ascontiguousarray(value)
        return ("array", array.dtype.str, array.shape, array.tobytes())
    if value["bytes"] is not None:
        return ("content", value["bytes"])
    try:
        # "gzip://a.nii::/data/a.nii.gz" is a part of a file.
        status = os.stat(value["path"].split("::")[-1])
    except OSError:
        return None
    return ("file", os.path.abspath(value["path"]), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def processor_content(processor: object) -> tuple:
    """What tells the samples of a processor from those of another, for `fingerprint`.

    Returns:
        Its class, the code of its module, its settings, and the versions of the packages that it may use.

    Raises:
        ValueError: If the processor does not tell its settings.
    """
    kind = type(processor)
    if not hasattr(processor, "to_dict"):
        raise ValueError(
            f"{kind.__name__} has no to_dict(), so samples on disk could not be told from those of other settings; "
            "give the processor one that returns its settings, or the cache no directory"
        )
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    source = getattr(sys.modules.get(kind.__module__), "__file__", None)
    code = Path(source).read_bytes() if source and Path(source).is_file() else None
    versions = [importlib.metadata.version(package) for package in _PACKAGES]
    return (_FORMAT, f"{kind.__module__}.{kind.__qualname__}", code, settings, versions)


def _update(digest: Any, part: object) -> None:
    """Feed one part with its type and length, so that no two different lists of parts give the same bytes."""
    if isinstance(part, tuple | list):
        digest.update(f"list {len(part)};".encode())
        for item in part:
            _update(digest, item)
    else:
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        digest.update(f"{type(part).__name__} {len(content)};".encode())
        digest.update(content)
