"""Pictures whose structure would keep a decoder busy, or fill the memory, before the first pixel: found by walking it.

Decoders read metadata without limits: each of 65,535 tags may stand for the whole file, and pages, scans, chunks and
segments may be as many as fit.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from dim_hf.demo.file_kinds import occurrences, shown_name
from dim_hf.demo.refusals import Refusal

_MOST_SCANS = 100  # of a JPEG; encoders make about ten, and each costs a pass over all pixels
_MOST_PARTS = 50_000  # chunks of a PNG, segments of a JPEG
_MOST_DIRECTORIES = 8
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # of TIFF
_POINTERS = (0x8769, 0x8825, 0xA005)  # tags that name further directories: EXIF, GPS, interoperability
_EXIF, _PREVIEWS, _OLD_EXIF = b"Exif\0\0", b"MPF\0", b"Raw profile type exif\0"


def check_structure(path: Path, ending: str) -> None:
    """Walk through a picture as its decoder would, and refuse what has no end.

    Args:
        path: A file whose first bytes are those of its kind.
        ending: Of its name, in lower case.

    Raises:
        Refusal: If it is cut short, has several pages, scans or parts without end, or tags larger than the file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            if ending in (".tif", ".tiff") and _check_tags(content, path):
                raise Refusal(f"{shown_name(path)} holds several pages; save the one you mean as a file of its own.")
            if ending == ".png":
                _check_chunks(content, path)
            if ending in (".jpg", ".jpeg"):
                _check_segments(content, path)
        except struct.error:
            raise Refusal(f"{shown_name(path)} is cut short; copy or export it again.") from None
    if ending in (".jpg", ".jpeg") and occurrences(path, b"\xff\xda", _MOST_SCANS) > _MOST_SCANS:
        raise Refusal(f"{shown_name(path)} is a JPEG of more than {_MOST_SCANS} scans; save it again, or as PNG.")


def _check_tags(block: bytes | mmap.mmap, path: Path) -> int:
    """Refuse tags whose values overlap so often that they are larger than all of the block.

    Returns:
        Place of the directory that follows the first one; 0 if there is none. A second page is known by this alone:
        counting the pages of a hostile file may take hours.
    """
    order = "<" if block[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    waiting, seen, total, following = [first], {first}, 0, 0
    while waiting:
        place = waiting.pop()
        (count,) = struct.unpack_from(f"{order}H", block, place)
        for tag, kind, values, offset in struct.iter_unpack(f"{order}HHII", block[place + 2 : place + 2 + 12 * count]):
            total += values * _VALUE_BYTES.get(kind, 0)
            if tag in _POINTERS and offset not in seen:
                waiting.append(offset)
                seen.add(offset)
        if place == first:
            (following,) = struct.unpack_from(f"{order}I", block, place + 2 + 12 * count)
        if total > len(block) or len(seen) > _MOST_DIRECTORIES:
            raise Refusal(f"{shown_name(path)} has damaged metadata; save it again without metadata.")
    return following


def _check_chunks(content: mmap.mmap, path: Path) -> None:
    for kind, data in _counted(_chunks(content), path):
        if kind == b"eXIf":
            _check_exif(data, path)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(_OLD_EXIF):
            raise Refusal(f"{shown_name(path)} has metadata of an old kind; save it again without metadata.")


def _chunks(content: mmap.mmap) -> Iterator[tuple[bytes, bytes]]:
    """Type and data of each chunk of a PNG; the data of pixels are left out."""
    place = 8
    while place + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind = content[place + 4 : place + 8]
        yield kind, b"" if kind in (b"IDAT", b"fdAT") else content[place + 8 : place + 8 + length]
        place += 12 + length


def _check_segments(content: mmap.mmap, path: Path) -> None:
    exif = []
    for kind, data in _counted(_segments(content), path):
        if kind == 0xE1 and data.startswith(_EXIF):
            exif.append(data.removeprefix(_EXIF))
        elif kind == 0xE2 and data.startswith(_PREVIEWS):
            _check_exif(data.removeprefix(_PREVIEWS), path)
    # Several segments are one block to the decoder.
    _check_exif(b"".join(exif), path)


def _segments(content: mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """Marker and data of each segment of a JPEG before its first scan; 0 for what is none."""
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            yield 0, b""
            found = content.find(b"\xff", place)  # decoders look for the next marker, too
            place = found if found >= 0 else len(content)
            continue
        kind = content[place + 1]
        if kind == 0xDA:
            return
        if kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD9:
            yield 0, b""
            place += 1 if kind == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", content, place + 2)
        yield kind, content[place + 4 : place + 2 + max(length, 2)]
        place += 2 + max(length, 2)


def _check_exif(block: bytes, path: Path) -> None:
    if block.removeprefix(_EXIF):
        try:
            _check_tags(block.removeprefix(_EXIF), path)
        except struct.error:
            return  # cut short: decoders leave it out


def _counted(parts: Iterator[tuple], path: Path) -> Iterator[tuple]:
    for number, part in enumerate(parts):
        if number > _MOST_PARTS:
            raise Refusal(f"{shown_name(path)} consists of more than {_MOST_PARTS} parts; save it again.")
        yield part
