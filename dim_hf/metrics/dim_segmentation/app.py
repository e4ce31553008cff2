"""A page that scores one case. `evaluate.utils.launch_gradio_widget` needs gradio 3, which numpy 2 rules out."""

import functools
import json
import math
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# The file, not its folder: in a Space the folder is not named after the module.
MODULE = FOLDER / "dim_segmentation.py"
EXAMPLE = {
    "predictions": "[[0, 1, 1, 1], [0, 1, 2, 0]]",
    "references": "[[0, 1, 1, 0], [0, 2, 2, 0]]",
    "structures": '{"disc": [1, 2], "cup": [2]}',
}


def score(
    prediction: str,
    reference: str,
    structures: str = "",
    spacing: str = "",
    empty_policy: str = "worst",
    tolerance_mm: float | None = None,
) -> dict[str, Any]:
    """Scores one case from the fields of the page.

    Args:
        prediction: label map as nested lists in JSON, (H, W) or (D, H, W).
        reference: label map of the same shape.
        structures: class ids by structure name in JSON; empty for each class alone.
        spacing: size of a pixel in mm in JSON, a number or one an axis; empty for pixels.
        empty_policy: how missed and spurious structures are scored.
        tolerance_mm: tolerance of the NSD, in mm (pixels without a spacing); None for no NSD.

    Returns:
        The scores, those that are not defined as None.

    Raises:
        ValueError: if a field is not JSON or not legal; the message names the field.
    """
    import evaluate

    maps = {
        "predictions": [_read("Prediction", prediction, list)],
        "references": [_read("Reference", reference, list)],
    }
    options: dict[str, Any] = {"empty_policy": empty_policy, "tolerance_mm": tolerance_mm}
    if structures.strip():
        options["structures"] = _read("Structures", structures, dict)
    if spacing.strip():
        options["spacing"] = _read("Size of a pixel", spacing, (int, float, list))
    found = evaluate.load(str(MODULE), keep_in_memory=True).compute(**maps, **options)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def _read(field: str, text: str, kinds: type | tuple[type, ...]) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{field} is no JSON: {error}") from error
    if not isinstance(value, kinds):
        raise ValueError(f"{field} is {text.strip()[:40]!r}; write it like the example of the page")
    return value


def build() -> Any:
    """Makes the page.

    Returns:
        A `gradio.Interface`.
    """
    import gradio

    from dim_hf.metrics.empty_masks import EMPTY_POLICIES

    @functools.wraps(score)  # gradio names the fields of its API after the arguments
    def answer(*fields: Any) -> dict[str, Any]:
        try:
            return score(*fields)
        except ValueError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    return gradio.Interface(
        fn=answer,
        inputs=[
            gradio.Code(EXAMPLE["predictions"], language="json", label="Prediction"),
            gradio.Code(EXAMPLE["references"], language="json", label="Reference"),
            gradio.Code(EXAMPLE["structures"], language="json", label="Structures; empty for each class alone"),
            gradio.Textbox("", label="Size of a pixel in mm, such as [0.5, 0.5]; empty for pixels"),
            gradio.Dropdown(list(EMPTY_POLICIES), value="worst", label="Missed and spurious structures"),
            gradio.Number(None, minimum=0, label="Tolerance of the NSD in mm (or pixels); empty for no NSD"),
        ],
        outputs=gradio.JSON(label="Scores"),
        title="Metric: dim_segmentation",
        article=card.split("\n---\n", 1)[-1],
        api_name="score",
        flagging_mode="never",  # what is entered is not kept
    )


if __name__ == "__main__":
    build().launch()
