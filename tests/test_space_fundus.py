"""The fundus tab: what is shown is what the model said, in a real browser and through the API."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from dim_hf.data.images import read_mask
from dim_hf.data.phantoms import render_phantom
from dim_hf.demo import fundus_view
from dim_hf.demo.models import SHIPPED
from dim_hf.inference.measurements import CUP_TO_DISC, measure
from dim_hf.inference.prediction import Prediction
from dim_hf.inference.predictor import Predictor
from tests.browser import PHONE, WIDE, address, chromium, download, no_wider_than_screen, screenshot, visit  # noqa: F401

CLASSES = {0: "background", 1: "rim", 2: "cup"}
NESTED = {"disc": [1, 2], "cup": [2]}


def prediction_of(labels, spacing_mm=None, **more):
    return Prediction(labels, CLASSES, NESTED, spacing_mm, None, measure(labels, NESTED, spacing_mm), **more)


def eye(size=64):
    labels = np.zeros((size, size), np.uint8)
    labels[16:48, 16:48] = 1
    labels[24:40, 24:40] = 2
    return labels


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("eyes") / "patient <b>7 =1+1.png"
    pixels, _ = render_phantom("fundus", domain="camera_b", index=950, size=200, seed=3)
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def expected(photograph):
    return Predictor.from_pretrained(SHIPPED / "fundus", device="cpu")(photograph)


# -- what is shown, without a browser


def test_tiles_start_with_the_ratio_and_say_the_unit():
    shown = fundus_view.findings(prediction_of(eye(), (0.01, 0.01)))
    titles = re.findall(r'<div class="tile"><span>(.*?)</span><b>(.*?)</b>', shown)
    assert titles == [
        ("Vertical cup-to-disc ratio", "0.50"),
        ("Disc, area", "0.10 mm²"),
        ("Cup, area", "0.03 mm²"),
    ]


def test_a_mask_without_a_disc_asks_for_a_second_look():
    reasons = fundus_view.review_reasons(prediction_of(np.zeros((8, 8), np.uint8)))
    assert reasons == ["Not found: disc, cup."]
    assert "Look again" in fundus_view.findings(prediction_of(np.zeros((8, 8), np.uint8)))


def test_what_touches_the_edge_asks_for_a_second_look():
    labels = eye()
    labels[30, :20] = 1
    assert "edge" in fundus_view.review_reasons(prediction_of(labels))[0]


def test_drift_asks_for_a_second_look_and_its_absence_is_said():
    assert "unlike" in fundus_view.review_reasons(prediction_of(eye(), drift=0.99, review=True))[0]
    assert fundus_view.review_reasons(prediction_of(eye(), drift=0.4, review=False)) == []
    assert "not known" in fundus_view.findings(prediction_of(eye()))
    assert "not known" not in fundus_view.findings(prediction_of(eye(), drift=0.4, review=False))


def test_the_mask_file_holds_class_ids(tmp_path):
    fundus_view.mask_picture(prediction_of(eye())).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), eye())


def test_names_and_structures_are_escaped():
    wild = replace(prediction_of(eye()), structures={"<script>x</script>": [1]})
    shown = fundus_view.viewer(np.zeros((64, 64, 3), np.uint8), wild, 'a" onload="alert(1)')
    assert "<script>" not in shown
    assert 'onload="' not in shown


def test_uncertainty_is_a_layer_where_there_is_one():
    image = np.zeros((64, 64, 3), np.uint8)
    assert "layer heat" not in fundus_view.viewer(image, prediction_of(eye()), "x")
    sure = prediction_of(eye(), uncertainty=np.zeros((64, 64), np.float32))
    assert "layer heat" in fundus_view.viewer(image, sure, "x")


def test_enlarged_edges_stay_within_the_classes():
    grown = fundus_view._smooth(eye(), (256, 256))
    assert set(np.unique(grown)) == {0, 1, 2}
    exact = np.kron(eye(), np.ones((4, 4), np.uint8))
    assert (grown != exact).mean() < 0.02


# -- in a browser


def upload(page, path):
    page.set_input_files("#fundus-upload input[type=file]", str(path))
    page.wait_for_selector("#fundus-upload img")
    page.click("#fundus-run")


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "size"), [("light", WIDE), ("dark", WIDE), ("light", PHONE)])
def test_an_example_is_outlined_in_both_themes_and_on_a_phone(visit, theme, size):  # noqa: F811
    with visit(theme=theme, size=size) as page:
        screenshot(page, f"fundus-start-{theme}-{size[0]}")
        assert no_wider_than_screen(page)
        page.locator("#fundus-examples button").first.click()
        page.wait_for_selector("#fundus-view .layer.fill")
        page.wait_for_selector("#fundus-mask:not([disabled])")
        assert float(page.inner_text("#fundus-numbers .tile:first-child b")) > 0.1
        assert no_wider_than_screen(page)
        screenshot(page, f"fundus-{theme}-{size[0]}")


@pytest.mark.slow
def test_an_upload_gives_the_masks_of_the_predictor(visit, photograph, expected):  # noqa: F811
    with visit() as page:
        upload(page, photograph)
        page.wait_for_selector("#fundus-mask:not([disabled])")
        name, content = download(page, "#fundus-mask")
        assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(content))), expected.labels)
        assert re.fullmatch(r"[\w.-]+_mask\.png", name)
        _, content = download(page, "#fundus-table")
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        assert [float(row["value"]) for row in rows] == [found.value for found in expected.measurements]
        ratio = next(found.value for found in expected.measurements if found.quantity == CUP_TO_DISC)
        assert page.inner_text("#fundus-numbers .tile:first-child b") == f"{ratio:.2f}"
        assert page.locator("#fundus-view b, #fundus-numbers script").count() == 0


@pytest.mark.slow
def test_opacity_and_layers_change_without_the_server(visit):  # noqa: F811
    with visit() as page:
        page.locator("#fundus-examples button").nth(1).click()
        page.wait_for_selector("#fundus-view .layer.fill")
        page.wait_for_selector("#fundus-mask:not([disabled])")
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
        page.locator("#fundus-opacity input[type=range]").fill("80")
        opacity = "getComputedStyle(document.querySelector('#fundus-view .layer.{}')).opacity"
        page.wait_for_function(f"{opacity.format('fill')} === '0.8'")
        page.get_by_label("Uncertainty").check()
        page.wait_for_function(f"{opacity.format('fill')} === '0'")
        assert float(page.evaluate(opacity.format("heat"))) > 0.5
        page.get_by_label("Contours").uncheck()
        page.wait_for_function(f"{opacity.format('lines')} === '0'")
        assert asked == []
        screenshot(page, "fundus-uncertainty")


@pytest.mark.slow
def test_what_cannot_be_used_is_refused_with_advice(visit, tmp_path):  # noqa: F811
    broken = tmp_path / "scan.png"
    broken.write_bytes(b"<html>no picture</html>" * 50)
    with visit() as page:
        page.click("#fundus-run")
        page.wait_for_selector("#fundus-notice [role=alert]")
        assert "upload" in page.inner_text("#fundus-notice")
        page.set_input_files("#fundus-upload input[type=file]", str(broken))
        page.wait_for_selector("#fundus-upload button[aria-label*=emove], #fundus-upload img")
        page.click("#fundus-run")
        page.wait_for_function("document.querySelector('#fundus-notice').innerText.includes('scan.png')")
        assert "Traceback" not in page.content()
        screenshot(page, "fundus-refused")


@pytest.mark.slow
def test_the_button_answers_to_the_keyboard(visit):  # noqa: F811
    with visit() as page:
        page.locator("#fundus-run").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#fundus-notice [role=alert]")


# -- for programs


@pytest.mark.slow
def test_the_api_gives_what_the_predictor_gives(address, photograph, expected, tmp_path):  # noqa: F811
    from gradio_client import Client, handle_file

    client = Client(address, download_files=str(tmp_path), verbose=False)
    mask, found = client.predict(handle_file(str(photograph)), 0.01, api_name="/segment_fundus")
    assert np.array_equal(read_mask(mask), expected.labels)
    by_name = {(item["structure"], item["quantity"]): item for item in found}
    disc = next(item for item in expected.measurements if item.structure == "disc")
    assert by_name["disc", "area"]["value"] == pytest.approx(disc.pixels * 1e-4)
    assert by_name["cup", CUP_TO_DISC]["value"] == pytest.approx(
        next(item.value for item in expected.measurements if item.quantity == CUP_TO_DISC)
    )
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [-1, 1e9])
def test_the_api_refuses_with_a_sentence(address, photograph, spacing):  # noqa: F811
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    with pytest.raises(AppError, match="size of a pixel"):
        client.predict(handle_file(str(photograph)), spacing, api_name="/segment_fundus")
