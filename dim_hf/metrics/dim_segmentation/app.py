"""A page that scores one case. `evaluate.utils.launch_gradio_widget` needs gradio 3, which numpy 2 rules out."""

import json
import math
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
EXAMPLE = {
    "predictions": "[[0, 1, 1, 1], [0, 1, 2, 0]]",
    "references": "[[0, 1, 1, 0], [0, 2, 2, 0]]",
    "structures": '{"disc": [1, 2], "cup": [2]}',
}


def score(prediction: str, reference: str, structures: str, spacing: str, empty_policy: str) -> dict[str, Any]:
    """Scores one case from the fields of the page.

    Args:
        prediction: label map as nested lists in JSON, (H, W) or (D, H, W).
        reference: label map of the same shape.
        structures: class ids by structure name in JSON; empty for each class alone.
        spacing: size of a pixel in mm in JSON, a number or one an axis; empty for pixels.
        empty_policy: how missed and spurious structures are scored.

    Returns:
        The scores, those that are not defined as None.

    Raises:
        ValueError: if a field is not JSON or not legal.
    """
    import evaluate

    maps = {"predictions": [json.loads(prediction)], "references": [json.loads(reference)]}
    options = {
        name: json.loads(text) for name, text in (("structures", structures), ("spacing", spacing)) if text.strip()
    }
    found = evaluate.load(str(FOLDER)).compute(**maps, **options, empty_policy=empty_policy)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def build() -> Any:
    """Makes the page.

    Returns:
        A `gradio.Interface`.
    """
    import gradio

    from dim_hf.metrics.empty_masks import EMPTY_POLICIES

    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    return gradio.Interface(
        fn=score,
        inputs=[
            gradio.Code(EXAMPLE["predictions"], language="json", label="Prediction"),
            gradio.Code(EXAMPLE["references"], language="json", label="Reference"),
            gradio.Code(EXAMPLE["structures"], language="json", label="Structures"),
            gradio.Textbox(label="Size of a pixel in mm, such as [0.5, 0.5]; empty for pixels"),
            gradio.Dropdown(list(EMPTY_POLICIES), value="worst", label="Missed and spurious structures"),
        ],
        outputs=gradio.JSON(label="Scores"),
        title="Metric: dim_segmentation",
        article=card.split("\n---\n", 1)[-1],
    )


if __name__ == "__main__":
    build().launch()
