import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dim_hf.data.volumes.slices import PLANES, cut_slices, slice_axis, stack_slices
from dim_hf.data.volumes.volume import Volume, canonical, read_volume, write_nifti

quick = settings(max_examples=60, deadline=None)
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
turns = st.tuples(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3))


@st.composite
def volumes(draw, oblique=True):
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    order, signs = draw(turns)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * np.array(signs)
    if oblique:
        angles = draw(st.tuples(*[st.floats(-60, 60)] * 3))
        affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, :3] *= draw(spacings)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.float32]))
    return Volume(np.arange(np.prod(shape)).reshape(shape).astype(dtype), affine)


def restored(slices, volume):
    pixels = {part.slice_index: part.pixels for part in reversed(slices)}
    flat = [float(number) for number in volume.affine.ravel()]
    return stack_slices(pixels, slice_axis=slices[0].slice_axis, affine=flat, num_slices=len(slices))


def stored_otherwise(volume, order, signs):
    """The same anatomy, with the axes of its array permuted and flipped."""
    turn = np.stack([order, signs], axis=1)
    array = nib.orientations.apply_orientation(volume.array, turn)
    return Volume(array, volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.array.shape))


@quick
@given(volumes(), st.sampled_from(PLANES))
def test_stacking_is_the_exact_inverse_of_cutting(volume, plane):
    slices = cut_slices(volume, plane)
    stack = restored(slices, volume)
    assert stack.array.dtype == volume.array.dtype
    assert np.array_equal(stack.array, volume.array)
    assert np.array_equal(stack.affine, volume.affine)
    assert [part.slice_index for part in slices] == list(range(volume.array.shape[slices[0].slice_axis]))


@quick
@given(volumes(), st.sampled_from(PLANES))
def test_slices_know_their_axis_and_spacing(volume, plane):
    axis = slice_axis(volume, plane)
    for part in cut_slices(volume, plane):
        assert part.slice_axis == axis
        assert part.pixels.flags.c_contiguous
        assert sorted(part.pixels.ravel()) == sorted(np.take(volume.array, part.slice_index, axis).ravel())
        assert sorted((*part.spacing_mm, volume.spacing_mm[axis])) == sorted(volume.spacing_mm)
        if volume.array.shape.count(1) == 0:
            extents = np.multiply(part.pixels.shape, part.spacing_mm)
            others = [
                n * s for k, (n, s) in enumerate(zip(volume.array.shape, volume.spacing_mm, strict=True)) if k != axis
            ]
            assert sorted(extents) == pytest.approx(sorted(others))


@quick
@given(volumes(oblique=False), turns, st.sampled_from(PLANES))
def test_the_same_anatomy_gives_the_same_slices(volume, turn, plane):
    other = stored_otherwise(volume, *turn)
    slices, others = cut_slices(volume, plane), cut_slices(other, plane)
    assert len(slices) == len(others)
    if not np.array_equal(slices[0].pixels, others[0].pixels):
        others.reverse()
    for part, same in zip(slices, others, strict=True):
        assert np.array_equal(part.pixels, same.pixels)
        assert part.spacing_mm == pytest.approx(same.spacing_mm)


# One marked voxel of a RAS volume of 3 x 4 x 5: where it must appear.
RIGHT, ANTERIOR, SUPERIOR = 2, 3, 4


@pytest.mark.parametrize(
    ("plane", "shape", "index", "row_column"),
    [
        ("axial", (4, 3), SUPERIOR, (0, 0)),  # rows from anterior, columns from right
        ("coronal", (5, 3), ANTERIOR, (0, 0)),  # rows from superior, columns from right
        ("sagittal", (5, 4), RIGHT, (0, 0)),  # rows from superior, columns from anterior
    ],
)
def test_the_view_is_radiological(plane, shape, index, row_column):
    array = np.zeros((3, 4, 5), np.uint8)
    array[RIGHT, ANTERIOR, SUPERIOR] = 1
    slices = cut_slices(Volume(array, np.diag([1.0, 2.0, 3.0, 1.0])), plane)
    assert slices[index].pixels.shape == shape
    assert np.argwhere(slices[index].pixels).tolist() == [list(row_column)]
    assert sum(int(part.pixels.sum()) for part in slices) == 1
    expected = {"axial": (2.0, 1.0), "coronal": (3.0, 1.0), "sagittal": (3.0, 2.0)}
    assert slices[0].spacing_mm == expected[plane]


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [
        ((1, 1, 3), "axial"),
        ((1, 3, 1), "coronal"),
        ((3, 1, 1), "sagittal"),
        ((1, 1, 1), "axial"),
        ((1, 1.4, 1), "axial"),
        ((1, 1.5, 1), "coronal"),
        ((1, 3, 3), "axial"),
        ((3, 3, 1), "coronal"),
    ],
)
def test_auto_cuts_across_the_coarsest_axis(spacing, plane):
    volume = Volume(np.zeros((3, 4, 5)), np.diag([*spacing, 1.0]))
    assert slice_axis(volume, "auto") == slice_axis(volume, plane)


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((24, 24, 1), (2, 2, 1), 2),
        ((24, 1, 24), (2, 1, 2), 1),
        ((1, 24, 24), (1, 1, 5), 0),
        ((24, 1, 1), (1, 1, 1), 2),  # of several the one that spacing and `PLANES` name
        ((24, 1, 1), (5, 3, 1), 1),
        ((1, 1, 1), (1, 3, 1), 1),
    ],
)
def test_auto_takes_the_axis_of_one_voxel(shape, spacing, axis):
    volume = Volume(np.zeros(shape), np.diag([*spacing, 1.0]))
    (only,) = cut_slices(volume, "auto")
    assert only.slice_axis == axis
    assert only.pixels.size == volume.array.size
    # A plane that is named is kept.
    assert slice_axis(volume, "axial") == 2


def test_slices_survive_a_file_of_the_volume(tmp_path):
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    write_nifti(Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(restored(cut_slices(volume, "coronal"), volume).array, volume.array)
    first, second = cut_slices(volume, "axial")[0], cut_slices(canonical(volume), "axial")[0]
    assert np.array_equal(first.pixels, second.pixels)


def test_unknown_plane():
    with pytest.raises(ValueError, match="plane is 'oblique'; choose one of axial, coronal, sagittal, auto"):
        cut_slices(Volume(np.zeros((1, 1, 1)), np.eye(4)), "oblique")


PIXELS = {index: np.full((2, 3), index, np.uint8) for index in range(4)}


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        ({k: PIXELS[k] for k in (0, 1, 3)}, r"1 are missing \[2\] and 0 are surplus"),
        ({**PIXELS, 4: PIXELS[0]}, r"0 are missing \[\] and 1 are surplus \[4\]"),
        ({**PIXELS, 1: PIXELS[1].T}, "one shape"),
        ({**PIXELS, 1: PIXELS[1].astype(np.int16)}, "one dtype"),
        ({k: v[..., None] for k, v in PIXELS.items()}, r"one shape \(H, W\)"),
        ({}, r"4 are missing \[0, 1, 2, 3\]"),
    ],
)
def test_incomplete_stacks_are_refused(pixels, match):
    with pytest.raises(ValueError, match=match):
        stack_slices(pixels, slice_axis=2, affine=np.eye(4), num_slices=4)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), [1.0] * 16, np.full((4, 4), np.nan), None])
def test_invalid_affines_are_refused(affine):
    with pytest.raises(ValueError, match="the stack of slices has "):
        stack_slices(PIXELS, slice_axis=2, affine=affine, num_slices=4)


def test_invalid_axis_and_number():
    with pytest.raises(ValueError, match="slice_axis is 3"):
        stack_slices(PIXELS, slice_axis=3, affine=np.eye(4), num_slices=4)
    with pytest.raises(ValueError, match="of 0 slices"):
        stack_slices({}, slice_axis=2, affine=np.eye(4), num_slices=0)
