"""How far teacher and student say the same: now, at each checkpoint that was kept, and as the training logged it."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dim_hf.diagnostics.objective import resized_logits

TEACHER_FOLDER = "teacher"
STATE_FILE = "trainer_state.json"
LOGGED_KEY = "teacher_student_agreement"
Progress = Callable[[], object]


@dataclass(frozen=True)
class Agreement:
    """How far two models predict the same on some images.

    Attributes:
        pixels: share of pixels with the same class, in [0, 1]; background pixels make it high.
        dice: Dice of the two label maps, mean over the classes but 0 that either predicts, in [0, 1], pixels of all
            images together; None where neither predicts any.
    """

    pixels: float
    dice: float | None


@dataclass(frozen=True)
class CheckpointPair:
    """A folder with a student at its root and its teacher below, and the optimizer step (None if unknown)."""

    folder: Path
    step: int | None


def agreement_of_counts(counts: Tensor) -> Agreement:
    """Agreement from a confusion matrix.

    Args:
        counts: (K, K) integers: pixels of which one model says the row's and the other the column's class.

    Raises:
        ValueError: if there are no pixels.

    Examples:
        >>> agreement_of_counts(torch.tensor([[6, 1], [1, 2]]))
        Agreement(pixels=0.8, dice=0.6666666666666666)
    """
    total = counts.sum().item()
    if total == 0:
        raise ValueError("there are no pixels to compare; give at least one image")
    same, sizes = counts.diagonal(), counts.sum(0) + counts.sum(1)
    dices = [2 * s / n for s, n in zip(same[1:].tolist(), sizes[1:].tolist(), strict=True) if n > 0]
    return Agreement(same.sum().item() / total, sum(dices) / len(dices) if dices else None)


@torch.no_grad()
def measure_agreement(
    first: nn.Module, second: nn.Module, batches: Iterable[Tensor], progress: Progress = lambda: None
) -> Agreement:
    """Compare the most probable classes of two models.

    Args:
        first: a model in evaluation mode.
        second: another with the same classes.
        batches: `pixel_values` (N, C, *S), on the models' device.
        progress: called after each batch.

    Raises:
        ValueError: if the models differ in their number of classes, or there is no batch.
    """
    counts = torch.zeros((0, 0), dtype=torch.int64)
    for pixel_values in batches:
        size = pixel_values.shape[2:]
        logits = [resized_logits(model, pixel_values, size) for model in (first, second)]
        num_labels, other = (each.shape[1] for each in logits)
        if num_labels != other:
            raise ValueError(f"the models have {num_labels} and {other} classes; compare models of the same classes")
        a, b = (each.argmax(dim=1).flatten() for each in logits)
        found = torch.bincount(a * num_labels + b, minlength=num_labels**2).view(num_labels, num_labels).cpu()
        counts = counts + found if counts.numel() else found
        progress()
    return agreement_of_counts(counts)


def find_pairs(model: str | Path) -> list[CheckpointPair]:
    """Student-teacher pairs in a folder: checkpoints below it in the order of their steps, then the folder itself.

    Args:
        model: folder of a model, a checkpoint or a run; anything else (a name of the Hub) has no pairs.
    """
    root = Path(model)
    checkpoints = sorted(
        (path for path in root.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)),
        key=lambda path: int(path.name.split("-")[1]),
    )
    pairs = [CheckpointPair(path, int(path.name.split("-")[1])) for path in checkpoints if _has_teacher(path)]
    return pairs + ([CheckpointPair(root, _state(root).get("global_step"))] if _has_teacher(root) else [])


def _has_teacher(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / TEACHER_FOLDER / "config.json").is_file()


def read_log(model: str | Path) -> list[dict[str, Any]]:
    """What a training logged: of a checkpoint its own, of a run its `results.json` or its last checkpoint's.

    Args:
        model: folder of a model, a checkpoint or a run.

    Returns:
        Entries with "step" and values; empty where there is no log.

    Raises:
        ValueError: if a log is there but cannot be read.
    """
    root = Path(model)
    checkpoints = sorted(root.glob(f"checkpoint-*/{STATE_FILE}"), key=lambda path: _number(path.parent.name))
    for path in (root / STATE_FILE, root / "results.json", *reversed(checkpoints)):
        log = _read(path).get("log_history") if path.is_file() else None
        if log:
            return [entry for entry in log if isinstance(entry, dict)]
    return []


def _number(name: str) -> int:
    digits = name.rsplit("-", 1)[-1]
    return int(digits) if digits.isdigit() else -1


def _state(folder: Path) -> Mapping[str, Any]:
    path = folder / STATE_FILE
    return _read(path) if path.is_file() else {}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); remove it or copy the run again") from error
    return values if isinstance(values, dict) else {}
