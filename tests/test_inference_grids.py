"""Masks come back on the grid of the file, voxel for voxel, whatever its orientation, spacing, shape and format."""

import gzip
import json

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.importers.writer import WriteOptions
from dim_hf.data.sources import load_source
from dim_hf.data.volumes.slices import cut_slices, slice_axis, slice_dtype
from dim_hf.data.volumes.volume import Volume, canonical, read_volume, same_grid, write_nifti
from dim_hf.inference.folder_prediction import predict_folder
from dim_hf.inference.geometry import as_stored, cut_some, depth_first, place_some
from tests.inference_samples import bands, predictor, scan
from tests.test_data_volume_dicom import truth, write_series

SPACINGS = st.tuples(*[st.sampled_from([0.3, 0.5, 1.0, 2.5, 7.0])] * 3)
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
PLANES = st.sampled_from(["axial", "coronal", "sagittal", "auto"])
DTYPES = st.sampled_from([np.int16, np.uint16, np.float32, np.int32])


@st.composite
def affines(draw):
    """Any order and direction of the axes, turned by any angle or not at all, with any spacing."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    turn = draw(st.one_of(st.just((0, 0, 0)), st.tuples(*[st.floats(-180, 180)] * 3)))
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.eye(3)[:, order] * signs
    affine = np.eye(4)
    affine[:3, :3] = axes * draw(SPACINGS)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return affine


@st.composite
def volumes(draw, dtypes=DTYPES):
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Volume(scan(generator, draw(SHAPES), draw(dtypes)), draw(affines()))


@settings(max_examples=60, deadline=None)
@given(volumes(), PLANES, st.integers(1, 4))
def test_slices_cut_in_parts_are_those_of_the_whole_and_go_back_to_their_places(volume, plane, step):
    axis, dtype = slice_axis(volume, plane), slice_dtype(volume.array)
    whole = [cut.pixels for cut in cut_slices(volume, plane)]
    back = np.zeros_like(volume.array)
    for start in range(0, len(whole), step):
        parts = cut_some(volume, plane, axis, start, min(start + step, len(whole)), dtype)
        for part, expected in zip(parts, whole[start:], strict=False):
            assert np.array_equal(part, expected)
        place_some(back, [part.astype(back.dtype) for part in parts], volume.affine, axis, start)
    assert np.array_equal(back, volume.array)


@settings(max_examples=60, deadline=None)
@given(volumes())
def test_volumes_are_turned_as_in_training_and_back(volume):
    turned = depth_first(volume)
    assert np.array_equal(turned, canonical(volume).array.T)
    assert np.array_equal(as_stored(turned, volume.affine), volume.array)


@settings(max_examples=40, deadline=None)
@given(volumes(), PLANES, st.booleans())
def test_a_2d_model_gives_each_voxel_of_any_volume_its_class(volume, plane, flips):
    found = predictor(plane=plane, flips=flips, probabilities=True, uncertainty="entropy", batch_size=3)(volume)
    assert np.array_equal(found.labels, bands(volume.array))
    assert np.array_equal(found.affine, volume.affine)
    assert found.spacing_mm == volume.spacing_mm
    assert np.array_equal(found.probabilities.argmax(0), found.labels)
    # What a voxel's value says is the same everywhere, so equal voxels have equal doubt.
    for value in np.unique(volume.array):
        assert np.ptp(found.uncertainty[volume.array == value]) < 1e-4


@settings(max_examples=25, deadline=None)
@given(volumes(), st.tuples(*[st.integers(2, 6)] * 3), st.sampled_from([0, 0.25, 0.5]), st.booleans())
def test_a_3d_model_gives_each_voxel_of_any_volume_its_class(volume, window, overlap, flips):
    found = predictor(3, window=window, overlap=overlap, flips=flips, probabilities=True, uncertainty="entropy")(
        volume
    )
    assert np.array_equal(found.labels, bands(volume.array))
    assert np.array_equal(found.probabilities.argmax(0), found.labels)
    for value in np.unique(volume.array):
        assert np.ptp(found.uncertainty[volume.array == value]) < 1e-3


def predicted_file(tmp_path_factory, name, write, dims=2, **options):
    """Write an image with `write(path)`, predict it; both paths."""
    root = tmp_path_factory.mktemp("grid")
    write(root / name)
    predict_folder(predictor(dims, **options), root / name, root / "out")
    return root / name, root / "out" / name


def same_nifti_geometry(image, mask):
    assert np.array_equal(image.affine, mask.affine)
    assert image.header.get_xyzt_units()[0] == mask.header.get_xyzt_units()[0]
    for get in ("get_qform", "get_sform"):
        (theirs, their_code), (ours, our_code) = (getattr(part, get)(coded=True) for part in (image, mask))
        assert their_code == our_code
        assert np.array_equal(theirs, ours) if theirs is not None else ours is None


@settings(max_examples=30, deadline=None)
@given(
    volume=volumes(),
    name=st.sampled_from(["a.nii", "a.nii.gz"]),
    kind=st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    codes=st.sampled_from([(1, 1), (0, 2), (3, 0)]),
    unit=st.sampled_from(["mm", "micron", "unknown"]),
    plane=PLANES,
)
def test_nifti_masks_have_the_very_geometry_of_their_images(tmp_path_factory, volume, name, kind, codes, unit, plane):
    def write(path):
        image = kind(volume.array, volume.affine)
        image.header.set_xyzt_units(unit)
        image.set_qform(volume.affine if codes[0] else None, codes[0])
        image.set_sform(volume.affine if codes[1] else None, codes[1])
        nibabel.save(image, path)

    image, mask = map(nibabel.load, predicted_file(tmp_path_factory, name, write, plane=plane))
    same_nifti_geometry(image, mask)
    assert type(mask) is kind
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(mask.dataobj), bands(volume.array))
    (labels,) = [extension.get_content() for extension in mask.header.extensions]
    assert json.loads(labels) == {"labels": {"0": "background", "1": "rim", "2": "cup"}}


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3, 1), (5, 4, 1, 1), (5, 4, 3, 1, 1)])
def test_axes_of_length_one_stay_as_the_file_has_them(tmp_path_factory, shape):
    array = scan(np.random.default_rng(0), shape)
    image, mask = predicted_file(
        tmp_path_factory, "a.nii.gz", lambda path: nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    )
    mask = nibabel.load(mask)
    assert mask.shape == nibabel.load(image).shape
    assert np.array_equal(np.asanyarray(mask.dataobj), bands(array).reshape(mask.shape))


def test_a_channel_of_several_gives_a_mask_of_three_axes(tmp_path_factory):
    array = scan(np.random.default_rng(0), (5, 4, 3, 2))
    _, mask = predicted_file(
        tmp_path_factory, "a.nii.gz", lambda p: nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), p), channel=1
    )
    assert np.array_equal(np.asanyarray(nibabel.load(mask).dataobj), bands(array[..., 1]))


def test_masks_of_big_endian_and_scaled_files_and_of_wrong_names(tmp_path_factory):
    array = scan(np.random.default_rng(0), (5, 4, 3))

    def write(path):
        image = nibabel.Nifti1Image(array.astype(">i2"), np.diag([1, 2, 3, 1]), nibabel.Nifti1Header(endianness=">"))
        image.header.set_slope_inter(1, 0)
        path.write_bytes(gzip.compress(image.to_bytes()))  # packed, though its name says otherwise

    image, mask = predicted_file(tmp_path_factory, "a.nii", write)
    assert same_grid(read_volume(image), read_volume(mask), 1e-6) is None
    assert np.array_equal(np.asanyarray(nibabel.load(mask).dataobj), bands(array))


def test_a_mask_takes_no_text_of_its_image_along(tmp_path_factory):
    def write(path):
        image = nibabel.Nifti1Image(scan(np.random.default_rng(0), (4, 4, 2)), np.eye(4))
        image.header["descrip"] = b"Jane Doe"
        image.header["db_name"] = b"Jane Doe"
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
        nibabel.save(image, path)

    _, mask = predicted_file(tmp_path_factory, "a.nii", write)
    assert b"Jane" not in mask.read_bytes()


@settings(max_examples=30, deadline=None)
@given(volume=volumes(), extension=st.sampled_from([".mha", ".mhd", ".nrrd", ".nhdr"]), dims=st.sampled_from([2, 3]))
def test_meta_image_and_nrrd_masks_have_the_very_geometry_of_their_images(tmp_path_factory, volume, extension, dims):
    def write(path):
        image = SimpleITK.GetImageFromArray(volume.array.T)
        affine = np.diag([-1, -1, 1, 1]) @ volume.affine
        spacing = np.array(volume.spacing_mm)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        SimpleITK.WriteImage(image, str(path))

    image, mask = (
        SimpleITK.ReadImage(str(path)) for path in predicted_file(tmp_path_factory, f"a{extension}", write, dims)
    )
    assert mask.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    assert mask.GetSize() == image.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        # NRRD keeps spacing and direction as their product, which ITK takes apart with its own rounding.
        np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), rtol=0, atol=1e-13, err_msg=get)
    assert np.array_equal(SimpleITK.GetArrayFromImage(mask).T, bands(volume.array))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3, 1)])
def test_meta_images_of_two_and_four_axes_keep_them(tmp_path_factory, shape):
    array = scan(np.random.default_rng(0), shape)
    image, mask = (
        SimpleITK.ReadImage(str(path))
        for path in predicted_file(
            tmp_path_factory,
            "a.mha",
            lambda path: SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T, isVector=False), str(path)),
        )
    )
    assert mask.GetSize() == image.GetSize() == shape
    assert np.array_equal(SimpleITK.GetArrayFromImage(mask).T, bands(array))


@pytest.mark.parametrize("dims", [2, 3])
def test_dicom_series_give_nifti_masks_at_their_place(tmp_path, dims):
    array = scan(np.random.default_rng(0), (6, 5, 4))
    write_series(tmp_path / "in" / "patient" / "series", array)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    summary = predict_folder(predictor(dims), tmp_path / "in", tmp_path / "out")
    assert (summary.predicted, summary.ignored, summary.failed) == (1, 1, [])
    mask = read_volume(tmp_path / "out" / "patient" / "series.nii.gz")
    assert same_grid(mask, truth(array), 1e-3) is None
    assert np.array_equal(mask.array, bands(array))
    assert np.array_equal(predictor(dims)(tmp_path / "in").labels, mask.array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float64])
@pytest.mark.parametrize("negative", [False, True])
def test_slices_reach_the_network_as_those_that_import_stores(tmp_path, dtype, negative):
    if negative and dtype in (np.uint8, np.uint16):
        return
    array = np.random.default_rng(0).integers(-50 if negative else 0, 200, (6, 7, 4)).astype(dtype)
    for folder in ("images", "masks"):
        (tmp_path / "src" / "site" / folder).mkdir(parents=True)
        volume = Volume(array if folder == "images" else np.ones(array.shape, np.uint8), np.diag([-1, 1, 3, 1.0]))
        write_nifti(volume, tmp_path / "src" / "site" / folder / "a.nii.gz")
    image = read_volume(tmp_path / "src" / "site" / "images" / "a.nii.gz")
    job = ImportJob("folders", tmp_path / "src", tmp_path / "data", write=WriteOptions(plane="auto"))
    rows = load_source(str(import_dataset(job, progress=False))).rows
    cuts = cut_some(image, "auto", slice_axis(image, "auto"), 0, 4, slice_dtype(image.array))
    for row, cut in zip(rows, cuts, strict=True):
        stored = np.asarray(row["image"])
        assert np.array_equal(stored, cut)
        assert stored.dtype == cut.dtype or stored.dtype.itemsize > cut.dtype.itemsize
