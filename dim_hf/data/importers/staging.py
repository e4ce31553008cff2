"""Where an import writes: aside first, in place by renaming, so that an interrupted one leaves nothing half done."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dim_hf.data.locks import hold, release
from dim_hf.data.manifest import find_manifest

_STAGING = ".importing"
_LOCK = ".importing.lock"
_UNFINISHED = ".unfinished"  # in a published folder until the manifest names it


def check_target(source: Path, target: Path, *, append: bool) -> None:
    """Refuse a target in which an import could do harm.

    Args:
        source: What is read; nothing is ever written inside it.
        target: Folder that shall hold the manifest.
        append: Whether the target may, and must, hold a manifest already.

    Raises:
        ValueError: If the target lies in the source, is no folder, holds other files, or holds a manifest and
            `append` is False, or none and it is True.
    """
    if target.resolve() == source.resolve() or target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} lies inside {source}, which is only read; choose a folder outside")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is no folder; choose another OUT")
    manifest = find_manifest(target) if target.is_dir() else None
    if append and manifest is None:
        raise ValueError(f"{target} holds no manifest to append to; leave out --append, or name the folder of one")
    if manifest and not append:
        raise ValueError(f"{manifest} is there already; add to it with --append, or choose another OUT")
    if not append and target.is_dir():
        found = sorted(path.name for path in target.iterdir() if path.name not in (_STAGING, _LOCK))
        if found:
            raise ValueError(f"{target} is not empty (it holds {', '.join(found[:3])}); choose a new folder")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder inside `target`, removed at the end whatever happens; no other import writes there meanwhile.

    What an earlier import left there when it was killed is removed first. The target itself is removed again if it
    was made here and nothing was published.

    Raises:
        ValueError: If another import is writing to `target`.
    """
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    lock = hold(target / _LOCK)
    if lock is None:
        raise ValueError(f"another import is writing to {target}; wait for it, or choose another OUT")
    staging = target / _STAGING
    try:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        release(lock, target / _LOCK, remove=True)
        if is_new and not any(target.iterdir()):
            target.rmdir()


def publish(staging: Path, target: Path, domains: list[str], files: list[str]) -> None:
    """Move an import's folders, then its files, from `staging` to `target`; the last file makes it complete.

    Args:
        staging: Holds everything that is named.
        target: On the same file system; left-overs of an interrupted import there are replaced.
        domains: Names of the folders.
        files: Names of the files, the manifest last.
    """
    refuse_taken(target, domains)
    for domain in domains:
        (staging / domain / _UNFINISHED).touch()
        for part in (staging / domain).iterdir():
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()
        if (target / domain).exists():
            shutil.rmtree(target / domain)
        (staging / domain).rename(target / domain)
    for name in files:
        with (staging / name).open("rb") as file:
            os.fsync(file.fileno())
        (staging / name).replace(target / name)
    for domain in domains:
        (target / domain / _UNFINISHED).unlink()


def refuse_taken(target: Path, domains: list[str]) -> None:
    """Refuse folders that hold something which no interrupted import left.

    Raises:
        ValueError: Naming the first.
    """
    for domain in domains:
        folder = target / domain
        if folder.exists() and not (folder / _UNFINISHED).is_file() and not (folder.is_dir() and _is_empty(folder)):
            raise ValueError(f"{folder} is there already and no import left it; rename it, or choose another OUT")


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())
