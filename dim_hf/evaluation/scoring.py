"""Scores predicted cases one by one and keeps what a report shows: few pictures, bins, ratios; never all pixels."""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import datasets
import numpy as np
from scipy.ndimage import binary_dilation

from dim_hf.data.rows import row_name
from dim_hf.data.volumes.slices import stack_slices
from dim_hf.data.volumes.volume import Volume
from dim_hf.evaluation.prediction import PredictedCase
from dim_hf.evaluation.protocols import Protocol
from dim_hf.evaluation.result import Overlay
from dim_hf.inference.drift import combine_slices
from dim_hf.losses import IGNORE_INDEX
from dim_hf.metrics.agreement import vertical_ratio
from dim_hf.metrics.calibration import Reliability
from dim_hf.metrics.cases import CaseResult, score_case
from dim_hf.metrics.report import mean_of_defined

_SHOWN = 5
_LONGEST = 320  # pixels of a picture that is kept
_SLICE_COLUMNS = ("volume", "slice_index", "slice_axis", "num_slices", "affine")


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """What is scored as one case: an image, a volume, or slices put together.

    Attributes:
        domain: Its domain.
        patient: Its patient.
        name: Its name.
        image: (*S) or (*S, C), for pictures.
        reference: (*S) class ids.
        prediction: (*S) class ids.
        spacing_mm: Along the axes of S; None scores in pixels.
        drift: In [0, 1]; None without statistics of the seen sites.
    """

    domain: str
    patient: str
    name: str
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, ...] | None
    drift: float | None = None


@dataclass
class Scores:
    """What scoring gathers; scores of several processes join by `+`.

    Attributes:
        cases: By case and structure.
        reliability: By domain.
        worst: Up to five cases a domain, as (Dice, name, picture).
        best: Likewise.
        ratios: (prediction, reference) by domain.
        drifts: Drift score by domain and name of the case, where there are statistics of the seen sites.
    """

    cases: list[CaseResult] = field(default_factory=list)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    worst: dict[str, list[Overlay]] = field(default_factory=dict)
    best: dict[str, list[Overlay]] = field(default_factory=dict)
    ratios: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    drifts: dict[tuple[str, str], float] = field(default_factory=dict)

    def __add__(self, other: "Scores") -> "Scores":
        domains = sorted({*self.worst, *other.worst})
        reliability = dict(self.reliability)
        for domain, bins in other.reliability.items():
            reliability[domain] = reliability[domain] + bins if domain in reliability else bins
        return Scores(
            [*self.cases, *other.cases],
            reliability,
            {d: _worst([*self.worst.get(d, []), *other.worst.get(d, [])]) for d in domains},
            {d: _best([*self.best.get(d, []), *other.best.get(d, [])]) for d in domains},
            {d: [*self.ratios.get(d, []), *other.ratios.get(d, [])] for d in {**self.ratios, **other.ratios}},
            self.drifts | other.drifts,
        )


def scoring_groups(rows: datasets.Dataset, protocol: Protocol) -> list[list[int]]:
    """Rows that are scored together: one each, or the slices of each volume.

    Raises:
        ValueError: If volumes are to be put together and a row says not where in which volume it belongs.
    """
    if not protocol.volumes or not isinstance(rows.features["image"], datasets.Image):
        return [[index] for index in range(len(rows))]
    missing = [column for column in _SLICE_COLUMNS if column not in rows.column_names]
    texts = rows.select_columns(["domain", *(c for c in _SLICE_COLUMNS if c not in missing)]).with_format(None)[:]
    # The affine gives the spacing too: without it there are no millimeters.
    missing += [c for c in _SLICE_COLUMNS if c not in missing and any(value in (None, []) for value in texts[c])]
    if missing:
        raise ValueError(
            f"protocol {protocol.name} puts slices together in mm, but rows have no {', '.join(missing)}; cut volumes "
            "with `dim-hf import ... --slices`, or use --protocol image"
        )
    order = sorted(range(len(rows)), key=lambda i: (texts["domain"][i], texts["volume"][i], texts["slice_index"][i]))
    return [list(group) for _, group in groupby(order, lambda i: (texts["domain"][i], texts["volume"][i]))]


def score_predictions(
    predictions: Iterable[PredictedCase],
    groups: Sequence[Sequence[int]],
    rows: datasets.Dataset,
    protocol: Protocol,
    structures: Mapping[str, list[int]],
    tolerance_mm: float | None = None,
) -> Scores:
    """Score predictions as they come.

    Args:
        predictions: Of the rows of `groups`, which all have masks, in their order.
        groups: From `scoring_groups`.
        rows: The rows.
        protocol: How.
        structures: Class ids by structure.
        tolerance_mm: Of the NSD; None leaves it NaN.

    Raises:
        ValueError: If a volume's slices are incomplete or do not fit each other, or a mask has a class that the model
            lacks, naming row and file.
    """
    scores = Scores()
    columns = [c for c in ("domain", "patient", "name", *_SLICE_COLUMNS) if c in rows.column_names]
    texts = rows.select_columns(columns).with_format(None)
    for parts in _grouped(predictions, groups):
        facts = [texts[part.index] for part in parts]
        domain = facts[0]["domain"]
        bins = scores.reliability.setdefault(domain, Reliability())
        for part in parts:
            try:
                bins.update(part.probabilities, part.reference)
            except ValueError as error:
                raise ValueError(f"{row_name(rows, part.index)}: {error}") from error
        image = _volume(parts, facts) if protocol.volumes and "volume" in facts[0] else _single(parts[0], facts[0])
        _add(scores, image, protocol, structures, tolerance_mm)
    return scores


def _grouped(predictions: Iterable[PredictedCase], groups: Sequence[Sequence[int]]) -> Iterator[list[PredictedCase]]:
    """Predictions of each group, whatever order a batch gives them back in."""
    group_of = {index: number for number, group in enumerate(groups) for index in group}
    waiting: dict[int, list[PredictedCase]] = {}
    for predicted in predictions:
        number = group_of[predicted.index]
        waiting.setdefault(number, []).append(predicted)
        if len(waiting[number]) == len(groups[number]):
            yield waiting.pop(number)


def _single(part: PredictedCase, facts: Mapping[str, str]) -> ScoredImage:
    return ScoredImage(
        facts["domain"],
        facts["patient"],
        facts["name"],
        part.image,
        part.reference,
        part.prediction,
        part.spacing_mm,
        part.drift,
    )


def _volume(parts: Sequence[PredictedCase], facts: Sequence[Mapping]) -> ScoredImage:
    image, reference, prediction = (
        _stacked([getattr(part, name) for part in parts], facts) for name in ("image", "reference", "prediction")
    )
    first = facts[0]
    axis = first["slice_axis"]
    # The slices' axis first, so that a picture of the volume is one of the slices.
    arrays = (np.moveaxis(volume.array, axis, 0) for volume in (image, reference, prediction))
    spacing_mm = tuple(reference.spacing_mm[number] for number in (axis, *(n for n in range(3) if n != axis)))
    drifts = [part.drift for part in parts if part.drift is not None]
    drift = combine_slices(drifts) if drifts else None
    return ScoredImage(first["domain"], first["patient"], first["volume"], *arrays, spacing_mm, drift)


def _stacked(slices: Sequence[np.ndarray], facts: Sequence[Mapping]) -> Volume:
    """Slices of one volume put together; those in color become grey."""
    first = facts[0]
    greys = [part if part.ndim == 2 else part.mean(axis=-1) for part in map(np.asarray, slices)]
    by_index = dict(zip((fact["slice_index"] for fact in facts), greys, strict=True))
    place = {name: first[name] for name in ("slice_axis", "affine", "num_slices")}
    try:
        return stack_slices(by_index, **place)
    except ValueError as error:
        raise ValueError(f"volume {first['volume']!r} of domain {first['domain']!r}: {error}") from error


def _add(
    scores: Scores,
    image: ScoredImage,
    protocol: Protocol,
    structures: Mapping[str, list[int]],
    tolerance_mm: float | None,
) -> None:
    found = score_case(
        image.prediction,
        image.reference,
        structures,
        image.spacing_mm if protocol.millimeters else None,
        protocol.empty_policy,
        domain=image.domain,
        patient=image.patient,
        name=image.name,
        tolerance_mm=tolerance_mm,
    )
    scores.cases += found
    if image.drift is not None:
        scores.drifts[image.domain, image.name] = image.drift
    overlay = _overlay(image, structures, mean_of_defined(row.dice for row in found))
    if not math.isnan(overlay.dice):
        scores.worst[image.domain] = _worst([*scores.worst.get(image.domain, []), overlay])
        scores.best[image.domain] = _best([*scores.best.get(image.domain, []), overlay])
    ratio = _cup_to_disc(image, structures)
    if ratio is not None:
        scores.ratios.setdefault(image.domain, []).append(ratio)


def _worst(overlays: list[Overlay]) -> list[Overlay]:
    return heapq.nsmallest(_SHOWN, overlays, key=lambda item: (item.dice, item.name))


def _best(overlays: list[Overlay]) -> list[Overlay]:
    return heapq.nsmallest(_SHOWN, overlays, key=lambda item: (-item.dice, item.name))


def _overlay(image: ScoredImage, structures: Mapping[str, list[int]], dice: float) -> Overlay:
    picture, reference, prediction = image.image, image.reference, image.prediction
    if reference.ndim == 3:
        classes = list({number for own in structures.values() for number in own})
        marked = np.isin(reference, classes)  # not what is ignored
        marked = marked if marked.any() else np.isin(prediction, classes)
        place = int(marked.sum(axis=(1, 2)).argmax())
        if picture.ndim == 4:  # channels first or last
            picture = picture[0] if picture.shape[1:] == reference.shape else picture[..., 0]
        picture, reference, prediction = picture[place], reference[place], prediction[place]
    step = max(1, -(-max(reference.shape) // _LONGEST))
    thin = (slice(None, None, step), slice(None, None, step))
    return Overlay(image.domain, image.name, dice, _as_bytes(picture[thin]), reference[thin], prediction[thin])


def _as_bytes(picture: np.ndarray) -> np.ndarray:
    """8 bits: as they are, or stretched between the 1st and the 99th percentile."""
    if picture.ndim == 3 and picture.shape[-1] not in (3,):
        picture = picture[..., 0]
    if picture.dtype == np.uint8:
        return picture
    low, high = np.percentile(picture, (1, 99))
    scaled = (picture.astype(np.float32) - low) / max(float(high - low), 1e-12)
    return (255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _cup_to_disc(image: ScoredImage, structures: Mapping[str, list[int]]) -> tuple[float, float] | None:
    """Vertical cup-to-disc ratio in the prediction and in the reference; None where it means nothing."""
    names = {name.lower(): classes for name, classes in structures.items()}
    if image.reference.ndim != 2 or not {"cup", "disc"} <= set(names):
        return None
    ignored = image.reference == IGNORE_INDEX
    if ignored.any():
        discs = np.isin(image.prediction, names["disc"]) | np.isin(image.reference, names["disc"])
        if (binary_dilation(ignored) & discs).any():
            return None  # the rest of a disc may lie among the ignored pixels
    predicted, referenced = (
        vertical_ratio(np.isin(labels, names["cup"]), np.isin(labels, names["disc"]))
        for labels in (image.prediction, image.reference)
    )
    return None if predicted is None or referenced is None else (predicted, referenced)
