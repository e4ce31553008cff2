"""Limits and sizes of the demo, in one frozen record; the environment changes them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

PREFIX = "DIM_DEMO_"
HUB_MODEL = "org/dim-prostate"


@dataclass(frozen=True)
class DemoSettings:
    """What the demo shows, and how much of it a visitor may ask for.

    Attributes:
        model: Folder or Hub name of the model; None tries `HUB_MODEL`, then takes those that are shipped.
        compare_model: Folder or Hub name of the second model of the comparison; None takes the shipped baseline.
        max_file_bytes: Of an uploaded file.
        max_pixels: Of a picture, by its header.
        max_voxels: Of a volume, by its header.
        max_zip_entries: Of a zip of DICOM files.
        max_unpacked_bytes: Of a zip, unpacked.
        max_batch_files: Pictures of one batch.
        max_upload_bytes: Of one upload request, over all its files.
        upload_seconds: How long one upload request may take.
        disk_bytes: Of all files of all sessions; beyond it, uploads are refused for a while.
        max_files: Number of files of all sessions; the same.
        session_events: Predictions of one page that run or wait.
        concurrency: Predictions at a time.
        queue_size: Visitors that wait for one; the next one is told that the demo is busy.
        busy_seconds: How long a prediction waits for its turn before the visitor is told so.
        memory_bytes: Of the predictions that are kept for all sessions together.
        session_seconds: After so long without a request, a session's files and predictions are removed.

    Raises:
        ValueError: If a number is not positive.
    """

    model: str | None = None
    compare_model: str | None = None
    max_file_bytes: int = 128 * 2**20
    max_pixels: int = 25_000_000
    max_voxels: int = 56_000_000  # 512 x 512 x 200, and a little more
    max_zip_entries: int = 2000
    max_unpacked_bytes: int = 512 * 2**20
    max_batch_files: int = 24
    max_upload_bytes: int = 256 * 2**20
    upload_seconds: int = 600
    disk_bytes: int = 4 * 2**30
    max_files: int = 5000
    session_events: int = 2
    concurrency: int = 1
    queue_size: int = 64
    busy_seconds: int = 60
    memory_bytes: int = 2 * 2**30
    session_seconds: int = 1800

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{item.name} is {value}; give a number of at least 1")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "DemoSettings":
        """Settings of `DIM_MODEL`, `DIM_COMPARE_MODEL` and `DIM_DEMO_<FIELD>`, such as `DIM_DEMO_MAX_PIXELS`.

        Args:
            environment: Variables; those of the process when None.

        Raises:
            ValueError: If a variable names no field, or a value is no positive whole number.

        >>> DemoSettings.from_environment({"DIM_MODEL": "runs/dim", "DIM_DEMO_QUEUE_SIZE": "8"}).queue_size
        8
        """
        given = os.environ if environment is None else environment
        values: dict[str, int | str | None] = {
            "model": given.get("DIM_MODEL") or None,
            "compare_model": given.get("DIM_COMPARE_MODEL") or None,
        }
        numbers = {item.name for item in fields(cls)} - set(values)
        for name, text in given.items():
            if not name.startswith(PREFIX):
                continue
            field = name.removeprefix(PREFIX).lower()
            if field not in numbers:
                known = ", ".join(f"{PREFIX}{number.upper()}" for number in sorted(numbers))
                raise ValueError(f"the variable {name} sets nothing; known are {known}")
            if not text.strip().isdecimal():
                raise ValueError(f"{name} is {text!r}; give a whole number of at least 1")
            values[field] = int(text)
        return cls(**values)  # type: ignore[arg-type]
