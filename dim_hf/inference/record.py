"""Remembers what was predicted from what, so that a rerun does only what is missing or has changed."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dim_hf.data.fingerprints import fingerprint
from dim_hf.inference.inputs import Case
from dim_hf.inference.measurements import Measurement
from dim_hf.inference.outputs import write_text
from dim_hf.inference.prediction import Prediction

RECORD_FILE = "predictions.json"
_FORMAT = 1
_SECONDS = 10.0  # between two writings of the record; what is lost in between is predicted again
_DETACHED = (".mhd", ".nhdr")
_DATA_FILE = re.compile(
    rb"^[ \t]*(?:ElementDataFile|data ?file)[ \t]*[:=][ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE
)


class Record:
    """`predictions.json` of an output folder.

    Args:
        folder: The output.
        model_hash: Of the model that predicts now.
        options: Settings that may change a mask.

    Attributes:
        entries: By name of the case: what was predicted, from what, into which files.
    """

    def __init__(self, folder: Path, model_hash: str, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.model_hash = model_hash
        self.options = dict(options)
        self.entries: dict[str, dict[str, Any]] = _read(folder / RECORD_FILE)
        self._written = time.monotonic()

    def is_complete(self, case: Case) -> bool:
        """Whether the case was predicted from the same input by the same model, and its files are all there."""
        entry = self.entries.get(case.name)
        if entry is None:
            return False
        try:
            files: Mapping[str, int] = entry["files"]
            same = entry["key"] == self._key(case) and bool(files)
            return same and all(_size(self.folder / name) == size for name, size in files.items())
        except (KeyError, TypeError, AttributeError, ValueError):  # a record that somebody edited
            return False

    def add(self, case: Case, key: str, files: Sequence[str], prediction: Prediction) -> None:
        """Remember a case whose files are written, and write the record down now and then.

        Args:
            case: The case.
            key: From `key_of`, asked before the case was read.
            files: Below the folder.
            prediction: Its measurements, drift score and flag for review are kept.
        """
        self.entries[case.name] = {
            "key": key,
            "model": self.model_hash,
            "files": {name: _size(self.folder / name) for name in files},
            "measurements": [asdict(measurement) for measurement in prediction.measurements],
        }
        if prediction.drift is not None:
            self.entries[case.name] |= {"drift": prediction.drift, "review": prediction.review}
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    def key_of(self, case: Case) -> str:
        """Names input, model and options of a case.

        Raises:
            OSError: If a file is missing.
        """
        parts = [(str(path.absolute()), *_stamp(path)) for path in (*case.files, *_data_files(case))]
        settings = json.dumps(self.options, sort_keys=True)
        spacing = list(map(repr, case.spacing_mm)) if case.spacing_mm else None
        return fingerprint(_FORMAT, parts, spacing, case.target, self.model_hash, settings)

    def measurements(self, case: Case) -> list[Measurement]:
        """Those of a complete case."""
        return [Measurement(**values) for values in self.entries[case.name]["measurements"]]

    def drift(self, case: Case) -> tuple[float, bool] | None:
        """Drift score and flag for review of a complete case; None where it has none."""
        entry = self.entries[case.name]
        known = isinstance(entry.get("drift"), float) and isinstance(entry.get("review"), bool)
        return (entry["drift"], entry["review"]) if known else None

    def write(self, failed: Sequence[tuple[str, str]] = ()) -> None:
        """Write the record.

        Args:
            failed: Names of cases, and sentences.
        """
        values = {
            "format": _FORMAT,
            "model": self.model_hash,
            "options": self.options,
            "cases": self.entries,
            "failed": [{"image": name, "error": said} for name, said in failed],
        }
        write_text(self.folder / RECORD_FILE, json.dumps(values, indent=1) + "\n")
        self._written = time.monotonic()

    def _key(self, case: Case) -> str | None:
        try:
            return self.key_of(case)
        except OSError:
            return None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Entries of a record; none where there is no record, or one of another format: all is predicted anew then."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict) or values.get("format") != _FORMAT or not isinstance(values.get("cases"), dict):
        return {}
    return {name: entry for name, entry in values["cases"].items() if isinstance(entry, dict)}


def _stamp(path: Path) -> tuple[int, int, int]:
    """Size and times of change: tools may set the first time, and nobody the second."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _data_files(case: Case) -> list[Path]:
    """Files of voxels that a header of text names beside itself."""
    header = case.files[0]
    if header.suffix.lower() not in _DETACHED:
        return []
    with header.open("rb") as file:
        names = [os.fsdecode(name.strip()) for name in _DATA_FILE.findall(file.read(2**16))]
    return [header.parent / name for name in names if "\0" not in name and (header.parent / name).is_file()]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
