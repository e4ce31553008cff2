"""The statistics of the seen sites as a small JSON file beside the model: numbers that people can read."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.data.texts import first_line, printable
from dim_hf.inference.drift import (
    CROSS_FITTED,
    LEAST_SPREAD,
    ONE_SIDED,
    VALIDATION,
    Floats,
    Moments,
    SiteStatistics,
)
from dim_hf.whole_files import write_text

STATISTICS_FILE = "site_statistics.json"
MAX_BYTES = 32 * 2**20

_FORMAT = 1
_ABOUT = (
    "What images of the seen sites are like: the numbers behind the drift score and the flag for review. Means by "
    "site, spreads and correlation within sites; distances of the calibration images, a column an image."
)
_PARTS = {"intensity", "features", "entropy", *ONE_SIDED}
_DIGITS = 7
_MAX_SITES, _MAX_VALUES, _MAX_IMAGES = 1000, 512, 10_000
_LARGEST = 1e30
_LISTS = re.compile(r"\[[^\[\]{}]*\]")


def write_statistics(statistics: SiteStatistics, folder: str | os.PathLike) -> Path:
    """Write `site_statistics.json` into a model's folder.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(folder) / STATISTICS_FILE
    write_text(path, to_json(statistics))
    return path


def to_json(statistics: SiteStatistics) -> str:
    """The text of the file, lists of numbers on one line each, with seven digits."""
    values = {
        "format": _FORMAT,
        "about": _ABOUT,
        "sites": dict(statistics.sites),
        "wanted_rate": statistics.wanted_rate,
        "calibrated_on": statistics.calibrated_on,
        "threshold": statistics.threshold,
        "moments": {name: _listed(vars(part)) for name, part in sorted(statistics.moments.items())},
        "calibration": _listed(dict(sorted(statistics.calibration.items()))),
    }
    text = json.dumps(values, indent=1, allow_nan=False)
    return _LISTS.sub(lambda found: " ".join(found.group().split()), text) + "\n"


def statistics_hash(statistics: SiteStatistics) -> str:
    """Names statistics by all that they say: 16 hexadecimal digits."""
    return hashlib.sha256(to_json(statistics).encode()).hexdigest()[:16]


def _listed(arrays: Mapping[str, Floats]) -> dict[str, Any]:
    """Arrays as nested lists of rounded numbers."""

    def rounded(value: Any) -> Any:
        return [rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.{_DIGITS}g}")

    return {name: rounded(np.asarray(array).tolist()) for name, array in arrays.items()}


def find_statistics(model: str, revision: str | None = None) -> SiteStatistics | None:
    """Statistics beside a model, in its folder or on the Hub; None where there are none.

    Args:
        model: Folder, or name on the Hub.
        revision: Commit, branch or tag on the Hub.

    Raises:
        ValueError: If the file is not what `write_statistics` writes.
    """
    folder = Path(model)
    if folder.is_dir():
        return read_statistics(folder / STATISTICS_FILE) if (folder / STATISTICS_FILE).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return read_statistics(hf_hub_download(model, STATISTICS_FILE, revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):  # not there, or not in the cache
        return None


def read_statistics(path: str | os.PathLike) -> SiteStatistics:
    """Read statistics that somebody else may have written.

    Raises:
        ValueError: If the file is too large, or anything in it is not what it should be; with what to do.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, the limit is {MAX_BYTES}")
        return _parse(json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant))
    except (OSError, ValueError, RecursionError) as error:
        said = printable(first_line(error))[:300]
        raise ValueError(
            f"{printable(path)} cannot be read ({said}); copy the model again, or remove the file to predict without "
            "drift scores"
        ) from error


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _parse(found: Any) -> SiteStatistics:
    values = _object(found, "the file")
    if type(values.get("format")) is not int or values["format"] != _FORMAT:  # True equals 1
        raise ValueError(f"its format is {values.get('format')!r}, not {_FORMAT}")
    sites = _object(values.get("sites"), "sites")
    if not 1 <= len(sites) <= _MAX_SITES or not all(type(count) is int and count >= 0 for count in sites.values()):
        raise ValueError(f"sites must be 1 to {_MAX_SITES} names with numbers of images")
    rate = values.get("wanted_rate")
    if not isinstance(rate, float) or not 0 < rate < 1:
        raise ValueError("wanted_rate must be a number between 0 and 1")
    if values.get("calibrated_on") not in (VALIDATION, CROSS_FITTED):
        raise ValueError(f"calibrated_on must be {VALIDATION!r} or {CROSS_FITTED!r}")
    moments = {name: _moments(part, name) for name, part in _object(values.get("moments"), "moments").items()}
    calibration = {
        name: _numbers(part, f"calibration of {name}", (None,), _MAX_IMAGES)
        for name, part in _object(values.get("calibration"), "calibration").items()
    }
    if not set(calibration) <= _PARTS or set(moments) != set(calibration) - set(ONE_SIDED) or not calibration:
        raise ValueError(f"its parts must be of {', '.join(sorted(_PARTS))}, each with moments or a distance")
    lengths = {len(part) for part in calibration.values()}
    if len(lengths) > 1 or min(lengths) < 2 or any((part < 0).any() for part in calibration.values()):
        raise ValueError("the calibration must hold as many distances in each part, at least two, none below 0")
    return SiteStatistics(dict(sites), moments, calibration, values["calibrated_on"], rate)


def _moments(found: Any, name: str) -> Moments:
    part = _object(found, name)
    spreads = _numbers(part.get("spreads"), f"spreads of {name}", (None,), _MAX_VALUES)
    size = len(spreads)
    means = _numbers(part.get("means"), f"means of {name}", (None, size), _MAX_SITES)
    correlation = _numbers(part.get("correlation"), f"correlation of {name}", (size, size), _MAX_VALUES)
    if (spreads < LEAST_SPREAD).any():
        raise ValueError(f"a spread of {name} is {spreads.min():g}, below {LEAST_SPREAD:g}")
    try:
        if not np.allclose(correlation, correlation.T, atol=1e-6):
            raise np.linalg.LinAlgError
        np.linalg.cholesky(correlation)
    except np.linalg.LinAlgError:
        raise ValueError(f"the correlation of {name} is not symmetric and positive definite") from None
    return Moments(means, spreads, correlation)


def _object(found: Any, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be an object")
    return found


def _numbers(found: Any, name: str, shape: tuple[int | None, ...], most: int) -> Floats:
    """Nested lists of finite numbers as an array; None stands for 1 to `most`."""

    def check(value: Any, rest: tuple[int | None, ...]) -> None:
        if not rest:
            if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:  # NaN is in no range
                raise ValueError(f"{name} holds {str(value)[:40]!r}, no finite number")
        elif not isinstance(value, list) or not 1 <= len(value) <= most or len(value) != (rest[0] or len(value)):
            raise ValueError(f"{name} must have the shape {shape}, at most {most} along an axis")
        else:
            for item in value:
                check(item, rest[1:])

    check(found, shape)
    return np.array(found, dtype=np.float64)
