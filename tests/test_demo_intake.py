"""Uploads meant to harm, and honest ones: the former are refused before they are decoded, with a sentence."""

import gzip
import struct
import zlib
from dataclasses import replace

import nibabel
import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import SimpleITK

from dim_hf.data import images
from dim_hf.data.volumes import itk, nifti
from dim_hf.demo import file_kinds, intake
from dim_hf.demo.intake import check_picture, check_volume, load_picture, load_volume
from dim_hf.demo.refusals import Refusal, error_panel
from dim_hf.demo.settings import DemoSettings

SETTINGS = DemoSettings()
SHAPE = (12, 10, 9)
ARRAY = np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16)
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])


@pytest.fixture
def no_decoding(monkeypatch):
    """Decoders that fail the test when a file gets so far."""

    def decoded(*_, **__):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", decoded)
    monkeypatch.setattr(images, "upright", decoded)
    monkeypatch.setattr(nifti, "_voxels", decoded)
    monkeypatch.setattr(itk, "_check_stream", decoded)
    monkeypatch.setattr(SimpleITK.ImageFileReader, "Execute", decoded)


def refusal(check, *values, **named):
    """The sentence: one line with a name or finding and advice, that shows no folder of this machine."""
    with pytest.raises(Refusal) as caught:
        check(*values, **named)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert str(values[0].parent) not in text
    return text


def picture(path, size=(40, 30), mode="RGB", **options):
    PIL.Image.new(mode, size).save(path, **options)
    return path


def png_of_header(path, width, height):
    """A PNG whose header promises any size, with few bytes of pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(2**20), 9))
        + chunk(b"IEND", b"")
    )
    return path


def nifti_file(path, array=ARRAY, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def nifti_of_header(path, shape, dtype=np.int16, voxels=b"", packed=True):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["pixdim"][1:4] = 1
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    content = header.binaryblock + b"\0\0\0\0" + voxels
    path.write_bytes(gzip.compress(content, 9) if packed else content)
    return path


def few_for(shape, width=2):
    """So many bytes that a gzip file of them could stand for all voxels of the shape."""
    return np.random.default_rng(0).bytes(int(np.prod(shape)) * width // 1000)


def itk_file(path, array=ARRAY, packed=True):
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing((0.5, 0.5, 3.0))
    SimpleITK.WriteImage(image, str(path), useCompression=packed)
    return path


class TestPictures:
    @pytest.mark.parametrize("ending", [".png", ".jpg", ".JPEG", ".tif", ".tiff", ".bmp"])
    def test_honest_ones_pass_and_are_read(self, tmp_path, ending):
        path = picture(tmp_path / f"eye{ending}")
        assert check_picture(str(path), SETTINGS) == path
        assert load_picture(path, SETTINGS).shape == (30, 40, 3)

    def test_checking_decodes_nothing(self, tmp_path, no_decoding):
        check_picture(picture(tmp_path / "eye.png"), SETTINGS)
        check_picture(picture(tmp_path / "eye.jpg"), SETTINGS)

    @pytest.mark.parametrize(
        ("width", "height"), [(10**5, 10**5), (2**31 - 1, 2**31 - 1), (25_000_001, 1), (5001, 5000)]
    )
    def test_a_bomb_is_refused_by_its_header(self, tmp_path, no_decoding, width, height):
        said = refusal(check_picture, png_of_header(tmp_path / "bomb.png", width, height), SETTINGS)
        assert "bomb.png" in said
        assert "too large" in said
        assert "25 million pixels" in said

    def test_a_bomb_of_text_chunks_is_refused(self, tmp_path, no_decoding):
        packed = zlib.compress(bytes(2**26), 9)
        chunk = b"zTXt" + b"k\0\0" + packed
        whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path = png_of_header(tmp_path / "text.png", 64, 64)
        content = path.read_bytes()
        path.write_bytes(content[:33] + whole + content[33:])
        assert "text.png cannot be decoded" in refusal(check_picture, path, SETTINGS)

    def test_a_tiff_of_many_pages_is_not_walked_through(self, tmp_path, monkeypatch):
        monkeypatch.setattr(intake, "open_picture", None)
        for name, options in {"two.tif": {}, "packed.tiff": {"compression": "tiff_deflate"}}.items():
            pages = [PIL.Image.new("L", (40, 30)) for _ in range(2)]
            pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **options)
            assert "several pages" in refusal(check_picture, tmp_path / name, SETTINGS)

    @pytest.mark.parametrize(
        "content", [b"II*\0", b"MM\0*\0\0\0\x08", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"]
    )
    def test_a_cut_tiff_is_refused(self, tmp_path, content):
        (tmp_path / "cut.tif").write_bytes(content)
        assert "cut short" in refusal(check_picture, tmp_path / "cut.tif", SETTINGS)

    def test_a_jpeg_of_scans_without_end_is_refused(self, tmp_path, no_decoding):
        path = picture(tmp_path / "scans.jpg", progressive=True)
        assert check_picture(path, SETTINGS) == path
        content = path.read_bytes()
        last = content.rindex(b"\xff\xda")
        path.write_bytes(content[:last] + content[last:-2] * 200 + b"\xff\xd9")
        assert "100 scans" in refusal(check_picture, path, SETTINGS)

    @pytest.mark.parametrize("size", [(15, 40), (2000, 16), (1, 1)])
    def test_sizes_that_no_photograph_has(self, tmp_path, size):
        said = refusal(check_picture, picture(tmp_path / "odd.png", size), SETTINGS)
        assert f"{size[0]} x {size[1]} pixels" in said

    def test_cut_content_is_refused_when_read(self, tmp_path):
        path = tmp_path / "cut.png"
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        assert "cannot be decoded" in refusal(load_picture, path, SETTINGS)

    def test_nan_is_refused(self, tmp_path):
        values = np.full((32, 32), 0.5, np.float32)
        values[3, 4:6] = np.nan, np.inf
        PIL.Image.fromarray(values).save(tmp_path / "nan.tif")
        assert "2 of 1024 pixels" in refusal(load_picture, tmp_path / "nan.tif", SETTINGS)


class TestNamesAndKinds:
    @pytest.mark.parametrize(
        ("name", "content", "found"),
        [
            ("page.png", b"<!DOCTYPE html><script>alert(1)</script>", "a web page or XML file"),
            ("drawing.png", b"\xef\xbb\xbf\n<svg xmlns='http://www.w3.org/2000/svg'/>", "a web page or XML file"),
            ("text.jpg", b"=cmd|' /C calc'!A0", "of an unknown kind"),
            ("moving.png", b"GIF89a" + bytes(20), "a GIF picture"),
            ("paper.tif", b"%PDF-1.7", "a PDF file"),
            ("program.bmp", b"\x7fELF" + bytes(99), "of an unknown kind"),
            ("archive.png", b"PK\x03\x04" + bytes(99), "a zip archive"),
            ("large.tif", b"II+\0" + bytes(99), "of an unknown kind"),
        ],
    )
    def test_content_of_another_kind_is_named(self, tmp_path, no_decoding, name, content, found):
        (tmp_path / name).write_bytes(content)
        said = refusal(check_picture, tmp_path / name, SETTINGS)
        assert found in said
        assert "export it again" in said

    def test_a_wrong_ending_is_to_be_corrected(self, tmp_path, no_decoding):
        path = picture(tmp_path / "eye.png").rename(tmp_path / "eye.jpg")
        assert "rename it to .png" in refusal(check_picture, path, SETTINGS)
        path = nifti_file(tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
        assert "rename it to .nii.gz" in refusal(check_volume, path, SETTINGS)
        path = nifti_file(tmp_path / "b.nii").rename(tmp_path / "b.mha")
        assert "rename it to .nii" in refusal(check_volume, path, SETTINGS)

    @pytest.mark.parametrize("name", ["scan.gif", "scan", "scan.nii.gz.exe", ".png", "scan.mhd", "scan.dcm", "x.tar"])
    def test_other_endings_are_refused_with_those_that_are_read(self, tmp_path, name):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(99))
        for check in (check_picture, check_volume):
            if name == ".png" and check is check_picture:
                continue
            said = refusal(check, tmp_path / name, SETTINGS)
            assert "a DICOM file" in said
            assert ".zip" in said or ".bmp" in said

    def test_empty_missing_and_large_files(self, tmp_path, no_decoding):
        (tmp_path / "empty.png").touch()
        assert "is empty" in refusal(check_picture, tmp_path / "empty.png", SETTINGS)
        assert "upload the file again" in refusal(check_volume, tmp_path / "gone.nii", SETTINGS)
        assert "upload the file again" in refusal(check_volume, tmp_path, SETTINGS)
        small = replace(SETTINGS, max_file_bytes=2**20)
        path = nifti_file(tmp_path / "large.nii", np.zeros((128, 128, 64), np.int16))
        assert "large.nii has 2 MiB, the limit is 1 MiB" in refusal(check_volume, path, small)

    def test_names_are_plain_text(self, tmp_path):
        evil = '"><img src=x onerror=alert(1)>'
        path = tmp_path / f"=1+1{evil}\x1b[2J\u202e.png"
        path.write_bytes(b"none")
        said = refusal(check_picture, path, SETTINGS)
        assert "\x1b" not in said
        assert "\u202e" not in said
        shown = error_panel(said)
        assert "<img" not in shown
        assert "&lt;img" in shown

    def test_long_names_are_cut_and_keep_their_ending(self, tmp_path):
        name = file_kinds.shown_name(tmp_path / ("a" * 200 + ".nii.gz"))
        assert len(name) == 60
        assert name.endswith("aaa.nii.gz")
        assert file_kinds.shown_name(tmp_path / "scan.nii.gz") == "scan.nii.gz"


class TestVolumes:
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ", "a.mha", "a.nrrd"])
    def test_honest_ones_pass_and_are_read(self, tmp_path, name):
        path = tmp_path / name
        if ".nii" in name.lower():
            nifti_file(tmp_path / name.lower()).rename(path)
        else:
            itk_file(path)
        assert check_volume(str(path), SETTINGS) == path
        volume = load_volume(path, tmp_path / "unused", SETTINGS)
        assert np.array_equal(volume.array, ARRAY)
        assert not (tmp_path / "unused").exists()

    def test_checking_decodes_nothing(self, tmp_path, no_decoding):
        check_volume(nifti_file(tmp_path / "a.nii.gz"), SETTINGS)
        check_volume(itk_file(tmp_path / "a.mha"), SETTINGS)

    @pytest.mark.parametrize("shape", [(512, 512, 245), (2000, 2000, 20)])
    def test_a_bomb_of_gzip_is_refused_by_its_header(self, tmp_path, no_decoding, shape):
        path = nifti_of_header(tmp_path / "bomb.nii.gz", shape, voxels=few_for(shape))
        assert path.stat().st_size < 2**20
        assert "the limit is 56000000 voxels" in refusal(check_volume, path, SETTINGS)

    def test_wide_voxels_count_by_their_bytes(self, tmp_path, no_decoding):
        shape = (512, 512, 200)
        small = replace(SETTINGS, max_unpacked_bytes=2**28)
        path = nifti_of_header(tmp_path / "wide.nii.gz", shape, np.float64, few_for(shape, 8))
        assert "of float64, the limit is" in refusal(check_volume, path, small)

    def test_512_x_512_x_200_is_within_the_limits(self, tmp_path, no_decoding):
        path = nifti_of_header(tmp_path / "ct.nii.gz", (512, 512, 200), voxels=few_for((512, 512, 200)))
        assert check_volume(path, SETTINGS) == path

    def test_content_beyond_the_promise_is_not_unpacked(self, tmp_path):
        path = nifti_of_header(tmp_path / "tail.nii.gz", (16, 16, 16), voxels=bytes(2**26))
        assert load_volume(path, tmp_path / "unused", SETTINGS).array.shape == (16, 16, 16)

    def test_a_promise_that_is_not_kept(self, tmp_path, no_decoding):
        path = nifti_of_header(tmp_path / "cut.nii", (256, 256, 100), voxels=bytes(99), packed=False)
        assert "is cut short" in refusal(check_volume, path, SETTINGS)

    @pytest.mark.parametrize("kind", ["a.nii.gz", "a.mha", "a.nrrd", "a.nii"])
    @pytest.mark.parametrize("kept", [0.2, 0.9])
    def test_cut_files_are_refused(self, tmp_path, kind, kept):
        path = nifti_file(tmp_path / kind) if ".nii" in kind else itk_file(tmp_path / kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        assert kind in refusal(load_volume, path, tmp_path / "unused", SETTINGS)

    @pytest.mark.parametrize("shape", [(12, 10, 9, 3), (12, 10, 9, 1, 2), (12, 10, 1, 20)])
    def test_four_axes_are_refused(self, tmp_path, no_decoding, shape):
        path = nifti_of_header(tmp_path / "time.nii.gz", shape, voxels=bytes(int(np.prod(shape)) * 2))
        assert "axes" in refusal(check_volume, path, SETTINGS)

    def test_colors_are_refused(self, tmp_path, no_decoding):
        image = SimpleITK.GetImageFromArray(np.zeros((9, 10, 12, 3), np.uint8), isVector=True)
        SimpleITK.WriteImage(image, str(tmp_path / "color.mha"))
        assert "four axes" in refusal(check_volume, tmp_path / "color.mha", SETTINGS)

    def test_a_slice_of_two_axes_is_a_volume_of_one(self, tmp_path):
        path = nifti_of_header(tmp_path / "flat.nii.gz", (12, 10), voxels=bytes(240))
        assert load_volume(path, tmp_path / "unused", SETTINGS).array.shape == (12, 10, 1)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (7, 7, 400), (2049, 10, 10)])
    def test_sizes_that_no_scan_has(self, tmp_path, no_decoding, shape):
        path = nifti_of_header(tmp_path / "odd.nii.gz", shape, voxels=bytes(int(np.prod(shape)) * 2))
        assert "8 to 2048 voxels" in refusal(check_volume, path, SETTINGS)

    @pytest.mark.parametrize("spacing", [1e-20, 1e-4, 101, 1e30])
    def test_spacings_that_no_scanner_makes(self, tmp_path, no_decoding, spacing):
        path = nifti_file(tmp_path / "odd.nii", affine=np.diag([1, spacing, 1, 1]))
        said = refusal(check_volume, path, SETTINGS)
        assert "spacing" in said or "affine" in said

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_voxels_that_are_no_numbers_are_counted(self, tmp_path, value):
        array = ARRAY.astype(np.float64)
        array[2, 3, 4:6] = value
        path = nifti_file(tmp_path / "nan.nii.gz", array)
        said = refusal(load_volume, path, tmp_path / "unused", SETTINGS)
        assert f"2 of {ARRAY.size} voxels" in said

    def test_headers_that_name_other_files_are_refused(self, tmp_path, no_decoding):
        itk_file(tmp_path / "a.mha", packed=False)
        header, _ = (tmp_path / "a.mha").read_bytes().split(b"LOCAL\n")
        for name in (b"/etc/passwd", b"../../etc/passwd", b"a.mha", b"LIST", b"LOCAL.raw"):
            (tmp_path / "b.mha").write_bytes(header + name + b"\n" + bytes(9999))
            assert "names other files" in refusal(check_volume, tmp_path / "b.mha", SETTINGS)
        text = "NRRD0004\ntype: short\ndimension: 3\nsizes: 12 10 9\nencoding: raw\nendian: little\n{}: {}\n\n"
        for field, name in (("data file", "/etc/passwd"), ("datafile", "b.mha"), ("Data File", "../x")):
            (tmp_path / "b.nrrd").write_bytes(text.format(field, name).encode() + bytes(9999))
            assert "names other files" in refusal(check_volume, tmp_path / "b.nrrd", SETTINGS)


def read_or_refused(load, path, *values):
    """Whatever happened to a file's bytes, the visitor gets an array or a sentence."""
    try:
        return load(path, *values)
    except Refusal as error:
        return str(error)


def damage(path, generator, start, stop):
    content = bytearray(path.read_bytes())
    for place in generator.integers(start, min(len(content), stop), 8):
        content[place] = generator.integers(256)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_damaged_volumes_are_refused_or_read_and_nothing_else(tmp_path, seed, name):
    path = nifti_file(tmp_path / name) if ".nii" in name else itk_file(tmp_path / name)
    damage(path, np.random.default_rng(seed), 0, 600)
    found = read_or_refused(load_volume, path, tmp_path / "unused", SETTINGS)
    assert str(tmp_path) not in found if isinstance(found, str) else found.array.ndim == 3


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.tif", "TIFF"), ("a.bmp", "BMP")])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_pictures_are_refused_or_read_and_nothing_else(tmp_path, seed, name, kind):
    generator = np.random.default_rng(seed)
    PIL.Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name, format=kind)
    damage(tmp_path / name, generator, 0, 700)
    found = read_or_refused(load_picture, tmp_path / name, SETTINGS)
    assert str(tmp_path) not in found if isinstance(found, str) else found.ndim in (2, 3)
