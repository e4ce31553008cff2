"""Exported graphs give the network's logits for all sizes, and say what they are to those who have no dim_hf."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from dim_hf.cli import main
from dim_hf.inference.export import exporting
from dim_hf.inference.export.exporting import compare, export_model
from dim_hf.inference.export.graphs import FORMATS, GraphFormat, _pad_by_index, trace
from dim_hf.inference.predictor import Predictor
from dim_hf.models import DimImageProcessor
from tests.tiny import tiny_model

NAMES = {0: "background", 1: "rim", 2: "cup | <b>"}


def saved_model(folder, **settings):
    model = tiny_model(**{"hidden_sizes": [4, 8], "num_labels": 3, "id2label": NAMES} | settings).eval()
    model.save_pretrained(folder)
    spatial = {"spatial_dims": 3} if settings.get("spatial_dims") == 3 else {"size": {"height": 24, "width": 36}}
    DimImageProcessor(num_channels=model.config.num_channels, intensity="zscore", **spatial).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A 2D model, exported by the command in a process of its own."""
    root = tmp_path_factory.mktemp("export")
    model = saved_model(root / "model", num_channels=3, upsample="interpolate", norm="batch")
    arguments = ["export", str(root / "model"), str(root / "out"), "--json"]
    code = f"from dim_hf.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return SimpleNamespace(root=root, model=model, folder=root / "out", done=done)


def logits_of(folder, pixels):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixels.numpy()})[0]


@pytest.mark.slow
def test_the_command_prints_its_report_and_no_noise_of_libraries(exported):
    assert (exported.done.returncode, exported.done.stderr) == (0, "")
    report = json.loads(exported.done.stdout)
    assert report["sizes"] == "any number of images of any size"
    assert len({tuple(check["shape"][2:]) for check in report["checks"]}) > 1
    assert len({check["shape"][0] for check in report["checks"]}) > 1
    assert report["largest_difference"] <= report["tolerance"] == 1e-4
    assert set(report["files"]) == {path.name for path in exported.folder.iterdir()}


@pytest.mark.slow
def test_the_graph_knows_settings_and_classes(exported):
    session = onnxruntime.InferenceSession(exported.folder / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    beside = json.loads((exported.folder / "preprocessor_config.json").read_text("utf-8"))
    assert json.loads(about["preprocessor_config"]) == beside
    assert json.loads(about["id2label"]) == {str(index): name for index, name in NAMES.items()}
    assert "not a medical device" in about["notice"]
    assert [axis if isinstance(axis, str) else int(axis) for axis in session.get_inputs()[0].shape] == [
        "batch", 3, "height", "width",
    ]  # fmt: skip
    for path in exported.folder.glob("*.json"):
        assert str(exported.root) not in path.read_text("utf-8")
    assert "cup \\| &lt;b&gt;" in (exported.folder / "README.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["picture", "16 bits", "colors first"])
def test_the_script_beside_the_graph_needs_neither_torch_nor_dim_hf(exported, tmp_path, kind):
    generator = np.random.default_rng(0)
    image = {
        "picture": generator.integers(0, 256, (41, 29, 3), np.uint8),
        "16 bits": generator.integers(0, 9000, (17, 90), np.uint16),
        "colors first": generator.random((3, 33, 31)).astype(np.float32),
    }[kind]
    source, target = tmp_path / "image.npy", tmp_path / "mask.npy"
    np.save(source, image)
    if kind == "picture":
        source, target = tmp_path / "image.png", tmp_path / "mask.png"
        PIL.Image.fromarray(image).save(source)
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'dim_hf', 'transformers')));"
    code = f"{blocked} import runpy; sys.argv[1:] = {[str(source), str(target)]!r};"
    code += f"sys.path.insert(0, {str(exported.folder)!r});"
    code += f"runpy.run_path({str(exported.folder / 'segment.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    mask = np.load(target) if kind != "picture" else np.asarray(PIL.Image.open(target))
    predictor = Predictor(exported.model, DimImageProcessor.from_pretrained(exported.root / "model"))
    if kind == "colors first":
        image = np.moveaxis(image, 0, -1)
    expected = predictor(image).labels
    assert mask.shape == expected.shape
    assert (mask != expected).mean() < 0.002, "more than rounding at a border"
    assert f"rim: {(mask == 1).sum()} pixels" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "norm", "upsample"),
    [
        (2, "instance", "transpose"),
        (2, "group", "interpolate"),
        (3, "batch", "interpolate"),
        (3, "instance", "interpolate"),
        (3, "group", "transpose"),
    ],
)
def test_onnx_takes_any_number_of_images_of_any_size(tmp_path, dims, norm, upsample):
    model = saved_model(tmp_path / "model", spatial_dims=dims, norm=norm, upsample=upsample, deep_supervision=True)
    report = export_model(str(tmp_path / "model"), tmp_path / "out")
    assert (report.step, report.smallest) == (1, 1)
    for shape in ([1, 1, *[1] * dims], [2, 1, 1, *[2] * (dims - 1)], [4, 1, *(9, 16, 23)[:dims]]):
        pixels = torch.rand(*shape)
        with torch.no_grad():
            expected = model(pixels).logits.numpy()
        np.testing.assert_allclose(logits_of(tmp_path / "out", pixels), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_torch_export_takes_any_number_of_images_of_any_size(tmp_path, dims):
    model = saved_model(tmp_path / "model", spatial_dims=dims)
    report = export_model(str(tmp_path / "model"), tmp_path / "out", "torch_export")
    assert (report.step, report.smallest) == (1, 1)
    files = {"preprocessor_config": "", "notice": ""}
    network = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=files).module(check_guards=False)
    pixels = torch.rand(5, 1, *(11, 6, 1)[:dims])
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), model(pixels).logits, atol=1e-4, rtol=0)
    assert "DimImageProcessor" in files["preprocessor_config"]


@pytest.mark.slow
def test_a_network_of_transformers_is_exported_too(tmp_path):
    sizes = {"depths": [1], "hidden_sizes": [8], "num_attention_heads": [1], "strides": [4], "patch_sizes": [7]}
    more = {"num_encoder_blocks": 1, "sr_ratios": [2], "mlp_ratios": [2], "decoder_hidden_size": 8, "num_labels": 3}
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, **more)).save_pretrained(tmp_path / "model")
    SegformerImageProcessor().save_pretrained(tmp_path / "model")
    report = export_model(str(tmp_path / "model"), tmp_path / "out", "torch_export")
    assert report.step == 1
    assert report.difference <= 1e-4
    assert not (tmp_path / "out" / "segment.py").exists(), "it knows DimImageProcessor alone"


@pytest.mark.slow
def test_a_network_that_takes_no_small_images_is_exported_too(tmp_path):
    """UPerNet pools four times, and fails below 32 pixels."""
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "depths": [1] * 4, "hidden_sizes": [8] * 4}
    heads = {"hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 8, "num_labels": 3}
    network = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=ConvNextConfig(**stages), **heads))
    network.save_pretrained(tmp_path / "model")
    SegformerImageProcessor().save_pretrained(tmp_path / "model")
    report = export_model(str(tmp_path / "model"), tmp_path / "out", "torch_export")
    assert report.difference <= 1e-4
    assert report.smallest >= 32


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (8, 1), (7, 9), (16, 8), (8, 16), (5, 40)])
def test_padding_in_integers_is_the_padding_of_the_network(size):
    model = tiny_model(hidden_sizes=[4, 4, 4, 4])
    pixels = torch.rand(2, 1, *size)
    assert torch.equal(_pad_by_index(model, pixels), model._pad(pixels))


def test_tracing_leaves_the_network_as_it_was():
    model = tiny_model(hidden_sizes=[4, 8]).eval()
    before = dict(vars(model))
    trace(model)
    assert vars(model) == before


def fake_format(monkeypatch, error):
    """A format whose graph is the network, but for an error of the logits."""
    loaded = {}

    def load(path):
        network = loaded["network"]
        return lambda pixels: network(torch.from_numpy(pixels)).logits.detach().numpy() + error

    def traced(network, step):
        loaded["network"] = network
        return network

    monkeypatch.setattr(exporting, "trace", traced)
    monkeypatch.setitem(FORMATS, "onnx", GraphFormat("model.onnx", lambda _, path, texts: path.touch(), load))


def test_a_graph_with_other_logits_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    saved_model(tmp_path / "model")
    fake_format(monkeypatch, 2e-4)
    with pytest.raises(ValueError, match=r"dim_unet.*cannot be exported.*1 x 1 x 128 x 128.*differ.*0\.0002"):
        export_model(str(tmp_path / "model"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_logits_that_are_not_finite_are_refused(tmp_path):
    model = tiny_model(hidden_sizes=[4, 8]).eval()
    with pytest.raises(ValueError, match="differ"):
        compare(model, lambda pixels: np.full((1, 2, 4, 4), np.nan, np.float32), (1, 1, 4, 4))


def test_nothing_is_replaced_silently(tmp_path, monkeypatch):
    saved_model(tmp_path / "model")
    fake_format(monkeypatch, 0.0)
    arguments = ["export", str(tmp_path / "model"), str(tmp_path / "out")]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert "any number of images of any size" in first.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    (tmp_path / "out" / "model.pt2").touch()  # of another format
    (tmp_path / "out" / "__pycache__").mkdir()
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    assert not (tmp_path / "out" / "model.pt2").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    mine = CliRunner().invoke(main, [*arguments[:2], str(tmp_path / "mine"), "--overwrite"])
    assert mine.exit_code == 1
    assert "thesis.txt, which is no part of an export" in mine.output
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_folder_of_files_of_such_names_is_no_export(tmp_path, monkeypatch):
    saved_model(tmp_path / "model")
    fake_format(monkeypatch, 0.0)
    (tmp_path / "mine").mkdir()
    for name, text in (("README.md", "my notes"), ("config.json", "{}")):
        (tmp_path / "mine" / name).write_text(text)
    with pytest.raises(ValueError, match="is no earlier export"):
        export_model(str(tmp_path / "model"), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "README.md").read_text() == "my notes"


@pytest.mark.parametrize("name", ["thesis.txt", "masks/", ".git/", "config.json/", ".notes"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_part_of_an_export_is_never_removed(tmp_path, monkeypatch, name, overwrite):
    saved_model(tmp_path / "model")
    fake_format(monkeypatch, 0.0)
    if overwrite:
        export_model(str(tmp_path / "model"), tmp_path / "out")
        (tmp_path / "out" / name.rstrip("/")).unlink(missing_ok=True)
    else:
        (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / name
    if name.endswith("/"):
        mine.mkdir()
    else:
        mine.write_text("mine")
    with pytest.raises(ValueError, match=f"{name.rstrip('/')}, which is no part of an export"):
        export_model(str(tmp_path / "model"), tmp_path / "out", overwrite=overwrite)
    assert mine.exists()


def test_a_link_to_a_folder_stays_a_link(tmp_path, monkeypatch):
    saved_model(tmp_path / "model")
    fake_format(monkeypatch, 0.0)
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    for overwrite in (False, True):
        export_model(str(tmp_path / "model"), tmp_path / "out", overwrite=overwrite)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "real" / "export.json").is_file()


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load_network", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is no folder that can be written to"):
        export_model("model", tmp_path / "file" / "out")
    monkeypatch.setattr(exporting.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="no folder that can be written to"):
        export_model("model", tmp_path / "new" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_sizes_that_a_network_cannot_take_are_named(tmp_path, monkeypatch):
    saved_model(tmp_path / "model")
    fake_format(monkeypatch, 0.0)
    original = exporting.compare

    def picky(network, run, shape):
        if any(length % 32 for length in shape[2:]):
            raise ValueError("an input of an odd size fails (it does)")
        return original(network, run, shape)

    monkeypatch.setattr(exporting, "compare", picky)
    report = export_model(str(tmp_path / "model"), tmp_path / "out")
    assert report.sizes == "any number of images of sizes that are multiples of 32"
    assert report.sizes in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("least", "known"), [(32, 32), (33, 64), (100, 128)])
def test_a_network_that_takes_no_small_images_is_checked_above_its_smallest(tmp_path, monkeypatch, least, known):
    saved_model(tmp_path / "model")
    fake_format(monkeypatch, 0.0)
    original = exporting.compare

    def picky(network, run, shape):
        if min(shape[2:]) < least:
            raise ValueError("an input of a small size fails (it does)")
        return original(network, run, shape)

    monkeypatch.setattr(exporting, "compare", picky)
    report = export_model(str(tmp_path / "model"), tmp_path / "out")
    assert report.sizes == f"any number of images of any size, at least {known} along each axis"
    shapes = {check.shape[2:] for check in report.checks}
    assert len(shapes) == 3
    assert min(min(shape) for shape in shapes) == known


def test_plane_and_statistics_of_the_sites_travel_along(tmp_path, monkeypatch):
    saved_model(tmp_path / "model", plane="sagittal", spacing_mm=[2, 2.5, 3])
    fake_format(monkeypatch, 0.0)
    monkeypatch.setattr(exporting, "find_statistics", lambda model, revision: {"sites": model})
    monkeypatch.setattr(exporting, "to_json", json.dumps)
    written = {}
    form = FORMATS["onnx"]
    texts = GraphFormat(form.file, lambda _, path, about: written.update(about) or path.touch(), form.load)
    monkeypatch.setitem(FORMATS, "onnx", texts)
    export_model(str(tmp_path / "model"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["plane"] == written["plane"] == "sagittal"
    beside = (tmp_path / "out" / "site_statistics.json").read_text("utf-8")
    assert json.loads(beside) == json.loads(written["site_statistics"]) == {"sites": str(tmp_path / "model")}
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "sagittal" in readme
    assert "2.0 x 2.5 x 3.0 mm" in readme
    assert json.loads(written["spacing_mm"]) == [2, 2.5, 3]
