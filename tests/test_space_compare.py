"""The comparison: both models' masks, their difference and agreement are those of predictor and evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from dim_hf.data.phantoms import render_phantom
from dim_hf.demo.agreement import score_agreement
from dim_hf.demo.compare_tab import comparable
from dim_hf.demo.compare_view import Comparison, agreement_tables, comparison_view
from dim_hf.demo.models import SHIPPED
from dim_hf.inference.prediction import Prediction
from dim_hf.inference.predictor import Predictor
from dim_hf.metrics.cases import score_case
from tests.browser import PHONE, WIDE, address, chromium, no_wider_than_screen, screenshot, visit  # noqa: F401

CLASSES = {0: "background", 1: "rim", 2: "cup"}
NESTED = {"disc": [1, 2], "cup": [2]}


def predicted(labels):
    return Prediction(labels, CLASSES, NESTED, None, None, ())


def compared(first, second, reference=None, titles=("A", "B")):
    with_reference = [] if reference is None else [score_agreement(x, reference, NESTED) for x in (first, second)]
    image = np.zeros((*first.shape, 3), np.uint8)
    between = score_agreement(first, second, NESTED)
    return Comparison("x", image, titles, (predicted(first), predicted(second)), between, with_reference)


def squares():
    first, second = np.zeros((2, 32, 32), np.uint8)
    first[8:24, 8:24], second[8:24, 8:16] = 1, 1
    return first, second


# -- what is shown, without a browser


def test_the_difference_is_said_in_words_and_only_what_occurs_is_in_the_legend():
    first, second = squares()
    shown = comparison_view(compared(first, second))
    assert "50.0 % of what either model found differs" in shown
    assert "only A" in shown
    assert "only B" not in shown
    assert "neither model found anything" in comparison_view(compared(first * 0, second * 0))
    assert "0.0 % of what either model found differs" in comparison_view(compared(first, first))


def test_names_of_strangers_stay_names():
    first, second = squares()
    wild = compared(first, second, first, ("<img src=x onerror=alert(1)>", '"><b>'))
    for shown in (comparison_view(wild), agreement_tables(wild)):
        assert "<img src=x" not in shown
        assert "<b>" not in shown


def test_a_reference_adds_a_table_for_each_model():
    first, second = squares()
    assert agreement_tables(compared(first, second)).count("<table") == 1
    shown = agreement_tables(compared(first, second, first))
    assert shown.count("<table") == 3
    assert "the same pixels" in shown


@pytest.mark.parametrize(
    ("classes", "structures", "expected"),
    [
        (CLASSES, NESTED, True),
        (CLASSES, {"cup": [2], "disc": [2, 1]}, True),
        ({0: "background", 1: "nucleus"}, {"nucleus": [1]}, False),
        (CLASSES, {"disc": [1]}, False),
    ],
)
def test_models_of_other_structures_are_not_compared(classes, structures, expected):
    def model(id2label, found):
        return SimpleNamespace(predictor=SimpleNamespace(id2label=id2label, structures=found))

    models = SimpleNamespace(fundus=model(CLASSES, NESTED), fundus_baseline=model(classes, structures))
    assert comparable(SimpleNamespace(models=models)) is expected


# -- in a browser


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """A picture, its true mask, and both models' masks of it."""
    folder = tmp_path_factory.mktemp("eyes")
    pixels, labels = render_phantom("fundus", domain="camera_c", index=950, size=160, seed=3)
    PIL.Image.fromarray(pixels).save(folder / "eye.png")
    PIL.Image.fromarray(labels.astype(np.uint8)).save(folder / "truth.png")
    found = [
        Predictor.from_pretrained(SHIPPED / name, device="cpu")(pixels).labels
        for name in ("fundus", "fundus-baseline")
    ]
    return folder, labels, found


def structures():
    return Predictor.from_pretrained(SHIPPED / "fundus", device="cpu").structures


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "size"), [("light", WIDE), ("dark", WIDE), ("light", PHONE)])
def test_an_example_is_compared_in_both_themes_and_on_a_phone(visit, theme, size):  # noqa: F811
    with visit("compare", theme, size) as page:
        page.wait_for_selector("#compare-view .viewer.empty")
        screenshot(page, f"compare-start-{theme}-{size[0]}")
        page.locator("#compare-examples button").nth(2).click()
        page.wait_for_selector("#compare-tables table")
        assert page.locator("#compare-view .viewer").count() == 3
        assert page.locator("#compare-tables table").count() == 3, "the example brings its reference"
        assert not page.inner_text("#compare-notice").strip()
        assert no_wider_than_screen(page)
        page.locator("#compare-opacity input[type=range]").fill("90")
        page.wait_for_function(
            "getComputedStyle(document.querySelector('#compare-view .layer.fill')).opacity === '0.9'"
        )
        screenshot(page, f"compare-{theme}-{size[0]}")


@pytest.mark.slow
def test_an_upload_with_its_reference_shows_the_numbers_of_the_evaluation(visit, photograph):  # noqa: F811
    folder, truth, found = photograph
    with visit("compare") as page:
        page.set_input_files("#compare-upload input[type=file]", str(folder / "eye.png"))
        page.wait_for_selector("#compare-upload img")
        page.set_input_files("#compare-reference input[type=file]", str(folder / "truth.png"))
        page.wait_for_selector("#compare-reference :text('truth')")
        page.locator("#compare-spacing input").fill("0.02")
        page.click("#compare-run")
        page.wait_for_selector("#compare-tables table")
        for place, labels in enumerate(found, start=1):
            shown = page.locator("#compare-tables table").nth(place).inner_text()
            for row in score_case(labels, truth, structures(), (0.02, 0.02)):
                assert f"{row.dice:.3f}" in shown
                assert row.missed or f"{row.hd95:.2f} mm" in shown


@pytest.mark.slow
def test_a_reference_that_does_not_fit_is_refused_with_advice(visit, photograph, tmp_path):  # noqa: F811
    folder, truth, _ = photograph
    PIL.Image.fromarray(np.where(truth > 0, 255, 0).astype(np.uint8)).save(tmp_path / "white.png")
    PIL.Image.fromarray(truth[:100].astype(np.uint8)).save(tmp_path / "cut.png")
    with visit("compare") as page:
        page.click("#compare-run")
        page.wait_for_selector("#compare-notice [role=alert]")
        assert "pick an example" in page.inner_text("#compare-notice")
        page.set_input_files("#compare-upload input[type=file]", str(folder / "eye.png"))
        page.wait_for_selector("#compare-upload img")
        for name, said in (("white.png", "do not say which class is meant"), ("cut.png", "160 × 100")):
            page.set_input_files("#compare-reference input[type=file]", str(tmp_path / name))
            page.wait_for_selector(f"#compare-reference :text('{name[:-4]}')")
            page.click("#compare-run")
            page.wait_for_function(
                "said => document.querySelector('#compare-notice').innerText.includes(said)", arg=said
            )
            page.locator(
                "#compare-reference button[aria-label*=lear], #compare-reference button[aria-label*=emove]"
            ).first.click()
            page.wait_for_selector("#compare-reference input[type=file]", state="attached")
        assert "Traceback" not in page.content()
        screenshot(page, "compare-refused")


# -- for programs


@pytest.mark.slow
def test_the_api_gives_the_numbers_of_the_evaluation(address, photograph):  # noqa: F811
    from gradio_client import Client, handle_file

    folder, truth, found = photograph
    client = Client(address, verbose=False)
    files = [handle_file(str(folder / name)) for name in ("eye.png", "truth.png")]
    answer = client.predict(*files, 0.5, api_name="/compare_fundus")
    for rows, labels in zip(answer["with_reference"], found, strict=True):
        for row, expected in zip(rows, score_case(labels, truth, structures(), (0.5, 0.5)), strict=True):
            assert (row["structure"], row["unit"]) == (expected.structure, "mm")
            assert row["dice"] == pytest.approx(expected.dice)
            assert row["hd95"] == (None if expected.missed else pytest.approx(expected.hd95))
    json.dumps(answer, allow_nan=False)
    without = client.predict(files[0], None, None, api_name="/compare_fundus")
    assert without["with_reference"] == []
    assert without["between_models"][0]["unit"] == "px"


@pytest.mark.slow
def test_the_api_refuses_with_a_sentence(address, photograph):  # noqa: F811
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    folder, _, _ = photograph
    client = Client(address, verbose=False)
    with pytest.raises(AppError, match="size of a pixel"):
        client.predict(handle_file(str(folder / "eye.png")), None, -1, api_name="/compare_fundus")
    with pytest.raises(AppError, match="mask in color"):
        client.predict(*[handle_file(str(folder / "eye.png"))] * 2, None, api_name="/compare_fundus")
