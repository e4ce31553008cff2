"""The comparison tab: two models on one photograph, where they differ, and how they agree with a reference."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from dim_hf.data.texts import printable
from dim_hf.demo.agreement import Agreement, check_spacing, read_reference, score_agreement
from dim_hf.demo.compare_view import EMPTY_TABLES, Comparison, agreement_tables, comparison_view, empty_view
from dim_hf.demo.context import PREDICTION_QUEUE, Demo, session_of
from dim_hf.demo.fundus_tab import in_color, sample_pictures
from dim_hf.demo.intake import PICTURE_ENDINGS, check_picture, load_picture
from dim_hf.demo.refusals import Refusal, shown_on_page, told_to_clients, warning_panel
from dim_hf.demo.uploads import (
    PLAIN_VALUES,
    blank_on,
    file_field,
    picture_field,
    remember_uploads,
    spacing_field,
    uploaded_file,
)

_NOTHING = "No picture was given; upload one, or pick an example."
_NOT_COMPARABLE = (
    "do not outline the same structures, so there is nothing to compare. The operator of this demo can name another "
    "second model (DIM_COMPARE_MODEL)."
)
# Opacity is the browser's own business: no server is asked, so sliding is immediate.
_SET_OPACITY = "(value) => { document.querySelector('#compare-view').style.setProperty('--opacity', value / 100); }"


def build(demo: Demo) -> None:
    """Lay out the tab.

    Args:
        demo: What the tabs share.
    """
    titles = (demo.models.fundus.title, demo.models.fundus_baseline.title)
    if not comparable(demo):
        gr.HTML(warning_panel(f"{titles[0]} and {titles[1]} {_NOT_COMPARABLE}"), elem_id="compare-notice")
        return
    samples = sample_pictures(demo)
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=4, min_width=300):
            picture, examples = _picture_and_examples(samples)
        with gr.Column(scale=4, min_width=300):
            reference, spacing = _reference_and_spacing(demo)
            opacity = gr.Slider(0, 100, 35, step=1, label="Opacity of the areas, %", elem_id="compare-opacity")
            button = gr.Button("Compare the two models", variant="primary", elem_id="compare-run")
    notice = gr.HTML("", elem_id="compare-notice", elem_classes="notices")
    view = gr.HTML(empty_view(titles), elem_id="compare-view", elem_classes="view")
    tables = gr.HTML(EMPTY_TABLES, elem_id="compare-tables")
    opacity.input(None, opacity, None, js=_SET_OPACITY, api_visibility="private")

    blank = (empty_view(titles), EMPTY_TABLES)

    @shown_on_page(blank)
    def compare(
        path: str | None, reference_path: str | None, spacing_mm: float | None, request: gr.Request
    ) -> tuple[str, str]:
        found = compare_models(demo, session_of(request), path, reference_path, spacing_mm)
        return comparison_view(found), agreement_tables(found)

    def pick(index: int) -> tuple[str, str]:
        found = samples[int(index) % len(samples)]
        return str(found[0]), str(found[1])

    line = {"concurrency_id": PREDICTION_QUEUE, "concurrency_limit": demo.settings.concurrency}
    hidden = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": view}
    inputs, outputs = [picture, reference, spacing], [notice, view, tables]
    send = {**line, **hidden, "js": PLAIN_VALUES}
    blank_on([examples.click], outputs, blank)
    run = button.click(compare, inputs, outputs, **send)
    picked = examples.click(
        pick, examples, [picture, reference], queue=False, show_progress="hidden", api_visibility="private"
    )
    shown = picked.then(compare, inputs, outputs, trigger_mode="always_last", **send)
    changes = [picture.upload, reference.upload, reference.clear]
    blank_on(changes, outputs, blank, [run, shown])
    blank_on([picture.clear], [*outputs, reference], (*blank, None), [run, shown])  # a picture's mask goes with it
    remember_uploads(demo, picture, reference)
    _add_endpoint(demo, line)


def _picture_and_examples(samples: list[tuple[Path, Path]]) -> tuple[gr.Image, gr.Dataset]:
    picture = picture_field(
        label="Fundus photograph",
        sources=["upload", "clipboard"],
        height=260,
        elem_id="compare-upload",
        buttons=[],
    )
    examples = gr.Dataset(
        components=[gr.Image(render=False)],
        samples=[[str(path)] for path, _ in samples],
        type="index",
        label="Or try an example; it brings its reference mask",
        elem_id="compare-examples",
        elem_classes="examples",
        samples_per_page=len(samples),
    )
    return picture, examples


def _reference_and_spacing(demo: Demo) -> tuple[gr.File, gr.Number]:
    classes = ", ".join(f"{index} = {name}" for index, name in demo.models.fundus.predictor.id2label.items())
    reference = file_field(
        label=f"Reference mask, if you have one ({classes})",
        file_types=list(PICTURE_ENDINGS),
        height=140,
        elem_id="compare-reference",
    )
    return reference, spacing_field("Distances are then given in mm.", elem_id="compare-spacing")


def comparable(demo: Demo) -> bool:
    """Whether the two models of pictures have the same classes and structures."""
    first, second = demo.models.fundus.predictor, demo.models.fundus_baseline.predictor
    structures = [{name: sorted(ids) for name, ids in model.structures.items()} for model in (first, second)]
    return dict(first.id2label) == dict(second.id2label) and structures[0] == structures[1]


def compare_models(
    demo: Demo, session: str, path: str | None, reference_path: str | None, spacing_mm: float | None
) -> Comparison:
    """Check what a visitor uploaded, predict it with both models, and score the masks.

    Args:
        demo: What the tabs share.
        session: Who asks.
        path: Of the uploaded picture; None where there is none.
        reference_path: Of the uploaded reference mask; None where there is none.
        spacing_mm: Size of a pixel; None or 0 where it is unknown.

    Raises:
        Refusal: If a file is none, not within the limits, or the reference does not fit the picture.
    """
    if not path:
        raise Refusal(_NOTHING)
    spacing = check_spacing(spacing_mm)
    upload = demo.store.own_upload(session, uploaded_file(path))
    image = in_color(load_picture(upload, demo.settings))
    models = (demo.models.fundus, demo.models.fundus_baseline)
    reference = _reference(demo, session, reference_path, image.shape[:2])
    first, second = (demo.predict(session, model, image, spacing_mm=spacing) for model in models)
    with demo.turn():
        between = score_agreement(first.labels, second.labels, first.structures, spacing)
        with_reference = [
            score_agreement(found.labels, reference, first.structures, spacing)
            for found in (first, second)
            if reference is not None
        ]
    titles = (models[0].title, models[1].title)
    cautions = demo.cautions(upload, *models)
    return Comparison(printable(upload.stem), image, titles, (first, second), between, with_reference, cautions)


def _reference(demo: Demo, session: str, path: str | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if not path:
        return None
    upload = demo.store.own_upload(session, uploaded_file(path))
    checked = check_picture(upload, demo.settings)
    return read_reference(checked, shape, demo.models.fundus.predictor.id2label, demo.settings.max_pixels)


def _as_json(rows: list[Agreement]) -> list[dict[str, Any]]:
    """Rows for programs; a distance that there is not is null."""
    return [{**asdict(row), "hd95": None if math.isnan(row.hd95) else row.hd95} for row in rows]


def _add_endpoint(demo: Demo, line: dict[str, Any]) -> None:
    """`/compare_fundus`, for programs; see space/README.md."""

    @told_to_clients
    def compare_fundus(
        picture: str, reference: str | None, pixel_size_mm: float | None, request: gr.Request
    ) -> dict[str, Any]:
        """Compare two models on a photograph, and each with a reference mask.

        Args:
            picture: A PNG, JPEG, TIFF or BMP file.
            reference: Its mask, a grey PNG with one class a pixel; may be left out.
            pixel_size_mm: Size of a pixel; distances are in pixels without it.
            request: Who asks.
        """
        found = compare_models(demo, session_of(request), picture, reference, pixel_size_mm)
        return {
            "models": list(found.titles),
            "between_models": _as_json(found.between),
            "with_reference": [_as_json(rows) for rows in found.with_reference],
        }

    with gr.Row(visible=False):
        picture = picture_field(label="picture")
        reference = file_field(label="reference", file_types=list(PICTURE_ENDINGS))
        spacing = gr.Number(label="pixel_size_mm", value=None)
        agreement = gr.JSON(label="agreement")
        inputs = [picture, reference, spacing]
        gr.Button().click(compare_fundus, inputs, agreement, api_name="compare_fundus", **line)
