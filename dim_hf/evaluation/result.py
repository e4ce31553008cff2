"""What an evaluation leaves: scores by case, their summary, pictures, and where all of it comes from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dim_hf.metrics.calibration import Reliability
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.summary import Summary

SELECTED_ON_TEST = (
    "Test images had a part in choosing this checkpoint. The scores are too good by an unknown amount and cannot be "
    "compared with those of a model that was selected on validation cases or taken at its last step."
)


@dataclass(frozen=True, eq=False)
class Overlay:
    """A case to look at.

    Attributes:
        domain: Its domain.
        name: Its name.
        dice: Mean of its structures, in [0, 1].
        image: (H, W) or (H, W, 3) uint8; of a volume, the slice with most of the reference.
        reference: (H, W) class ids.
        prediction: (H, W) class ids.
    """

    domain: str
    name: str
    dice: float
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True)
class Provenance:
    """What stands behind the numbers.

    Attributes:
        model: Folder or name of the model.
        dataset: What was scored, as `load_source` takes it.
        protocol: Key in `protocols.PROTOCOLS`.
        labeled_domain: Domain of the labels; None where unknown, as all that follows.
        labeled_images: Number of labeled training images.
        labeled_patients: Number of their patients.
        seeds: Seeds of the runs behind the numbers.
        selection: How the step was chosen, in words.
        selected_on_test: Whether test images had a part in it.
        transductive: Whether images that were scored were used, unlabeled, for training.
        scored_model: "teacher" or "student".
        split_hashes: SHA-256 of the names of each part of the split.
        environment: Versions of Python and packages.
        split: What was scored: "test", "validation", "train" or "all"; None where unknown.
        scored_parts: Of the images scored, how many each part of the run's own split holds; None where the data set is
            another one, or its parts are not those of the run.
        without_mask: Images of the split that were left out since they have no mask, by domain.
        flips: Whether the probabilities are means over mirror images.
        run_hashes: SHA-256 of the files of the model's run, as its results state them; empty where unknown.
    """

    model: str
    dataset: str
    protocol: str
    labeled_domain: str | None = None
    labeled_images: int | None = None
    labeled_patients: int | None = None
    seeds: list[int] = field(default_factory=list)
    selection: str = "unknown"
    selected_on_test: bool = False
    transductive: bool | None = None
    scored_model: str | None = None
    split_hashes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    scored_parts: dict[str, int] | None = None
    without_mask: dict[str, int] = field(default_factory=dict)
    flips: bool = False
    run_hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drift:
    """How unlike the sites that the model saw each case is.

    Attributes:
        scores: In [0, 1] by domain and name of the case.
        threshold: Scores from here on are flagged for review.
        false_alarm_rate: Share of new images of the seen sites that is flagged; at most, if `is_bound`.
        seen_sites: Domains that the model saw.
        calibrated_on: Which images the threshold comes from, in words, with their number.
        is_bound: Whether these had no part in the training, so that the rate is a bound.
    """

    scores: dict[tuple[str, str], float]
    threshold: float
    false_alarm_rate: float
    seen_sites: tuple[str, ...]
    calibrated_on: str
    is_bound: bool


@dataclass(frozen=True)
class EvaluationResult:
    """Everything that a report shows.

    Attributes:
        cases: Scores by case and structure.
        summary: Means with intervals by domain and structure.
        reliability: Calibration by domain.
        worst: The worst cases of each domain, worst first.
        best: The best cases of each domain, best first.
        ratios: Vertical cup-to-disc ratios (prediction, reference) by domain; empty without the structures cup, disc.
        provenance: Where the numbers come from.
        id2label: Names of the classes.
        structures: Class ids by structure.
        spatial_dims: Axes of what was scored as one case; None where it is not known.
        drift: Of the cases; None where the model has no statistics of the sites that it saw.
    """

    cases: list[CaseResult]
    summary: Summary
    reliability: dict[str, Reliability]
    worst: dict[str, list[Overlay]]
    best: dict[str, list[Overlay]]
    ratios: dict[str, list[tuple[float, float]]]
    provenance: Provenance
    id2label: dict[int, str]
    structures: dict[str, list[int]]
    spatial_dims: int | None = None
    drift: Drift | None = None
