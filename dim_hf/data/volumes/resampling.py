"""The spacing that an import brings volumes to: noted with the data, read back by the training and the prediction."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dim_hf.data.volumes.volume import Volume, along_axes, resample

_SPACING_NOTE = re.compile(r"resampled to (\S+) x (\S+) x (\S+) mm")


def spacing_note(spacing_mm: Sequence[float]) -> str:
    """What an import notes of the spacing that it resampled to, for `spacing_in`.

    Args:
        spacing_mm: Left-right, back-front, foot-head.
    """
    return "resampled to {:.12g} x {:.12g} x {:.12g} mm (linear; label maps nearest)".format(*spacing_mm)


def spacing_in(notes: Iterable[str]) -> tuple[float, float, float] | None:
    """The spacing (left-right, back-front, foot-head) in mm that a data set's volumes were resampled to.

    Args:
        notes: Of its imports.

    Returns:
        None where the notes state none, or several.

    >>> spacing_in(["saml: resampled to 1 x 1.5 x 3 mm (linear; label maps nearest)"])
    (1.0, 1.5, 3.0)
    """
    stated = {found.groups() for found in map(_SPACING_NOTE.search, notes) if found}
    try:
        values = {tuple(map(float, lengths)) for lengths in stated}
    except ValueError:  # a note that somebody wrote
        return None
    return as_spacing(values.pop()) if len(values) == 1 else None


def as_spacing(value: Any) -> tuple[float, float, float] | None:
    """Three finite lengths above 0; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    if not all(isinstance(length, int | float) and math.isfinite(length) and length > 0 for length in value):
        return None
    first, second, third = map(float, value)
    return first, second, third


def at_spacing(volume: Volume, spacing_mm: Sequence[float], *, is_label: bool) -> Volume:
    """Bring a volume to a spacing of the patient's axes, however it is stored.

    Args:
        volume: The volume.
        spacing_mm: Left-right, back-front, foot-head.
        is_label: As for `volume.resample`.

    Returns:
        The resampled volume; `volume` itself if it has that spacing.

    Raises:
        ValueError: As `volume.resample` does.
        ImportError: If the extra `volumes` is not installed.
    """
    return resample(volume, along_axes(spacing_mm, volume.affine), is_label=is_label)
