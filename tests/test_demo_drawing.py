"""Drawing on a screen: laws, and orientations against what the affine says of every voxel's place in the patient."""

import base64
import itertools
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dim_hf.data.volumes.slices import cut_slices
from dim_hf.data.volumes.volume import Volume
from dim_hf.demo import drawing, planes

GENERATOR = np.random.default_rng(0)
COLORS = drawing.class_colors({0: "background", 1: "rim", 2: "cup"})
NESTED = {"disc": [1, 2], "cup": [2]}


def blobs(seed=0, size=(60, 80)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 5)
    return (np.digitize(noise / noise.std(), [0.3, 1.2])).astype(np.uint8)


def opened(address):
    """What a browser sees of an `<img>`: (H, W, 4)."""
    content = base64.b64decode(address.split("base64,")[1])
    return np.asarray(PIL.Image.open(BytesIO(content)).convert("RGBA"))


def mixed(image, address, opacity):
    """What the page shows: the layer over the image with that opacity."""
    layer = opened(address).astype(float)
    share = layer[..., 3:] / 255 * opacity
    return image * (1 - share) + layer[..., :3] * share


def test_opacity_zero_gives_the_image_back_and_one_the_colors():
    image = GENERATOR.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    labels = blobs()
    address = drawing.clear_png(labels, COLORS)
    assert np.array_equal(mixed(image, address, 0), image)
    full = mixed(image, address, 1)
    assert np.array_equal(full[labels == 0], image[labels == 0])
    assert all((full[labels == index] == color).all() for index, color in COLORS.items())


def test_classes_without_a_color_and_labels_beyond_the_table_are_clear():
    layer = opened(drawing.clear_png(np.array([[0, 1, 7]], np.uint16), {1: (1, 2, 3)}))
    assert layer[0, :, 3].tolist() == [0, 255, 0]
    assert layer[0, 1].tolist() == [1, 2, 3, 255]


def by_erosion(mask, width=1):
    return mask & ~ndimage.binary_erosion(mask, border_value=1, iterations=width)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_contours_lie_on_the_border_of_the_mask(width):
    labels = blobs()
    lines = drawing.contours(labels, NESTED, COLORS, width)
    cup, disc = by_erosion(labels == 2, width), by_erosion(labels > 0, width)
    assert (lines[cup] == 2).all()
    assert (lines[disc & ~cup] == 1).all()
    assert not lines[~cup & ~disc].any()
    assert lines.dtype == labels.dtype


def test_structures_side_by_side_have_each_a_line():
    labels = blobs()
    lines = drawing.contours(labels, {"a": [1], "b": [2]}, COLORS)
    assert np.array_equal(lines == 1, by_erosion(labels == 1))
    assert np.array_equal(lines == 2, by_erosion(labels == 2))


@pytest.mark.parametrize("mask", [np.ones((5, 4), bool), np.zeros((5, 4), bool), np.ones((1, 1), bool)])
def test_a_full_or_empty_mask_has_no_border(mask):
    assert not drawing.border(mask).any()


def test_the_border_of_a_square_on_paper():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:6] = True
    shown = np.array([list("......"), list("..####"), list("..#..."), list("..####"), list("......")]) == "#"
    assert np.array_equal(drawing.border(mask), shown)


def test_masks_of_two_sizes_are_not_compared():
    with pytest.raises(ValueError, match="compare masks of one image"):
        drawing.difference(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))


def test_colors_are_given_in_order_and_repeat():
    colors = drawing.class_colors(dict.fromkeys(range(10), "x"))
    assert list(colors) == list(range(1, 10))
    assert len(set(colors.values())) == 7
    assert colors[8] == colors[1]


def dichromat(color, kind):
    """Lightness and chroma as a protanope or deuteranope sees them, by Viénot's matrices in linear RGB."""
    linear = (np.array(color) / 255) ** 2.2
    rows = {"protan": (0.11238, 0.88762, 0), "deutan": (0.29275, 0.70725, 0)}[kind]
    seen = np.array([np.dot(rows, linear), np.dot(rows, linear), 0.00401 * (linear[0] - linear[1]) + linear[2]])
    return seen ** (1 / 2.2)


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_neighboring_colors_differ_for_color_blind_eyes(kind):
    for first, second in itertools.combinations(drawing.PALETTE[:4], 2):
        assert np.abs(dichromat(first, kind) - dichromat(second, kind)).max() > 0.15
    for first, second in itertools.combinations(list(drawing.DIFFERENCE_COLORS.values())[1:], 2):
        assert np.abs(dichromat(first, kind) - dichromat(second, kind)).max() > 0.15


def test_a_heat_map_grows_lighter_with_the_value():
    colors = drawing.heat_map(np.linspace(0, 1, 256)[None])[0].astype(float)
    lightness = colors @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > -0.5).all()
    assert lightness[-1] - lightness[0] > 150
    odd = drawing.heat_map(np.array([[np.nan, -1.0, 2.0, np.inf]]))[0]
    assert odd.tolist() == [colors[0].tolist()] * 2 + [colors[-1].tolist()] * 2


def test_difference_on_paper():
    a = np.array([[0, 1, 1, 0, 1]])
    b = np.array([[0, 1, 0, 2, 2]])
    expected = [0, drawing.SAME, drawing.ONLY_FIRST, drawing.ONLY_SECOND, drawing.OTHER_CLASS]
    assert drawing.difference(a, b)[0].tolist() == expected


def test_exchanging_the_masks_exchanges_the_sides():
    a, b = blobs(1), blobs(2)
    there, back = drawing.difference(a, b), drawing.difference(b, a)
    swap = np.array([0, drawing.SAME, drawing.ONLY_SECOND, drawing.ONLY_FIRST, drawing.OTHER_CLASS])
    assert np.array_equal(swap[there], back)
    assert np.array_equal(np.isin(there, (0, drawing.SAME)), a == b)


def test_a_legend_takes_any_text():
    evil = '"><script>alert(1)</script>'
    shown = drawing.legend({0: "background", 1: evil}, COLORS)
    assert "<script" not in shown
    assert "&lt;script" in shown
    assert "background:" in shown


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_an_image_looks_as_it_did(shape):
    ramp = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8) * 2
    image = ramp if len(shape) == 2 else np.stack([ramp] * 3, axis=-1)
    shown = opened(drawing.jpeg(image)).astype(int)
    assert np.abs(shown[..., 0] - ramp).max() < 12


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [((20, 100), (3.0, 0.6), (400, 400)), ((10, 20), (1, 1), (200, 400)), ((5, 5), (2.0, 1.0), (400, 200))],
)
def test_pixels_on_the_screen_are_square_in_the_patient(shape, spacing, size):
    assert drawing.screen_size(shape, spacing, 400) == size
    assert drawing.screen_size(shape[::-1], spacing[::-1], 400) == size[::-1]
    height, width = drawing.screen_size(shape, spacing, 400)
    assert height / width == pytest.approx(shape[0] * spacing[0] / (shape[1] * spacing[1]), rel=0.01)


def test_a_needle_keeps_a_pixel():
    assert drawing.screen_size((1, 500), (1e-3, 1.0), 400) == (1, 400)


def test_resizing_labels_invents_no_class_and_keeps_shares():
    labels = blobs() * 2
    large = drawing.resized(labels, (180, 160), is_label=True)
    assert large.shape == (180, 160)
    assert set(np.unique(large)) == set(np.unique(labels))
    assert np.array_equal(large[1::3, ::2], labels)
    assert drawing.resized(labels, (60, 80), is_label=True) is labels


AFFINES = [
    (axes, signs, turn)
    for axes in itertools.permutations(range(3))
    for signs in ((1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1))
    for turn in ((0, 0, 0), (15, -20, 10))
]
SHAPE = (7, 8, 9)


def oblique(axes, signs, turn):
    affine = np.eye(4)
    matrix = np.zeros((3, 3))
    for column, (axis, sign, spacing) in enumerate(zip(axes, signs, (0.5, 1.5, 3.0), strict=True)):
        matrix[axis, column] = sign * spacing
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ matrix
    affine[:3, 3] = (10, -20, 30)
    return affine


def places(affine):
    """The patient's x (right), y (front) and z (head) of every voxel in mm, from the affine alone."""
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return np.moveaxis(voxels @ affine[:3, :3].T + affine[:3, 3], -1, 0)


@pytest.mark.parametrize(("axes", "signs", "turn"), AFFINES)
def test_slices_show_the_patient_as_radiologists_do_however_the_volume_is_stored(axes, signs, turn):
    affine = oblique(axes, signs, turn)
    x, y, z = places(affine)
    x, y, z = (planes.patient_order(part, affine) for part in (x, y, z))
    # Across the slices, down the rows (which fall from front or head), along the columns (from right or front).
    for plane, across, down, along in (("axial", z, y, x), ("coronal", y, z, x), ("sagittal", x, z, y)):
        count = planes.slice_count(across, plane)
        cuts = [[planes.cut(part, plane, n) for n in range(count)] for part in (across, down, along)]
        assert (np.diff(np.array(cuts[0]), axis=0) > 0).all()
        assert (np.diff(np.array(cuts[1]), axis=1) < 0).all()
        assert (np.diff(np.array(cuts[2]), axis=2) < 0).all()
        rows, columns = planes.plane_spacing(planes.patient_spacing(affine), plane)
        middle = np.stack([planes.cut(part, plane, count // 2) for part in (x, y, z)], axis=-1)
        assert np.linalg.norm(middle[1, 0] - middle[0, 0]) == pytest.approx(rows)
        assert np.linalg.norm(middle[0, 1] - middle[0, 0]) == pytest.approx(columns)


@pytest.mark.parametrize("plane", planes.PLANES)
@pytest.mark.parametrize(("axes", "signs", "turn"), AFFINES[::7])
def test_slices_are_those_that_training_and_prediction_cut(axes, signs, turn, plane):
    volume = Volume(np.arange(np.prod(SHAPE)).reshape(SHAPE), oblique(axes, signs, turn))
    turned = planes.patient_order(volume.array, volume.affine)
    found = [planes.cut(turned, plane, n) for n in range(planes.slice_count(turned, plane))]
    theirs = [part.pixels for part in cut_slices(volume, plane)]
    assert np.array_equal(found, theirs) or np.array_equal(found[::-1], theirs)
    assert np.shares_memory(turned, volume.array)
    for position in (-1, len(found)):
        with pytest.raises(ValueError, match=f"no {plane} slice {position}"):
            planes.cut(turned, plane, position)


@pytest.mark.parametrize("plane", planes.PLANES)
def test_the_fullest_slice_is_the_one_that_holds_most(plane):
    labels = (np.random.default_rng(3).random(SHAPE) < 0.2).astype(np.uint8)
    found = [np.count_nonzero(planes.cut(labels, plane, n)) for n in range(planes.slice_count(labels, plane))]
    assert found[planes.fullest_slice(labels, plane)] == max(found)
    assert planes.fullest_slice(np.zeros_like(labels), plane) == len(found) // 2


def test_the_edges_are_named_as_the_slices_lie():
    affine = oblique((1, 2, 0), (-1, 1, -1), (0, 0, 0))
    sides = dict(zip("RLAPHF", (0, 0, 1, 1, 2, 2), strict=True))
    for plane, letters in planes.EDGES.items():
        middle = [planes.cut(planes.patient_order(part, affine), plane, 3) for part in places(affine)]
        for letter, pick in zip(letters, ([0, 0], [0, -1], [0, 0], [-1, 0]), strict=True):
            value = middle[sides[letter]][tuple(pick)]
            opposite = middle[sides[letter]][tuple(-1 - index for index in pick)]
            assert (value > opposite) == (letter in "RAH")


def test_the_window_leaves_outliers_out():
    values = GENERATOR.normal(100, 10, (64, 64, 64))
    values[0, 0, :10] = 1e9
    low, high = planes.grey_window(values)
    assert 60 < low < 90
    assert 110 < high < 140


@pytest.mark.parametrize("shape", [(64, 64, 64), (512, 512, 20), (1, 1, 2**19), (2310, 30, 30)])
def test_the_window_sees_all_of_a_volume(shape):
    values = np.zeros(shape, np.float32)
    flat = values.reshape(-1)
    flat[: flat.size // 2] = 1000
    assert planes.grey_window(values) == (0, 1000)
    ramp = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)
    low, high = planes.grey_window(ramp)
    assert high - low == pytest.approx(0.99 * shape[-1], rel=0.1)


@pytest.mark.parametrize("value", [0, -5, 1e20])
def test_a_constant_volume_is_black(value):
    volume = np.full((4, 4, 4), value, np.float32)
    assert not planes.as_grey(volume, planes.grey_window(volume)).any()


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.float32, np.float64])
def test_grey_runs_from_black_to_white_in_order(dtype):
    values = (np.arange(120).reshape(4, 5, 6) > 60) if dtype == np.bool_ else np.arange(120).reshape(4, 5, 6)
    values = values.astype(dtype)
    grey = planes.as_grey(values, (float(values.min()), float(values.max())))
    assert grey.dtype == np.uint8
    assert (grey.min(), grey.max()) == (0, 255)
    assert (np.diff(grey.ravel().astype(int)) >= 0).all()
