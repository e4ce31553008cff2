"""From the label maps of one case to a row of scores for each structure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dim_hf.metrics.empty_masks import get_empty_policy
from dim_hf.metrics.overlap import Spacing, overlap_metrics
from dim_hf.metrics.surface import surface_metrics


@dataclass(frozen=True)
class CaseResult:
    """Scores of one structure in one case; all scores are NaN where the reference says nothing of any pixel.

    Attributes:
        domain: scanner, site or cohort.
        patient: patient of the case; may be empty.
        name: name of the case, unique within its domain.
        structure: name of the structure.
        dice: in [0, 1].
        jaccard: in [0, 1].
        hd95: 95th percentile of the border distances, in `unit`.
        hd: Hausdorff distance, in `unit`.
        asd: mean border distance from prediction to reference, in `unit`.
        assd: mean border distance of both directions pooled, in `unit`.
        nsd: share of border pixels within the tolerance, in [0, 1]; NaN without a tolerance.
        volume_difference: prediction minus reference, in `unit` to the power of the number of axes.
        prediction_volume: in the same unit.
        reference_volume: in the same unit.
        missed: whether only the prediction is empty.
        spurious: whether only the reference is empty.
        unit: "mm", or "px" where the case was scored without a spacing.
        empty_policy: how distances of missed and spurious structures were scored.
        nsd_tolerance: tolerance of the NSD, in `unit`; NaN without one.
    """

    domain: str
    patient: str
    name: str
    structure: str
    dice: float
    jaccard: float
    hd95: float
    hd: float
    asd: float
    assd: float
    nsd: float
    volume_difference: float
    prediction_volume: float
    reference_volume: float
    missed: bool
    spurious: bool
    unit: str
    empty_policy: str
    nsd_tolerance: float = math.nan

    @property
    def undefined(self) -> bool:
        """Whether there is no HD95, by the policy `nan` or since the reference has ignored pixels only."""
        return math.isnan(self.hd95)

    def without_scores(self) -> "CaseResult":
        """The same case with nothing to score it by: NaN for every score and volume, neither missed nor spurious."""
        scores = {item.name: math.nan for item in fields(self) if item.type is float and item.name != "nsd_tolerance"}
        return replace(self, **scores, missed=False, spurious=False)


def default_structures(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Every class but the background (id 0) as a structure of its own.

    Args:
        id2label: names by class id.

    Returns:
        Class ids by structure name.

    >>> default_structures({0: "background", 1: "rim", 2: "cup"})
    {'rim': [1], 'cup': [2]}
    """
    return {name: [int(index)] for index, name in id2label.items() if int(index) != 0}


def check_structures(structures: Mapping[str, Sequence[int]], ignore_index: int | None = 255) -> None:
    """Checks a declaration of structures over exclusive classes.

    Args:
        structures: class ids by structure name; a class may belong to several (nested) structures.
        ignore_index: the label of ignored pixels, which cannot be a class; None where there is none.

    Raises:
        ValueError: if there is no structure, a structure has no class, or a class id is not a legal one.
    """
    if not structures:
        raise ValueError('structures is empty; name at least one, such as {"prostate": [1]}')
    for name, classes in structures.items():
        if isinstance(classes, str) or not isinstance(classes, Sequence) or len(classes) == 0:
            raise ValueError(f"structure {name!r} is {classes!r}; give a list of at least one class id")
        for value in classes:
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
                raise ValueError(f"structure {name!r} has the class {value!r}; class ids are integers from 0")
            if value == ignore_index:
                raise ValueError(f"structure {name!r} has the class {value}, which is the label of ignored pixels")


def _as_label_map(labels: ArrayLike, name: str) -> NDArray[np.integer]:
    array = np.asarray(labels)
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; pass the label map of one case, (H, W) or (D, H, W)")
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has type {array.dtype}; pass integer class ids")
    return array


def score_case(
    prediction: ArrayLike,
    reference: ArrayLike,
    structures: Mapping[str, Sequence[int]],
    spacing_mm: Spacing | None = None,
    empty_policy: str = "worst",
    ignore_index: int | None = 255,
    *,
    domain: str = "",
    patient: str = "",
    name: str = "",
    tolerance_mm: float | None = None,
) -> list[CaseResult]:
    """Scores the label maps of one case, structure by structure.

    A structure's mask is the set of pixels whose class is in its list. Pixels that the reference ignores belong to no
    structure, in the prediction as in the reference. Where it ignores all of them there is nothing to score by: every
    score is NaN, so that means leave the case out, and tables count it as undefined.

    Args:
        prediction: predicted class ids, (H, W) or (D, H, W), integer.
        reference: reference class ids of the same shape, integer.
        structures: class ids by structure name, nested or exclusive, such as {"disc": [1, 2], "cup": [2]}.
        spacing_mm: size of a pixel in mm; None scores in pixels.
        empty_policy: a key of `empty_masks.EMPTY_POLICIES`.
        ignore_index: reference label of ignored pixels; None where there is none.
        domain: scanner, site or cohort, for the rows.
        patient: patient, for the rows.
        name: name of the case, for the rows and for error messages.
        tolerance_mm: tolerance of the NSD, in the unit of the distances; None leaves it NaN.

    Returns:
        One row a structure, in their order.

    Raises:
        ValueError: if the maps are not integer, 2D or 3D and of equal shape, or the structures, spacing, policy or
            tolerance are not legal; the message names the case.
    """
    check_structures(structures, ignore_index)
    get_empty_policy(empty_policy)
    case = f"case {name!r} of domain {domain!r}"
    predicted, referenced = (
        _as_label_map(prediction, f"{case}: prediction"),
        _as_label_map(reference, f"{case}: reference"),
    )
    if predicted.shape != referenced.shape:
        raise ValueError(f"{case}: prediction has shape {predicted.shape} and reference {referenced.shape}")
    valid = None if ignore_index is None else referenced != ignore_index
    unit = "px" if spacing_mm is None else "mm"
    tolerance = math.nan if tolerance_mm is None else float(tolerance_mm)
    rows = []
    for structure, classes in structures.items():
        masks = [np.isin(labels, classes) for labels in (predicted, referenced)]
        if valid is not None:
            masks = [mask & valid for mask in masks]
        overlap = overlap_metrics(*masks, spacing_mm)
        surface = surface_metrics(*masks, spacing_mm, tolerance_mm=tolerance_mm, empty_policy=empty_policy)
        scores = asdict(overlap) | asdict(surface) | {"nsd": math.nan if surface.nsd is None else surface.nsd}
        known = {field.name: scores[field.name] for field in fields(CaseResult) if field.name in scores}
        known |= {"unit": unit, "empty_policy": empty_policy, "nsd_tolerance": tolerance}
        rows.append(CaseResult(domain, patient, name, structure, **known))
    return rows if valid is None or valid.any() else [row.without_scores() for row in rows]
