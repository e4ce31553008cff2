import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dim_hf.data.limits import MAX_VOXELS
from dim_hf.data.volumes.header import require
from dim_hf.data.volumes.volume import (
    VOLUME_EXTENSIONS,
    Volume,
    VolumeHeader,
    canonical,
    is_volume_file,
    read_header,
    read_volume,
    resample,
    same_grid,
    volume_stem,
)

quick = settings(max_examples=40, deadline=None)


@st.composite
def affines(draw):
    order = draw(st.permutations([0, 1, 2]))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    angles = draw(st.tuples(*[st.floats(-40, 40)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ (np.eye(3)[:, order] * signs)
    affine[:3, :3] *= draw(st.tuples(*[st.floats(0.3, 6.0)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


def grey(shape=(5, 4, 3), affine=None, dtype=np.int16):
    return Volume(np.arange(np.prod(shape)).reshape(shape).astype(dtype), np.eye(4) if affine is None else affine)


def test_names():
    assert VOLUME_EXTENSIONS == (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
    stems = {"a/case.nii.gz": "case", "Case.NII": "Case", "x.y.mha": "x.y", "b.nhdr": "b", "c.png": "c", ".nii": ""}
    assert {name: volume_stem(name) for name in stems} == stems
    assert [is_volume_file(name) for name in stems] == [True] * 4 + [False, True]
    assert not is_volume_file("case.gz")


def test_spacing_and_orientation():
    affine = np.array([[0, 0, -3, 9], [-1, 0, 0, 8], [0, 2, 0, 7], [0, 0, 0, 1]])
    volume = grey(affine=affine)
    assert volume.spacing_mm == (1.0, 2.0, 3.0)
    assert volume.orientation == "PSL"
    assert volume.affine.dtype == np.float64
    affine[0, 0] = 5
    assert volume.affine[0, 0] == 0


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 2), (3, 0, 5)])
def test_other_shapes_are_no_volume(shape):
    with pytest.raises(ValueError, match="a volume has three axes and at least one voxel, got the shape"):
        Volume(np.zeros(shape), np.eye(4))


@pytest.mark.parametrize("dtype", [complex, [("r", "u1"), ("g", "u1")], "U3", object])
def test_other_dtypes_are_no_volume(dtype):
    with pytest.raises(ValueError, match=r"the volume has values of type .*; convert it"):
        Volume(np.zeros((1, 1, 1), dtype), np.eye(4))


def singular(row=0, value=0.0):
    affine = np.eye(4)
    affine[row, :3] = value
    return affine


@pytest.mark.parametrize(
    "affine",
    [
        singular(),
        singular(1, np.nan),
        singular(2, np.inf),
        singular(3, 1.0),
        np.eye(3),
        np.ones((4, 4)),
        np.eye(4)[::-1],
    ],
)
def test_invalid_affines_are_refused(affine):
    with pytest.raises(ValueError, match=r"the volume has (no valid|a singular) affine .* set its orientation"):
        Volume(np.zeros((2, 2, 2)), affine)


def test_small_voxels_are_not_singular():
    Volume(np.zeros((2, 2, 2)), np.diag([1e-4, 1e-4, 1e-4, 1]))


@quick
@given(affines())
def test_canonical_moves_no_voxel(affine):
    volume = grey(affine=affine)
    turned = canonical(volume)
    expected = nib.as_closest_canonical(nib.Nifti1Image(volume.array, affine))
    assert np.array_equal(turned.array, np.asanyarray(expected.dataobj))
    assert np.allclose(turned.affine, expected.affine)
    assert turned.orientation == "RAS"
    for value in (0, 17, 59):
        places = [v.affine @ (*np.argwhere(v.array == value)[0], 1) for v in (volume, turned)]
        assert np.allclose(*places)
    assert np.array_equal(canonical(turned).array, turned.array)


def header(volume, channels=()):
    return VolumeHeader((*volume.array.shape, *channels), volume.array.dtype, volume.affine)


def test_same_grid():
    volume = grey()
    assert same_grid(volume, volume) is None
    assert same_grid(header(volume, (4,)), volume) is None
    assert same_grid(volume, grey((5, 4, 2))) == "the shapes (5, 4, 3) and (5, 4, 2) differ"


def test_same_grid_measures_the_farthest_corner_in_mm():
    volume = grey()
    moved = volume.affine.copy()
    moved[0, 3] += 0.25
    assert same_grid(volume, grey(affine=moved)) == (
        "the corners of the two grids lie up to 0.25 mm apart (allowed are 0.01 mm)"
    )
    assert same_grid(volume, grey(affine=moved), tolerance_mm=0.25) is None
    stretched = np.diag([1.01, 1.0, 1.0, 1.0])
    # The farthest corner is at 4.5 voxels.
    assert "up to 0.045 mm" in same_grid(volume, grey(affine=stretched))


def test_same_grid_sees_the_thickness_of_a_single_slice():
    assert same_grid(grey((5, 4, 1)), grey((5, 4, 1), np.diag([1, 1, 2, 1]))) is not None


def test_resampling_to_the_same_spacing_changes_nothing():
    volume = grey(affine=np.diag([0.7, 1.3, 3.0, 1.0]))
    assert resample(volume, (0.7, 1.3, 3.0), is_label=False) is volume
    assert resample(volume, np.float32([0.7, 1.3, 3.0]), is_label=True) is volume


@quick
@given(affines(), st.tuples(*[st.floats(0.5, 4.0)] * 3))
def test_resampling_a_linear_ramp_is_exact_inside(affine, spacing):
    shape = (6, 5, 4)
    index = np.moveaxis(np.indices(shape), 0, -1)
    assume(not np.allclose(spacing, np.linalg.norm(affine[:3, :3], axis=0)))
    ramp = (index @ affine[:3, :3].T + affine[:3, 3]) @ [1.0, 2.0, 3.0]
    new = resample(Volume(ramp, affine), spacing, is_label=False)
    assert new.array.dtype == np.float32
    assert new.spacing_mm == pytest.approx(spacing)
    assert np.allclose(new.affine[:3, 3], affine[:3, 3])
    places = np.moveaxis(np.indices(new.array.shape), 0, -1) @ new.affine[:3, :3].T + new.affine[:3, 3]
    old_index = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    # Every new center lies in the old field of view, and the next one would not.
    assert (old_index < np.array(shape) - 0.5).all()
    assert (
        old_index.max((0, 1, 2)) + np.divide(spacing, Volume(ramp, affine).spacing_mm) >= np.array(shape) - 0.5 - 1e-5
    ).all()
    inside = (old_index <= np.array(shape) - 1 + 1e-9).all(-1)
    assert np.allclose(new.array[inside], (places @ [1.0, 2.0, 3.0])[inside], atol=1e-2)


@quick
@given(affines(), st.tuples(*[st.floats(0.5, 4.0)] * 3), st.sampled_from([np.uint8, np.int16, np.int64, np.uint16]))
def test_labels_get_no_new_value_and_stay_aligned(affine, spacing, dtype):
    array = np.random.default_rng(0).choice(np.array([0, 3, 7], dtype), (6, 5, 4))
    label = resample(Volume(array, affine), spacing, is_label=True)
    image = resample(Volume(array.astype(np.float32), affine), spacing, is_label=False)
    assert set(np.unique(label.array)) <= {0, 3, 7}
    assert label.array.dtype == dtype
    assert same_grid(label, image) is None


@pytest.mark.parametrize(
    ("dtype", "label", "image"), [(bool, np.uint8, np.float32), (np.float16, np.float32, np.float32)]
)
def test_resampling_types_that_itk_lacks(dtype, label, image):
    volume = Volume((np.arange(60).reshape(5, 4, 3) % 2).astype(dtype), np.eye(4))
    assert resample(volume, (0.5, 1, 1), is_label=True).array.dtype == label
    assert resample(volume, (0.5, 1, 1), is_label=False).array.dtype == image


def test_resampling_a_single_slice_and_a_sheared_volume():
    assert resample(grey((4, 4, 1)), (1, 1, 8), is_label=False).array.shape == (4, 4, 1)
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    new = resample(grey(affine=sheared), (0.5, sheared[:3, 1] @ sheared[:3, 1], 1), is_label=False)
    assert new.affine[0, 1] / new.affine[1, 1] == pytest.approx(0.5)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, 1), (1, -1, 1), (np.nan, 1, 1), (np.inf, 1, 1)])
def test_impossible_spacings_are_refused(spacing):
    with pytest.raises(ValueError, match="give three distances above 0 mm"):
        resample(grey(), spacing, is_label=False)


def test_a_spacing_that_would_fill_the_memory_is_refused():
    with pytest.raises(ValueError, match=rf"at a spacing of \[1e-06, .* is too large .* limit is {MAX_VOXELS}"):
        resample(grey(), (1e-6, 1e-6, 1e-6), is_label=False)


@pytest.mark.parametrize("read", [read_header, read_volume])
def test_missing_files_and_other_formats(tmp_path, read):
    with pytest.raises(ValueError, match=r"none\.nii\.gz is missing or no file; correct the path"):
        read(tmp_path / "none.nii.gz")
    with pytest.raises(ValueError, match=r"a\.png is no volume file \(\.nii, .*\); convert it or correct the path"):
        read(tmp_path / "a.png")


def test_a_missing_extra_names_its_command():
    with pytest.raises(ImportError, match=r"install it with: pip install dim-hf\[volumes\]"):
        require("no_such_module_anywhere")
