"""Checkpoint folders that are complete or absent.

A checkpoint is written into a folder aside, its files are listed with size and SHA-256, everything is put on the disk
(fsync), and only then the folder is renamed to its place. Taking one away goes the other way round: renamed first,
then emptied. Whatever ends the process, a folder `checkpoint-<step>` therefore holds a whole checkpoint.

The list tells what accidents did (a full disk, a broken copy, a changed file). It is no signature: whoever can write
into the folder can write the list as well. That nothing in a checkpoint runs code is the business of its readers.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dim_hf.data.texts import first_line

LIST_FILE = "checkpoint.json"
STATE_FILE = "trainer_state.json"
RESUME_HINT = "--resume_from_checkpoint last"

_LOGGER = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d+)")
# Neither transformers nor a push to the Hub takes a name with a leading underscore for a checkpoint.
_LEFTOVER = re.compile(r"_checkpoint-\d+\.(writing|removed)")


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was written, or not all of it."""


def aside_of(checkpoint: Path) -> Path:
    """The folder in which a checkpoint is written before it is renamed to its place."""
    return checkpoint.with_name(f"_{checkpoint.name}.writing")


def publish(aside: Path, checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """List the files of a folder, put them on the disk, and make the folder the checkpoint.

    A checkpoint of the same name (of a run that was resumed before it) makes room at the last moment.

    Args:
        aside: folder with the files, beside the checkpoint.
        checkpoint: what it becomes.
        facts: what a resume has to know before it reads any other file; values that JSON can hold.

    Raises:
        OSError: if something cannot be written; no part of the checkpoint is in its place then.
    """
    paths = sorted(aside.rglob("*"))
    files = {p.relative_to(aside).as_posix(): _digest(p, sync=True) for p in paths if p.is_file()}
    listing = aside / LIST_FILE
    with listing.open("w", encoding="utf-8") as file:
        json.dump({"facts": dict(facts), "files": files}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    for folder in (*(p for p in paths if p.is_dir()), aside):
        _sync_folder(folder)
    if checkpoint.exists():
        remove_checkpoint(checkpoint)
    aside.rename(checkpoint)
    _sync_folder(checkpoint.parent)


def remove_checkpoint(checkpoint: Path) -> None:
    """Take a checkpoint away: out of sight in one move, then from the disk."""
    gone = checkpoint.with_name(f"_{checkpoint.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed left of checkpoints half written or half removed."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The number in the name of a checkpoint folder.

    >>> step_of(Path("runs/dim/checkpoint-250"))
    250

    Raises:
        ValueError: for another name.
    """
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is no checkpoint: their folders are named checkpoint-<step>")
    return int(match.group(1))


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoint folders, whole or damaged, by rising step; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), key=step_of)


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """What the run said about itself when it wrote this checkpoint.

    Raises:
        DamagedCheckpointError: if the list is missing or cannot be read.
    """
    return _read_list(checkpoint)["facts"]


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: the file, what was expected, what was found; None for a complete one."""
    try:
        listed = _read_list(checkpoint)["files"]
    except DamagedCheckpointError as error:
        return str(error)
    for name, expected in listed.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = path.stat().st_size
            if found != expected["bytes"]:
                return f"{name} has {found} bytes, {expected['bytes']} were written"
            found = _digest(path)["sha256"]
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != expected["sha256"]:
            return f"{name} was changed: SHA-256 {found[:12]}…, {expected['sha256'][:12]}… was written"
    return None


def check_complete(checkpoint: Path) -> None:
    """Refuse a checkpoint that is not there, or not as it was written.

    Raises:
        DamagedCheckpointError: naming the file and what is wrong with it.
    """
    if not checkpoint.is_dir():
        raise DamagedCheckpointError(f"there is no checkpoint {checkpoint}")
    fault = find_fault(checkpoint)
    if fault is not None:
        raise DamagedCheckpointError(
            f"the checkpoint {checkpoint} is damaged: {fault}. Choose another one, or {RESUME_HINT}"
        )


def last_complete(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, after a warning for each damaged one above it.

    Args:
        folder: of a run.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        DamagedCheckpointError: if there are checkpoints and none is complete.
    """
    found = checkpoints_in(folder)
    faults = []
    for checkpoint in reversed(found):
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        faults.append(f"{checkpoint.name}: {fault}")
        _LOGGER.warning("%s is damaged and passed over: %s", checkpoint, fault)
    if found:
        raise DamagedCheckpointError(
            f"no checkpoint in {folder} is complete ({'; '.join(faults)}): bring one back from a copy, "
            "or start anew in another --output_dir"
        )
    return None


def rotate(folder: Path, limit: int | None, newest: Path, best: Path | None) -> None:
    """Remove the oldest checkpoints until `limit` are left; the newest and the best stay.

    Age is the step, not a file's date, which copies change. Checkpoints of steps that the run has not
    reached were left by an attempt that was given up: they go first.

    Args:
        folder: of the run.
        limit: checkpoints to keep; all when None or 0.
        newest: just written.
        best: on validation, if known.
    """
    if not limit or limit < 0:
        return
    kept = {newest.name, best.name if best is not None else newest.name}
    old = [path for path in checkpoints_in(folder) if path.name not in kept]
    old.sort(key=lambda path: (step_of(path) <= step_of(newest), step_of(path)))
    for path in old[: max(0, len(old) + len(kept) - max(limit, len(kept)))]:
        remove_checkpoint(path)


def write_failure(checkpoint: Path, error: BaseException) -> OSError:
    """Say in a sentence that a checkpoint could not be written; call it before what was written is removed."""
    folder = checkpoint.parent
    previous = [path for path in checkpoints_in(folder) if path.name != checkpoint.name]
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    reason = first_line(error)
    parts = [
        f"cannot write {checkpoint}: {reason}",
        f"{_megabytes(_size(aside_of(checkpoint)))} were written, {_megabytes(free)} are free"
        + (f", the checkpoint before took {_megabytes(_size(previous[-1]))}" if previous else ""),
        "Earlier checkpoints are intact" if previous else "There is no earlier checkpoint",
        f"Make room (save_total_limit keeps fewer), then go on by {RESUME_HINT}",
    ]
    return OSError(". ".join(parts))


def _read_list(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / LIST_FILE
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(listing["facts"], dict) and STATE_FILE in listing["files"]
        whole = whole and all({"bytes", "sha256"} <= set(entry) for entry in listing["files"].values())
    except FileNotFoundError as error:
        raise DamagedCheckpointError(
            f"{LIST_FILE} is missing: not written to its end, or not by this trainer"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{LIST_FILE} cannot be read ({error})") from error
    if not whole:
        raise DamagedCheckpointError(f"{LIST_FILE} does not list the files of a checkpoint")
    return listing


def _digest(path: Path, *, sync: bool = False) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is put on the disk when asked to."""
    with path.open("rb+" if sync else "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest}


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are journaled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB"
