"""Volumes that were resampled for the training are resampled for the prediction, and masks come back."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dim_hf.data.description import DatasetDescription, read_description, write_description
from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.importers.writer import WriteOptions
from dim_hf.data.sources import load_source
from dim_hf.data.volumes.resampling import at_spacing, spacing_in, spacing_note
from dim_hf.data.volumes.slices import slice_axis
from dim_hf.data.volumes.volume import Volume, resample_back, write_nifti
from dim_hf.inference.geometry import depth_first
from dim_hf.inference.loading import find_spacing
from dim_hf.inference.options import PredictionOptions
from dim_hf.inference.predictor import Predictor
from dim_hf.models import DimUNetConfig
from dim_hf.trainer.job import make_model
from dim_hf.trainer.job_arguments import ModelArguments
from tests.inference_samples import TOP, Bands, processor
from tests.tiny import tiny_model

AFFINE = np.array([[0, 0, 3.0, 5], [-0.5, 0, 0, 7], [0, 0.75, 0, 9], [0, 0, 0, 1]])  # stored as posterior, S, R


class Seen(Bands):
    """Keeps what it is asked."""

    def __init__(self, dims):
        super().__init__(dims)
        self.inputs = []

    def forward(self, pixel_values):
        self.inputs.append(pixel_values.numpy().copy())
        return super().forward(pixel_values)


def ball(shape=(24, 20, 9), affine=AFFINE, radius=4.5, top=TOP):
    """A bright ball of smooth border in the middle of a volume, in mm."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) - (np.array(shape) - 1) / 2
    distance = np.linalg.norm(grid * np.linalg.norm(affine[:3, :3], axis=0), axis=-1)
    return Volume(np.rint(top * np.clip(radius - distance + 0.5, 0, 1)).astype(np.int16), affine)


def ask(dims, spacing_mm, network=None, **options):
    network = network or Seen(dims)
    return Predictor(
        network, processor(dims), PredictionOptions(**options), trained_plane="auto", trained_spacing_mm=spacing_mm
    )


def write_hospital(root, volume, count=2):
    for folder in ("images", "masks"):
        (root / "a" / folder).mkdir(parents=True)
    for index in range(count):
        write_nifti(volume, root / "a" / "images" / f"c{index}.nii.gz")
        mask = Volume((volume.array > TOP / 2).astype(np.uint8), volume.affine)
        write_nifti(mask, root / "a" / "masks" / f"c{index}.nii.gz")
    return root


@pytest.mark.parametrize("spacing", [(2, 2, 3), (1.0, 0.123456789, 1e-3), (2.0, 2.0, 1 / 3)])
def test_what_an_import_notes_of_the_spacing_is_read_back(spacing):
    notes = ["saml: of 6 sites", f"saml: {spacing_note(spacing)}"]
    assert spacing_in(notes) == pytest.approx(spacing, rel=1e-11)
    assert spacing_in([*notes, f"msd: {spacing_note(spacing)}"]) == spacing_in(notes)
    assert spacing_in([*notes, f"msd: {spacing_note((9, 9, 9))}"]) is None
    assert spacing_in(["resampled to a x b x c mm"]) is spacing_in(["resampled to 0 x 1 x 1 mm"]) is None
    assert spacing_in(notes[:1]) is None


@pytest.mark.parametrize("value", [[1, 2], [1, 2, 0], [1, 2, float("nan")], [1, 2, True], "1 2 3", 2.0])
def test_a_configuration_takes_three_lengths(value):
    with pytest.raises(ValueError, match="spacing_mm"):
        DimUNetConfig(spacing_mm=value)


def test_a_configuration_keeps_its_spacing(tmp_path):
    DimUNetConfig(spacing_mm=(2, 2.5, 3)).save_pretrained(tmp_path)
    assert DimUNetConfig.from_pretrained(tmp_path).spacing_mm == [2, 2.5, 3]
    assert DimUNetConfig().spacing_mm is None


@pytest.mark.parametrize("plane", [None, "auto"])
def test_a_model_knows_the_spacing_of_the_volumes_that_it_learns_from(tmp_path, plane):
    source = write_hospital(tmp_path / "src", ball())
    job = ImportJob("folders", source, tmp_path / "data", write=WriteOptions(plane=plane, spacing_mm=(2, 2.5, 3)))
    import_dataset(job, progress=False)
    about = SimpleNamespace(description=read_description(tmp_path / "data" / "dim_dataset.json"))
    model = make_model(about, ModelArguments(hidden_sizes=[4, 8]))
    assert model.config.spacing_mm == [2, 2.5, 3]
    model.save_pretrained(tmp_path / "model")
    processor(model.config.spatial_dims).save_pretrained(tmp_path / "model")
    assert Predictor.from_pretrained(tmp_path / "model", device="cpu").spacing_mm == (2, 2.5, 3)
    own = SimpleNamespace(description=replace(about.description, notes=[]))
    going_on = ModelArguments(model_name_or_path=str(tmp_path / "model"))
    assert make_model(own, going_on).config.spacing_mm is None


def test_the_spacing_of_a_run_of_an_earlier_version_is_that_of_its_data(tmp_path):
    config = tiny_model().config
    assert find_spacing("org/name", config) is None
    (tmp_path / "results.json").write_text(json.dumps({"job": {"data": {"dataset": str(tmp_path)}}}))
    notes = ["saml: resampled to 2 x 2 x 3 mm (linear; label maps nearest)"]
    write_description(DatasetDescription({0: "b", 1: "f"}, {"f": [1]}, notes=notes), tmp_path)
    assert find_spacing(str(tmp_path), config) == (2, 2, 3)
    config.spacing_mm = [1, 1, 1]
    assert find_spacing(str(tmp_path), config) == (1, 1, 1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.5), (3.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_the_network_sees_an_original_file_as_the_import_would_have_stored_it(tmp_path, dims, spacing):
    volume = ball()
    source = write_hospital(tmp_path / "src", volume, count=1)
    write = WriteOptions(plane="auto" if dims == 2 else None, spacing_mm=spacing)
    rows = load_source(str(import_dataset(ImportJob("folders", source, tmp_path / "data", write=write)))).rows
    predict = ask(dims, spacing)
    predict(source / "a" / "images" / "c0.nii.gz")
    seen = np.concatenate([part[:, 0] for part in predict.networks[0].inputs])
    if dims == 2:
        expected = np.stack([np.asarray(row["image"]) for row in rows])
    else:
        stored = rows[0]["image"]
        expected = depth_first(Volume(np.asarray(stored.dataobj), stored.affine))[None]
    np.testing.assert_allclose(seen * TOP, expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.5), (1.0, 1.0, 1.0), (0.4, 0.4, 0.4)])
def test_masks_and_maps_come_back_on_the_grid_of_the_file(dims, spacing):
    volume = ball()
    found = ask(dims, spacing, probabilities=True, uncertainty="entropy")(volume)
    shape = volume.array.shape
    assert (found.labels.shape, found.probabilities.shape, found.uncertainty.shape) == (shape, (3, *shape), shape)
    assert found.spacing_mm == volume.spacing_mm
    assert np.array_equal(found.affine, volume.affine)
    assert found.labels.dtype == np.uint8
    assert np.array_equal(found.labels, found.probabilities.argmax(0))
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert 0 <= found.uncertainty.min() <= found.uncertainty.max() <= 1
    mask, truth = found.labels > 0, volume.array > 0.25 * TOP
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.8
    shift_mm = (np.argwhere(mask).mean(0) - np.argwhere(truth).mean(0)) * volume.spacing_mm
    assert np.abs(shift_mm).max() < 0.3
    plain = ask(dims, spacing)(volume)
    assert plain.probabilities is plain.uncertainty is None
    assert np.array_equal(plain.labels, found.labels)


def test_a_volume_of_the_spacing_of_the_training_is_left_alone():
    volume = ball()
    own, other = ask(3, (3.0, 0.5, 0.75))(volume), ask(3, None)(volume)
    assert np.array_equal(own.labels, other.labels)


def test_values_come_back_to_their_places():
    ramp = Volume(np.broadcast_to(np.arange(24.0)[:, None, None], (24, 20, 9)).copy(), AFFINE)
    seen = at_spacing(ramp, (1.5, 1.5, 1.5), is_label=False)
    back = resample_back(seen, ramp).array
    inside = slice(0, 3 * (seen.array.shape[0] - 1) + 1)
    np.testing.assert_allclose(back[inside], ramp.array[inside], atol=1e-4)
    assert np.array_equal(back[inside.stop :], np.broadcast_to(back[inside.stop - 1], back[inside.stop :].shape))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (0.5, 0.5, 3.0)])
def test_the_plane_auto_is_chosen_as_in_the_import_at_the_spacing_of_the_training(tmp_path, spacing):
    volume = ball((8, 24, 22), np.diag([3.0, 1.0, 1.0, 1.0]))  # as it is, it would be cut sagittally
    assert slice_axis(volume, "auto") == 0
    source = write_hospital(tmp_path / "src", volume, count=1)
    write = WriteOptions(plane="auto", spacing_mm=spacing)
    rows = load_source(str(import_dataset(ImportJob("folders", source, tmp_path / "data", write=write)))).rows
    predict = ask(2, spacing)
    assert predict(volume).labels.shape == volume.array.shape
    seen = [part.shape[2:] for part in predict.networks[0].inputs for _ in part]
    assert seen == [np.asarray(row["image"]).shape for row in rows]
