"""What all tabs share: settings, models, sessions, and one gate before the processor."""

import filecmp
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.data.texts import first_line
from dim_hf.data.volumes.volume import Volume
from dim_hf.demo.models import DemoModel, DemoModels
from dim_hf.demo.refusals import BUSY, Refusal
from dim_hf.demo.sessions import SessionStore
from dim_hf.demo.settings import DemoSettings
from dim_hf.inference.prediction import Prediction

PREDICTION_QUEUE = "prediction"
"""`concurrency_id` of every event that predicts: they share one line, of `settings.concurrency` at a time."""
ONLY_DRAWINGS = "This model has only seen computer-drawn pictures; what it says about a patient's image means nothing."


@dataclass(frozen=True, eq=False)
class Demo:
    """What a tab is built with.

    Attributes:
        settings: Limits and sizes.
        models: Of all tabs.
        store: What is kept for each session.
        samples_folder: Existing folder for sample images, which a page may show.
    """

    settings: DemoSettings
    models: DemoModels
    store: SessionStore
    samples_folder: Path
    _gate: threading.BoundedSemaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the gate for as many predictions at a time as the settings allow."""
        object.__setattr__(self, "_gate", threading.BoundedSemaphore(self.settings.concurrency))

    def predict(
        self,
        session: str,
        model: DemoModel,
        image: "str | os.PathLike | Volume | np.ndarray",
        *,
        spacing_mm: tuple[float, float] | None = None,
    ) -> Prediction:
        """Predict one image, when it is its turn.

        Args:
            session: Name of the session that asks; it counts as active.
            model: One of `models`.
            image: Checked file, volume or picture; see `Predictor.__call__`.
            spacing_mm: Of a picture, (H, W), where it is known.

        Raises:
            Refusal: If others keep the processor busy for too long, or the image cannot be predicted.
        """
        self.store.folder(session)
        with self.turn():
            try:
                found = model.predictor(image, spacing_mm=spacing_mm)
            except MemoryError:
                raise
            except ValueError as error:
                raise Refusal(_without_paths(error, image)) from error
        self.store.folder(session)  # refused where the page was closed meanwhile: nobody wants the files
        return found

    def cautions(self, upload: "str | os.PathLike", *models: DemoModel) -> tuple[str, ...]:
        """Why masks of an image deserve no trust, however it looks: sentences; none for the demo's own samples.

        Args:
            upload: The image's file.
            models: What predicted it.
        """
        if all(model.origin != "shipped" for model in models) or self._is_sample(upload):
            return ()
        return (ONLY_DRAWINGS,)

    def _is_sample(self, upload: "str | os.PathLike") -> bool:
        samples = (path for path in self.samples_folder.rglob("*") if path.is_file())
        return any(filecmp.cmp(upload, path, shallow=False) for path in samples)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold one of the places at the processor, for work that takes as long as a prediction.

        Raises:
            Refusal: If none gets free within `busy_seconds`.
        """
        if not self._gate.acquire(timeout=self.settings.busy_seconds):
            raise Refusal(BUSY)
        try:
            yield
        finally:
            self._gate.release()


def session_of(request: Any) -> str:
    """Name of the browser session of a `gr.Request`.

    Raises:
        Refusal: If the request has none.
    """
    name = getattr(request, "session_hash", None)
    if not name:
        raise Refusal("The page has lost its session; reload it.")
    return str(name)


def _without_paths(error: ValueError, image: Any) -> str:
    """The package's own sentence about the visitor's file, without the place of that file on this machine."""
    said = first_line(error, "it cannot be predicted")
    return said.replace(os.fspath(image), "the file") if isinstance(image, str | os.PathLike) else said
