"""The volume tab: a scan in three planes, what was found in it, and its size."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dim_hf.data.images import write_png
from dim_hf.data.texts import printable
from dim_hf.data.volumes.volume import Volume, read_volume, volume_stem, write_nifti
from dim_hf.demo.context import PREDICTION_QUEUE, Demo, session_of
from dim_hf.demo.examples import draw_volume
from dim_hf.demo.intake import VOLUME_ENDINGS, load_volume
from dim_hf.demo.planes import PLANES, as_grey, cut, grey_window, patient_order
from dim_hf.demo.refusals import Refusal, shown_on_page, told_to_clients
from dim_hf.demo.tiles import EMPTY_CARDS
from dim_hf.demo.uploads import blank_on, file_field, remember_uploads, uploaded_file
from dim_hf.demo.volume_view import ViewedVolume, empty_figure, findings, slice_figure
from dim_hf.inference.inputs import Case, safe_target
from dim_hf.inference.measurements import write_measurements
from dim_hf.inference.outputs import write_prediction
from dim_hf.inference.prediction import Prediction

_KEPT = "volume"
_NOTHING = "No volume was given; upload one, or pick an example."
_SCANNERS = ("scanner_a", "scanner_c", "scanner_e")
_DIRECTIONS = {"axial": "from the feet", "coronal": "from the back", "sagittal": "from the left"}
# Updates, not components: those would appear on the page where they are made.
_NO_FILE = gr.update(value=None, interactive=False)
_NO_SLICES = gr.update(maximum=2, value=1, interactive=False)
_BLANK = (EMPTY_CARDS, _NO_FILE, _NO_FILE, *map(empty_figure, PLANES), *[_NO_SLICES] * len(PLANES))
# Opacity and contours are the browser's own business: no server is asked, so sliding is immediate.
_SET_OPACITY = "(value) => { document.querySelector('#volume-view').style.setProperty('--opacity', value / 100); }"
_SET_LINES = "(lines) => { document.querySelector('#volume-view').classList.toggle('no-lines', !lines); }"


@dataclass(frozen=True, eq=False)
class _Fields:
    upload: gr.File
    button: gr.Button
    examples: gr.Dataset
    notice: gr.HTML
    numbers: gr.HTML
    mask: gr.DownloadButton
    table: gr.DownloadButton
    figures: dict[str, gr.HTML]
    sliders: dict[str, gr.Slider]


def build(demo: Demo) -> None:
    """Lay out the tab.

    Args:
        demo: What the tabs share.
    """
    samples = sample_volumes(demo)
    fields = _lay_out([thumbnail for _, thumbnail in samples])
    line = {"concurrency_id": PREDICTION_QUEUE, "concurrency_limit": demo.settings.concurrency}
    hidden = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": fields.numbers}
    outputs = [fields.notice, fields.numbers, fields.mask, fields.table]
    outputs += [*fields.figures.values(), *fields.sliders.values()]
    segment = _segment(demo)
    blank_on([fields.examples.click], outputs, _BLANK)
    run = fields.button.click(segment, fields.upload, outputs, **line, **hidden)

    def pick(index: int) -> str:
        return str(samples[int(index) % len(samples)][0])

    picked = fields.examples.click(
        pick, fields.examples, fields.upload, queue=False, show_progress="hidden", api_visibility="private"
    )
    shown = picked.then(segment, fields.upload, outputs, trigger_mode="always_last", **line, **hidden)
    blank_on([fields.upload.upload, fields.upload.clear], outputs, _BLANK, [run, shown])
    remember_uploads(demo, fields.upload)
    for plane, slider in fields.sliders.items():
        slider.input(
            _slide(demo, plane),
            slider,
            [fields.notice, fields.figures[plane]],
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
    _add_endpoint(demo, line)


def _lay_out(thumbnails: Sequence[Path]) -> _Fields:
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=4, min_width=300):
            upload = file_field(
                label="Volume: NIfTI, MHA, NRRD, or a zip of one DICOM series",
                file_types=[*VOLUME_ENDINGS, ".gz"],
                height=140,
                elem_id="volume-upload",
            )
            button = gr.Button("Outline structures", variant="primary", elem_id="volume-run")
            examples = gr.Dataset(
                components=[gr.Image(render=False)],
                samples=[[str(thumbnail)] for thumbnail in thumbnails],
                type="index",
                label="Or try an example",
                elem_id="volume-examples",
                elem_classes="examples",
            )
        with gr.Column(scale=7, min_width=320):
            with gr.Column(elem_id="volume-findings"):
                notice = gr.HTML("", elem_id="volume-notice", elem_classes="notices")
                numbers = gr.HTML(EMPTY_CARDS, elem_id="volume-numbers")
            with gr.Row(elem_classes="downloads"):
                mask = gr.DownloadButton("Mask (NIfTI)", interactive=False, elem_id="volume-mask")
                table = gr.DownloadButton("Measurements (CSV)", interactive=False, elem_id="volume-table")
    figures, sliders = _planes()
    with gr.Row(elem_classes="controls"):
        opacity = gr.Slider(
            *(0, 100, 35), step=1, label="Opacity of the areas, %", elem_id="volume-opacity", min_width=240
        )
        lines = gr.Checkbox(True, label="Contours", elem_id="volume-lines", min_width=110)
    opacity.input(None, opacity, None, js=_SET_OPACITY, api_visibility="private")
    lines.input(None, lines, None, js=_SET_LINES, api_visibility="private")
    return _Fields(upload, button, examples, notice, numbers, mask, table, figures, sliders)


def _segment(demo: Demo) -> Callable[..., Any]:
    @shown_on_page(_BLANK)
    def segment(path: str | None, request: gr.Request) -> tuple[Any, ...]:
        viewed, prediction, mask, table = predict(demo, session_of(request), path)
        starts = {plane: viewed.start(plane) for plane in PLANES}
        return (
            findings(viewed, prediction, demo.cautions(path, demo.models.volume)),
            gr.update(value=str(mask), interactive=True),
            gr.update(value=str(table), interactive=True),
            *(slice_figure(viewed, plane, start) for plane, start in starts.items()),
            *(
                gr.update(maximum=max(2, viewed.slices(plane)), value=start + 1, interactive=True)
                for plane, start in starts.items()
            ),
        )

    return segment


def _planes() -> tuple[dict[str, gr.HTML], dict[str, gr.Slider]]:
    figures, sliders = {}, {}
    with gr.Row(elem_id="volume-view", elem_classes="view planes"):
        for plane in PLANES:
            with gr.Column(min_width=240):
                figures[plane] = gr.HTML(empty_figure(plane), elem_id=f"volume-{plane}")
                sliders[plane] = gr.Slider(
                    *(1, 2, 1),
                    step=1,
                    label=f"{plane.capitalize()} slice, {_DIRECTIONS[plane]}",
                    interactive=False,
                    buttons=[],
                    elem_id=f"volume-{plane}-slider",
                )
    return figures, sliders


def _slide(demo: Demo, plane: str) -> Callable[..., Any]:
    @shown_on_page((gr.skip(),))
    def slide(number: float, request: gr.Request) -> str:
        viewed: ViewedVolume = demo.store.recall(session_of(request), _KEPT)
        return slice_figure(viewed, plane, int(number) - 1)

    return slide


def sample_volumes(demo: Demo) -> list[tuple[Path, Path]]:
    """The drawn examples of this process, each with its thumbnail."""
    folder = demo.samples_folder / "volumes"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for scanner in _SCANNERS:
        file = folder / f"prostate_{scanner}.nii.gz"
        thumbnail = folder / f"prostate_{scanner}.png"
        if not thumbnail.exists():
            volume = read_volume(draw_volume(folder, scanner))
            grey = patient_order(as_grey(volume.array, grey_window(volume.array)), volume.affine)
            write_png(cut(grey, "axial", grey.shape[2] // 2), thumbnail)
        found.append((file, thumbnail))
    return found


def predict(demo: Demo, session: str, path: str | None) -> tuple[ViewedVolume, Prediction, Path, Path]:
    """Check and predict what a visitor uploaded, keep what sliding needs, and write the files.

    Args:
        demo: What the tabs share.
        session: Who asks.
        path: Of the upload; None where there is none.

    Returns:
        What is shown, the prediction, and the files of mask and measurements.

    Raises:
        Refusal: If it is no volume, or not within the limits.
    """
    if not path:
        raise Refusal(_NOTHING)
    upload = demo.store.own_upload(session, uploaded_file(path))
    name = printable(volume_stem(upload))
    folder = demo.store.new_folder(session)
    try:
        volume = load_volume(upload, folder / "series", demo.settings)
        shutil.rmtree(folder / "series", ignore_errors=True)
        prediction = demo.predict(session, demo.models.volume, volume)
        mask, table = write_files(upload, prediction, name, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    viewed = ViewedVolume.of(volume, prediction, name)
    demo.store.keep(session, _KEPT, viewed, viewed.size_bytes)
    return viewed, prediction, mask, table


def write_files(upload: Path, prediction: Prediction, name: str, folder: Path) -> tuple[Path, Path]:
    """Write mask (NIfTI) and measurements (CSV) under safe names.

    The mask of a NIfTI file has the very fields that place the image; others get its affine.
    """
    stem = safe_target([name])
    table = folder / f"{stem}_measurements.csv"
    write_measurements([(name, prediction.measurements)], table)
    if upload.name.lower().endswith((".nii", ".nii.gz")):
        files = write_prediction(prediction, Case(name, (upload,), f"{stem}_mask"), folder)
        return folder / files[0], table
    mask = folder / f"{stem}_mask.nii.gz"
    assert prediction.affine is not None
    write_nifti(Volume(prediction.labels, prediction.affine), mask)
    return mask, table


def _add_endpoint(demo: Demo, line: dict[str, Any]) -> None:
    """`/segment_volume`, for programs; see space/README.md."""

    @told_to_clients
    def segment_volume(volume: str, request: gr.Request) -> tuple[str, list[dict[str, Any]]]:
        """Outline the structures in a volume.

        Args:
            volume: A NIfTI, MHA or NRRD file, or a zip of one DICOM series.
            request: Who asks.
        """
        _, prediction, mask, _ = predict(demo, session_of(request), volume)
        return str(mask), [asdict(measurement) for measurement in prediction.measurements]

    with gr.Row(visible=False):
        volume = file_field(label="volume")
        outputs = [gr.File(label="mask"), gr.JSON(label="measurements")]
        gr.Button().click(segment_volume, volume, outputs, api_name="segment_volume", **line)
