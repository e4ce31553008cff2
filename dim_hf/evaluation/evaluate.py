"""Evaluates a model on the test images of a data set: every image once, whatever the number of processes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
from torch import Tensor, nn

from dim_hf.data.description import NO_SPACING_NOTE, DatasetDescription
from dim_hf.data.rows import is_present
from dim_hf.evaluation.prediction import PredictedCase, predict_rows, process_state, shares_of
from dim_hf.evaluation.protocols import Protocol, get_protocol
from dim_hf.evaluation.result import Drift, EvaluationResult, Provenance
from dim_hf.evaluation.scoring import Scores, score_predictions, scoring_groups
from dim_hf.inference.drift import SiteStatistics
from dim_hf.metrics.report import check_names
from dim_hf.metrics.summary import summarize


@dataclass(frozen=True)
class EvaluationOptions:
    """How a model is evaluated.

    Attributes:
        protocol: Key in `protocols.PROTOCOLS`.
        tolerance_mm: Of the NSD, in the unit of the distances; None leaves it out.
        batch_size: Images of a forward pass.
        flips: Average the probabilities over mirror images, as `dim-hf predict --flips`.
        seed: Of the bootstrap.
        progress: Show a progress bar.
    """

    protocol: str = "image"
    tolerance_mm: float | None = None
    batch_size: int = 8
    flips: bool = False
    seed: int = 0
    progress: bool = True


def evaluate_model(
    model: nn.Module,
    processor: Callable[..., dict[str, Tensor]],
    rows: datasets.Dataset,
    description: DatasetDescription,
    provenance: Provenance,
    options: EvaluationOptions = EvaluationOptions(),
    *,
    autocast: Callable[[], Any] = nullcontext,
    statistics: SiteStatistics | None = None,
) -> EvaluationResult:
    """Predict and score rows with masks; those without are left out, and counted in the provenance.

    With several processes (`accelerate launch`) each predicts its share, and all return the same result.

    Args:
        model: Semantic-segmentation model, on the device to use.
        processor: Its image processor.
        rows: What to score.
        description: Classes and structures of the rows.
        provenance: Where model and rows come from, for the report.
        options: How.
        autocast: Context of the forward pass.
        statistics: Of the sites that the model saw: how unlike them each case is, and how well that finds bad ones.

    Raises:
        ValueError: If no row has a mask, the model has another number of classes, or the rows do not fit the protocol.
    """
    protocol = _fitting(get_protocol(options.protocol), rows, description)
    _check_classes(model, description)
    check_names(set(rows["domain"]), description.structures)
    has_mask = is_present(rows, "label")
    if not has_mask.any():
        raise ValueError("no image has a mask to be scored by; add masks, or use the model to predict")
    left_out = Counter(domain for domain, present in zip(rows["domain"], has_mask, strict=True) if not present)
    rows = rows.select(has_mask.nonzero()[0])
    predict = partial(predict_rows, model, processor, rows, autocast=autocast, statistics=statistics)
    scores = _of_all_processes(predict, rows, protocol, description.structures, options)
    order = {name: place for place, name in enumerate(dict.fromkeys(rows["domain"]))}
    cases = sorted(scores.cases, key=lambda case: (order[case.domain], case.name))
    return EvaluationResult(
        cases=cases,
        summary=summarize(cases, protocol=protocol.name, labeled_domain=provenance.labeled_domain, seed=options.seed),
        reliability={domain: scores.reliability[domain] for domain in order if domain in scores.reliability},
        worst=scores.worst,
        best=scores.best,
        ratios={domain: sorted(ratios) for domain, ratios in scores.ratios.items()},
        provenance=replace(
            provenance, protocol=protocol.name, flips=options.flips, without_mask=dict(sorted(left_out.items()))
        ),
        id2label=description.id2label,
        structures=description.structures,
        spatial_dims=3 if protocol.volumes else description.spatial_dims,
        drift=None if statistics is None else _drift(statistics, scores),
    )


def _drift(statistics: SiteStatistics, scores: Scores) -> Drift:
    return Drift(
        scores.drifts,
        statistics.threshold,
        statistics.false_alarm_rate,
        tuple(statistics.sites),
        f"{statistics.images} {statistics.calibrated_on}",
        statistics.is_bound,
    )


def _of_all_processes(
    predict: Callable[..., Iterator[PredictedCase]],
    rows: datasets.Dataset,
    protocol: Protocol,
    structures: Mapping[str, list[int]],
    options: EvaluationOptions,
) -> Scores:
    from accelerate.utils import gather_object

    state = process_state()
    groups = scoring_groups(rows, protocol)
    own = [groups[number] for number in shares_of(len(groups), state.process_index, state.num_processes)]
    predictions = predict(
        native=protocol.native,
        indices=[index for group in own for index in group],
        batch_size=options.batch_size,
        flips=options.flips,
        progress=options.progress and state.is_main_process,
    )
    scores = score_predictions(predictions, own, rows, protocol, structures, options.tolerance_mm)
    return sum(gather_object([scores]), start=Scores()) if state.num_processes > 1 else scores


def _fitting(protocol: Protocol, rows: datasets.Dataset, description: DatasetDescription) -> Protocol:
    """The protocol in pixels where not every row states its spacing: one table has one unit.

    Volumes in files, and slices that are put together, have the spacing of their affine, unless the import has made
    that up.
    """
    made_up = any(NO_SPACING_NOTE in note for note in description.notes)
    stacked = protocol.volumes and isinstance(rows.features["image"], datasets.Image)
    in_affine = stacked or isinstance(rows.features["image"], datasets.Nifti)
    stated = "spacing_mm" in rows.column_names and all(rows["spacing_mm"])
    if not protocol.millimeters or (not made_up if in_affine else stated):
        return protocol
    if protocol.volumes and made_up:
        raise ValueError(
            f"protocol {protocol.name} scores in mm, but the files of this data set did not state their spacing, as "
            f"its notes say ({NO_SPACING_NOTE!r}); use --protocol image, which scores in voxels then, or write the "
            "true affines into the files and take the note out of dim_dataset.json"
        )
    if protocol.volumes:
        raise ValueError(
            f"protocol {protocol.name} scores in mm, but not every row has a spacing_mm; add it, or use --protocol "
            "image, which scores in pixels then"
        )
    return replace(protocol, millimeters=False)


def _check_classes(model: nn.Module, description: DatasetDescription) -> None:
    classes: Sequence[Any] = list(getattr(model.config, "id2label", {}).values())
    if len(classes) != description.num_labels:
        raise ValueError(
            f"the model has the {len(classes)} classes {classes}, the data set the {description.num_labels} classes "
            f"{list(description.id2label.values())}; evaluate on data of the model's classes"
        )
