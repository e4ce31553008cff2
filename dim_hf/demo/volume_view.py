"""What the volume tab shows of a prediction: slices in layers that the browser mixes, numbers, and what to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dim_hf.data.volumes.volume import Volume
from dim_hf.demo.drawing import class_colors, clear_png, contours, jpeg, layer, legend, resized, screen_size
from dim_hf.demo.planes import (
    EDGES,
    as_grey,
    cut,
    fullest_slice,
    grey_window,
    patient_order,
    patient_spacing,
    plane_spacing,
    slice_count,
)
from dim_hf.demo.tiles import cards, review_flag
from dim_hf.inference.measurements import Measurement
from dim_hf.inference.prediction import Prediction

LONGEST = 480  # pixels of a shown slice
_LINE = 2  # pixels of a contour as shown
_EMPTY_TEXTS = {
    "axial": "<b>No volume yet.</b><br>Upload a scan, or pick one of the examples.",
    "coronal": "",
    "sagittal": "",
}


@dataclass(frozen=True, eq=False)
class ViewedVolume:
    """What is kept of a volume and its prediction, so that a slice is shown without predicting again.

    Attributes:
        name: What the visitor calls it; any text.
        grey: (R, A, S) uint8, in `planes.patient_order`.
        labels: (R, A, S) class ids.
        spacing_mm: Along these axes.
        id2label: Name of each class.
        structures: Class ids by structure.
    """

    name: str
    grey: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    id2label: Mapping[int, str]
    structures: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, volume: Volume, prediction: Prediction, name: str) -> "ViewedVolume":
        """From a volume and its prediction."""
        grey = as_grey(volume.array, grey_window(volume.array))
        turned = (patient_order(array, volume.affine) for array in (grey, prediction.labels))
        return cls(name, *turned, patient_spacing(volume.affine), prediction.id2label, prediction.structures)

    @property
    def size_bytes(self) -> int:
        """Of the voxels that are kept."""
        return self.grey.nbytes + self.labels.nbytes

    def slices(self, plane: str) -> int:
        """Number of slices in a plane."""
        return slice_count(self.grey, plane)

    def start(self, plane: str) -> int:
        """Position of the slice that is shown first: the one with most of what was found."""
        return fullest_slice(self.labels, plane)


def empty_figure(plane: str) -> str:
    """What stands in the place of a slice while there is none."""
    return f'<div class="viewer plane empty"><p>{_EMPTY_TEXTS[plane] or plane.capitalize()}</p></div>'


def slice_figure(viewed: ViewedVolume, plane: str, position: int) -> str:
    """One slice with its layers: areas and contours, which the page shows or hides without the server.

    Args:
        viewed: The volume.
        plane: One of `planes.PLANES`.
        position: From 0; the nearest slice is shown where there is none of that number.
    """
    count = viewed.slices(plane)
    position = min(max(position, 0), count - 1)
    pixels, labels = (cut(array, plane, position) for array in (viewed.grey, viewed.labels))
    found = [name for name, classes in viewed.structures.items() if np.isin(labels, list(classes)).any()]
    size = screen_size(pixels.shape, plane_spacing(viewed.spacing_mm, plane), LONGEST)
    labels = resized(labels, size, is_label=True)
    colors = class_colors(viewed.id2label)
    said = f"{', '.join(found)} outlined" if found else "nothing outlined"
    alt = f"{viewed.name}: {plane} slice {position + 1} of {count}, {said}"
    layers = [layer("base", jpeg(resized(pixels, size, is_label=False)), alt)]
    if found:
        lines = contours(labels, viewed.structures, colors, _LINE)
        layers += [layer("fill", clear_png(labels, colors)), layer("lines", clear_png(lines, colors))]
    edges = "".join(
        f'<span class="edge {side}" aria-hidden="true">{letter}</span>'
        for side, letter in zip(("left", "right", "top", "bottom"), EDGES[plane], strict=True)
    )
    return f'<figure class="viewer plane">{"".join(layers)}{edges}</figure>'


def findings(viewed: ViewedVolume, prediction: Prediction, cautions: Sequence[str] = ()) -> str:
    """Numbers as tiles, the legend, and whether somebody should look again; cautions are further reasons."""
    tiles = [_worded(measurement) for measurement in prediction.measurements]
    if prediction.drift is not None:
        share = f"{100 * prediction.drift:.0f} %"
        tiles.append(("Scanner drift", share, f"more unusual than {share} of the training scans"))
    size = "×".join(map(str, prediction.labels.shape))
    spacing = " × ".join(f"{length:.3g}" for length in prediction.spacing_mm or ())
    tiles.append(("Scan", size, f"voxels of {spacing} mm"))
    colors = class_colors(viewed.id2label)
    flag = review_flag([*cautions, *review_reasons(prediction)], is_likeness_known=prediction.review is not None)
    return f'<div class="legends wide">{legend(viewed.id2label, colors)}</div>{cards(tiles)}{flag}'


def review_reasons(prediction: Prediction) -> list[str]:
    """Why a person should look at a mask again; empty where nothing speaks for it."""
    reasons = []
    if prediction.review:
        reasons.append("The scan is unlike those that the model was trained on.")
    missing = [part.structure for part in prediction.measurements if not part.pixels]
    if missing:
        reasons.append(f"Not found: {', '.join(missing)}.")
    faces = [np.take(prediction.labels, end, axis) for axis in range(3) for end in (0, -1)]
    if min(prediction.labels.shape) > 1 and any(face.any() for face in faces):
        reasons.append("What was found touches the edge of the volume.")
    return reasons


def _worded(measurement: Measurement) -> tuple[str, str, str]:
    value = f"{measurement.value:,.1f}" if measurement.unit == "ml" else f"{measurement.value:,.0f}"
    title = f"{measurement.structure.capitalize()}, {measurement.quantity}"
    return title, f"{value} {measurement.unit}", f"{measurement.pixels:,} voxels"
