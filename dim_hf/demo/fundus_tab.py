"""The fundus tab: one photograph, its disc and cup, and what can be measured on them."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from dim_hf.data.texts import printable
from dim_hf.demo.agreement import check_spacing
from dim_hf.demo.context import PREDICTION_QUEUE, Demo, session_of
from dim_hf.demo.examples import draw_pictures
from dim_hf.demo.fundus_view import EMPTY_VIEW, findings, mask_picture, viewer
from dim_hf.demo.intake import load_picture
from dim_hf.demo.refusals import Refusal, shown_on_page, told_to_clients
from dim_hf.demo.tiles import EMPTY_CARDS
from dim_hf.demo.uploads import (
    PLAIN_VALUES,
    blank_on,
    picture_field,
    remember_uploads,
    spacing_field,
    uploaded_file,
)
from dim_hf.inference.inputs import safe_target
from dim_hf.inference.measurements import write_measurements
from dim_hf.inference.prediction import Prediction

_NOTHING = "No picture was given; upload one, or pick an example."
NO_FILE = gr.update(value=None, interactive=False)
"""A download button that has nothing to give."""
_BLANK = (EMPTY_VIEW, EMPTY_CARDS, NO_FILE, NO_FILE)
# Opacity and layers are the browser's own business: no server is asked, so sliding is immediate.
_SET_OPACITY = "(value) => { document.querySelector('#fundus-view').style.setProperty('--opacity', value / 100); }"
_SET_LAYERS = """(shown, lines) => {
  const view = document.querySelector('#fundus-view').classList;
  view.toggle('show-heat', shown === 'Uncertainty');
  view.toggle('no-lines', !lines);
}"""


def build(demo: Demo) -> None:
    """Lay out the tab.

    Args:
        demo: What the tabs share.
    """
    samples = sample_pictures(demo)
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=4, min_width=300):
            picture = picture_field(
                label="Fundus photograph",
                sources=["upload", "clipboard"],
                height=300,
                elem_id="fundus-upload",
                buttons=[],
            )
            spacing = spacing_field("Areas are then given in mm².", elem_id="fundus-spacing")
            button = gr.Button("Outline disc and cup", variant="primary", elem_id="fundus-run")
            examples = gr.Dataset(
                components=[gr.Image(render=False)],
                samples=[[str(path)] for path, _ in samples],
                type="index",
                label="Or try an example",
                elem_id="fundus-examples",
                elem_classes="examples",
                samples_per_page=len(samples),
            )
            notice = gr.HTML("", elem_id="fundus-notice", elem_classes="notices")
        with gr.Column(scale=7, min_width=320):
            view = gr.HTML(EMPTY_VIEW, elem_id="fundus-view", elem_classes="view")
            with gr.Row(elem_classes="controls"):
                opacity = gr.Slider(
                    0, 100, 35, step=1, label="Opacity, %", elem_id="fundus-opacity", scale=3, min_width=200
                )
                layer = gr.Radio(
                    ["Mask", "Uncertainty"], value="Mask", label="Show", elem_id="fundus-layer", scale=3, min_width=230
                )
                lines = gr.Checkbox(True, label="Contours", elem_id="fundus-lines", scale=1, min_width=120)
            numbers = gr.HTML(EMPTY_CARDS, elem_id="fundus-numbers")
            with gr.Row(elem_classes="downloads"):
                mask_file = gr.DownloadButton("Mask (PNG)", interactive=False, elem_id="fundus-mask")
                table_file = gr.DownloadButton("Measurements (CSV)", interactive=False, elem_id="fundus-table")
    opacity.input(None, opacity, None, js=_SET_OPACITY, api_visibility="private")
    gr.on([layer.input, lines.input], None, [layer, lines], None, js=_SET_LAYERS, api_visibility="private")

    @shown_on_page(_BLANK)
    def segment(path: str | None, spacing_mm: float | None, request: gr.Request) -> tuple[Any, ...]:
        image, prediction, name = predict(demo, session_of(request), path, spacing_mm)
        mask, table = write_files(demo, session_of(request), prediction, name)
        return (
            viewer(image, prediction, name),
            findings(prediction, demo.cautions(path, demo.models.fundus)),
            gr.update(value=str(mask), interactive=True),
            gr.update(value=str(table), interactive=True),
        )

    def pick(index: int) -> str:
        return str(samples[int(index) % len(samples)][0])

    outputs = [notice, view, numbers, mask_file, table_file]
    line = {"concurrency_id": PREDICTION_QUEUE, "concurrency_limit": demo.settings.concurrency}
    hidden = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": view}
    send = {**line, **hidden, "js": PLAIN_VALUES}
    blank_on([examples.click], outputs, _BLANK)
    run = button.click(segment, [picture, spacing], outputs, **send)
    picked = examples.click(pick, examples, picture, queue=False, show_progress="hidden", api_visibility="private")
    shown = picked.then(segment, [picture, spacing], outputs, trigger_mode="always_last", **send)
    blank_on([picture.upload, picture.clear], outputs, _BLANK, [run, shown])
    remember_uploads(demo, picture)
    _add_endpoint(demo, line)


def sample_pictures(demo: Demo) -> list[tuple[Path, Path]]:
    """The drawn examples of this process, each with its true mask; other tabs show them as well."""
    pictures, masks = demo.samples_folder / "pictures", demo.samples_folder / "references"
    if not pictures.exists():
        for folder in (pictures, masks):
            folder.mkdir(parents=True)
        draw_pictures(pictures, masks)
    return list(zip(sorted(pictures.iterdir()), sorted(masks.iterdir()), strict=True))


def predict(
    demo: Demo, session: str, path: str | None, spacing_mm: float | None
) -> tuple[np.ndarray, Prediction, str]:
    """Check and predict what a visitor uploaded.

    Args:
        demo: What the tabs share.
        session: Who asks.
        path: Of the upload; None where there is none.
        spacing_mm: Size of a pixel; None or 0 where it is unknown.

    Returns:
        The picture as uint8 (H, W, 3), its prediction, and its name without extension.

    Raises:
        Refusal: If it is none, or not within the limits.
    """
    if not path:
        raise Refusal(_NOTHING)
    upload = demo.store.own_upload(session, uploaded_file(path))
    image = in_color(load_picture(upload, demo.settings))
    prediction = demo.predict(session, demo.models.fundus, image, spacing_mm=check_spacing(spacing_mm))
    return image, prediction, printable(upload.stem)


def in_color(array: np.ndarray) -> np.ndarray:
    """A decoded picture as uint8 (H, W, 3).

    Raises:
        Refusal: If it has values that are no colors, such as those of a volume's slice.
    """
    if array.dtype != np.uint8:
        raise Refusal("The picture has more than 8 bits a channel; save it as an ordinary PNG or JPEG.")
    return np.ascontiguousarray(np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array)


def write_files(demo: Demo, session: str, prediction: Prediction, name: str) -> tuple[Path, Path]:
    """Write mask (PNG) and measurements (CSV) into the session's folder, under safe names."""
    folder = Path(tempfile.mkdtemp(dir=demo.store.folder(session)))
    stem = safe_target([name])
    mask, table = folder / f"{stem}_mask.png", folder / f"{stem}_measurements.csv"
    mask_picture(prediction).save(mask, format="PNG")
    write_measurements([(name, prediction.measurements)], table)
    return mask, table


def _add_endpoint(demo: Demo, line: dict[str, Any]) -> None:
    """`/segment_fundus`, for programs; see space/README.md."""

    @told_to_clients
    def segment_fundus(
        picture: str, pixel_size_mm: float | None, request: gr.Request
    ) -> tuple[str, list[dict[str, Any]]]:
        """Outline disc and cup on a photograph.

        Args:
            picture: A PNG, JPEG, TIFF or BMP file.
            pixel_size_mm: Size of a pixel; areas are in pixels without it.
            request: Who asks.
        """
        _, prediction, name = predict(demo, session_of(request), picture, pixel_size_mm)
        mask, _ = write_files(demo, session_of(request), prediction, name)
        return str(mask), [asdict(measurement) for measurement in prediction.measurements]

    with gr.Row(visible=False):
        picture = picture_field(label="picture")
        spacing = gr.Number(label="pixel_size_mm", value=None)
        outputs = [gr.File(label="mask"), gr.JSON(label="measurements")]
        gr.Button().click(segment_fundus, [picture, spacing], outputs, api_name="segment_fundus", **line)
