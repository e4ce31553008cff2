import locale
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from dim_hf.data.volumes.locales import kept_locale
from dim_hf.data.volumes.volume import Volume, find_dicom_series, read_dicom_series, same_grid

UID = "1.2.826.0.1.3680043.2.1125."
ARRAY = np.random.default_rng(0).integers(0, 500, (6, 5, 4)).astype(np.int16)
TURN = Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()
SPACING = (0.5, 1.5, 3.0)
SIXTEEN_BITS = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
ORIGIN = np.array([10.0, -20.0, 30.0])


def numbers(values):
    return "\\".join(f"{value:.10g}" for value in values)


def write_slice(path, pixels, number, *, series=UID + "1.1", place=None, turn=TURN, spacing=SPACING, tags=()):
    """One slice; pixels (X, Y) or (X, Y, 3)."""
    place = ORIGIN + turn[:, 2] * spacing[2] * number if place is None else place
    made = SimpleITK.GetImageFromArray(np.swapaxes(pixels, 0, 1), isVector=pixels.ndim == 3)
    made.SetSpacing(spacing[:2])
    known = {
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
        "0008|0018": f"{series}.{number + 1}",
        "0008|0060": "CT",
        "0018|0050": f"{spacing[2]:g}",
        "0020|000d": UID + "1",
        "0020|000e": series,
        "0020|0013": str(number),
        "0020|0032": numbers(place),
        "0020|0037": numbers([*turn[:, 0], *turn[:, 1]]),
    }
    for tag, value in {**known, **dict(tags)}.items():
        made.SetMetaData(tag, value)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with kept_locale():
        writer.Execute(made)
    return path


def write_series(folder, array=ARRAY, skip=(), **options):
    """Slices in files whose names are not in the order of the slices."""
    count = array.shape[2]
    numbered = [
        (number, folder / f"{(number * 7 + 3) % 101:03d}.dcm") for number in range(count) if number not in skip
    ]
    return [write_slice(path, array[:, :, number], number, **options) for number, path in numbered]


def truth(array=ARRAY):
    affine = np.eye(4)
    affine[:3, :3] = TURN * SPACING
    affine[:3, 3] = ORIGIN
    return Volume(array, np.diag([-1, -1, 1, 1]) @ affine)


def refused(files, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        read_dicom_series(files, **options)
    assert any(str(path) in str(caught.value) for path in files)
    assert ";" in str(caught.value)


def test_a_series_lies_where_its_tags_say(tmp_path):
    files = write_series(tmp_path)
    for order in (files, files[::-1], sorted(files)):
        volume = read_dicom_series([str(path) for path in order])
        assert np.array_equal(volume.array, ARRAY)
        assert same_grid(volume, truth(), 1e-4) is None


def test_agrees_with_itk(tmp_path):
    write_series(tmp_path)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = read_dicom_series(next(iter(find_dicom_series(tmp_path).values())))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, volume.array)
    place = np.multiply(image.TransformIndexToPhysicalPoint((5, 4, 3)), (-1, -1, 1))
    assert np.allclose(volume.affine @ (5, 4, 3, 1), (*place, 1), atol=1e-3)


def test_finds_every_series_of_a_tree_in_slice_order(tmp_path):
    first = write_series(tmp_path / "b" / "deep", series=UID + "1.1")
    second = write_series(tmp_path / "a", series=UID + "1.2")
    (tmp_path / "a" / "readme.txt").write_text("no image")
    (tmp_path / "a" / ".hidden.dcm").write_text("no image")
    found = find_dicom_series(tmp_path)
    assert found == {UID + "1.1": first, UID + "1.2": second}
    assert list(found) == sorted(found)


def test_two_series_in_one_folder_and_one_in_two(tmp_path):
    for number in range(4):
        write_slice(tmp_path / "x" / f"{9 - number}.dcm", ARRAY[:, :, number], number, series=UID + "1.1")
        write_slice(
            tmp_path / ("x" if number % 2 else "y") / f"s{number}.dcm", ARRAY[:, :, number], number, series=UID + "1.2"
        )
    found = find_dicom_series(tmp_path)
    assert [path.name for path in found[UID + "1.1"]] == ["9.dcm", "8.dcm", "7.dcm", "6.dcm"]
    assert [path.name for path in found[UID + "1.2"]] == ["s0.dcm", "s1.dcm", "s2.dcm", "s3.dcm"]
    for files in found.values():
        assert np.array_equal(read_dicom_series(files).array, ARRAY)
    refused([*found[UID + "1.1"], found[UID + "1.2"][0]], "has the series .* give the slices of one series")


def test_a_folder_without_series(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert find_dicom_series(tmp_path) == {}
    with pytest.raises(ValueError, match="is not a folder"):
        find_dicom_series(tmp_path / "a.txt")


def test_rescaling(tmp_path):
    files = write_series(tmp_path, ARRAY - 1024, tags={"0028|1052": "-1024", "0028|1053": "1", **SIXTEEN_BITS})
    volume = read_dicom_series(files)
    assert volume.array.dtype.kind == "i"
    assert np.array_equal(volume.array, ARRAY - 1024)


def test_slices_of_different_slopes(tmp_path):
    slopes = (1, 0.25, 2, 0.5)
    files = [
        write_slice(
            tmp_path / f"{number}.dcm",
            (ARRAY[:, :, number] * slope).astype(np.float64),
            number,
            tags={"0028|1052": "0", "0028|1053": str(slope), **SIXTEEN_BITS},
        )
        for number, slope in enumerate(slopes)
    ]
    volume = read_dicom_series(files)
    assert volume.array.dtype.kind == "f"
    assert np.allclose(volume.array, ARRAY * slopes)


@pytest.mark.parametrize("skip", [(1,), (2,)])
def test_a_missing_slice_is_refused(tmp_path, skip):
    files = write_series(tmp_path, np.repeat(ARRAY, 2, axis=2), skip=skip)
    refused(files, "are 6 mm apart, but the others 3 mm; slices are missing or unevenly spaced")


def test_uneven_slices_are_refused_and_rounding_is_not(tmp_path):
    normal = TURN[:, 2]
    for offset, match in ((0.3, "are 3.3 mm apart, but the others 3 mm"), (0.02, None)):
        files = write_series(tmp_path / str(offset))
        write_slice(files[3], ARRAY[:, :, 3], 3, place=ORIGIN + normal * (9 + offset))
        if match:
            refused(files, match)
        else:
            assert read_dicom_series(files).spacing_mm[2] == pytest.approx(3 + offset / 3)


def test_two_time_points_are_refused(tmp_path):
    files = [*write_series(tmp_path), write_slice(tmp_path / "again.dcm", ARRAY[:, :, 1], 1)]
    refused(files, "lie at the same place; give the slices of one time point")


def test_a_tilted_gantry_is_refused(tmp_path):
    shear = TURN[:, 2] * 3 + TURN[:, 1]
    files = [
        write_slice(tmp_path / f"{number}.dcm", ARRAY[:, :, number], number, place=ORIGIN + shear * number)
        for number in range(4)
    ]
    refused(files, r"lies 1 mm beside the line of the others \(a tilted gantry\?\); resample the series")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pixels": ARRAY[:5, :, 3]}, r"has the size \(5, 5\), but .* has \(6, 5\)"),
        ({"spacing": (0.6, 1.5, 3.0), "place": ORIGIN + TURN[:, 2] * 9}, "has the pixel spacing"),
        ({"turn": np.eye(3), "place": ORIGIN + TURN[:, 2] * 9}, "has the direction"),
    ],
)
def test_slices_that_differ_are_refused(tmp_path, change, match):
    files = write_series(tmp_path)
    options = dict(change)
    write_slice(files[3], options.pop("pixels", ARRAY[:, :, 3]), 3, **options)
    refused(files, match)


def test_color_is_refused(tmp_path):
    path = write_slice(tmp_path / "a.dcm", np.zeros((4, 4, 3), np.uint8), 0)
    refused([path], "is a color image; choose a series of grey slices")


def test_several_frames_are_refused(tmp_path):
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.Execute(SimpleITK.GetImageFromArray(ARRAY.T.astype(np.uint16)))
    refused([tmp_path / "a.dcm"], "holds several frames; convert it to NIfTI first")


def test_a_single_slice(tmp_path):
    path = write_slice(tmp_path / "a.dcm", ARRAY[:, :, 0], 0)
    volume = read_dicom_series([path])
    assert np.array_equal(volume.array, ARRAY[:, :, :1])
    assert volume.spacing_mm == pytest.approx(SPACING)
    for thickness, expected in (("4.5", 4.5), ("0", 1.0), ("", 1.0)):
        path = write_slice(path, ARRAY[:, :, 0], 0, tags={"0018|0050": thickness})
        assert read_dicom_series([path]).spacing_mm[2] == pytest.approx(expected)


def test_limit_on_voxels(tmp_path):
    files = write_series(tmp_path)
    assert read_dicom_series(files, max_voxels=120).array.size == 120
    refused(files, r"is too large \(6 x 5 x 4, the limit is 119 pixels\)", max_voxels=119)


def test_what_is_no_dicom(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(1000))
    refused([tmp_path / "a.dcm"], "is no DICOM image that can be read; copy it again or remove it")
    refused([tmp_path / "none.dcm"], "is missing or no file; correct the path")
    with pytest.raises(ValueError, match="at least one file"):
        read_dicom_series([])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_slices_are_refused(tmp_path, share):
    files = write_series(tmp_path)
    content = files[2].read_bytes()
    files[2].write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cannot be decoded|is no DICOM image|has no valid tag|has the") as caught:
        read_dicom_series(files)
    assert str(tmp_path) in str(caught.value)


def test_a_place_that_is_missing_is_refused(tmp_path):
    path = write_slice(tmp_path / "a.dcm", ARRAY[:, :, 0], 0)
    content = path.read_bytes()
    tag = bytes.fromhex("20003200")
    assert content.count(tag) == 1
    # Another number for the tag, which nobody knows.
    path.write_bytes(content.replace(tag, bytes.fromhex("20003300")))
    refused([path], r"has no valid tag \(0020,0032\)")
    assert find_dicom_series(tmp_path) == {UID + "1.1": [Path(path)]}


def test_the_locale_stays_as_it_is(tmp_path):
    """GDCM sets it to "C", after which Python would read text files as ASCII."""
    files = write_series(tmp_path)
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        find_dicom_series(tmp_path)
        read_dicom_series(files)
        assert locale.getencoding().upper() == "UTF-8"
    finally:
        locale.setlocale(locale.LC_ALL, before)
