"""The script beside an exported graph reads, prepares and refuses what the package's own tools do."""

import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import PIL.Image
import pytest
import torch

from dim_hf.inference.export import exporting, segment
from dim_hf.inference.predictor import Predictor
from dim_hf.models import DimImageProcessor
from tests.test_export import NAMES
from tests.tiny import tiny_model

NO_VOLUMES = {"plane": None, "spacing_mm": None}


def hostile_picture(kind, path):
    """A picture that programs read in more than one way."""
    generator = np.random.default_rng(0)
    color = PIL.Image.fromarray(generator.integers(0, 256, (41, 29, 3), np.uint8))
    grey = generator.integers(0, 9000, (41, 29), np.uint16)
    exif = color.getexif()
    exif[274] = 6
    if kind == "palette":
        color.quantize(64).save(path / "a.png")
    elif kind == "CMYK":
        color.convert("CMYK").save(path / "a.jpg")
    elif kind == "turned":
        color.save(path / "a.jpg", exif=exif)
    elif kind == "turned 16 bits":
        PIL.Image.fromarray(grey).save(path / "a.png", exif=exif)
    elif kind == "grey with transparency":
        color.convert("LA").save(path / "a.png")
    elif kind == "transparency":
        color.convert("RGBA").save(path / "a.png")
    elif kind == "1 bit":
        color.convert("1").save(path / "a.png")
    elif kind == "floats":
        PIL.Image.fromarray((grey / 9000).astype(np.float32)).save(path / "a.tiff")
    elif kind == "32 bits":
        PIL.Image.fromarray(grey.astype(np.int32)).save(path / "a.tif")
    elif kind == "BMP":
        color.save(path / "a.bmp")
    return next(path.iterdir())


class Session:
    """What the script asks of a session, answered by the network."""

    def __init__(self, model, processor):
        about = exporting.describe(model, processor, None, **NO_VOLUMES)
        self.model, self.about = model, SimpleNamespace(custom_metadata_map=about)

    def get_modelmeta(self):
        return self.about

    def run(self, names, inputs):
        with torch.no_grad():
            return [self.model(torch.from_numpy(inputs["pixel_values"])).logits.numpy()]


HOSTILE = ["palette", "CMYK", "turned", "turned 16 bits", "grey with transparency", "transparency", "1 bit", "floats",
           "32 bits", "BMP"]  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", HOSTILE)
def test_the_script_reads_pictures_as_the_predictor_does(tmp_path, monkeypatch, kind, channels):
    model = tiny_model(hidden_sizes=[4, 8], num_labels=3, id2label=NAMES, num_channels=channels).eval()
    processor = DimImageProcessor(num_channels=channels, intensity="zscore", size={"height": 24, "width": 36})
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session(model, processor))
    (tmp_path / "in").mkdir()
    source = hostile_picture(kind, tmp_path / "in")
    segment.main(tmp_path / "model.onnx", str(source), str(tmp_path / "mask.png"))
    mask = np.asarray(PIL.Image.open(tmp_path / "mask.png"))
    expected = Predictor(model, processor)(source).labels
    assert mask.shape == expected.shape
    assert (mask != expected).mean() < 0.002, "more than rounding at a border"
    assert len(np.unique(expected)) > 1


def test_the_script_refuses_what_the_predictor_refuses_and_what_would_lose_ids(tmp_path, monkeypatch):
    model = tiny_model(hidden_sizes=[4, 8]).eval()
    processor = DimImageProcessor(num_channels=1, intensity="zscore")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session(model, processor))
    PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    pages = [PIL.Image.new("L", (8, 8))] * 2
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    PIL.Image.new("L", (8, 8)).save(tmp_path / "good.png")
    for name, target, said in (
        ("nan.tiff", "mask.png", "NaN or infinite"),
        ("pages.tiff", "mask.png", "2 pages"),
        ("good.png", "mask.jpg", "lose class ids"),
        ("good.png", "mask", "lose class ids"),
    ):
        with pytest.raises(ValueError, match=said):
            segment.main(tmp_path / "model.onnx", str(tmp_path / name), str(tmp_path / target))
        assert not (tmp_path / target).exists()
    volumes = DimImageProcessor(num_channels=1, spatial_dims=3)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session(model, volumes))
    with pytest.raises(ValueError, match="volumes, not pictures"):
        segment.main(tmp_path / "model.onnx", str(tmp_path / "good.png"), str(tmp_path / "mask.png"))
    np.save(tmp_path / "volume.npy", np.zeros((5, 8, 3), np.uint8))
    (tmp_path / "empty.npy").touch()
    for name, target, said in (
        ("volume.npy", "mask.png", "of a volume; give an"),
        ("empty.npy", "mask.npy", "is empty"),
    ):
        with pytest.raises(ValueError, match=said):
            segment.main(tmp_path / "model.onnx", str(tmp_path / name), str(tmp_path / target))
        assert not (tmp_path / target).exists()


@pytest.mark.parametrize("intensity", ["range", "zscore", "percentile", "local"])
@pytest.mark.parametrize(
    ("settings", "shape", "kind"),
    [
        ({"num_channels": 3}, (21, 34), np.uint8),
        ({"num_channels": 1, "size": {"height": 13, "width": 50}}, (40, 30, 3), np.uint16),
        ({"num_channels": 3, "size": 16, "do_resize": False}, (20, 22, 4), np.uint8),
        ({"num_channels": 1, "intensity_range": [0.2, 0.7]}, (1, 17, 9), np.float32),
        ({"num_channels": 1, "spatial_dims": 3, "size": {"height": 11, "width": 8}}, (5, 19, 23), np.uint8),
        ({"num_channels": 2, "spatial_dims": 3, "size": 6}, (2, 9, 9, 4), np.uint8),
    ],
)
def test_the_script_prepares_images_as_the_processor_does(settings, shape, kind, intensity):
    processor = DimImageProcessor(intensity=intensity, **settings)
    generator = np.random.default_rng(0)
    top = 1 if kind is np.float32 else np.iinfo(kind).max
    image = (generator.random(shape) * top).astype(kind)
    known = json.loads(exporting.describe(tiny_model(), processor, None, **NO_VOLUMES)["preprocessor_config"])
    expected = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(segment.prepare(image, known), expected, atol=2e-5)


def test_the_script_refuses_what_it_does_not_know():
    known = {"num_channels": 1, "spatial_dims": 2, "intensity": "range", "size": {"height": 4, "width": 4}}
    with pytest.raises(ValueError, match="the filter 3 is not known"):
        segment.prepare(np.zeros((8, 8), np.uint8), known | {"resample": 3})
    with pytest.raises(ValueError, match=r"the shape \(8,\)"):
        segment.prepare(np.zeros(8, np.uint8), known)
    with pytest.raises(ValueError, match="3 channels, the model takes 2"):
        segment.prepare(np.zeros((8, 8, 3), np.uint8), known | {"num_channels": 2, "resample": 2})
