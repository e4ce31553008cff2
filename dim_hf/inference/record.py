"""Remembers what was predicted from what, so that a rerun does only what is missing or has changed."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dim_hf.data.fingerprints import fingerprint
from dim_hf.data.texts import printable
from dim_hf.inference.inputs import Case
from dim_hf.inference.measurements import Measurement
from dim_hf.inference.outputs import mask_extension
from dim_hf.inference.prediction import Prediction
from dim_hf.whole_files import write_text

RECORD_FILE = "predictions.json"
_FORMAT = 1
_SECONDS = 10.0  # between two writings of the record; what is lost in between is predicted again
_EDITED = (KeyError, TypeError, AttributeError, ValueError)  # what a record may raise that somebody edited
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
            same = entry["key"] == self._key(case)
            return same and self._has_files(entry)
        except _EDITED:
            return False

    def refuse_replacing(self, cases: Sequence[Case]) -> None:
        """No mask may take the place of one of another image.

        Args:
            cases: That are to be predicted.

        Raises:
            ValueError: If an earlier run has written the mask of another image where that of one of them would lie;
                with both images.
        """
        owners: dict[str, tuple[str, Any]] = {}
        for name, entry in self.entries.items():
            files = entry.get("files")
            there = (
                [file for file in files if _size(self.folder / file) is not None] if isinstance(files, dict) else []
            )
            owners |= {file.casefold(): (name, entry.get("source", name)) for file in there}
        for case in cases:
            mask = f"{case.target}{mask_extension(case)}"
            name, source = owners.get(mask.casefold(), (case.name, None))
            if name != case.name or source not in (None, name, _source(case)):
                raise ValueError(
                    f"{printable(self.folder / mask)} is the mask of {printable(source)}, and that of "
                    f"{printable(_source(case))} would replace it; give another folder for the masks"
                )

    def finished(self, cases: Sequence[Case]) -> Iterator[tuple[str, list[Measurement], tuple[float, bool] | None]]:
        """Name, measurements and drift of all that this model has predicted into the folder and that is there still.

        Args:
            cases: Of the input, which come first and must be complete; those of earlier runs with other inputs follow.
        """
        own = {case.name for case in cases}
        complete = [case.name for case in cases if self.is_complete(case)]
        for name in (*complete, *(name for name in self.entries if name not in own)):
            entry = self.entries[name]
            try:
                measurements = [Measurement(**values) for values in entry["measurements"]]
                if entry["model"] == self.model_hash and self._has_files(entry):
                    yield name, measurements, _drift(entry)
            except _EDITED:
                continue

    def _has_files(self, entry: Mapping[str, Any]) -> bool:
        files: Mapping[str, int] = entry["files"]
        return bool(files) and all(_size(self.folder / name) == size for name, size in files.items())

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
            "source": _source(case),
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
        parts = [(str(path.resolve()), *_stamp(path)) for path in (*case.files, *_data_files(case))]
        settings = json.dumps(self.options, sort_keys=True)
        spacing = list(map(repr, case.spacing_mm)) if case.spacing_mm else None
        return fingerprint(_FORMAT, parts, spacing, case.target, self.model_hash, settings)

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


def _source(case: Case) -> str:
    """Where the image lies, whatever way leads there: its file, or the folder of its slices."""
    files = [str(path.resolve()) for path in case.files]
    return os.path.commonpath([os.path.dirname(file) for file in files]) if case.is_series else files[0]


def _drift(entry: Mapping[str, Any]) -> tuple[float, bool] | None:
    known = isinstance(entry.get("drift"), float) and isinstance(entry.get("review"), bool)
    return (entry["drift"], entry["review"]) if known else None


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
