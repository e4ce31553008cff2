"""What a predictor says of one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dim_hf.inference.measurements import Measurement


@dataclass(frozen=True, eq=False)
class Prediction:
    """Mask of one image or volume, on its own grid.

    Attributes:
        labels: Class ids, (H, W) or (X, Y, Z) in the order in which the file stores its axes; uint8, or uint16 for
            more than 256 classes.
        id2label: Name of each class.
        structures: Class ids by structure.
        spacing_mm: Size of a pixel along the axes of `labels`; None where it is unknown.
        affine: (4, 4), voxel index to RAS+ mm; None of a picture.
        measurements: Of each structure.
        probabilities: (K, *S) float32; None unless asked for.
        uncertainty: (*S) float32 in [0, 1]; None unless asked for.
        drift: How unlike the images of the sites that the model saw this one is, in [0, 1]: the share of images of
            those sites that are less unlike, see `drift.SiteStatistics.scores`; None where it has no statistics.
        review: Whether a person should look at it, since `drift` is above the threshold of the statistics; None where
            there is none.
    """

    labels: np.ndarray
    id2label: Mapping[int, str]
    structures: Mapping[str, Sequence[int]]
    spacing_mm: tuple[float, ...] | None
    affine: np.ndarray | None
    measurements: tuple[Measurement, ...]
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    drift: float | None = None
    review: bool | None = None

    def maps(self) -> dict[str, np.ndarray]:
        """Probabilities by class and uncertainty as single maps (*S) float32, under the names of their files."""
        found = {} if self.probabilities is None else {f"prob{i}": part for i, part in enumerate(self.probabilities)}
        return found if self.uncertainty is None else {**found, "uncertainty": self.uncertainty}
