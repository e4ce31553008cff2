import gzip
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from dim_hf.data.volumes.volume import Volume, read_header, read_volume, same_grid, write_nifti

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix() @ np.diag([-1, 2, 3])
OBLIQUE[:3, 3] = (5, -6, 7)
ARRAY = np.random.default_rng(0).integers(-500, 500, (5, 4, 3)).astype(np.int16)
# Places of fields in a NIfTI-1 header.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, XYZT, SFORM_CODE, SROW, MAGIC = 40, 70, 76, 108, 112, 123, 254, 280, 344


def write(path, array=ARRAY, affine=OBLIQUE, kind=nib.Nifti1Image, **header):
    image = kind(array, affine)
    for name, value in header.items():
        getattr(image.header, f"set_{name}")(*value)
    nib.save(image, path)
    return path


def patched(path, place, form, *values):
    """The file with other values at a place of its header."""
    packed = path.name.endswith(".gz")
    content = bytearray((gzip.decompress if packed else bytes)(path.read_bytes()))
    struct.pack_into(form, content, place, *values)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def refused(path, match, read=read_volume, **options):
    with pytest.raises(ValueError, match=match) as caught:
        read(path, **options)
    assert str(caught.value).startswith(str(path))
    assert ";" in str(caught.value)


@pytest.fixture(params=["a.nii", "a.nii.gz"])
def path(request, tmp_path):
    return tmp_path / request.param


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", ">f4", "f8", "u4"])
def test_reads_what_nibabel_reads(path, kind, dtype):
    write(path, ARRAY.astype(dtype), kind=kind)
    volume = read_volume(path)
    image = nib.load(path)
    assert volume.array.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(volume.array, np.asanyarray(image.dataobj))
    assert np.array_equal(volume.affine, image.affine)
    volume.array[0, 0, 0] = 1


def test_big_endian_header(path):
    image = nib.Nifti1Image(ARRAY, OBLIQUE, nib.Nifti1Header(endianness=">"))
    nib.save(image, path)
    assert np.array_equal(read_volume(path).array, ARRAY)
    assert same_grid(read_volume(path), Volume(ARRAY, OBLIQUE)) is None


def test_header_states_what_volume_has(path):
    header = read_header(write(path))
    assert (header.shape, header.dtype) == ((5, 4, 3), np.int16)
    assert same_grid(header, read_volume(path)) is None


def test_slope_and_intercept_are_applied(path):
    write(path)
    patched(path, SLOPE, "<ff", 0.5, 10.0)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, ARRAY * 0.5 + 10)
    assert np.allclose(volume.array, nib.load(path).get_fdata())
    assert read_header(path).dtype == np.int16


@pytest.mark.parametrize("slope", [(1.0, 0.0), (0.0, 5.0), (np.nan, np.nan)])
def test_slopes_without_meaning_keep_integers(path, slope):
    write(path)
    patched(path, SLOPE, "<ff", *slope)
    assert read_volume(path).array.dtype == np.int16
    assert np.array_equal(read_volume(path).array, ARRAY)


def test_infinite_intercept_is_refused(path):
    write(path)
    patched(path, SLOPE, "<ff", 0.5, np.inf)
    refused(path, "has a damaged slope or intercept")


def test_not_a_number_is_kept(path):
    array = ARRAY.astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    write(path, array)
    assert np.array_equal(read_volume(path).array, array, equal_nan=True)


@pytest.mark.parametrize(
    ("shape", "read"), [((5, 4, 3, 1), (5, 4, 3)), ((5, 4), (5, 4, 1)), ((5, 4, 3, 1, 1), (5, 4, 3))]
)
def test_axes_of_length_one(path, shape, read):
    write(path, np.zeros(shape, np.uint8))
    assert read_volume(path).array.shape == read_header(path).shape == read


def test_channels(path):
    array = np.stack([ARRAY, ARRAY + 1], -1)
    write(path, array)
    assert read_header(path).shape == (5, 4, 3, 2)
    refused(path, r"has the shape \(5, 4, 3, 2\): 2 channels or time points; choose one of them")
    for channel in (0, 1):
        assert np.array_equal(read_volume(path, channel=channel).array, array[..., channel])
    refused(path, r"has no channel 2 .* choose one of 0\.\.1", channel=2)
    refused(path, r"has no channel -1", channel=-1)
    write(path, np.zeros((5, 4, 3, 1, 2), np.uint8))
    assert read_volume(path, channel=1).array.shape == (5, 4, 3)


@pytest.mark.parametrize("shape", [(5,), (5, 4, 3, 2, 2)])
def test_other_numbers_of_axes(path, shape):
    refused(write(path, np.zeros(shape, np.uint8)), r"has the shape .* convert it to a volume of 3 axes")


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_what_is_no_real_number(path, dtype):
    write(path, np.zeros((5, 4, 3), dtype))
    refused(path, "has values of type .* convert it to one real number a voxel")
    refused(path, "has values of type", read=read_header)


def test_floats_of_128_bits_are_refused(path):
    patched(write(path), DATATYPE, "<hh", 1536, 128)
    refused(path, "has values of type|has a damaged NIfTI header|is cut short")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_wrong_one_of_the_two_names(tmp_path, name):
    other = write(tmp_path / ("b.nii" if name.endswith("gz") else "b.nii.gz"))
    other.rename(tmp_path / name)
    assert np.array_equal(read_volume(tmp_path / name).array, ARRAY)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)])
def test_units(path, unit, factor):
    write(path, xyzt_units=(unit,))
    assert read_volume(path).spacing_mm == pytest.approx((factor, 2 * factor, 3 * factor))


def test_qform_where_there_is_no_sform(path):
    write(path, sform=(None, 0), qform=(OBLIQUE, 1))
    assert same_grid(read_volume(path), Volume(ARRAY, OBLIQUE), 1e-4) is None


@pytest.mark.parametrize("row", [(0, 0, 0, 1), (np.nan, 0, 0, 1), (np.inf, 0, 0, 1)])
def test_singular_or_infinite_sform(path, row):
    patched(write(path), SROW, "<ffff", *row)
    refused(path, "has (no valid|a singular) affine")
    refused(path, "has (no valid|a singular) affine", read=read_header)


@pytest.mark.parametrize("spacing", [0.0, np.nan, np.inf])
def test_zero_spacing_is_refused_and_not_mended(path, spacing):
    patched(patched(write(path), SFORM_CODE, "<h", 0), PIXDIM + 4, "<f", spacing)
    refused(path, r"has the spacing \[.*\] mm; set its spacing again")


@pytest.mark.parametrize(
    "dims", [(3, 20_000, 20_000, 20_000), (7, *[32_767] * 7), (4, 32_767, 32_767, 32_767, 32_767)]
)
def test_a_promise_of_terabytes_is_refused_by_the_header(path, dims):
    patched(write(path), DIM, f"<{len(dims)}h", *dims)
    tracemalloc.start()
    for read in (read_volume, read_header):
        refused(path, r"(is cut short: its header promises|has the shape)", read=read)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_promise_that_packing_could_hold_takes_the_memory_of_what_is_there(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 1000))
    header.set_data_dtype(np.uint8)
    noise = np.random.default_rng(0).bytes(2**20)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4) + noise, 1))
    tracemalloc.start()
    refused(tmp_path / "a.nii.gz", f"is cut short: it holds {2**20} of 1000000000 bytes of voxels")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_bomb_behind_the_voxels_is_not_unpacked(tmp_path):
    write(tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content + bytes(2**27), 1))
    tracemalloc.start()
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, ARRAY)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_voxels_from_a_far_byte_are_refused(path):
    patched(write(path), VOX_OFFSET, "<f", 1e12)
    refused(path, "has a damaged NIfTI header")
    patched(path, VOX_OFFSET, "<f", np.nan)
    refused(path, "has a damaged NIfTI header")
    patched(path, VOX_OFFSET, "<f", 16)
    refused(path, "has a damaged NIfTI header")


def test_limit_on_voxels(path):
    write(path)
    assert read_volume(path, max_voxels=60).array.size == 60
    refused(path, r"is too large \(5 x 4 x 3, the limit is 59 pixels\)", max_voxels=59)


@pytest.mark.parametrize("dims", [(3, 0, 4, 3), (3, -5, 4, 3)])
def test_extents_below_one(path, dims):
    patched(write(path), DIM, "<4h", *dims)
    refused(path, "has no pixels|damaged NIfTI header")


@pytest.mark.parametrize("kept", [0, 1, 100, 347, 352, 400, 460])
def test_truncated_nii(tmp_path, kept):
    path = write(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "is no NIfTI file; copy|is cut short")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.99])
def test_truncated_gz(tmp_path, share):
    path = write(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "is no NIfTI file|is damaged or cut short|is cut short")


def test_damaged_gz(tmp_path):
    path = write(tmp_path / "a.nii.gz")
    content = path.read_bytes()
    for place in [*range(2, 10), *range(10, len(content), 3)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        # The bytes of time and system in the gzip header mean nothing.
        if place not in (4, 5, 6, 7, 8, 9):
            refused(path, "damaged|cut short|is no NIfTI file|affine|spacing|type|shape|no pixels|too large")


def test_every_damaged_byte_of_a_header_gives_a_volume_or_a_named_error(tmp_path):
    path = write(tmp_path / "a.nii")
    content = path.read_bytes()
    for place in range(352):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            outcome = f"{path} gives {read_volume(path).array.ndim} axes"
        except ValueError as error:
            outcome = str(error)
        assert outcome.startswith(str(path)), place


@pytest.mark.parametrize(
    "content", [b"", b"hello", bytes(1000), b"\x1f\x8b", gzip.compress(b"hello", mtime=0), gzip.compress(b"", mtime=0)]
)
def test_what_is_no_nifti(path, content):
    path.write_bytes(content)
    refused(path, "is no NIfTI file; copy the file again|is damaged or cut short")


def test_half_a_pair_is_refused(path):
    patched(write(path), MAGIC, "4s", b"ni1\0")
    refused(path, r"is no NIfTI file in one piece \(magic b'ni1'\); save it as \.nii\.gz")


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (bool, np.uint8),
        (np.uint8, np.uint8),
        (np.int8, np.int8),
        (np.int16, np.int16),
        (np.uint16, np.uint16),
        (np.int32, np.int32),
        (np.int64, np.int32),
        (np.uint32, np.int32),
        (np.uint64, np.int32),
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float32),
        (">i2", np.int16),
    ],
)
def test_writing_and_reading(path, given, stored):
    volume = Volume((np.arange(60).reshape(5, 4, 3) % 2).astype(given), OBLIQUE)
    write_nifti(volume, path)
    back = read_volume(path)
    assert back.array.dtype == stored
    assert np.array_equal(back.array, volume.array)
    assert same_grid(back, volume, 1e-4) is None


def test_written_files_state_their_geometry_twice_and_in_mm(path):
    write_nifti(Volume(ARRAY, OBLIQUE), path)
    header = nib.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert np.allclose(header.get_qform(), OBLIQUE, atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"
    image = SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, ARRAY)
    assert np.allclose(image.GetOrigin(), OBLIQUE[:3, 3] * (-1, -1, 1), atol=1e-4)


def test_a_shear_is_kept_and_has_no_qform(path):
    sheared = OBLIQUE.copy()
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    write_nifti(Volume(ARRAY, sheared), path)
    assert same_grid(read_volume(path), Volume(ARRAY, sheared), 1e-4) is None
    assert int(nib.load(path).header["qform_code"]) == 0


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    contents = []
    for name in ("a.nii.gz", "other.nii.gz"):
        write_nifti(Volume(ARRAY, OBLIQUE), tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_integers_that_do_not_fit_are_refused(path):
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match="do not fit 32 bits; reduce them first"):
            write_nifti(Volume(np.full((1, 1, 1), value, np.int64), OBLIQUE), path)


def test_another_name_or_a_longer_axis_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match=r"a\.mha must end with \.nii or \.nii\.gz"):
        write_nifti(Volume(ARRAY, OBLIQUE), tmp_path / "a.mha")
    with pytest.raises(ValueError, match="at most 32767 voxels along an axis"):
        write_nifti(Volume(np.zeros((40_000, 1, 1), np.uint8), np.eye(4)), path)
