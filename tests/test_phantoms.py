"""Phantoms: what holds for every kind, then what is particular to one."""

import itertools

import numpy as np
import pytest

from dim_hf.data.phantom_fields import generator_for, noise_field, quantize_blocks, spline_basis
from dim_hf.data.phantom_prostate import VOLUME_HEIGHT_MM, volume_shape
from dim_hf.data.phantoms import PHANTOMS, get_phantom, make_phantom, render_phantom, split_of

SIZES = {"fundus": 48, "prostate": 48, "prostate_3d": 16}


@pytest.fixture(params=list(PHANTOMS))
def kind(request):
    return request.param


def _render(kind, domain=None, index=0, seed=0):
    return render_phantom(kind, domain=domain or PHANTOMS[kind].domains[0], index=index, size=SIZES[kind], seed=seed)


def test_records_are_consistent():
    assert {kind: len(phantom.domains) for kind, phantom in PHANTOMS.items()} == {
        "fundus": 4,
        "prostate": 6,
        "prostate_3d": 6,
    }
    for phantom in PHANTOMS.values():
        assert all(set(classes) <= set(phantom.id2label) - {0} for classes in phantom.structures.values())
    assert PHANTOMS["fundus"].structures == {"disc": [1, 2], "cup": [2]}


def test_same_key_gives_equal_image_and_any_other_key_another(kind):
    image, label = _render(kind, index=5)
    again, label_again = _render(kind, index=5)
    assert np.array_equal(image, again)
    assert np.array_equal(label, label_again)
    others = [_render(kind, index=6), _render(kind, index=5, seed=1), _render(kind, PHANTOMS[kind].domains[1], 5)]
    assert all(not np.array_equal(image, other) for other, _ in others)


def test_global_random_state_neither_read_nor_moved(kind):
    np.random.seed(1)
    first, _ = _render(kind)
    state = np.random.get_state()[1].copy()
    np.random.seed(2)
    second, _ = _render(kind)
    assert np.array_equal(first, second)
    np.random.seed(1)
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("offset", [0, 3])
def test_every_domain_has_every_class_in_the_right_form(kind, offset):
    phantom, size = PHANTOMS[kind], SIZES[kind]
    shape = (size, size) if phantom.spatial_dims == 2 else volume_shape(size)
    for index, domain in enumerate(phantom.domains):
        image, label = _render(kind, domain, index + offset)
        assert image.shape == shape + (3,) * (phantom.num_channels == 3)
        assert image.dtype == (np.float32 if phantom.spatial_dims == 3 else np.uint8)
        assert label.shape == shape
        assert label.dtype == np.uint8
        assert set(np.unique(label)) == set(phantom.id2label)
        assert np.isfinite(image).all()
        assert image.std() > 0.02 * (1 if phantom.spatial_dims == 3 else 255)


def test_smallest_size_still_shows_every_structure(kind):
    phantom = PHANTOMS[kind]
    for index in range(8):
        domain = phantom.domains[index % len(phantom.domains)]
        _, label = render_phantom(kind, domain=domain, index=index, size=phantom.minimum_size, seed=3)
        assert set(np.unique(label)) == set(phantom.id2label)


def test_subset_of_domains_and_images_equals_the_whole(kind):
    phantom, size = PHANTOMS[kind], SIZES[kind]
    whole = make_phantom(kind, images_per_domain=3, size=size, seed=7).with_format("numpy")
    part = make_phantom(kind, images_per_domain=2, size=size, seed=7, domains=[phantom.domains[2]], test_fraction=0.5)
    assert part.num_rows == 2
    for index, row in enumerate(part.with_format("numpy")):
        match = whole[2 * 3 + index]
        alone, alone_label = render_phantom(kind, domain=phantom.domains[2], index=index, size=size, seed=7)
        for column in ("image", "label", "domain", "patient", "name"):
            assert np.array_equal(row[column], match[column])
        assert np.array_equal(row["image"], alone)
        assert np.array_equal(row["label"], alone_label)


def test_columns_and_names(kind):
    phantom = PHANTOMS[kind]
    rows = make_phantom(kind, images_per_domain=5, size=SIZES[kind], seed=0, domains=phantom.domains[:2])
    columns = ["image", "label", "domain", "patient", "name", "split"]
    assert rows.column_names == columns + (["spacing_mm"] if phantom.spacing_mm else [])
    assert rows["domain"] == [domain for domain in phantom.domains[:2] for _ in range(5)]
    assert len(set(zip(rows["domain"], rows["name"], strict=True))) == 10


@pytest.mark.parametrize(("test", "validation"), [(0.25, 0.0), (0.2, 0.2), (0.0, 0.5), (0.1, 0.3)])
def test_split_shares_are_exact_and_do_not_depend_on_the_number_of_patients(test, validation):
    splits = [split_of(patient, test, validation) for patient in range(200)]
    assert splits.count("test") == round(200 * test)
    assert abs(splits.count("validation") - 200 * validation) <= 1
    for window in range(0, 200, 20):
        assert abs(splits[window : window + 20].count("test") - 20 * test) <= 1


def test_split_by_hand():
    assert [split_of(patient, 0.25) for patient in range(8)] == ["train", "train", "train", "test"] * 2


def test_patients_cross_neither_splits_nor_domains():
    rows = make_phantom(
        "prostate", images_per_domain=18, size=32, seed=0, domains=["scanner_a", "scanner_b"], test_fraction=0.34
    )
    homes, slices = {}, {}
    for patient, split, domain in zip(rows["patient"], rows["split"], rows["domain"], strict=True):
        homes.setdefault(patient, set()).add((split, domain))
        slices[patient] = slices.get(patient, 0) + 1
    assert all(len(home) == 1 for home in homes.values())
    assert {split for home in homes.values() for split, _ in home} == {"train", "test"}
    assert sorted(slices.values()) == [2, 2] + [4] * 8


def test_cup_lies_inside_the_disc_with_a_rim_all_around():
    from scipy.ndimage import binary_dilation

    for index in range(12):
        _, label = render_phantom("fundus", domain="camera_a", index=index, size=96, seed=0)
        cup = label == 2
        assert not (binary_dilation(cup) & (label == 0)).any()
        assert 0.05 < cup.sum() / (label > 0).sum() < 0.75


def test_cup_to_disc_ratio_varies():
    heights = []
    for index in range(16):
        _, label = render_phantom("fundus", domain="camera_b", index=index, size=96, seed=0)
        heights.append((label == 2).any(1).sum() / (label > 0).any(1).sum())
    assert max(heights) - min(heights) > 0.2


def test_vessels_are_darker_than_the_retina_and_the_cup_brighter():
    image, label = render_phantom("fundus", domain="camera_a", index=0, size=96, seed=0)
    grey = image.mean(-1)
    assert grey[label == 2].mean() > grey[label == 1].mean() > grey[label == 0].mean() + 20


def test_slices_of_a_patient_are_neighbours():
    def labels(patient):
        rendered = [
            render_phantom("prostate", domain="scanner_a", index=4 * patient + number, size=64, seed=0)[1]
            for number in range(4)
        ]
        return np.stack(rendered).astype(bool)

    def dice(a, b):
        return 2 * (a & b).sum() / (a.sum() + b.sum())

    patients = [labels(patient) for patient in range(5)]
    within = [dice(p[k], p[k + 1]) for p in patients for k in range(3)]
    across = [dice(p[1], q[1]) for p, q in itertools.pairwise(patients)]
    assert min(within) > 0.75
    assert np.mean(within) > np.mean(across)
    # Smooth, yet not the same slice again.
    assert all((p[0] != p[3]).any() for p in patients)


def test_gland_of_a_volume_is_whole_and_of_human_size():
    from scipy.ndimage import label as components

    rows = make_phantom("prostate_3d", images_per_domain=2, size=32, seed=0, domains=["scanner_a", "scanner_b"])
    for row in rows.with_format("numpy"):
        assert row["image"].shape == row["label"].shape == (8, 32, 32)
        assert row["image"].dtype == np.float32
        assert row["image"].min() >= 0
        assert row["image"].max() <= 1
        assert not row["label"][0].any()
        assert not row["label"][-1].any()
        assert components(row["label"])[1] == 1
        millilitres = row["label"].sum() * np.prod(row["spacing_mm"]) / 1000
        assert 12 < millilitres < 90


def test_spacing_times_shape_is_the_field_of_view():
    rows = make_phantom("prostate_3d", images_per_domain=1, size=32, seed=0).with_format("numpy")
    spacing = np.stack(list(rows["spacing_mm"]))
    assert np.allclose(spacing[:, 0] * 8, VOLUME_HEIGHT_MM)
    assert np.allclose(spacing[:, 1], spacing[:, 2])
    assert (spacing[:, 0] > spacing[:, 1]).all()
    assert len(set(spacing[:, 1].round(4).tolist())) > 1


def _difference_in_standard_errors(one, other):
    error = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
    return np.abs(one.mean(0) - other.mean(0)) / error


def test_cameras_differ_pairwise_in_mean_colour():
    table = []
    for domain in PHANTOMS["fundus"].domains:
        images = [render_phantom("fundus", domain=domain, index=index, size=32, seed=0)[0] for index in range(16)]
        table.append(np.stack(images).mean((1, 2)))
    for one, other in itertools.combinations(table, 2):
        assert np.abs(one.mean(0) - other.mean(0)).max() > 5
        assert _difference_in_standard_errors(one, other).max() > 3


def test_scanners_differ_from_the_first_in_brightness_contrast_or_detail():
    def features(domain, patient):
        image = render_phantom("prostate", domain=domain, index=4 * patient, size=48, seed=0)[0].astype(float)
        detail = np.abs(np.diff(image, n=2, axis=1)).mean()
        return [image.mean(), image.std(), detail, detail / image.std()]

    domains = PHANTOMS["prostate"].domains
    table = [np.array([features(domain, patient) for patient in range(16)]) for domain in domains]
    for other in table[1:]:
        assert _difference_in_standard_errors(table[0], other).max() > 3


def test_same_scene_at_two_sizes():
    _, small = render_phantom("fundus", domain="camera_a", index=2, size=48, seed=0)
    _, large = render_phantom("fundus", domain="camera_a", index=2, size=96, seed=0)
    pooled = (large > 0).reshape(48, 2, 48, 2).mean((1, 3)) >= 0.5
    assert (pooled != (small > 0)).mean() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "retina"}, "unknown phantom kind 'retina'.*fundus, prostate"),
        ({"domains": ["camera_a", "camera_z"]}, "no domain 'camera_z'.*camera_a"),
        ({"domains": []}, "domains is"),
        ({"domains": "camera_a"}, "give a list"),
        ({"domains": ["camera_a", "camera_a"]}, "different domains"),
        ({"size": 31}, "size is 31.*at least 32"),
        ({"images_per_domain": 0}, "images_per_domain is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"validation_fraction": -0.1}, "validation_fraction is -0.1"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "no patient to train"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"kind": "fundus", "images_per_domain": 1, "size": 32, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        make_phantom(arguments.pop("kind"), **arguments)


def test_bad_single_images_are_refused():
    with pytest.raises(ValueError, match="index is -1"):
        render_phantom("fundus", domain="camera_a", index=-1, size=32, seed=0)
    with pytest.raises(ValueError, match="no domain 'scanner_a'"):
        render_phantom("fundus", domain="scanner_a", index=0, size=32, seed=0)
    with pytest.raises(ValueError, match="unknown phantom kind"):
        get_phantom("liver")
    with pytest.raises(ValueError, match="negative"):
        generator_for(-1, "fundus")


def test_spline_basis_is_a_partition_of_unity_and_reproduces_lines():
    positions = np.linspace(0, 1, 23)
    basis = spline_basis(positions, 5)
    assert basis.min() >= 0
    assert np.allclose(basis.sum(1), 1, atol=1e-6)
    # Knots of a cubic B-spline lattice lie at -1, 0, ..., cells + 1.
    assert np.allclose(basis @ np.arange(-1, 7), 5 * positions, atol=1e-5)


@pytest.mark.parametrize("cells", [(9,), (9, 12), (4, 9, 12)])
def test_noise_field_is_one_field_wherever_it_is_read(cells):
    axes = [np.linspace(0.1, 0.9, 11 + number) for number in range(len(cells))]
    whole, state = generator_for(1, "noise"), generator_for(1, "noise")
    field = noise_field(whole, cells, axes)
    part = noise_field(state, cells, [axes[0][4:5], *axes[1:]])
    assert field.shape == tuple(len(axis) for axis in axes)
    assert np.allclose(field[4:5], part, atol=1e-5)
    assert whole.random() == state.random()


def test_noise_field_has_about_unit_variance():
    axes = [np.linspace(0, 1, 64)] * 2
    fields = [noise_field(generator_for(seed), (16, 16), axes) for seed in range(8)]
    assert np.mean([field.var() for field in fields]) == pytest.approx(1, abs=0.1)


def test_quantized_blocks():
    rng = np.random.default_rng(0)
    image = rng.random((20, 13, 3), dtype=np.float32)
    assert np.abs(quantize_blocks(image, 1e-4) - image).max() < 1e-3
    # A step above every coefficient leaves nothing.
    assert not quantize_blocks(image, 100.0).any()
    flat = quantize_blocks(np.full((8, 8), 0.5, np.float32), 0.5)
    assert np.allclose(flat, 0.5, atol=1e-6)
