"""Archives unpacked, and folders walked, without leaving the folder that was named."""

import gzip
import os
import re
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dim_hf.data.limits import MAX_FILES, MAX_UNPACKED_BYTES
from dim_hf.data.texts import printable

MAX_RATIO = 250
"""Unpacked bytes for each byte of an archive."""

RATIO_FREE_BYTES = 2**26
"""So little does no harm, whatever the ratio; small label maps pack very well."""

_LARGEST_READ = 2**24
# Bytes of a tar file's headers, and those more that each entry may have: names and attributes take two thousand.
_HEADER_BYTES, _HEADER_BYTES_EACH = 2**24, 2**12
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
_LITTER = ("__macosx", "__pycache__", "thumbs.db", "desktop.ini")
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
)


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    is_folder: bool
    fault: str | None  # why an entry of this kind is not unpacked
    open: Callable[[], IO[bytes]]


def is_archive(path: str | os.PathLike) -> bool:
    """Whether this is a file whose name ends as those of archives that `unpack` takes."""
    return os.path.isfile(path) and Path(path).name.lower().endswith(_ENDINGS)


def unpack(
    archive: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    max_bytes: int = MAX_UNPACKED_BYTES,
    max_files: int = MAX_FILES,
    max_ratio: float = MAX_RATIO,
) -> Path:
    """Unpack a zip, tar or tar.gz file into a new folder.

    All entries are checked before the first is written, and the folder appears only when all are written. Files get
    ordinary permissions. Backslashes separate folders, as some writers on Windows have them.

    Args:
        archive: The archive; its content decides on the format, not its name.
        folder: Is made, with its parents; may exist if it is empty.
        max_bytes: Largest allowed sum of the unpacked files in bytes.
        max_files: Largest allowed number of entries.
        max_ratio: Largest allowed ratio of unpacked bytes to those of the archive, asked from 64 MiB on.

    Returns:
        The folder.

    Raises:
        ValueError: If the archive is damaged, encrypted or too large, or has an entry with an absolute name, with
            "..", a link, a device, or a name that equals another but for case; or if the folder is not empty.
    """
    archive, folder = Path(archive), Path(os.path.abspath(folder))
    if not archive.is_file():
        raise ValueError(f"{archive} is missing or no file; correct the path of the archive")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; give a new folder to unpack {archive.name} into")
    with _damage_named(archive):
        with _entries(archive) as entries:
            places = _check(archive, entries, max_bytes, max_files, max_ratio)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
            inside = Path(partial) / "unpacked"
            inside.mkdir()
            with _entries(archive) as entries:
                for entry, place in zip(entries, places, strict=True):
                    _write(entry, inside.joinpath(*place))
            if folder.exists():
                folder.rmdir()
            inside.rename(folder)
    return folder


def walk(root: str | os.PathLike, *, max_files: int = MAX_FILES) -> Iterator[Path]:
    """The files below a folder, sorted by the parts of their paths.

    Hidden files and folders are skipped, and so is the litter of file managers. Linked files are given, wherever they
    lie; a linked folder is entered if it lies below `root` and does not hold the link. What is neither file nor
    folder is skipped.

    Args:
        root: The folder.
        max_files: Largest allowed number of files and folders.

    Yields:
        Paths that start with `root` as it is given.

    Raises:
        ValueError: If `root` is no folder, there are too many files, a folder cannot be listed, a name is no text, or
            a link leads nowhere or to a folder outside `root`.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; correct the path")
    real_root = root.resolve()
    for number, (path, is_file) in enumerate(_below(root, real_root, (real_root,)), start=1):
        if number > max_files:
            raise ValueError(f"{root} holds more than {max_files} files and folders; give a folder further down")
        if is_file:
            yield path


def _below(folder: Path, real_root: Path, parents: tuple[Path, ...]) -> Iterator[tuple[Path, bool]]:
    try:
        paths = visible(folder)
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed ({error.strerror}); allow it to be read or remove it") from error
    for path in paths:
        if path.is_symlink():
            _check_link(path, real_root)
        if path.is_dir():
            real = path.resolve()
            yield path, False
            if real not in parents:
                yield from _below(path, real_root, (*parents, real))
        elif path.is_file():
            yield path, True


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files and what file managers leave behind.

    Raises:
        ValueError: If a name is no text in UTF-8, which no manifest could hold.
    """
    paths = [folder / name for name in sorted(os.listdir(folder)) if not is_litter(name)]
    for path in paths:
        if any("\ud800" <= letter <= "\udfff" for letter in path.name):
            raise ValueError(f"{printable(path)} has a name that is no text in UTF-8; rename it")
    return paths


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or was left by a file manager."""
    return name.startswith(".") or name.lower() in _LITTER


def _check_link(path: Path, real_root: Path) -> None:
    if not path.exists():
        raise ValueError(f"the link {path} leads nowhere; correct or remove it")
    if path.is_dir() and not path.resolve().is_relative_to(real_root):
        raise ValueError(
            f"the link {path} leads out of the folder, to {path.resolve()}; copy that folder here or remove the link"
        )


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, UnicodeError) or not isinstance(error, ValueError):
            raise ValueError(
                f"{archive} cannot be unpacked ({type(error).__name__}: {error}); fetch the archive again"
            ) from error
        raise


@contextmanager
def _entries(archive: Path) -> Iterator[Iterator[_Entry]]:
    with open(archive, "rb") as file:
        magic = file.read(4)
    # By the first bytes: `zipfile.is_zipfile` also takes a tar file that ends with a zip file.
    if magic in _ZIP_MAGICS:
        with zipfile.ZipFile(archive) as opened:
            yield (_zip_entry(opened, info) for info in opened.infolist())
        return
    with gzip.open(archive) if magic.startswith(_GZIP_MAGIC) else open(archive, "rb") as stream:
        yield _tar_entries(archive, stream)


def _tar_entries(archive: Path, stream: IO[bytes]) -> Iterator[_Entry]:
    reads = _HeaderReads(stream)
    with _opened_tar(archive, reads) as opened:
        for member in opened:
            yield _tar_entry(opened, member, reads)
            reads.allow(_HEADER_BYTES_EACH)
        # `tarfile` takes a damaged header, or the end of the file, for the end of the archive.
        stream.seek(opened.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off after {len(opened.members)} entries")
        # At its end a gzip stream compares the checksum; padding is shorter than this.
        stream.read(2**20)


def _opened_tar(archive: Path, reads: "_HeaderReads") -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=reads, mode="r:")
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no zip, tar or tar.gz file; unpack it with its own program") from error


class _HeaderReads:
    """A stream for `tarfile` that reads no more than the headers of honest archives take.

    A packed header of a kilobyte may hold a gigabyte of attributes, and an archive any number of them.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.seek = stream.seek
        self.tell = stream.tell
        self._left = _HEADER_BYTES

    def allow(self, count: int) -> None:
        """Let so many more bytes be read."""
        self._left += count

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise tarfile.ReadError(f"its headers take more than {_HEADER_BYTES} bytes")
        self._left -= size
        return self.stream.read(size)


def _zip_entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    fault = None
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "a link or device"
    elif info.flag_bits & 1:
        fault = "encrypted"
    # The name before `zipfile` shortens it at a zero byte.
    return _Entry(
        info.orig_filename, info.file_size, info.orig_filename.endswith(("/", "\\")), fault, lambda: opened.open(info)
    )


def _tar_entry(opened: tarfile.TarFile, member: tarfile.TarInfo, reads: "_HeaderReads") -> _Entry:
    def content() -> IO[bytes]:
        reads.allow(member.size)
        return opened.extractfile(member)

    plain = (member.isreg() and not member.issparse()) or member.isdir()
    size = 0 if member.isdir() else member.size
    fault = None if plain else "a link, device or sparse file"
    return _Entry(member.name, size, member.isdir(), fault, content)


def _check(
    archive: Path, entries: Iterator[_Entry], max_bytes: int, max_files: int, max_ratio: float
) -> list[tuple[str, ...]]:
    """The parts of every entry's path; nothing is unpacked if one of them is refused."""
    limit = min(max_bytes, max(max_ratio * archive.stat().st_size, RATIO_FREE_BYTES))
    names = _Names(archive)
    places: list[tuple[str, ...]] = []
    total = 0
    for entry in entries:
        total += entry.size
        if len(places) >= max_files:
            raise ValueError(f"{archive} has more than {max_files} entries; unpack it in parts")
        if entry.size < 0 or total > limit:
            reason = f"limit {max_bytes}" if limit == max_bytes else f"more than {max_ratio:g} times its own size"
            raise ValueError(
                f"{archive} would unpack to {total} bytes or more ({reason}); if it is trustworthy, unpack it yourself"
            )
        if entry.fault:
            raise ValueError(f"{archive}: the entry {entry.name!r} is {entry.fault}; pack plain files only")
        places.append(names.add(entry))
    return places


class _Names:
    """Paths of the entries so far; refuses those that cannot lie beside each other on every system."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.spelling: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.files: set[tuple[str, ...]] = set()

    def add(self, entry: _Entry) -> tuple[str, ...]:
        """The parts of an entry's path."""
        parts = self._parts(entry)
        key = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
        is_new = key not in self.spelling
        for length in range(1, len(parts) + 1):
            known = self.spelling.setdefault(key[:length], parts[:length])
            if known != parts[:length] or key[:length] in self.files:
                self._refuse(known, entry)
        if not entry.is_folder:
            if not is_new:
                self._refuse(parts, entry)
            self.files.add(key)
        return parts

    def _refuse(self, known: tuple[str, ...], entry: _Entry) -> None:
        raise ValueError(
            f"{self.archive}: the entry {entry.name!r} meets another of the name {'/'.join(known)!r}, the same to "
            "some systems; rename or remove one and pack it again"
        )

    def _parts(self, entry: _Entry) -> tuple[str, ...]:
        plain = entry.name.replace("\\", "/")
        parts = tuple(part for part in plain.split("/") if part not in ("", "."))
        if plain.startswith("/") or re.match("[A-Za-z]:", plain) or ".." in parts:
            raise ValueError(
                f"{self.archive}: the entry {entry.name!r} lies outside the archive's folder; pack it with plain "
                "relative names"
            )
        unreadable = any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in plain)
        if unreadable or not (parts or entry.is_folder):
            raise ValueError(f"{self.archive}: {entry.name!r} is no name for an entry; rename it and pack it again")
        return parts


def _write(entry: _Entry, path: Path) -> None:
    if entry.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as source, open(path, "xb") as target:
        left = entry.size
        while left:
            chunk = source.read(min(left, _LARGEST_READ))
            if not chunk:
                raise EOFError(f"{entry.name} ends {left} bytes early")
            target.write(chunk)
            left -= len(chunk)
        # At its end a zip entry compares the checksum.
        if source.read(1):
            raise EOFError(f"{entry.name} is longer than the archive states")
