"""Segmentation metrics for `evaluate.load`: overlap, border distances and volumes by structure, in 2D and 3D."""

import io
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from dim_hf.metrics.cases import CaseResult, score_case

_DESCRIPTION = """\
Dice, Jaccard, HD95, HD, ASD, ASSD, NSD and volume difference of label maps (H, W) or (D, H, W), by structure and on \
average over structures, in mm or pixels, with counts of missed and spurious structures."""

_INPUTS = """
Args:
    predictions: label maps of integer class ids, one a case, (H, W) or (D, H, W); sizes may differ among cases.
    references: label maps of the same shapes.
    structures: class ids by structure name; they may overlap, such as {"disc": [1, 2], "cup": [2]}. By default each
        class but 0 is one, named by its id.
    num_labels: number of classes including the background, for the default structures; by default the classes that
        occur in some map.
    spacing: size of a pixel in mm: a number, one an axis in array order, or a list of lists, one a case, each with one
        number an axis; by default distances are in pixels.
    empty_policy: distances where exactly one of prediction and reference is empty: "worst" (the image's diagonal; the
        default), "nan" (left out of the mean), "legacy-100" or "legacy-0".
    tolerance_mm: tolerance of the NSD, in mm (pixels without a spacing); by default there is no NSD.
    ignore_index: reference label of pixels that count for nothing, 255 by default; None where there is none.

Returns:
    A dictionary: "<structure>_<metric>", the mean over cases, and "<metric>", the mean of these over structures, for
    dice, jaccard (0 to 1), hd95, hd, asd, assd (unit), nsd (0 to 1) and volume_difference (unit³, in 2D unit²);
    "<structure>_missed", "<structure>_spurious", "<structure>_undefined" (left out of the means of distances, and of
    all means where the reference has ignored pixels only), "missed", "spurious" and "undefined", numbers of cases;
    "cases"; "unit" ("mm" or "px"), "empty_policy" and, where the NSD was asked for, its "nsd_tolerance" (unit).

Examples:

    >>> module = evaluate.load("dim_hf/metrics/dim_segmentation")
    >>> reference = [[0, 1, 1], [0, 1, 2]]
    >>> prediction = [[1, 1, 1], [0, 1, 0]]
    >>> found = module.compute(predictions=[prediction], references=[reference], structures={"disc": [1, 2]})
    >>> found["disc_dice"], found["disc_hd"], found["missed"]
    (0.75, 1.0, 0)
"""

_CITATION = """\
@article{maierhein2024metrics,
  title = {Metrics reloaded: recommendations for image analysis validation},
  author = {Maier-Hein, Lena and Reinke, Annika and others},
  journal = {Nature Methods},
  volume = {21},
  pages = {195--212},
  year = {2024}
}
"""

METRICS = ("dice", "jaccard", "hd95", "hd", "asd", "assd", "nsd", "volume_difference")
COUNTS = ("missed", "spurious", "undefined")

# What is written between `add_batch` and `compute`: packed maps, since lists of numbers take fifty times the memory.
_PACKED = datasets.Features({name: datasets.Value("binary") for name in ("predictions", "references")})


def _features(kind: Any) -> datasets.Features:
    return datasets.Features({"predictions": kind, "references": kind})


def _pack(labels: Any) -> bytes:
    array = np.asarray(labels)
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"a label map has type {array.dtype} and shape {array.shape}; pass integer class ids")
    if array.size and array.dtype != np.bool_:
        ends = (np.min_scalar_type(end) for end in (array.min(), array.max()))
        array = array.astype(np.result_type(*ends))
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return zlib.compress(file.getvalue(), level=1)


def _unpack(packed: bytes) -> np.ndarray:
    return np.load(io.BytesIO(zlib.decompress(packed)), allow_pickle=False)


def _structures(maps: Iterable[bytes], num_labels: int | None, ignore_index: int | None) -> dict[str, list[int]]:
    """Each class but 0 under its id: those below `num_labels`, or all that occur."""
    if num_labels is not None:
        classes = set(range(num_labels))
    else:
        classes = {int(value) for packed in maps for value in np.unique(_unpack(packed))}
    found = {str(value): [value] for value in sorted(classes - {0, ignore_index})}
    if not found:
        raise ValueError('no class but the background occurs; pass structures={"name": [class id]} or num_labels')
    return found


def _spacings(spacing: Any, cases: int) -> list[Any]:
    """One spacing a case."""
    if np.isscalar(spacing) or spacing is None:
        return [spacing] * cases
    if all(np.isscalar(value) for value in spacing):
        if cases > 1 and len(spacing) == cases and len(set(map(float, spacing))) > 1:
            raise ValueError(
                f"spacing has {cases} numbers for {cases} cases, which may mean one an axis or one a case; write a "
                "list a case with one number an axis in it, such as spacing=[[1, 2], [1, 2]] or [[1, 1], [2, 2]]"
            )
        return [spacing] * cases
    if len(spacing) != cases:
        raise ValueError(f"spacing has {len(spacing)} entries for {cases} cases; pass one a case, or one for all")
    return list(spacing)


def _mean(values: Iterable[float]) -> float:
    """Mean without those that are not defined."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _averages(rows: Sequence[CaseResult], structures: Iterable[str], metrics: Iterable[str]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name in structures:
        of_structure = [row for row in rows if row.structure == name]
        scores |= {f"{name}_{metric}": _mean(getattr(row, metric) for row in of_structure) for metric in metrics}
        scores |= {f"{name}_{count}": sum(getattr(row, count) for row in of_structure) for count in COUNTS}
    return scores


class DimSegmentation(evaluate.Metric):
    """A shell over `dim_hf.metrics.cases.score_case`: maps are packed as they are added, and scored one by one."""

    def _info(self) -> evaluate.MetricInfo:
        plane = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[_features(plane), _features(datasets.Sequence(plane))],
            license="Apache-2.0",
            reference_urls=["https://doi.org/10.1038/s41592-023-02151-z", "https://arxiv.org/abs/1809.04430"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Adds cases.

        Args:
            predictions: label maps, one a case: a list, or an array (N, H, W) or (N, D, H, W).
            references: as many, of the same shapes.

        Raises:
            ValueError: if their numbers or shapes differ, or a map is not of integers.
        """
        if predictions is None or references is None or len(predictions) != len(references):
            counts = [None if maps is None else len(maps) for maps in (predictions, references)]
            raise ValueError(f"there are {counts[0]} predictions and {counts[1]} references; pass one of each a case")
        for index, pair in enumerate(zip(predictions, references, strict=True)):
            shapes = [np.shape(labels) for labels in pair]
            if shapes[0] != shapes[1]:
                raise ValueError(f"case {index} of the batch: prediction has shape {shapes[0]}, reference {shapes[1]}")
        packed = [[_pack(labels) for labels in maps] for maps in (predictions, references)]
        super().add_batch(predictions=packed[0], references=packed[1])

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Adds one case.

        Args:
            prediction: label map, (H, W) or (D, H, W).
            reference: label map of the same shape.

        Raises:
            ValueError: see `add_batch`.
        """
        self.add_batch(predictions=[prediction], references=[reference])

    def _infer_feature_from_batch(self, batch: Any) -> datasets.Features:
        return _PACKED

    def _compute(
        self,
        predictions: Sequence[bytes],
        references: Sequence[bytes],
        structures: Mapping[str, Sequence[int]] | None = None,
        num_labels: int | None = None,
        spacing: Any = None,
        empty_policy: str = "worst",
        tolerance_mm: float | None = None,
        ignore_index: int | None = 255,
    ) -> dict[str, Any]:
        if structures is None:
            structures = _structures([*predictions, *references], num_labels, ignore_index)
        cases = zip(predictions, references, _spacings(spacing, len(references)), strict=True)
        rows: list[CaseResult] = []
        for index, (prediction, reference, of_case) in enumerate(cases):
            options = {"tolerance_mm": tolerance_mm, "name": str(index)}
            maps = (_unpack(prediction), _unpack(reference))
            rows += score_case(*maps, structures, of_case, empty_policy, ignore_index, **options)
        metrics = [name for name in METRICS if name != "nsd" or tolerance_mm is not None]
        scores = _averages(rows, structures, metrics)
        overall = {metric: _mean(scores[f"{name}_{metric}"] for name in structures) for metric in metrics}
        counts = {count: sum(scores[f"{name}_{count}"] for name in structures) for count in COUNTS}
        about = {"cases": len(references), "unit": rows[0].unit, "empty_policy": empty_policy}
        tolerance = {} if tolerance_mm is None else {"nsd_tolerance": tolerance_mm}
        return overall | counts | scores | about | tolerance
