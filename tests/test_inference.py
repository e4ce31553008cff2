"""What a predictor says: pictures as in evaluation, mirror images, doubt, components, measurements, loading."""

import json
import math
import sys
import tracemalloc

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

import dim_hf
from dim_hf.data.description import DatasetDescription, write_description
from dim_hf.data.sources import load_source
from dim_hf.data.volumes.volume import Volume, write_nifti
from dim_hf.evaluation.prediction import predict_rows
from dim_hf.inference.components import keep_largest_components
from dim_hf.inference.loading import content_hash, find_plane
from dim_hf.inference.measurements import CUP_TO_DISC, Measurement, measure, write_measurements
from dim_hf.inference.options import PredictionOptions
from dim_hf.inference.predictor import Picture, Predictor
from dim_hf.models import DimImageProcessor
from tests.inference_samples import STRUCTURES, Bands, Sided, bands, predictor, processor, scan
from tests.test_job import write_site
from tests.tiny import tiny_model, tiny_trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model and its processor, as a run leaves them."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    DimImageProcessor(num_channels=1, size=32).save_pretrained(folder)
    return folder


def test_pictures_get_the_masks_that_evaluation_scores(tmp_path, saved):
    for domain, size in (("one", 32), ("other", 48)):
        write_site(tmp_path, domain, 3, size=size)
    rows = load_source(str(tmp_path)).rows
    found = dim_hf.Predictor.from_pretrained(saved, device="cpu", probabilities=True, batch_size=2)
    expected = predict_rows(found.networks[0], found.processor, rows, native=True, progress=False)
    masks = found.predict_pictures([Picture(np.asarray(row["image"])) for row in rows])
    for case, mask in zip(sorted(expected, key=lambda case: case.index), masks, strict=True):
        assert np.array_equal(mask.labels, case.prediction)
        np.testing.assert_allclose(mask.probabilities, case.probabilities, atol=1e-5)


class Coarse(torch.nn.Module):
    """A network that answers at a quarter of the resolution, as SegFormer does."""

    def __init__(self):
        super().__init__()
        self.network = tiny_model()
        self.config = self.network.config

    def forward(self, pixel_values):
        found = self.network(pixel_values=pixel_values)
        return SemanticSegmenterOutput(logits=torch.nn.functional.avg_pool2d(found.logits, 4))


def test_coarse_logits_are_interpolated_once_as_in_evaluation(tmp_path):
    write_site(tmp_path, "one", 2, size=48)
    rows = load_source(str(tmp_path)).rows
    steps = DimImageProcessor(num_channels=1, size=32)
    network = Coarse()
    pictures = [Picture(np.asarray(row["image"])) for row in rows]
    found = Predictor(network, steps, PredictionOptions(probabilities=True)).predict_pictures(pictures)
    for case, mask in zip(predict_rows(network, steps, rows, native=True, progress=False), found, strict=True):
        np.testing.assert_allclose(mask.probabilities, case.probabilities, atol=1e-6)


def test_volumes_of_a_3d_model_get_the_masks_that_evaluation_scores(tmp_path):
    network = tiny_model(spatial_dims=3)
    volume = Volume(
        scan(np.random.default_rng(0), (9, 7, 5), np.float32),
        np.array([[0, 0, 2, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]),
    )
    write_nifti(volume, tmp_path / "a.nii.gz")
    (tmp_path / "manifest.csv").write_text("image,domain\na.nii.gz,site\n")
    steps = DimImageProcessor(num_channels=1, spatial_dims=3, intensity="zscore")
    (case,) = predict_rows(network, steps, load_source(str(tmp_path)).rows, native=True, progress=False)
    mask = Predictor(network, steps)(tmp_path / "a.nii.gz")
    assert mask.labels.shape == (9, 7, 5)
    # To the order (z, y, x) of RAS: the file's axes run to posterior, superior and right.
    assert np.array_equal(mask.labels.transpose(1, 0, 2)[:, ::-1], case.prediction)


@pytest.mark.parametrize("kind", ["array", "image", "file", "color"])
def test_a_picture_may_be_given_in_any_form(tmp_path, kind):
    array = scan(np.random.default_rng(0), (20, 30), np.uint8, top=255)
    images = {"array": array, "image": PIL.Image.fromarray(array), "color": np.repeat(array[..., None], 3, axis=2)}
    PIL.Image.fromarray(array).save(tmp_path / "a.png")
    found = predictor(top=255)(images.get(kind, tmp_path / "a.png"), spacing_mm=(0.5, 0.1))
    assert np.array_equal(found.labels, bands(array, 255))
    assert found.spacing_mm == (0.5, 0.1)
    assert found.affine is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])
def test_a_pil_image_is_read_as_its_file_is(tmp_path, mode):
    color = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    image = color.quantize(32).convert(mode) if mode == "PA" else color.convert(mode)
    if mode == "LAB":
        image = PIL.ImageCms.profileToProfile(
            color, PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode in ("I", "I;16", "F"):
        array = np.asarray(color.convert("L"))
        image = PIL.Image.fromarray(array.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    assert image.mode == mode
    # What no format keeps is saved as the RGB that it stands for.
    kept = image.convert("RGB") if mode in ("HSV", "LAB", "YCbCr", "PA") else image
    kept.save(tmp_path / "a.tiff", compression="tiff_lzw")
    steps = DimImageProcessor(num_channels=3, intensity="range", intensity_range=(0, 255))
    asked = Predictor(tiny_model(num_channels=3), steps, PredictionOptions(probabilities=True))
    np.testing.assert_array_equal(asked(image).probabilities, asked(tmp_path / "a.tiff").probabilities)


def test_a_pil_image_with_an_orientation_is_turned_as_its_file_is(tmp_path):
    array = scan(np.random.default_rng(0), (20, 30), np.uint8, top=255)
    image = PIL.Image.fromarray(array)
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "a.png", exif=exif)
    with PIL.Image.open(tmp_path / "a.png") as opened:
        found = predictor(top=255)(opened).labels
    assert np.array_equal(found, np.rot90(bands(array, 255), -1))
    assert np.array_equal(found, predictor(top=255)(tmp_path / "a.png").labels)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_that_are_no_picture_are_refused(kind):
    asked = Predictor(tiny_model(num_channels=5), DimImageProcessor(num_channels=5, intensity="zscore"))
    for shape in ((3, 20, 30), (2, 20, 30, 3), (20, 30, 6), (30,), (1, 5, 20, 30)):
        with pytest.raises(ValueError, match=r"must have \(height, width\).* with 1, 2, 3, 4, 5 channels"):
            asked(np.zeros(shape, kind))
    generator = np.random.default_rng(0)
    for shape in ((20, 30), (20, 30, 1), (20, 30, 2), (20, 30, 5), (5, 40, 5), (3, 40, 1), (1, 1)):
        assert asked((255 * generator.random(shape)).astype(kind)).labels.shape == shape[:2]


def test_a_picture_of_few_rows_has_its_channels_at_the_end():
    rows = np.random.default_rng(0).random((3, 40, 3)).astype(np.float32)
    asked = Predictor(
        tiny_model(num_channels=3), DimImageProcessor(num_channels=3), PredictionOptions(probabilities=True)
    )
    taller = np.concatenate([rows] * 2)
    seen = asked._input(taller)
    np.testing.assert_array_equal(asked._input(rows), seen[:, :3])
    assert asked(rows).probabilities.shape[1:] == (3, 40)


@pytest.mark.parametrize("spacing", [(0.5,), (1, 1, 1), 0.5, (0, 1), (-1, 1), (math.nan, 1), (math.inf, 1), "ab"])
def test_a_spacing_is_two_lengths(spacing):
    with pytest.raises(ValueError, match=r"spacing_mm is .*give height and width of a pixel in mm"):
        predictor()(np.zeros((4, 4), np.uint8), spacing_mm=spacing)
    if isinstance(spacing, tuple):
        with pytest.raises(ValueError, match="spacing_mm is"):
            predictor().predict_pictures([Picture(np.zeros((4, 4), np.uint8), spacing)])


def test_mirror_images_are_averaged_before_the_class_is_taken():
    image = np.zeros((4, 6), np.uint8)
    network = Sided(sharpness=3.0)
    plain = predictor(network=network, probabilities=True)(image)
    assert np.array_equal(plain.labels[0], [2, 2, 2, 0, 0, 0])
    found = predictor(network=network, flips=True, probabilities=True, uncertainty="flips")(image)
    high, low = (math.exp(part) / (math.exp(3) + 2) for part in (3, 0))
    mean = np.array([(high + low) / 2, low, (high + low) / 2])
    np.testing.assert_allclose(found.probabilities, np.broadcast_to(mean[:, None, None], (3, 4, 6)), atol=1e-6)
    each = -high * math.log(high) - 2 * low * math.log(low)
    expected = (-(mean * np.log(mean)).sum() - each) / math.log(3)
    np.testing.assert_allclose(found.uncertainty, expected, atol=1e-6)


def test_doubt_is_none_where_all_agree_and_one_where_nothing_is_known():
    image = np.zeros((4, 6), np.uint8)
    assert predictor(uncertainty="flips")(image).uncertainty.max() < 1e-6
    assert predictor(network=Bands(sharpness=1e4), uncertainty="entropy")(image).uncertainty.max() < 1e-6
    assert predictor(network=Bands(sharpness=0.0), uncertainty="entropy")(image).uncertainty.min() > 1 - 1e-6
    opposite = Predictor(
        Sided(sharpness=1e3),
        processor(),
        PredictionOptions(uncertainty="teacher-student"),
        other=Bands(sharpness=1e5),
    )
    found = opposite(image)
    np.testing.assert_allclose(found.uncertainty[:, :3], 1, atol=1e-5)
    np.testing.assert_allclose(found.uncertainty[:, 3:], 0, atol=1e-5)
    assert np.array_equal(found.labels[0], [2, 2, 2, 0, 0, 0])


def test_the_largest_part_of_each_structure_stays_and_the_rest_becomes_what_is_around_it():
    labels = np.zeros((8, 12), np.uint8)
    labels[1:7, 1:7] = 1
    labels[2:5, 2:4] = 2
    labels[5, 5] = 2
    labels[7, 7] = 1  # touches the disc with a corner
    labels[0:2, 10:12] = 2
    before = labels.copy()
    expected = labels.copy()
    expected[5, 5] = 1
    expected[0:2, 10:12] = 0
    assert np.array_equal(keep_largest_components(labels, STRUCTURES), expected)
    assert np.array_equal(labels, before)
    assert keep_largest_components(expected, STRUCTURES) is expected
    nothing = np.zeros((3, 4, 5), np.uint8)
    assert keep_largest_components(nothing, {"a": [1]}) is nothing


def test_measurements_are_those_of_a_ruler():
    labels = np.zeros((10, 10), np.uint8)
    labels[1:9, 2:6] = 1
    labels[3:5, 2:5] = 2
    area = {found.structure: found for found in measure(labels, STRUCTURES, (0.5, 0.2)) if found.quantity == "area"}
    assert area["disc"] == Measurement("disc", "area", pytest.approx(32 * 0.1), "mm2", 32)
    assert area["cup"] == Measurement("cup", "area", pytest.approx(6 * 0.1), "mm2", 6)
    assert measure(labels, STRUCTURES, None)[-1] == Measurement("cup", CUP_TO_DISC, 0.25, "", 6)
    assert measure(labels, STRUCTURES, None)[0] == Measurement("disc", "area", 32.0, "px", 32)
    assert [found.quantity for found in measure(np.zeros((4, 4), np.uint8), STRUCTURES, None)] == ["area", "area"]
    labels[9, 9] = 2  # a speck: the ratio is that of the largest parts, as in the report of an evaluation
    assert measure(labels, STRUCTURES, None)[-1].value == 0.25
    volume = np.ones((10, 10, 10), np.uint8)
    assert measure(volume, {"gland": [1]}, (1.0, 2.0, 5.0)) == (Measurement("gland", "volume", 10.0, "ml", 1000),)


def test_no_cell_of_the_table_is_a_formula(tmp_path):
    hostile = ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", " =1", "a\x1b[2J\nb", "<b>"]
    write_measurements([(name, [Measurement(name, "area", 1.0, "px", 1)]) for name in hostile], tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert len(lines) == len(hostile) + 1
    for line in lines[1:]:
        assert line.isprintable()
        assert not line.startswith(("=", "+", "-", "@", '"=', '"+'))
        assert line.split(",")[1][0] not in "=+-@"


def test_a_model_is_loaded_whole_or_not_at_all(tmp_path, saved):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert Predictor.from_pretrained(folder).model_hash == Predictor.from_pretrained(saved).model_hash
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be loaded"):
        Predictor.from_pretrained(folder)
    weights.unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):  # a pickle is not opened
        Predictor.from_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    tiny_model(hidden_sizes=[8, 8]).save_pretrained(tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"lacks weights|cannot be loaded"):
        Predictor.from_pretrained(folder)
    with pytest.raises(ValueError, match="holds a model"):
        Predictor.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="device 'tpu9' cannot be used"):
        Predictor.from_pretrained(saved, device="tpu9")


def test_code_beside_the_weights_is_not_run_unasked(tmp_path, saved):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "stranger",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForSemanticSegmentation": "code.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Predictor.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_hash_names_weights_and_settings_not_places(saved):
    base = content_hash([tiny_model()], DimImageProcessor(num_channels=1))
    assert base == content_hash([tiny_model()], DimImageProcessor(num_channels=1))
    assert base != content_hash([tiny_model(seed=1)], DimImageProcessor(num_channels=1))
    assert base != content_hash([tiny_model()], DimImageProcessor(num_channels=1, size=64))
    assert base != content_hash([tiny_model()] * 2, DimImageProcessor(num_channels=1))
    assert content_hash([tiny_model().bfloat16()], None) != content_hash([tiny_model()], None)


def test_the_other_network_of_a_run_is_found(tmp_path, saved):
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, ema_decay=0.5)
    trainer.processing_class = DimImageProcessor(num_channels=1)
    trainer.train()
    trainer.save_model()
    image = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    ask = {"uncertainty": "teacher-student", "device": "cpu"}
    run = Predictor.from_pretrained(tmp_path, **ask)
    checkpoint = Predictor.from_pretrained(tmp_path / "checkpoint-2", **ask)
    # The run's model is the teacher of its last checkpoint: both compare the same two networks.
    np.testing.assert_allclose(run(image).uncertainty, checkpoint(image).uncertainty, atol=1e-6)
    assert run(image).uncertainty.max() > 0
    with pytest.raises(ValueError, match="only one; keep a checkpoint"):
        Predictor.from_pretrained(saved, uncertainty="teacher-student")


def test_the_plane_of_the_training_is_taken_where_it_is_recorded(tmp_path):
    config = tiny_model().config
    assert find_plane(str(tmp_path), config) is None
    config.plane = "sagittal"
    assert find_plane("org/name", config) == "sagittal"
    config.plane = "../x"
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "results.json").write_text(json.dumps({"job": {"data": {"dataset": str(data)}}}))
    assert find_plane(str(tmp_path), config) is None
    notes = ["saml: volumes cut into slices, plane: coronal"]
    write_description(DatasetDescription({0: "b", 1: "f"}, {"f": [1]}, notes=notes), data)
    assert find_plane(str(tmp_path), config) == "coronal"
    (tmp_path / "results.json").write_text("[1")
    assert find_plane(str(tmp_path), config) is None


def test_a_model_takes_its_plane_along_wherever_it_goes(tmp_path):
    tiny_model(plane="sagittal").save_pretrained(tmp_path / "pushed")
    processor().save_pretrained(tmp_path / "pushed")
    loaded = Predictor.from_pretrained(tmp_path / "pushed", device="cpu")
    assert loaded.plane == "sagittal"
    assert Predictor.from_pretrained(tmp_path / "pushed", device="cpu", plane="axial").plane == "axial"
    volume = Volume(scan(np.random.default_rng(0), (6, 16, 16)), np.eye(4))
    axial = Predictor.from_pretrained(tmp_path / "pushed", device="cpu", plane="axial", probabilities=True)(volume)
    named = Predictor.from_pretrained(tmp_path / "pushed", device="cpu", plane="sagittal", probabilities=True)(volume)
    own = Predictor.from_pretrained(tmp_path / "pushed", device="cpu", probabilities=True)(volume)
    assert np.array_equal(own.probabilities, named.probabilities)
    assert not np.array_equal(own.probabilities, axial.probabilities)


def test_volumes_of_several_windows_need_monai(monkeypatch):
    volume = Volume(scan(np.random.default_rng(0), (6, 6, 6)), np.eye(4))
    monkeypatch.setitem(sys.modules, "monai.inferers", None)
    assert predictor(3)(volume).labels.shape == (6, 6, 6)
    with pytest.raises(ImportError, match=r"monai.inferers; install it with: pip install dim-hf\[volumes\]"):
        predictor(3, window=(4, 4, 4))(volume)


def test_memory_beside_the_mask_does_not_grow_with_the_number_of_slices():
    network = Bands()

    def peak(slices):
        volume = Volume(np.full((64, 64, slices), 100, np.int16), np.eye(4))
        ask = predictor(network=network, plane="axial")
        tracemalloc.start()
        found = ask(volume)
        held = tracemalloc.get_traced_memory()[1] - found.labels.nbytes
        tracemalloc.stop()
        return held

    peak(16)
    few = peak(16)
    # One plane of counters, and one bit of slack for what Python keeps.
    assert peak(160) < few + 2**16
    assert network.largest_input <= 8 * 64 * 64


def test_large_slices_pass_in_smaller_batches():
    network = Bands()
    predictor(network=network)(Volume(np.full((512, 256, 6), 100, np.uint8), np.eye(4)))
    assert network.largest_input == 2**18


def test_wrong_questions_are_answered_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="not pictures; give a volume"):
        predictor(3)(np.zeros((4, 4), np.uint8))
    for options, match in (
        ({"plane": "oblique"}, "plane is 'oblique'"),
        ({"uncertainty": "x"}, "uncertainty is 'x'"),
        ({"window": (0, 1, 1)}, "window"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"channel": -1}, "channel is -1"),
    ):
        with pytest.raises(ValueError, match=match):
            PredictionOptions(**options)
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match="is no image that can be read here"):
        predictor()(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="missing or no file"):
        predictor()(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds 0 DICOM series"):
        predictor()(tmp_path)


@pytest.mark.parametrize(
    ("dims", "option", "message"),
    [
        (2, {"window": (4, 4, 4)}, r"window is \(4, 4, 4\), but this model is 2D"),
        (3, {"plane": "axial"}, "plane is 'axial', but this model is 3D"),
    ],
)
def test_options_of_the_other_kind_of_model_are_refused(dims, option, message):
    with pytest.raises(ValueError, match=message):
        predictor(dims, **option)
