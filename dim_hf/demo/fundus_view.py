"""What the fundus tab shows of a prediction: layers that the browser mixes, numbers, and whether to look again."""

from collections.abc import Sequence

import numpy as np
import PIL.Image

from dim_hf.demo.drawing import class_colors, clear_png, contours, heat_map, jpeg, layer, legend, resized
from dim_hf.demo.tiles import cards, review_flag
from dim_hf.inference.measurements import CUP_TO_DISC, Measurement
from dim_hf.inference.prediction import Prediction

LONGEST = 720  # pixels of the shown picture
_LINE = 3  # pixels of a contour as shown
_UNITS = {"px": "px", "mm2": "mm²", "ml": "ml", "voxels": "voxels", "": ""}
EMPTY_VIEW = (
    '<div class="viewer empty"><p><b>No picture yet.</b><br>Upload a photograph of the back of the eye, centred on '
    'the optic disc, or pick one of the examples.</p></div><div class="legends"></div>'
)


def viewer(image: np.ndarray, prediction: Prediction, name: str) -> str:
    """The picture with its layers: areas, contours, uncertainty. The page shows or hides them without the server.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        prediction: Of that image.
        name: What the visitor calls it; any text.
    """
    size = shown_size(image.shape[:2])
    labels = _smooth(prediction.labels, size)
    colors = class_colors(prediction.id2label)
    alt = f"{name}: {', '.join(prediction.structures)} outlined"
    layers = [
        layer("base", jpeg(shown_image(image, size)), alt),
        layer("fill", clear_png(labels, colors)),
        layer("lines", clear_png(contours(labels, prediction.structures, colors, _LINE), colors)),
    ]
    if prediction.uncertainty is not None:
        layers.append(layer("heat", jpeg(resized(heat_map(prediction.uncertainty), size[::-1], is_label=False))))
    return (
        f'<figure class="viewer">{"".join(layers)}</figure>'
        f'<div class="legends"><div class="for-mask">{legend(prediction.id2label, colors)}</div>'
        f'<div class="for-heat">{_scale()}</div></div>'
    )


def shown_size(shape: Sequence[int]) -> tuple[int, int]:
    """Width and height of the shown picture: small ones enlarged, large ones reduced.

    >>> shown_size((360, 180))
    (360, 720)
    """
    height, width = shape
    factor = LONGEST / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def shown_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image at the shown size.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        size: From `shown_size`.
    """
    return np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.LANCZOS))


def findings(prediction: Prediction, cautions: Sequence[str] = ()) -> str:
    """Numbers as tiles, and whether somebody should look again; cautions are further reasons."""
    tiles = [_worded(measurement, prediction.labels.size) for measurement in _in_order(prediction.measurements)]
    flag = review_flag([*cautions, *review_reasons(prediction)], is_likeness_known=prediction.review is not None)
    return cards(tiles) + flag


def review_reasons(prediction: Prediction) -> list[str]:
    """Why a person should look at a mask again; empty where nothing speaks for it."""
    reasons = []
    if prediction.review:
        reasons.append("The image is unlike those that the model was trained on.")
    areas = {measurement.structure: measurement.pixels for measurement in prediction.measurements}
    missing = [name for name, pixels in areas.items() if not pixels]
    if missing:
        reasons.append(f"Not found: {', '.join(missing)}.")
    edge = np.concatenate([prediction.labels[0], prediction.labels[-1], *prediction.labels[:, [0, -1]].T])
    if edge.any():
        reasons.append("What was found touches the edge of the picture.")
    return reasons


def mask_picture(prediction: Prediction) -> PIL.Image.Image:
    """The mask as a picture whose pixels are class ids, with a palette so that viewers show it in color."""
    picture = PIL.Image.fromarray(prediction.labels, mode=None).convert("P")
    palette = np.zeros((256, 3), np.uint8)
    for index, color in class_colors(prediction.id2label).items():
        palette[index] = color
    picture.putpalette(palette.tobytes())
    return picture


def _in_order(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The ratio first: it is what is asked for."""
    return sorted(measurements, key=lambda measurement: (measurement.quantity != CUP_TO_DISC, -measurement.pixels))


def _worded(measurement: Measurement, picture_pixels: int) -> tuple[str, str, str]:
    if measurement.quantity == CUP_TO_DISC:
        return "Vertical cup-to-disc ratio", f"{measurement.value:.2f}", "height of the cup over that of the disc"
    unit = _UNITS.get(measurement.unit, measurement.unit)
    value = f"{measurement.value:,.2f}" if measurement.unit == "mm2" else f"{measurement.value:,.0f}"
    return (
        f"{measurement.structure.capitalize()}, area",
        f"{value} {unit}",
        f"{measurement.pixels / picture_pixels:.1%} of the picture",
    )


def _smooth(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class ids at the shown size; edges are interpolated, so that enlarging makes no stairs."""
    best, shares = np.zeros(size[::-1], np.uint8), np.full(size[::-1], 127, np.uint8)
    classes = np.unique(labels)
    for index in classes[classes > 0]:
        mask = PIL.Image.fromarray((labels == index).astype(np.uint8) * 255)
        share = np.asarray(mask.resize(size, PIL.Image.Resampling.BILINEAR))
        best[share > shares] = index
        shares = np.maximum(share, shares)
    return best


def _scale() -> str:
    colors = heat_map(np.linspace(0, 1, 5)[None])[0]
    stops = ", ".join(f"rgb({red}, {green}, {blue})" for red, green, blue in colors)
    return f'<span class="scale">sure <i style="background: linear-gradient(90deg, {stops})"></i> unsure</span>'
