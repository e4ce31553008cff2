"""What the fundus tab shows of a prediction: layers that the browser mixes, numbers, and whether to look again."""

import base64
import html
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import PIL.Image

from dim_hf.demo.drawing import Color, border, class_colors, heat_map, legend
from dim_hf.inference.measurements import CUP_TO_DISC, Measurement
from dim_hf.inference.prediction import Prediction

LONGEST = 720  # pixels of the shown picture
_LINE = 3  # pixels of a contour as shown
_UNITS = {"px": "px", "mm2": "mm²", "ml": "ml", "voxels": "voxels", "": ""}
EMPTY_VIEW = (
    '<div class="viewer empty"><p><b>No picture yet.</b><br>Upload a photograph of the back of the eye, centred on '
    "the optic disc, or pick one of the examples.</p></div>"
)
EMPTY_CARDS = '<div class="cards empty"></div>'


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
        layer("base", encoded(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.LANCZOS), "WEBP"), alt),
        layer("fill", encoded(painted(labels, colors), "PNG"), ""),
        layer("lines", encoded(_contours(labels, prediction.structures, colors), "PNG"), ""),
    ]
    if prediction.uncertainty is not None:
        heat = PIL.Image.fromarray(heat_map(prediction.uncertainty)).resize(size, PIL.Image.Resampling.BILINEAR)
        layers.append(layer("heat", encoded(heat, "WEBP"), ""))
    return (
        f'<figure class="viewer" style="aspect-ratio: {size[0]} / {size[1]}">{"".join(layers)}</figure>'
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


def cards(prediction: Prediction) -> str:
    """Numbers as tiles, and whether somebody should look again."""
    tiles = [
        _tile(*_worded(measurement, prediction.labels.size)) for measurement in _in_order(prediction.measurements)
    ]
    return f'<div class="cards">{"".join(tiles)}</div>{_review(prediction)}'


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


def _tile(title: str, value: str, remark: str) -> str:
    return (
        f'<div class="tile"><span>{html.escape(title)}</span><b>{html.escape(value)}</b>'
        f"<small>{html.escape(remark)}</small></div>"
    )


def _review(prediction: Prediction) -> str:
    reasons = review_reasons(prediction)
    if reasons:
        said = " ".join(reasons)
        return f'<p class="flag look" role="status"><b>Look again.</b> {html.escape(said)}</p>'
    known = "" if prediction.review is not None else " Likeness to the training images is not known for this model."
    calm = "<b>No reason for a second look was found.</b> This approves nothing."
    return f'<p class="flag calm" role="status">{calm}{known}</p>'


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


def painted(labels: np.ndarray, colors: Mapping[int, Color]) -> PIL.Image.Image:
    """Areas in full color on a clear ground; the page sets their opacity."""
    table = np.zeros((256, 4), np.uint8)
    for index, color in colors.items():
        table[index] = (*color, 255)
    return PIL.Image.fromarray(table[labels])


def _contours(
    labels: np.ndarray, structures: Mapping[str, Sequence[int]], colors: Mapping[int, Color]
) -> PIL.Image.Image:
    """A line around each structure, larger ones first; white below the color, so that it shows on any ground."""
    pixels = np.zeros((*labels.shape, 4), np.uint8)
    drawn: set[int] = set()
    for classes in sorted(structures.values(), key=len):
        own = [index for index in classes if index not in drawn and index in colors]
        drawn.update(classes)
        if own:
            edge = border(np.isin(labels, list(classes)))
            pixels[_thicker(edge, _LINE) & (pixels[..., 3] == 0)] = (*colors[own[0]], 255)
    return PIL.Image.fromarray(pixels)


def _thicker(edge: np.ndarray, width: int) -> np.ndarray:
    for _ in range(width // 2):
        grown = edge.copy()
        grown[1:] |= edge[:-1]
        grown[:-1] |= edge[1:]
        grown[:, 1:] |= edge[:, :-1]
        grown[:, :-1] |= edge[:, 1:]
        edge = grown
    return edge


def layer(kind: str, source: str, alt: str) -> str:
    """One of the pictures that lie on each other in a `viewer`.

    Args:
        kind: CSS class: "base", "fill", "lines" or "heat".
        source: From `encoded`.
        alt: What a screen reader says; any text. With "" the layer is passed over.
    """
    hidden = "" if alt else ' aria-hidden="true"'
    return f'<img class="layer {kind}" alt="{html.escape(alt)}"{hidden} src="{source}">'


def encoded(picture: PIL.Image.Image, form: str) -> str:
    """A picture as an address that holds it.

    Args:
        picture: Any picture that the format takes.
        form: "WEBP", with loss, or "PNG".
    """
    file = BytesIO()
    settings = {"quality": 88, "method": 1} if form == "WEBP" else {"compress_level": 1}
    picture.save(file, format=form, **settings)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _scale() -> str:
    colors = heat_map(np.linspace(0, 1, 5)[None])[0]
    stops = ", ".join(f"rgb({red}, {green}, {blue})" for red, green, blue in colors)
    return f'<span class="scale">sure <i style="background: linear-gradient(90deg, {stops})"></i> unsure</span>'
