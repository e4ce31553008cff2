"""Predicts all that an input holds into a folder: goes on after broken files, and skips what is complete."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dim_hf.data.archives import visible
from dim_hf.data.locks import hold, release
from dim_hf.data.texts import first_line, printable
from dim_hf.data.volumes.volume import Volume
from dim_hf.inference.drift import SiteStatistics
from dim_hf.inference.drift_file import statistics_hash
from dim_hf.inference.inputs import Case, Found, find_cases
from dim_hf.inference.measurements import write_measurements
from dim_hf.inference.outputs import ASIDE, write_labels, write_prediction
from dim_hf.inference.prediction import Prediction
from dim_hf.inference.predictor import Picture, Predictor
from dim_hf.inference.record import RECORD_FILE, Record
from dim_hf.whole_files import whole_file

MEASUREMENTS_FILE = "measurements.csv"
_LOCK_FILE = ".predict.lock"
_PIXELS_HELD = 2**24  # of decoded pictures that wait for one batch
# What a broken file, or one too large, may raise: decoders and networks run out of memory in more than one way.
_FAULTS = (ValueError, OSError, RuntimeError, MemoryError, ImportError)


class OutputError(OSError):
    """The output cannot be written, which no other image would change."""


@dataclass
class Summary:
    """What a run did.

    Attributes:
        output: The folder.
        predicted: Number of images predicted now.
        skipped: Number of those that were complete.
        ignored: Number of files of other kinds, and of masks beside images.
        left_out: The same, by kind; see `left_out.sentences`.
        failed: Name and sentence of each that could not be predicted.
        plane: Of a 2D model's slices; None of a 3D model.
        spacing_mm: To which volumes were resampled for the network, as in training; None where they were not.
        flagged: Names of all complete images that a person should look at, since they are unlike those of the sites
            that the model saw; None where the model has no statistics of these.
        false_alarm_rate: Share of new images of those sites that is flagged; None likewise.
        is_bound: Whether no more than that share is flagged, see `SiteStatistics.is_bound`; None likewise.
        seconds: What it took.
    """

    output: str
    predicted: int = 0
    skipped: int = 0
    ignored: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    plane: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    flagged: list[str] | None = None
    false_alarm_rate: float | None = None
    is_bound: bool | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        failed = [{"image": name, "error": said} for name, said in self.failed]
        return {**asdict(self), "failed": failed, "measurements": str(Path(self.output) / MEASUREMENTS_FILE)}


def predict_folder(
    predictor: Predictor, source: str | os.PathLike, output: str | os.PathLike, *, progress: bool = False
) -> Summary:
    """Predict a file, a folder or a manifest into a folder.

    Masks have the names of their images, below the same folders; beside them lie `labels.json`, `measurements.csv` and
    `predictions.json`. An image that was predicted by the same model with the same options, and has not changed since,
    is skipped. Several inputs may be predicted into one folder one after the other.

    Args:
        predictor: What predicts.
        source: See `inputs.find_cases`.
        output: Made if need be; not the input.
        progress: Show a bar with rate and remaining time.

    Raises:
        ValueError: If there is nothing to predict, the output is the input, holds other files or the mask of another
            image where one would lie, or another process writes into it.
        OutputError: If the output cannot be written.
    """
    began = time.monotonic()
    folder = Path(output).expanduser().absolute()
    found = find_cases(source, leave_out=folder)
    _refuse_input(found, Path(source).expanduser(), folder)
    summary = Summary(str(output), ignored=found.ignored, left_out=dict(found.left_out), failed=list(found.faults))
    summary.plane = predictor.plane if predictor.spatial_dims == 2 else None
    summary.spacing_mm = predictor.spacing_mm
    with _locked(folder):
        _refuse_strangers_files(folder)
        record = Record(folder, predictor.model_hash, _settings(predictor))
        todo = [case for case in found.cases if not record.is_complete(case)]
        record.refuse_replacing(todo)
        record.write()
        summary.skipped = len(found.cases) - len(todo)
        try:
            with tqdm(total=len(todo), desc="predicting", unit="image", disable=not progress) as bar:
                _predict(predictor, todo, record, summary, bar)
        finally:
            record.write(summary.failed)
        write_labels(predictor.id2label, predictor.structures, folder)
        _finish(record, found.cases, predictor.statistics, summary)
    summary.seconds = time.monotonic() - began
    return summary


def _refuse_input(found: Found, source: Path, folder: Path) -> None:
    """No mask may take the place of an image."""
    home = (source if source.is_dir() else source.parent).resolve()
    if folder.resolve() == home or any(
        path.parent.resolve() == folder.resolve() for c in found.cases for path in c.files
    ):
        raise ValueError(f"{folder} holds the input; masks have the names of their images: give another folder")


def _refuse_strangers_files(folder: Path) -> None:
    """Write into a new folder, or one of an earlier run; anything else in it might be replaced."""
    if not (folder / RECORD_FILE).is_file() and visible(folder):
        raise ValueError(f"{folder} holds files that are no predictions; give a new or empty folder for the masks")


def _settings(predictor: Predictor) -> dict[str, Any]:
    """Options that may change what is written; the size of a batch does not."""
    settings = asdict(predictor.options) | {"plane": predictor.plane}
    del settings["batch_size"]
    if predictor.spatial_dims == 3:
        settings["window"] = settings["window"] or "whole"  # None once meant windows
    if predictor.spacing_mm is not None:
        settings["spacing_mm"] = predictor.spacing_mm
    if predictor.statistics is not None:
        settings["site_statistics"] = statistics_hash(predictor.statistics)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / _LOCK_FILE)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to ({error.strerror}); give another folder") from error
    if lock is None:
        raise ValueError(f"another dim-hf predict writes into {folder}; wait for it, or give another folder")
    try:
        shutil.rmtree(folder / ASIDE, ignore_errors=True)  # of a run that was killed
        yield
    finally:
        release(lock, folder / _LOCK_FILE, remove=True)


def _predict(predictor: Predictor, todo: Sequence[Case], record: Record, summary: Summary, bar: tqdm) -> None:
    waiting: list[tuple[Case, str, Picture]] = []
    for case in todo:
        try:
            key = record.key_of(case)
            image = case.read(predictor.options.channel)
            if isinstance(image, Volume):
                prediction = predictor.predict_volume(image, progress=not bar.disable)
                del image
                _keep(prediction, case, key, record, summary, bar)
                continue
        except OutputError:
            raise
        except _FAULTS as error:
            _fail(case, error, summary, bar)
            continue
        waiting.append((case, key, Picture(image, case.spacing_mm)))
        held = sum(picture.array.shape[0] * picture.array.shape[1] for *_, picture in waiting)
        if len(waiting) >= predictor.options.batch_size or held > _PIXELS_HELD:
            _predict_pictures(predictor, waiting, record, summary, bar)
            waiting = []
    _predict_pictures(predictor, waiting, record, summary, bar)


def _predict_pictures(
    predictor: Predictor, waiting: Sequence[tuple[Case, str, Picture]], record: Record, summary: Summary, bar: tqdm
) -> None:
    """A batch of pictures; singly, where one of them spoils it."""
    if not waiting:
        return
    try:
        predictions = predictor.predict_pictures([picture for *_, picture in waiting])
    except _FAULTS as error:
        if len(waiting) == 1:
            _fail(waiting[0][0], error, summary, bar)
            return
        for item in waiting:
            _predict_pictures(predictor, [item], record, summary, bar)
        return
    for (case, key, _), prediction in zip(waiting, predictions, strict=True):
        _keep(prediction, case, key, record, summary, bar)


def _keep(prediction: Prediction, case: Case, key: str, record: Record, summary: Summary, bar: tqdm) -> None:
    try:
        files = write_prediction(prediction, case, record.folder)
        record.add(case, key, files, prediction)
    except OSError as error:
        said = error.strerror or error
        raise OutputError(
            f"the mask of {case.name} cannot be written to {record.folder} ({said}); free the disk, then run again"
        ) from error
    summary.predicted += 1
    bar.update()


def _fail(case: Case, error: BaseException, summary: Summary, bar: tqdm) -> None:
    said = first_line(error, "")
    if isinstance(error, MemoryError):
        said = f"there is not enough memory for it ({said or 'none is left'}); cut it, or use a smaller batch"
    elif isinstance(error, FileNotFoundError):
        said = f"{error.filename or case.files[0]} is missing; correct the path"
    elif not isinstance(error, ValueError | ImportError):
        said = f"{type(error).__name__}: {said}"
    place = str(case.files[0])
    summary.failed.append((case.name, said if place in said else f"{place}: {said}"))
    bar.update()


def _finish(record: Record, cases: Sequence[Case], statistics: SiteStatistics | None, summary: Summary) -> None:
    """Write the measurements of all that the folder holds, and say which of these cases are to be reviewed."""
    done = [(name, printable(name), *about) for name, *about in record.finished(cases)]
    drifts = {said: drift for _, said, _, drift in done if drift is not None}
    if statistics is not None:
        own = {case.name for case in cases}
        summary.flagged = [said for name, said, _, drift in done if name in own and drift is not None and drift[1]]
        summary.false_alarm_rate, summary.is_bound = statistics.false_alarm_rate, statistics.is_bound
    rows = [(said, measurements) for _, said, measurements, _ in done]
    with whole_file(record.folder / MEASUREMENTS_FILE) as partial:
        write_measurements(rows, partial, drifts=drifts if drifts or statistics is not None else None)
