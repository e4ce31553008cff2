import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import PIL.Image
import pytest

from dim_hf.data.images import EXTENSIONS, picture_facts, read_mask, read_picture, write_png

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLOR = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
DEEP = (np.arange(24, dtype=np.uint16).reshape(4, 6) * 2741) % 65521
IDS = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(path, width, height, bits, color_type, rows=b"", more=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + data + chunk(b"IEND", b""))
    return path


def saved(path, image, **options):
    image.save(path, **options)
    return path


def refuses(read, path, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        read(path, **options)
    assert str(caught.value).startswith(str(path))
    assert ";" in str(caught.value)


def outcome(read, path):
    try:
        return f"array of {read(path).shape}"
    except ValueError as error:
        return str(error)


def test_formats():
    assert EXTENSIONS == (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@pytest.mark.parametrize("extension", [".png", ".tif", ".tiff", ".bmp"])
@pytest.mark.parametrize("array", [GREY, COLOR], ids=["grey", "color"])
def test_lossless_formats_give_their_pixels(tmp_path, extension, array):
    path = saved(tmp_path / f"a{extension}", PIL.Image.fromarray(array))
    read = read_picture(path)
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)


@pytest.mark.parametrize("array", [GREY, COLOR, DEEP, GREY[:, ::-1], DEEP.T, DEEP.astype(">u2")])
def test_write_png_and_read_are_inverse(tmp_path, array):
    write_png(array, tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert read.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(read, array)
    if array.ndim == 2:
        assert np.array_equal(read_mask(tmp_path / "a.png"), array)


@pytest.mark.parametrize(
    "array",
    [
        GREY.astype(np.int64),
        GREY.astype(bool),
        GREY.astype(np.float32),
        GREY[None],
        GREY[..., None],
        GREY[:0],
        DEEP[..., None].repeat(3, -1),
    ],
    ids=["int64", "bool", "float32", "1hw", "hw1", "empty", "uint16 color"],
)
def test_write_png_refuses_what_png_would_change(tmp_path, array):
    refuses(lambda path: write_png(array, path), tmp_path / "a.png", "a PNG takes uint8 or uint16")
    assert not (tmp_path / "a.png").exists()


def test_write_png_refuses_another_name(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jpg must end with \.png"):
        write_png(GREY, tmp_path / "a.jpg")


def test_sixteen_bits_and_floats_of_tiff(tmp_path):
    for array in (DEEP, DEEP.astype(np.float32) / 7):
        read = read_picture(saved(tmp_path / "a.tif", PIL.Image.fromarray(array)))
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)
    big_endian = PIL.Image.frombytes("I;16B", (6, 4), DEEP.astype(">u2").tobytes())
    assert np.array_equal(read_picture(saved(tmp_path / "b.tif", big_endian)), DEEP)


def test_32_bit_integers(tmp_path):
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(DEEP.astype(np.int32)))
    assert read_picture(path).dtype == np.uint16
    assert np.array_equal(read_picture(path), DEEP)
    saved(path, PIL.Image.fromarray(DEEP.astype(np.int32) * 2))
    refuses(read_picture, path, "has 32-bit values 0 to .* save it with 16 bits")
    mask = read_mask(path)
    assert mask.dtype == np.int32
    assert np.array_equal(mask, DEEP.astype(np.int32) * 2)


@pytest.mark.parametrize("opaque", [True, False])
def test_alpha_is_dropped_from_pictures(tmp_path, opaque):
    alpha = np.full((4, 6, 1), 255, np.uint8) if opaque else GREY[..., None]
    rgba = saved(tmp_path / "a.png", PIL.Image.fromarray(np.concatenate([COLOR, alpha], -1)))
    grey = saved(tmp_path / "b.png", PIL.Image.fromarray(np.concatenate([GREY[..., None], alpha], -1)))
    assert np.array_equal(read_picture(rgba), COLOR)
    assert np.array_equal(read_picture(grey), GREY)


def test_one_bit(tmp_path):
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(IDS > 0))
    assert np.array_equal(read_picture(path), np.where(IDS > 0, 255, 0))
    assert np.array_equal(read_mask(path), IDS > 0)
    assert read_picture(path).dtype == read_mask(path).dtype == np.uint8


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("extension", [".png", ".bmp"])
def test_palettes_are_colors_of_pictures_and_ids_of_masks(tmp_path, bits, extension):
    ids = np.minimum(IDS, 2**bits - 1)
    image = PIL.Image.fromarray(ids)
    colors = [[9, 8, 7], [200, 0, 0], [0, 200, 0]]
    image.putpalette(np.ravel(colors).tolist())
    path = saved(tmp_path / f"a{extension}", image, **({"bits": bits} if extension == ".png" else {}))
    assert np.array_equal(read_mask(path), ids)
    assert np.array_equal(read_picture(path), np.array(colors, np.uint8)[ids])


def test_palette_with_transparency(tmp_path):
    image = PIL.Image.fromarray(IDS)
    image.putpalette([9, 8, 7, 200, 0, 0, 0, 200, 0])
    path = saved(tmp_path / "a.png", image, transparency=0)
    assert read_picture(path).shape == (4, 6, 3)
    assert np.array_equal(read_mask(path), IDS)
    assert picture_facts(path).has_alpha


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path, mode):
    smooth = np.full((8, 8, 3), (100, 100, 100), np.uint8)
    path = saved(tmp_path / "a.jpg", PIL.Image.fromarray(smooth).convert(mode), quality=95)
    read = read_picture(path)
    assert read.shape == ((8, 8) if mode == "L" else (8, 8, 3))
    assert np.abs(read.astype(int) - 100).max() <= 2
    assert picture_facts(path) == type(picture_facts(path))((8, 8), mode, False, 8, "JPEG")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", [".png", ".jpg", ".tif"])
def test_exif_orientation_is_followed_as_datasets_does(tmp_path, orientation, extension):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": "tiff_lzw"} if extension == ".tif" else {}
    path = saved(tmp_path / f"a{extension}", PIL.Image.fromarray(GREY), exif=exif, **options)
    expected = np.asarray(datasets.Image().decode_example({"path": str(path), "bytes": None}))
    assert expected.shape == ((4, 6) if orientation < 5 else (6, 4))
    assert np.array_equal(read_picture(path), expected)
    assert np.array_equal(read_mask(path), expected)
    # PIL states the size of a TIFF as it will be after the turn.
    assert picture_facts(path).size == ((4, 6) if extension == ".tif" and orientation > 4 else (6, 4))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_uncompressed_tiff_is_turned_rightly_or_refused(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(GREY), exif=exif)
    if orientation < 5:
        turned = {1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1]}[orientation]
        assert np.array_equal(read_picture(path), turned)
    else:
        refuses(read_picture, path, rf"TIFF of orientation {orientation}, .* save it upright, or as PNG")
        refuses(read_mask, path, "which Pillow decodes wrongly")


def test_exif_orientation_of_a_palette_and_of_16_bits(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    palette = PIL.Image.fromarray(IDS)
    palette.putpalette([9, 8, 7, 200, 0, 0, 0, 200, 0])
    assert np.array_equal(read_mask(saved(tmp_path / "a.png", palette, exif=exif)), np.rot90(IDS, -1))
    assert np.array_equal(
        read_picture(saved(tmp_path / "b.png", PIL.Image.fromarray(DEEP), exif=exif)), np.rot90(DEEP, -1)
    )


def test_masks_of_equal_channels(tmp_path):
    for channels in (3, 4):
        array = np.repeat(IDS[..., None], channels, -1)
        array[..., 3:] = 255
        assert np.array_equal(read_mask(saved(tmp_path / "a.png", PIL.Image.fromarray(array))), IDS)
    grey_alpha = np.stack([IDS, np.full_like(IDS, 7)], -1)
    assert np.array_equal(read_mask(saved(tmp_path / "b.png", PIL.Image.fromarray(grey_alpha))), IDS)


def test_masks_in_color_are_refused_with_a_pixel(tmp_path):
    array = np.repeat(IDS[..., None], 3, -1)
    array[2, 5] = (10, 20, 30)
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(array))
    refuses(read_mask, path, r"is a mask in color \(\[10, 20, 30\] at row 2, column 5\); save it as grey PNG")


def test_masks_with_varying_alpha_are_refused(tmp_path):
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(np.stack([IDS, GREY], -1)))
    refuses(read_mask, path, r"transparency that varies \(0 to 230\)")


def test_masks_of_floats(tmp_path):
    path = saved(tmp_path / "a.tif", PIL.Image.fromarray(IDS.astype(np.float32)))
    assert np.array_equal(read_mask(path), IDS)
    assert read_mask(path).dtype == np.int32
    for value in (0.5, np.nan, np.inf, 1e20):
        array = IDS.astype(np.float32)
        array[1, 1] = value
        refuses(read_mask, saved(path, PIL.Image.fromarray(array)), "save integer class ids")


def test_masks_of_16_bit_color_or_cmyk_are_refused(tmp_path):
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, -1).astype(">u2").tobytes() for row in DEEP)
    path = raw_png(tmp_path / "a.png", 6, 4, 16, 2, rows)
    refuses(read_mask, path, "of 16 bits in mode RGB, of which only 8 can be decoded")
    assert np.array_equal(read_picture(path), np.repeat((DEEP >> 8)[..., None], 3, -1))
    refuses(read_mask, saved(tmp_path / "a.jpg", PIL.Image.new("CMYK", (4, 4))), "PIL mode 'CMYK'")


def test_other_modes_are_refused(tmp_path):
    refuses(read_picture, saved(tmp_path / "a.tif", PIL.Image.new("LAB", (4, 4))), "has PIL mode 'LAB'")


def test_facts(tmp_path):
    cases = {
        "L": (PIL.Image.fromarray(GREY), False, 8),
        "I;16": (PIL.Image.fromarray(DEEP), False, 16),
        "1": (PIL.Image.fromarray(IDS > 0), False, 1),
        "RGBA": (PIL.Image.new("RGBA", (6, 4)), True, 8),
        "LA": (PIL.Image.new("LA", (6, 4)), True, 8),
    }
    for mode, (image, has_alpha, bits) in cases.items():
        facts = picture_facts(saved(tmp_path / "a.png", image))
        assert (facts.size, facts.mode, facts.has_alpha, facts.bits, facts.format) == (
            (6, 4),
            mode,
            has_alpha,
            bits,
            "PNG",
        )
    facts = picture_facts(saved(tmp_path / "a.tif", PIL.Image.fromarray(DEEP)))
    assert (facts.mode, facts.bits, facts.format) == ("I;16", 16, "TIFF")


@pytest.mark.parametrize(("color_type", "mode"), [(2, "RGB"), (6, "RGBA"), (4, "LA")])
def test_facts_tell_16_bits_that_decoding_drops(tmp_path, color_type, mode):
    facts = picture_facts(raw_png(tmp_path / "a.png", 6, 4, 16, color_type))
    assert facts.bits == 16
    assert facts.has_alpha == (mode != "RGB")


def test_facts_read_no_pixel(tmp_path):
    facts = picture_facts(raw_png(tmp_path / "a.png", 9000, 9000, 8, 0))
    assert facts.size == (9000, 9000)


@pytest.mark.parametrize("read", [read_picture, read_mask])
class TestRefused:
    def test_bomb_by_the_header(self, tmp_path, read):
        refuses(read, raw_png(tmp_path / "a.png", 60_000, 60_000, 8, 0), "is too large")

    def test_limit(self, tmp_path, read):
        path = saved(tmp_path / "a.png", PIL.Image.fromarray(GREY))
        assert read(path, max_pixels=24).shape == (4, 6)
        refuses(read, path, r"is too large \(6 x 4, the limit is 23 pixels\)", max_pixels=23)

    def test_pil_limits_are_left_alone(self, tmp_path, read):
        before = PIL.Image.MAX_IMAGE_PIXELS
        read(saved(tmp_path / "a.png", PIL.Image.fromarray(GREY)))
        assert before == PIL.Image.MAX_IMAGE_PIXELS

    @pytest.mark.parametrize("extension", [".png", ".jpg", ".tif", ".bmp"])
    def test_truncated(self, tmp_path, read, extension):
        noise = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
        path = saved(tmp_path / f"a{extension}", PIL.Image.fromarray(noise))
        content = path.read_bytes()
        for kept in (len(content) // 2, len(content) - 200, 30, 8, 3):
            path.write_bytes(content[:kept])
            refuses(read, path, r"cannot be decoded|is not an image")

    @pytest.mark.parametrize("content", [b"", b"hello", b"GIF89a" + bytes(50), b"\0" * 1000, b"%!PS-Adobe-3.0 EPSF"])
    def test_what_is_no_image(self, tmp_path, read, content):
        (tmp_path / "a.png").write_bytes(content)
        refuses(read, tmp_path / "a.png", "is not an image of the formats PNG, JPEG, TIFF, BMP; copy the file again")

    def test_animated_gif_under_another_name(self, tmp_path, read):
        frames = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        (tmp_path / "a.gif").rename(tmp_path / "a.png")
        refuses(read, tmp_path / "a.png", "is not an image")

    @pytest.mark.parametrize("extension", [".tif", ".png"])
    def test_several_pages(self, tmp_path, read, extension):
        pages = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]
        pages[0].save(tmp_path / f"a{extension}", save_all=True, append_images=pages[1:])
        refuses(read, tmp_path / f"a{extension}", "holds 2 pages or frames; save each as a file of its own")

    def test_missing_file_and_folder(self, tmp_path, read):
        refuses(read, tmp_path / "none.png", "is missing or no file; correct the path")
        refuses(read, tmp_path, "is missing or no file")

    def test_every_damaged_byte_gives_an_array_or_a_named_error(self, tmp_path, read):
        path = saved(tmp_path / "a.png", PIL.Image.fromarray(GREY))
        content = path.read_bytes()
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
            assert outcome(read, path).startswith(("array", str(path)))


def test_frames_of_a_camera_jpeg_are_previews(tmp_path):
    image = PIL.Image.fromarray(np.full((8, 8), 50, np.uint8))
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image])
    assert picture_facts(tmp_path / "a.jpg").format == "MPO"
    assert read_picture(tmp_path / "a.jpg").shape == (8, 8)


def test_reading_in_threads(tmp_path):
    for number in range(8):
        write_png(GREY + number, tmp_path / f"{number}.png")
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda number: read_picture(tmp_path / f"{number % 8}.png"), range(64)))
    assert all(np.array_equal(array, GREY + number % 8) for number, array in enumerate(arrays))
