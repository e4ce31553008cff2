"""Pictures whose metadata would fill the memory, or whose parts have no end: refused before any decoder sees them."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from dim_hf.demo import intake
from dim_hf.demo.intake import check_picture, load_picture
from tests.test_demo_intake import SETTINGS, refusal

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def tags(entries, tail=bytes(20_000), order="<", base=8):
    """A directory of tags in the form of TIFF and EXIF; (tag, type, count, offset) each."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", base)
    body = struct.pack(f"{order}H", len(entries)) + b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return head + body + struct.pack(f"{order}I", 0) + tail


def bomb(order="<"):
    """Two thousand tags of which each is all of the file: 40 MB from 44 kB."""
    return tags([(40_000 + number, 7, 20_000, 8) for number in range(2000)], order=order)


def exif():
    block = PIL.Image.Exif()
    block[0x0112] = 6
    block[0x010F] = "camera"
    block.get_ifd(0x8769)[0x9286] = b"comment" * 20
    return block


def picture(path, **options):
    PIL.Image.fromarray(PIXELS).save(path, **options)
    return path


def with_segments(path, segments):
    content = picture(path).read_bytes()
    parts = [b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data for kind, data in segments]
    path.write_bytes(content[:2] + b"".join(parts) + content[2:])
    return path


def with_chunks(path, chunks):
    content = picture(path).read_bytes()
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(content[:33] + b"".join(parts) + content[33:])
    return path


@pytest.fixture
def no_decoder(monkeypatch):
    """The structure is refused before the file is opened as a picture."""
    monkeypatch.setattr(intake, "open_picture", None)


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {}), ("a.png", {}), ("a.tif", {"compression": "tiff_lzw"})])
def test_ordinary_metadata_pass_and_turn_the_picture(tmp_path, name, options):
    path = picture(tmp_path / name, exif=exif(), **options)
    assert load_picture(path, SETTINGS).shape == (50, 40, 3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_of_a_tiff_that_are_larger_than_the_file(tmp_path, no_decoder, order):
    (tmp_path / "bomb.tif").write_bytes(bomb(order))
    assert "damaged metadata" in refusal(check_picture, tmp_path / "bomb.tif", SETTINGS)


@pytest.mark.parametrize("pointer", [0x8769, 0x8825, 0xA005])
def test_tags_in_further_directories_count_as_well(tmp_path, no_decoder, pointer):
    first = tags([(pointer, 4, 1, 26)], b"")
    inner = tags([(40_000 + number, 7, 20_000, 8) for number in range(2000)])[8:]
    (tmp_path / "bomb.tif").write_bytes(first + inner)
    assert "damaged metadata" in refusal(check_picture, tmp_path / "bomb.tif", SETTINGS)


def test_directories_in_a_circle_end(tmp_path):
    block = tags([(0x8769, 4, 1, 8), (0x8825, 4, 1, 8)])
    path = with_segments(tmp_path / "circle.jpg", [(0xE1, b"Exif\0\0" + block)])
    assert check_picture(path, SETTINGS) == path


def test_exif_of_a_jpeg_in_one_or_several_segments(tmp_path, no_decoder):
    whole = bomb()
    path = with_segments(tmp_path / "one.jpg", [(0xE1, b"Exif\0\0" + whole)])
    assert "damaged metadata" in refusal(check_picture, path, SETTINGS)
    halves = [(0xE1, b"Exif\0\0" + part) for part in (whole[:20_000], whole[20_000:])]
    path = with_segments(tmp_path / "two.jpg", halves)
    assert "damaged metadata" in refusal(check_picture, path, SETTINGS)
    path = with_segments(tmp_path / "previews.jpg", [(0xE2, b"MPF\0" + whole)])
    assert "damaged metadata" in refusal(check_picture, path, SETTINGS)


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_exif_of_a_png(tmp_path, no_decoder, prefix):
    path = with_chunks(tmp_path / "a.png", [(b"eXIf", prefix + bomb())])
    assert "damaged metadata" in refusal(check_picture, path, SETTINGS)
    path = with_chunks(tmp_path / "b.png", [(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"exif"))])
    assert "old kind" in refusal(check_picture, path, SETTINGS)


def test_parts_without_end(tmp_path, no_decoder):
    path = with_chunks(tmp_path / "a.png", [(b"abCd", b"")] * 50_001)
    assert "more than 50000 parts" in refusal(check_picture, path, SETTINGS)
    path = with_segments(tmp_path / "a.jpg", [(0xE5, b"")] * 50_001)
    assert "more than 50000 parts" in refusal(check_picture, path, SETTINGS)
    path = picture(tmp_path / "b.jpg")
    path.write_bytes(path.read_bytes()[:2] + b"\xff\0" * 60_000 + path.read_bytes()[2:])
    assert "more than 50000 parts" in refusal(check_picture, path, SETTINGS)


def test_a_jpeg_without_a_further_marker_ends(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x02" + bytes(2**20))
    assert "is not an image" in refusal(check_picture, tmp_path / "a.jpg", SETTINGS)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_cut_exif_is_left_to_the_decoder_which_leaves_it_out(tmp_path):
    path = with_segments(tmp_path / "cut.jpg", [(0xE1, b"Exif\0\0" + tags([(0x0112, 3, 1, 6)])[:15])])
    assert check_picture(path, SETTINGS) == path


def test_a_large_picture_has_few_parts(tmp_path):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    assert check_picture(tmp_path / "large.png", SETTINGS).stat().st_size > 2**22
