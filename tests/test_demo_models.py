"""Which models the demo shows: what was named counts, the rest is shipped, and each kind computes what is shown."""

import threading

import pytest

from dim_hf.demo import models
from dim_hf.demo.examples import draw_pictures
from dim_hf.demo.models import SHIPPED, load_models
from dim_hf.demo.settings import DemoSettings
from dim_hf.inference.predictor import Predictor
from dim_hf.models import DimImageProcessor
from tests.tiny import tiny_model


def saved(folder, channels=1):
    tiny_model(num_channels=channels).save_pretrained(folder)
    DimImageProcessor(num_channels=channels, size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "HUB_MODEL", str(tmp_path / "not-there"))


def test_without_a_name_the_shipped_models_are_shown_and_the_page_says_so():
    found = load_models(DemoSettings())
    shown = (found.fundus, found.fundus_baseline, found.volume)
    assert [model.origin for model in shown] == ["shipped"] * 3
    assert [model.kind for model in shown] == ["fundus", "fundus", "volume"]
    assert "could not be loaded" in found.notices[0]
    assert all("phantoms" in model.notice for model in shown)


@pytest.mark.parametrize(("channels", "kind"), [(1, "volume"), (3, "fundus")])
def test_a_named_model_takes_the_place_of_its_kind(tmp_path, channels, kind):
    found = load_models(DemoSettings(model=saved(tmp_path / "mine", channels)))
    origins = {"fundus": found.fundus.origin, "volume": found.volume.origin}
    assert origins == {"fundus": "shipped", "volume": "shipped"} | {kind: "folder"}
    assert found.notices == ()


def test_uncertainty_is_computed_where_the_page_shows_it(tmp_path):
    found = load_models(DemoSettings(model=saved(tmp_path / "mine")))
    assert found.volume.predictor.options.uncertainty is None
    assert found.fundus.predictor.options.uncertainty == "entropy"


@pytest.mark.parametrize("silent", [True, False])
def test_a_hub_that_does_not_answer_is_given_up_soon(monkeypatch, capsys, silent):
    class Hub:
        def model_info(self, name, timeout):
            asked.append((name, timeout))
            if silent:
                over.wait(60)
            raise OSError("no route")

    asked, over = [], threading.Event()
    monkeypatch.setattr(models, "HfApi", Hub)
    monkeypatch.setattr(models.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(models, "_HUB_SECONDS", 0.1 - 1)
    found = load_models(DemoSettings())
    over.set()
    assert len(asked) == 1
    assert "could not be loaded" in found.notices[0]
    assert "Trying" in capsys.readouterr().out


def test_a_wrong_name_is_told_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "_shipped", lambda name: pytest.fail("loaded in vain"))
    for settings in (DemoSettings(model=str(tmp_path)), DemoSettings(compare_model=str(tmp_path))):
        with pytest.raises(ValueError, match=r"config\.json"):
            load_models(settings)


def test_a_model_that_was_asked_for_must_load_and_fit(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_models(DemoSettings(model=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="no pictures in color"):
        load_models(DemoSettings(compare_model=saved(tmp_path / "grey")))


@pytest.mark.parametrize("name", ["fundus", "fundus-baseline"])
def test_examples_of_seen_cameras_are_not_flagged_and_the_unseen_look_is(tmp_path, name):
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    pictures.mkdir()
    masks.mkdir()
    draw_pictures(pictures, masks)
    assert len(list(masks.iterdir())) == len(list(pictures.iterdir()))
    predictor = Predictor.from_pretrained(SHIPPED / name, device="cpu")
    seen = set(predictor.statistics.sites)
    for path in sorted(pictures.iterdir()):
        camera = path.stem.removeprefix("fundus_")
        if camera in seen or camera == "unseen_look":
            assert predictor(path).review is (camera not in seen), (camera, predictor(path).drift)


def test_all_shipped_models_fit_into_four_megabytes():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 4_000_000
