"""What is kept for a visitor: own files and predictions, within a budget, and gone when the session ends."""

import os
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dim_hf.demo.refusals import Refusal
from dim_hf.demo.settings import DemoSettings

FORGOTTEN = "The result is no longer kept on the server; press the button again."
_NAMELESS = "The page has lost its session; reload it."
_CLOSED = "This page was closed, and its files are removed; reload it."
_LONGEST_NAME = 128
_MOST_CLOSED = 10_000  # names of closed sessions that are remembered
_UPLOADED = re.compile(r"[0-9a-f]{64}")  # Gradio's folder of an upload: the hash of its content


@dataclass
class _Session:
    folder: Path
    last_seen: float
    kept: set[str] = field(default_factory=set)
    uploads: dict[Path, int] = field(default_factory=dict)  # → time of change when it was seen


class SessionStore:
    """Files and predictions by browser session.

    A session is known by the random name that the page (or client) got when it was opened; no other name, number or
    path that a visitor can choose leads to what is kept. Safe to use from several threads.

    Args:
        settings: `memory_bytes` and `session_seconds` count.
        root: Existing folder for the files; a new temporary one when None, removed by `close_all`.
        uploads: Folder where the server puts uploads, each below a folder of its own; None where there is none.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        settings: DemoSettings,
        root: Path | None = None,
        uploads: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.root = Path(tempfile.mkdtemp(prefix="dim-demo-")) if root is None else root
        self.uploads = uploads
        self._clock = clock
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._closed: OrderedDict[str, float] = OrderedDict()  # → when the page was closed
        self._kept: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Of all predictions that are kept now."""
        return self._bytes

    @property
    def sessions(self) -> int:
        """Number of sessions that have files or predictions."""
        return len(self._sessions)

    def folder(self, session: str) -> Path:
        """The session's own folder for files; its name is drawn by the server.

        Raises:
            Refusal: If the page has no session.
        """
        with self._lock:
            return self._session(session).folder

    def new_folder(self, session: str) -> Path:
        """A new empty folder within the session's own one, for the files of one request."""
        return Path(tempfile.mkdtemp(dir=self.folder(session)))

    def keep(self, session: str, name: str, value: Any, size: int) -> None:
        """Keep a value, in place of one of the same name; the ones longest unused of all sessions give way.

        Args:
            session: Name of the session.
            name: What it is, such as "volume"; chosen by the tab, not by the visitor.
            value: The value; not copied.
            size: Its bytes. What is larger than the whole budget is not kept.
        """
        with self._lock:
            owner = self._session(session)
            self._drop((session, name))
            if size > self.settings.memory_bytes:
                return
            while self._bytes + size > self.settings.memory_bytes:
                self._drop(next(iter(self._kept)))
            self._kept[session, name] = (value, size)
            self._bytes += size
            owner.kept.add(name)

    def recall(self, session: str, name: str) -> Any:
        """What was kept under that name.

        Raises:
            Refusal: If it is not there: it gave way to others, or the session was idle for long.
        """
        with self._lock:
            if session not in self._sessions or (session, name) not in self._kept:
                raise Refusal(FORGOTTEN)
            self._sessions[session].last_seen = self._clock()
            self._kept.move_to_end((session, name))
            return self._kept[session, name][0]

    def own_upload(self, session: str, path: str | os.PathLike) -> Path:
        """Remember a file that the session uploaded, so that it is removed with the session.

        Args:
            session: Name of the session.
            path: Where the server put it. Files of equal content share a place; one that somebody else uploaded
                again in the meantime stays for them. A sample, which is no upload, stays for all.

        Raises:
            Refusal: If the page has no session, or was closed meanwhile; then the file is gone as well.
        """
        place = Path(path)
        if _UPLOADED.fullmatch(place.parent.name):
            with self._lock:
                if session in self._closed and place not in self._used():
                    _remove_file(place)
                self._session(session).uploads[place] = _changed(place)
        return place

    def close(self, session: str) -> None:
        """Remove all files and predictions of a session whose page was closed; nothing happens where there are none.

        What is still under way for it is refused for `session_seconds`, so that it leaves nothing behind.
        """
        with self._lock:
            if session in self._sessions:
                self._closed[session] = self._clock()
                while len(self._closed) > _MOST_CLOSED:
                    self._closed.popitem(last=False)
            self._remove(session)

    def _remove(self, session: str) -> None:
        with self._lock:
            gone = self._sessions.pop(session, None)
            if gone is None:
                return
            for name in tuple(gone.kept):
                self._drop((session, name))
            still_used = self._used()
            for place, changed in gone.uploads.items():
                if place not in still_used and _changed(place) == changed:
                    _remove_file(place)
        shutil.rmtree(gone.folder, ignore_errors=True)

    def sweep(self) -> int:
        """Close the sessions that were idle for longer than `session_seconds`; gives their number.

        Uploads as old that no session has used go as well, and what unfinished uploads left.
        """
        with self._lock:
            now = self._clock()
            idle = [
                name
                for name, session in self._sessions.items()
                if now - session.last_seen > self.settings.session_seconds
            ]
            for name, closed in tuple(self._closed.items()):
                if now - closed > self.settings.session_seconds:
                    del self._closed[name]
        for name in idle:
            self._remove(name)  # the page may still be open, and used again
        self._remove_strays()
        return len(idle)

    def _remove_strays(self) -> None:
        if self.uploads is None:
            return
        with self._lock:
            used = self._used()
        folders = _names_in(self.uploads)
        for name in filter(_UPLOADED.fullmatch, folders):
            for file in _names_in(self.uploads / name):
                place = self.uploads / name / file
                if place not in used and _age(place) > self.settings.session_seconds:
                    _remove_file(place)
        remove_unfinished(self.uploads, time.time() - self.settings.upload_seconds)

    def _used(self) -> set[Path]:
        return {place for session in self._sessions.values() for place in session.uploads}

    def close_all(self) -> None:
        """Close every session and remove the folder of all files."""
        for name in tuple(self._sessions):
            self._remove(name)
        shutil.rmtree(self.root, ignore_errors=True)

    def _session(self, name: str) -> _Session:
        if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME:
            raise Refusal(_NAMELESS)
        if name in self._closed:
            raise Refusal(_CLOSED)
        found = self._sessions.get(name)
        if found is None:
            self.root.mkdir(parents=True, exist_ok=True)
            found = _Session(Path(tempfile.mkdtemp(dir=self.root)), 0.0)
            self._sessions[name] = found
        found.last_seen = self._clock()
        return found

    def _drop(self, key: tuple[str, str]) -> None:
        _, size = self._kept.pop(key, (None, 0))
        self._bytes -= size
        if key[0] in self._sessions:
            self._sessions[key[0]].kept.discard(key[1])


def remove_unfinished(uploads: Path, before: float) -> None:
    """Remove what cut-off uploads left: Gradio writes to `tmp*`, and moves the file once it is complete.

    Args:
        uploads: Where the server puts uploads.
        before: Unix time; files that were written since then may still grow, and stay.
    """
    for name in _names_in(uploads):
        place = uploads / name
        try:
            if name.startswith("tmp") and place.is_file() and place.stat().st_mtime < before:
                place.unlink()
        except OSError:  # it was moved meanwhile
            continue


def _names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder; none if it has gone."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 if it has gone."""
    try:
        return time.time() - path.stat().st_mtime if path.is_file() else 0.0
    except OSError:
        return 0.0


def _remove_file(path: Path) -> None:
    """Remove a file, and the folder that was made for it alone."""
    try:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
    except OSError:  # the folder holds files of others
        return
