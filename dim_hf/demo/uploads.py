"""Upload fields that hand over a path, and decode, copy or fetch nothing by themselves.

No subclasses: Gradio writes an interface file beside the module of each class of components.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from dim_hf.demo.refusals import Refusal

_GONE = "The uploaded file is no longer on the server; upload it again."


def picture_field(**settings: Any) -> gr.Image:
    """A field for a picture whose value is the path of the upload, which nobody has decoded yet.

    Args:
        **settings: Of `gr.Image`.
    """
    field = gr.Image(type="filepath", image_mode=None, **settings)
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
