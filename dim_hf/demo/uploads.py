"""Upload fields that hand over a path, and decode, copy or fetch nothing by themselves.

No subclasses: Gradio writes an interface file beside the module of each class of components.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dim_hf.demo.agreement import SPACING_RANGE_MM
from dim_hf.demo.context import Demo, session_of
from dim_hf.demo.refusals import Refusal

PLAIN_VALUES = """(...values) => values.map((value) => {
  if (value === '') return null;
  return value?.url?.startsWith('data:') ? { ...value, url: null } : value;
})"""
"""`js` of events that send pictures and sizes of pixels.

An empty size is none. Gradio's page puts the content of an SVG beside its path, which the guard refuses; without it,
the visitor is told in a sentence that it is no photograph.
"""
_GONE = "The uploaded file is no longer on the server; upload it again."


def picture_field(**settings: Any) -> gr.Image:
    """A field for a picture whose value is the path of the upload, which nobody has decoded yet.

    Args:
        **settings: Of `gr.Image`.
    """
    field = gr.Image(type="filepath", image_mode=None, elem_classes="picture-field", **settings)
    # `gr.Image` would open the picture before our checks.
    field.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return field


def file_field(**settings: Any) -> gr.File:
    """A field for files whose value is the path of the upload, or a list of paths.

    Args:
        **settings: Of `gr.File`.
    """
    field = gr.File(type="filepath", **settings)

    def paths(payload: Any) -> Any:
        # `gr.File` would leave an empty temporary file behind each time.
        if payload is None:
            return None
        files = [file.path for file in getattr(payload, "root", [payload])]
        return files[0] if field.file_count == "single" else files

    field.preprocess = paths  # type: ignore[method-assign]
    return field


def spacing_field(info: str, **settings: Any) -> gr.Number:
    """A field for the size of a pixel in mm; see `agreement.check_spacing`.

    Args:
        info: What it is good for.
        **settings: Of `gr.Number`.
    """
    field = gr.Number(
        label="Pixel size in mm (if known)",
        info=info,
        placeholder="not known",
        minimum=0,
        maximum=SPACING_RANGE_MM[1],
        step=0.001,
        value=None,
        **settings,
    )
    # The page of Gradio 6.31 makes 0 of no value, but leaves an empty text as it is; `PLAIN_VALUES` sends none.
    field.value = ""  # type: ignore[assignment]
    return field


def blank_on(
    triggers: Sequence[Any], outputs: Sequence[Any], blank: Sequence[Any], running: Sequence[Any] | None = None
) -> None:
    """Make results vanish when another image is chosen, so that no numbers stand beside a picture not their own.

    The page does it by itself, before any answer of the server.

    Args:
        triggers: Events such as `field.upload` and `field.clear`.
        outputs: Components that show results, the notice first.
        blank: What the others show while there is nothing: HTML or updates.
        running: Events whose answers, still on their way, are no longer wanted.
    """
    gr.on(
        list(triggers),
        None,
        None,
        list(outputs),
        js=f"() => {json.dumps(['', *blank])}",
        queue=False,
        show_progress="hidden",
        api_visibility="private",
        cancels=list(running) if running else None,
    )


def remember_uploads(demo: Demo, *fields: gr.Image | gr.File) -> None:
    """Let what comes into fields belong to the session at once; see `remember_upload`.

    Args:
        demo: What the tabs share.
        *fields: From `picture_field` or `file_field`.
    """
    for field in fields:
        field.upload(
            *(remember_upload(demo), field, None),
            js=PLAIN_VALUES,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def remember_upload(demo: Demo) -> Callable[[Any, gr.Request], None]:
    """What an upload field calls on `.upload`: the files belong to the session from then on, used or not.

    Args:
        demo: What the tabs share.

    Returns:
        The event's function, of the field's value; wire it without outputs and with `queue=False`.
    """

    def remember(file: str | list[str] | None, request: gr.Request) -> None:
        for path in [file] if isinstance(file, str) else file or []:
            try:
                demo.store.own_upload(session_of(request), uploaded_file(path))
            except Refusal:  # the page was closed meanwhile; nobody is there to be told
                continue

    return remember


def uploaded_file(path: str) -> Path:
    """The file behind a field's value.

    Args:
        path: From `picture_field` or `file_field`; Gradio has seen to it that it lies in its folder of uploads.

    Raises:
        Refusal: If there is no file: it was removed, or a client named a folder, which may hold files of others.
    """
    place = Path(path)
    if place.is_symlink() or not place.is_file():
        raise Refusal(_GONE)
    return place
