"""Kinds of files by their first bytes, so that a name that says something else is noticed before any decoder runs."""

import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dim_hf.data.texts import first_line, printable
from dim_hf.demo.refusals import Refusal
from dim_hf.demo.settings import DemoSettings

HEAD_BYTES = 4096
_MIB = 2**20
_LONGEST_NAME = 60


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        title: What a visitor calls it, with its article.
        endings: Of its names, in lower case; none where it is not taken here.
        fits: Whether the first `HEAD_BYTES` bytes of a file look like it.
    """

    title: str
    endings: tuple[str, ...]
    fits: Callable[[bytes], bool]


# Those that are known by little come last.
FILE_KINDS = (
    FileKind("a PNG picture", (".png",), _starts(b"\x89PNG\r\n\x1a\n")),
    FileKind("a JPEG picture", (".jpg", ".jpeg"), _starts(b"\xff\xd8\xff")),
    FileKind("a TIFF picture", (".tif", ".tiff"), _starts(b"II*\0", b"MM\0*")),
    FileKind("a gzip file", (".nii.gz",), _starts(b"\x1f\x8b")),
    FileKind("a zip archive", (".zip",), _starts(b"PK\x03\x04", b"PK\x05\x06")),
    FileKind("an NRRD volume", (".nrrd",), _starts(b"NRRD000")),
    # The size of its header, 348 or 540 bytes, in either order of bytes.
    FileKind("a NIfTI volume", (".nii",), _starts(b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")),
    FileKind("a DICOM file", (), lambda head: head[128:132] == b"DICM"),
    FileKind("a PDF file", (), _starts(b"%PDF")),
    FileKind("a GIF picture", (), _starts(b"GIF8")),
    FileKind("a WebP picture", (), lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    FileKind("a web page or XML file", (), lambda head: head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")),
    FileKind("a BMP picture", (".bmp",), _starts(b"BM")),
    FileKind(
        "a MetaImage volume",
        (".mha",),
        lambda head: re.search(rb"^[ \t]*(NDims|ObjectType)[ \t]*[=:]", head, re.MULTILINE) is not None,
    ),
)


def shown_name(path: Path) -> str:
    """Name of a visitor's file as plain text of at most 60 characters; its ending stays."""
    name = printable(path.name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 16]}…{name[-15:]}"


def checked_size(path: str | os.PathLike, settings: DemoSettings) -> Path:
    """The path of a file that is there, and neither empty nor too large.

    Args:
        path: The upload.
        settings: `max_file_bytes` counts.

    Raises:
        Refusal: If it is not.
    """
    path = Path(path)
    if not path.is_file():
        raise Refusal("The upload is no longer on the server; upload the file again.")
    size = path.stat().st_size
    if size == 0:
        raise Refusal(f"{shown_name(path)} is empty; copy or export it again.")
    if size > settings.max_file_bytes:
        raise Refusal(
            f"{shown_name(path)} has {size / _MIB:.0f} MiB, the limit is {settings.max_file_bytes / _MIB:g} MiB. "
            "Pack it (.nii.gz), cut it to the part of interest, or run dim-hf on your own machine."
        )
    return path


def check_kind(path: Path, endings: Sequence[str]) -> str:
    """Refuse a file whose name or first bytes are of another kind than those of `endings`.

    Args:
        path: An existing file.
        endings: Those of names that are taken.

    Returns:
        The ending of the name, one of `endings`.

    Raises:
        Refusal: If the name ends otherwise, or the content is of another kind than the name says.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    name = shown_name(path)
    found = next((kind for kind in FILE_KINDS if kind.fits(head)), None)
    title = found.title if found else "of an unknown kind"
    ending = max((end for end in endings if path.name.lower().endswith(end)), key=len, default=None)
    if ending is None:
        raise Refusal(f"{name} cannot be read here (it is {title}). Give a file that ends with {_listed(endings)}.")
    if found is None or ending not in found.endings:
        fitting = [end for end in (found.endings if found else ()) if end in endings]
        advice = f"rename it to {fitting[0]}" if fitting else f"export it again as {_listed(endings)}"
        raise Refusal(f"{name} ends with {ending}, but its content is {title}; {advice}.")
    return ending


def _listed(endings: Sequence[str]) -> str:
    return " or ".join((", ".join(endings[:-1]), endings[-1])) if len(endings) > 1 else endings[0]


@contextmanager
def told(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Turn the package's errors about a file into refusals, without the file's place on this machine.

    Args:
        path: The upload.
        folder: What it was unpacked into.

    Raises:
        Refusal: For every ValueError within.
    """
    try:
        yield
    except Refusal:
        raise
    except ValueError as error:
        said = first_line(error, "it cannot be read")
        if folder is not None:
            said = said.replace(f"{folder}{os.sep}", "")
        raise Refusal(f"{said.replace(str(path), shown_name(path))}.") from error


def occurrences(path: Path, what: bytes, enough: int) -> int:
    """How often some bytes occur in a file, which is not empty; counting ends beyond `enough`."""
    count = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(what)
        while place >= 0 and count <= enough:
            count += 1
            place = content.find(what, place + len(what))
    return count
