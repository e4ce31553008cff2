"""What the Trainer evaluates by: the report's metrics, as the flat dictionary that transformers logs."""

from collections.abc import Callable, Mapping
from typing import Any

from dim_hf.metrics.cases import default_structures, score_case
from dim_hf.metrics.report import mean_of_defined

LOGGED_METRICS = ("dice", "jaccard", "hd95", "asd")


def class_structures(config: Any) -> dict[str, list[int]]:
    """What a model's configuration says is scored: its nested structures, or each non-background class alone.

    Args:
        config: a configuration of transformers with `id2label` and perhaps `structures`.

    Returns:
        Name → class ids.

    >>> from types import SimpleNamespace
    >>> class_structures(SimpleNamespace(id2label={0: "background", 1: "gland"}))
    {'gland': [1]}
    """
    structures = getattr(config, "structures", None)
    if structures:
        return {name: list(classes) for name, classes in structures.items()}
    return default_structures(config.id2label)


def build_compute_metrics(structures: Mapping[str, list[int]]) -> Callable[[Any], dict[str, float]]:
    """Make the `compute_metrics` of a Trainer whose predictions are label maps.

    Args:
        structures: name → class ids; ids may be shared by nested structures.

    Returns:
        A function of an `EvalPrediction` with `predictions` and `label_ids` (N, *S), integers. It
        gives `<structure>_<metric>`, the mean over cases, and `<metric>`, the mean of these over
        structures, for `LOGGED_METRICS`: Dice and Jaccard in [0, 1], HD95 and ASD in pixels (the
        image's diagonal where a structure is missed or spurious).
    """

    def compute_metrics(prediction: Any) -> dict[str, float]:
        pairs = zip(prediction.predictions, prediction.label_ids, strict=True)
        rows = [row for case, reference in pairs for row in score_case(case, reference, structures)]
        metrics: dict[str, float] = {}
        for metric in LOGGED_METRICS:
            for name in structures:
                values = [getattr(row, metric) for row in rows if row.structure == name]
                metrics[f"{name}_{metric}"] = mean_of_defined(values)
            metrics[metric] = mean_of_defined(metrics[f"{name}_{metric}"] for name in structures)
        return metrics

    return compute_metrics
