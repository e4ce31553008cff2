"""What is asked of a diagnosis, and what it found."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from dim_hf.diagnostics.agreement import Agreement
from dim_hf.diagnostics.domains import DomainDivergences
from dim_hf.diagnostics.hessian import Eigenvalue
from dim_hf.diagnostics.landscape import Landscape
from dim_hf.diagnostics.loss_sharpness import Sharpness


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    Attributes:
        ascent_steps: of the worst rise, after SAM's own.
        random_directions: of the random rise.
        eigenvalue_iterations: most Hessian-vector products of a power iteration.
        trace_probes: of Hutchinson's estimator; 0 leaves the trace out.
        line_points: of the line through the weights.
        plane_points: of either side of the plane; 0 leaves it out.
        checkpoints: latest ones whose teacher and student are compared.
    """

    ascent_steps: int = 4
    random_directions: int = 8
    eigenvalue_iterations: int = 30
    trace_probes: int = 4
    line_points: int = 21
    plane_points: int = 9
    checkpoints: int = 5


FULL = Effort()
QUICK = Effort(2, 4, 10, 0, 11, 0, 1)


@dataclass(frozen=True)
class Options:
    """What to measure on what.

    Attributes:
        rho: radius ρ > 0 of the sharpness.
        adaptive: ASAM's ball instead of SAM's.
        images: labeled images of each domain for the sharpness, at most.
        pooled_images: labeled images for Hessian and landscape: so many in all, an equal share of each domain's (at
            least one).
        unlabeled_images: images of each domain for divergence and agreement, at most.
        split: draw images of this split only; None draws from all rows.
        f_divergences: names of the divergences.
        grid_size: cells along each axis of the regional divergence.
        extent: half the length of the landscape's sides; 1 moves each filter by its norm.
        seed: of the draw of images and of all directions.
        batch_size: images a pass; one for volumes.
        effort: how much is computed.
    """

    rho: float = 0.05
    adaptive: bool = False
    images: int = 16
    pooled_images: int = 8
    unlabeled_images: int = 48
    split: str | None = None
    f_divergences: tuple[str, ...] = ("jensen_shannon", "kl", "total_variation")
    grid_size: int = 4
    extent: float = 0.5
    seed: int = 0
    batch_size: int = 16
    effort: Effort = FULL


DEFAULTS = Options()


@dataclass(frozen=True)
class ModelDiagnosis:
    """The measures of one model.

    Attributes:
        name: folder or name on the Hub.
        num_weights: weights that require a gradient.
        sharpness: by domain that has masks.
        eigenvalue: largest eigenvalue of the Hessian; None where the model cannot be differentiated twice.
        eigenvalue_missing: why there is none, empty otherwise.
        trace: of the Hessian, and its standard error; None where it was left out.
        landscape: losses around the weights.
        divergences: between the domains' predictions.
    """

    name: str
    num_weights: int
    sharpness: dict[str, Sharpness]
    eigenvalue: Eigenvalue | None
    eigenvalue_missing: str
    trace: tuple[float, float] | None
    landscape: Landscape
    divergences: list[DomainDivergences]


@dataclass(frozen=True)
class MeasuredAgreement:
    """Agreement of teacher and student of one checkpoint on one domain's images."""

    folder: str
    step: int | None
    domain: str
    agreement: Agreement


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was measured.

    Attributes:
        dataset: its name.
        options: what was asked for.
        labeled_images: number of images by domain that sharpness was measured on.
        pooled_images: number of images that Hessian and landscape were taken on.
        unlabeled_images: number of images by domain for divergence and agreement.
        models: the model and, if one was given, the baseline, by "model" and "baseline".
        agreements: of teacher and student, of each checkpoint that has both.
        log: the training's entries that hold the logged agreement; (step, share of pixels).
    """

    dataset: str
    options: Options
    labeled_images: dict[str, int]
    pooled_images: int
    unlabeled_images: dict[str, int]
    models: dict[str, ModelDiagnosis]
    agreements: list[MeasuredAgreement]
    log: list[tuple[int, float]]


def to_json(value: Any) -> Any:
    """A record as JSON holds it: dataclasses as objects, arrays as lists, numbers that are not finite as null."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
