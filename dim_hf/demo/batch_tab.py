"""The batch tab: several photographs at once, a line for each while it goes on, and one zip at the end."""

import html
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dim_hf.data.texts import printable
from dim_hf.demo.context import Demo, session_of
from dim_hf.demo.fundus_tab import NO_FILE, predict
from dim_hf.demo.fundus_view import mask_picture, review_reasons
from dim_hf.demo.intake import PICTURE_ENDINGS
from dim_hf.demo.refusals import Refusal, error_panel, sentence_of, shown_on_page
from dim_hf.demo.uploads import blank_on, file_field, remember_uploads
from dim_hf.inference.inputs import safe_target
from dim_hf.inference.measurements import CUP_TO_DISC, Measurement, write_measurements
from dim_hf.inference.outputs import write_labels

ZIP_NAME = "masks.zip"
_EMPTY = (
    '<div class="batch-table empty"><p><b>No pictures yet.</b><br>Choose several photographs; each gets a line here, '
    "and at the end there is one zip with all masks and measurements.</p></div>"
)
_NO_CASES = "No pictures were given; choose several PNG, JPEG, TIFF or BMP files."


@dataclass
class _Line:
    """One picture of a batch: waiting, done or refused."""

    name: str
    state: str = "waiting"
    remark: str = ""
    measurements: tuple[Measurement, ...] = ()
    drift: float | None = None


def build(demo: Demo) -> None:
    """Lay out the tab.

    Args:
        demo: What the tabs share.
    """
    limit = demo.settings.max_batch_files
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=4, min_width=300):
            files = file_field(
                label=f"Fundus photographs, at most {limit}",
                file_count="multiple",
                file_types=list(PICTURE_ENDINGS),
                height=240,
                elem_id="batch-upload",
            )
            button = gr.Button("Outline all", variant="primary", elem_id="batch-run")
            archive = gr.DownloadButton(
                "Masks and measurements (ZIP)", interactive=False, elem_id="batch-zip", elem_classes="download"
            )
            notice = gr.HTML("", elem_id="batch-notice", elem_classes="notices")
        with gr.Column(scale=7, min_width=320):
            table = gr.HTML(_EMPTY, elem_id="batch-table")

    @shown_on_page((_EMPTY, NO_FILE))
    def run(paths: list[str] | None, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        yield from _run(demo, session_of(request), paths)

    # A line of its own: between two pictures of a batch, others get their turn at the gate.
    outputs = [notice, table, archive]
    running = button.click(
        run,
        files,
        outputs,
        concurrency_id="batch",
        concurrency_limit=2,
        show_progress="hidden",
        api_visibility="private",
    )
    blank_on([files.upload, files.clear, files.delete], outputs, (_EMPTY, NO_FILE), [running])
    remember_uploads(demo, files)


def _run(demo: Demo, session: str, paths: Sequence[str] | None) -> Iterator[tuple[Any, ...]]:
    if not paths:
        raise Refusal(_NO_CASES)
    if len(paths) > demo.settings.max_batch_files:
        raise Refusal(
            f"{len(paths)} pictures were given, and a batch has {demo.settings.max_batch_files} at most; choose fewer."
        )
    lines = [_Line(name) for name in _distinct([printable(Path(path).name) for path in paths])]
    folder = demo.store.new_folder(session)
    yield "", table_of(lines), NO_FILE
    with zipfile.ZipFile(folder / ZIP_NAME, "w", zipfile.ZIP_DEFLATED) as target:
        for number, (line, path) in enumerate(zip(lines, paths, strict=True)):
            _predict_one(demo, session, line, path, number, target)
            yield "", table_of(lines), NO_FILE
        done = [line for line in lines if line.state == "done"]
        _write_tables(demo, lines, target)
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        yield error_panel("None of the pictures could be used; the table says why."), table_of(lines), NO_FILE
        return
    yield "", table_of(lines), gr.update(value=str(folder / ZIP_NAME), interactive=True)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which each occurs once, so that every line of a table has its own picture."""
    numbered = (f"{name} ({names[: place + 1].count(name)})" for place, name in enumerate(names))
    return [name if number.endswith(" (1)") else number for name, number in zip(names, numbered, strict=True)]


def _predict_one(demo: Demo, session: str, line: _Line, path: str, number: int, target: zipfile.ZipFile) -> None:
    """Predict one picture into the zip; what is wrong with it becomes its remark, and stops nothing."""
    try:
        _, prediction, name = predict(demo, session, path, None)
        with tempfile.SpooledTemporaryFile() as file:
            mask_picture(prediction).save(file, format="PNG")
            file.seek(0)
            target.writestr(f"masks/{number + 1:02d}_{safe_target([name])}_mask.png", file.read())
    except Exception as error:
        line.state, line.remark = "refused", sentence_of(error)
        return
    cautions = demo.cautions(path, demo.models.fundus)
    line.state, line.remark = "done", " ".join([*cautions, *review_reasons(prediction)])
    line.measurements, line.drift = prediction.measurements, prediction.drift


def _write_tables(demo: Demo, lines: Sequence[_Line], target: zipfile.ZipFile) -> None:
    """measurements.csv, what the values of the masks mean, and what could not be done."""
    predictor = demo.models.fundus.predictor
    with tempfile.TemporaryDirectory() as folder:
        done = [line for line in lines if line.state == "done"]
        drifts = {line.name: ("" if line.drift is None else line.drift, bool(line.remark)) for line in done}
        rows = [(line.name, line.measurements) for line in done]
        write_measurements(rows, Path(folder) / "measurements.csv", drifts=drifts)
        write_labels(predictor.id2label, predictor.structures, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            target.write(path, path.name)
    for file, state in (("not_done.txt", "refused"), ("look_again.txt", "done")):
        remarks = [f"{line.name}: {line.remark}" for line in lines if line.state == state and line.remark]
        if remarks:
            target.writestr(file, "\n".join(remarks) + "\n")


def table_of(lines: Sequence[_Line]) -> str:
    """Progress and a table of all pictures, as HTML; names may be any text."""
    finished = sum(line.state != "waiting" for line in lines)
    share = round(100 * finished / len(lines))
    rows = "".join(_row(line) for line in lines)
    return (
        f'<div class="progress" role="progressbar" aria-label="Pictures done" aria-valuemin="0" '
        f'aria-valuemax="{len(lines)}" aria-valuenow="{finished}"><i style="width: {share}%"></i></div>'
        f'<p class="progress-text" role="status">{finished} of {len(lines)} done</p>'
        '<div class="dim-scroll"><table class="plain"><thead><tr><th scope="col">Picture</th>'
        '<th scope="col">Cup-to-disc</th><th scope="col">Disc, px</th><th scope="col">Cup, px</th>'
        f'<th scope="col">Remark</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(line: _Line) -> str:
    found = {measurement.quantity: measurement.value for measurement in line.measurements}
    pixels = {measurement.structure: measurement.pixels for measurement in line.measurements}
    ratio = f"{found[CUP_TO_DISC]:.2f}" if CUP_TO_DISC in found else "–"
    disc, cup = (f"{pixels[name]:,}" if name in pixels else "–" for name in ("disc", "cup"))
    remark = {"waiting": "waiting", "done": line.remark or "done"}.get(line.state, line.remark)
    return (
        f'<tr class="{line.state}"><th scope="row">{html.escape(line.name)}</th><td class="number">{ratio}</td>'
        f'<td class="number">{disc}</td><td class="number">{cup}</td><td>{html.escape(remark)}</td></tr>'
    )
