import gzip
import zlib

import numpy as np
import pytest
import SimpleITK

from dim_hf.data.volumes.volume import read_header, read_volume, same_grid, write_nifti

ARRAY = np.random.default_rng(0).integers(-500, 500, (5, 4, 3)).astype(np.int16)
EXTENSIONS = ("mha", "mhd", "nrrd", "nhdr")


def picture(array=ARRAY, is_vector=False):
    """An ITK image whose GetArrayFromImage is the transposed array, with an oblique geometry."""
    made = SimpleITK.GetImageFromArray(np.moveaxis(array, -1, 0).T if is_vector else array.T, isVector=is_vector)
    if made.GetDimension() == 3:
        turn = SimpleITK.VersorTransform((0.2, -0.4, 0.6), 0.7)
        made.SetDirection(turn.GetMatrix())
        made.SetSpacing((0.5, 1.5, 3.0))
        made.SetOrigin((10.0, -20.0, 30.0))
    return made


def write(path, array=ARRAY, compressed=False, **options):
    SimpleITK.WriteImage(picture(array, **options), str(path), compressed)
    return path


def refused(path, match, read=read_volume, **options):
    with pytest.raises(ValueError, match=match) as caught:
        read(path, **options)
    assert str(caught.value).startswith(str(path))
    assert ";" in str(caught.value)


def edited(path, *changes):
    """The file with other text in its header."""
    content = path.read_bytes()
    for old, new in changes:
        assert old.encode() in content
        content = content.replace(old.encode(), new.encode(), 1)
    path.write_bytes(content)
    return path


@pytest.fixture(params=EXTENSIONS)
def path(request, tmp_path):
    return tmp_path / f"a.{request.param}"


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_values_and_geometry(path, compressed):
    volume = read_volume(write(path, compressed=compressed))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, ARRAY)
    assert volume.spacing_mm == pytest.approx((0.5, 1.5, 3.0))
    index = (4, 2, 1)
    left_posterior_superior = picture().TransformIndexToPhysicalPoint(index)
    assert np.allclose((volume.affine @ (*index, 1))[:3], np.multiply(left_posterior_superior, (-1, -1, 1)))


def test_the_same_image_as_nifti_lies_at_the_same_place(path):
    volume = read_volume(write(path))
    nifti = read_volume(write(path.with_suffix(".nii.gz")))
    assert np.array_equal(volume.array, nifti.array)
    assert same_grid(volume, nifti, 1e-3) is None
    write_nifti(volume, path.with_suffix(".nii"))
    assert same_grid(read_volume(path.with_suffix(".nii")), volume, 1e-3) is None


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_dtypes_are_kept(path, dtype):
    array = np.abs(ARRAY % 100).astype(dtype)
    write(path, array)
    assert read_volume(path).array.dtype == read_header(path).dtype == dtype
    assert np.array_equal(read_volume(path).array, array)


def test_header(path):
    header = read_header(write(path))
    assert header.shape == (5, 4, 3)
    assert same_grid(header, read_volume(path)) is None


def test_upper_case_and_blanks_in_names(tmp_path):
    (tmp_path / "a folder").mkdir()
    path = write(tmp_path / "a folder" / "Case 1.mhd")
    path.rename(path.with_suffix(".MHD"))
    assert np.array_equal(read_volume(path.with_suffix(".MHD")).array, ARRAY)


def test_a_2d_image_is_one_slice(path):
    volume = read_volume(write(path, ARRAY[..., 0]))
    assert np.array_equal(volume.array, ARRAY[..., :1])


@pytest.mark.parametrize("is_vector", [True, False])
def test_channels(path, is_vector):
    array = np.stack([ARRAY, ARRAY + 1], -1)
    write(path, array, is_vector=is_vector)
    assert read_header(path).shape == (5, 4, 3, 2)
    refused(path, r"has the shape \(5, 4, 3, 2\): 2 channels or time points; choose one of them")
    for channel in (0, 1):
        assert np.array_equal(read_volume(path, channel=channel).array, array[..., channel])
    refused(path, r"choose one of 0\.\.1", channel=2)


def test_a_fourth_axis_of_one(path):
    volume = read_volume(write(path, ARRAY[..., None]))
    assert np.array_equal(volume.array, ARRAY)


def test_complex_numbers_are_refused(path):
    refused(write(path, ARRAY.astype(np.complex64)), "complex|damaged header")


def test_limit_on_voxels(path):
    write(path)
    assert read_volume(path, max_voxels=60).array.size == 60
    refused(path, r"is too large \(5 x 4 x 3, the limit is 59 pixels\)", max_voxels=59)


SIZES = {"mh": ("DimSize = 5 4 3", "DimSize = 50000 40000 30000"), "nr": ("sizes: 5 4 3", "sizes: 50000 40000 30000")}
SIZES |= {"nh": SIZES["nr"]}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("read", [read_header, read_volume])
def test_a_promise_of_terabytes_is_refused_by_the_header(path, compressed, read):
    edited(write(path, compressed=compressed), SIZES[path.suffix[1:3]])
    refused(path, "is cut short: its header promises 50000 x 40000 x 30000 voxels in 120000000000000 bytes", read=read)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_data(path, compressed):
    write(path, compressed=compressed)
    data = next((other for other in path.parent.iterdir() if other != path), path)
    data.write_bytes(data.read_bytes()[:-30])
    refused(path, "is cut short|is damaged or cut short")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"NRRD0004\n", b"NDims = 3\n", bytes(500), b"NRRD0004\nencoding: raw\n\n"]
)
def test_what_is_no_volume(path, content):
    path.write_bytes(content)
    refused(path, r"is no MetaImage|is no NRRD file|has a damaged header|has an encoding")


OUTSIDE = [
    "/etc/hostname",
    "../outside.raw",
    "sub/../../outside.raw",
    "C:\\x.raw",
    "..\\outside.raw",
    "\\\\host\\x.raw",
    "~/../x",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("read", [read_header, read_volume])
def test_data_files_outside_the_folder_are_refused(tmp_path, name, read):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / "outside.raw").write_bytes(bytes(120))
    meta = edited(write(tmp_path / "sub" / "a.mhd"), ("ElementDataFile = a.raw", f"ElementDataFile = {name}"))
    nrrd = edited(write(tmp_path / "sub" / "b.nhdr"), ("data file: b.raw", f"data file: {name}"))
    for path in (meta, nrrd):
        refused(path, "outside its folder; put both into one folder and correct the name", read=read)


@pytest.mark.parametrize(
    "spelling", ["elementdatafile = ", "ElementDataFile: ", "ELEMENTDATAFILE=", "  ElementDataFile  =  "]
)
def test_other_spellings_do_not_lead_outside(tmp_path, spelling):
    path = edited(write(tmp_path / "a.mhd"), ("ElementDataFile = a.raw", f"{spelling}../x.raw"))
    refused(path, "outside its folder")


def test_a_second_name_does_not_lead_outside(tmp_path):
    path = edited(
        write(tmp_path / "a.mhd"), ("ElementDataFile = a.raw", "ElementDataFile = a.raw\nElementDataFile = ../x")
    )
    refused(path, "more than once; write its header again")
    path = edited(write(tmp_path / "b.nhdr"), ("data file: b.raw", "data file: b.raw\ndatafile: ../x"))
    refused(path, "outside its folder")


@pytest.mark.parametrize("extension", ["mha", "nrrd"])
def test_one_file_formats_may_not_lead_outside_either(tmp_path, extension):
    detached = write(tmp_path / {"mha": "a.mhd", "nrrd": "a.nhdr"}[extension])
    path = detached.rename(tmp_path / f"b.{extension}")
    assert np.array_equal(read_volume(path).array, ARRAY)
    refused(edited(path, ("a.raw", "../a.raw")), "outside its folder")


@pytest.mark.parametrize("name", ["LIST", "list", "slice%03d.raw 1 3 1", ""])
def test_lists_of_data_files_are_refused(tmp_path, name):
    meta = edited(write(tmp_path / "a.mhd"), ("ElementDataFile = a.raw", f"ElementDataFile = {name}"))
    nrrd = edited(write(tmp_path / "b.nhdr"), ("data file: b.raw", f"data file: {name}"))
    for path in (meta, nrrd):
        refused(path, r"spreads its data over several files .*save it as one \.mha or \.nii\.gz file")


def test_missing_data_file_is_named(tmp_path):
    for extension in ("mhd", "nhdr"):
        path = write(tmp_path / f"a.{extension}")
        (tmp_path / "a.raw").unlink()
        refused(path, r"names the data file 'a\.raw', which is missing; copy it into the same folder")


def test_data_files_in_a_folder_below(tmp_path):
    path = write(tmp_path / "a.mhd")
    (tmp_path / "raw").mkdir()
    (tmp_path / "a.raw").rename(tmp_path / "raw" / "a.raw")
    assert np.array_equal(read_volume(edited(path, ("= a.raw", "= raw/a.raw"))).array, ARRAY)


def test_other_encodings_are_refused(tmp_path):
    path = edited(write(tmp_path / "a.nrrd"), ("encoding: raw", "encoding: hex"))
    refused(path, "has an encoding that is not read here; save it with encoding raw or gzip")


def test_header_without_geometry(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0001\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\n\n" + ARRAY.tobytes("F")
    )
    volume = read_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.array, ARRAY)
    assert volume.spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("spacing", ["0 1 1", "nan 1 1"])
def test_impossible_spacings_are_refused(tmp_path, spacing):
    path = edited(write(tmp_path / "a.mha"), ("ElementSpacing = 0.5 1.5 3", f"ElementSpacing = {spacing}"))
    refused(path, "damaged header|affine")


def test_singular_directions_are_refused(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\n"
        b"space directions: (1,0,0) (1,0,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        b"space origin: (0,0,0)\n\n" + ARRAY.tobytes("F")
    )
    refused(tmp_path / "a.nrrd", "damaged header|singular affine")


NOISE = np.random.default_rng(1).integers(0, 50, 100_000).astype(np.uint8)
HEADERS = {
    "mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nCompressedDataSize = {size}\n"
    "DimSize = {shape}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n",
    "nrrd": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: {shape}\nencoding: gzip\n\n",
}
PACKERS = {"mha": zlib.compress, "nrrd": gzip.compress}


@pytest.fixture(params=sorted(HEADERS))
def packed(request, tmp_path):
    """Writes a packed file by hand, as `packed(stream, shape)`."""

    def write_packed(change=lambda stream: stream, shape="100 100 10", size=None):
        stream = change(PACKERS[request.param](NOISE.tobytes()))
        header = HEADERS[request.param].format(shape=shape, size=len(stream) if size is None else size)
        path = tmp_path / f"a.{request.param}"
        path.write_bytes(header.encode() + stream)
        return path

    return write_packed


def test_packed_by_hand(packed):
    assert np.array_equal(read_volume(packed()).array.ravel("F"), NOISE)
    assert np.array_equal(read_volume(packed(shape="100 100 9")).array.ravel("F"), NOISE[:90_000])


def test_a_packed_stream_shorter_than_promised(packed):
    refused(packed(shape="100 100 11"), "is cut short: it holds 100000 of 110000 bytes of voxels")


@pytest.mark.parametrize("cut", [1, 4, 100, 70_000])
def test_a_packed_stream_that_is_cut(packed, cut):
    refused(packed(lambda stream: stream[:-cut]), "is damaged or cut short")


@pytest.mark.parametrize("place", [0, 30, 1000, 36_000, -3])
def test_a_packed_stream_that_is_damaged(packed, place):
    def damage(stream):
        changed = bytearray(stream)
        changed[place] ^= 0x55
        return bytes(changed)

    refused(packed(damage), "is damaged or cut short|is cut short")


def test_a_wrong_size_of_the_packed_stream(tmp_path):
    stream = zlib.compress(NOISE.tobytes())
    (tmp_path / "a.mha").write_bytes(HEADERS["mha"].format(shape="100 100 10", size=5000).encode() + stream)
    refused(tmp_path / "a.mha", r"is damaged or cut short \(the packed data end after")


def test_skips_of_packed_nrrd_are_refused(tmp_path):
    path = edited(write(tmp_path / "a.nrrd", compressed=True), ("encoding: gzip", "encoding: gzip\nbyte skip: 4"))
    refused(path, "has an encoding that is not read here")


_MHD = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
_NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", _MHD + "Comment = ElementDataFile = LOCAL\nElementDataFile = /etc/hostname\n"),
        ("a.mhd", "Comment = x\rElementDataFile = /etc/hostname\n" + _MHD + "ElementDataFile = LOCAL\n"),
        ("a.nhdr", _NRRD + "# c\rdata file: /etc/hostname\n"),
        ("a.nhdr", _NRRD + "# padding\n" * 20_000 + "data file: /etc/hostname\n"),
    ],
)
def test_a_header_cannot_smuggle_another_file(tmp_path, name, header):
    path = tmp_path / name
    path.write_bytes(header.encode() + bytes(8))
    with pytest.raises(ValueError, match=name):
        read_volume(path)
