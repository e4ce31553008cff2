"""Scores for the Hub's own pages: one list, written as `model-index` and as `.eval_results/*.yaml`."""

import math
import re
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from dim_hf.metrics.labels import metric_label
from dim_hf.metrics.report import MEAN_OF_SITES
from dim_hf.metrics.summary import Summary

RESULTS_PATH = ".eval_results/dim-hf.yaml"
METRICS = ("dice", "hd95")
_TASK = "image-segmentation"


@dataclass(frozen=True)
class Score:
    """One mean of the table.

    Attributes:
        domain: Site, or "mean of sites".
        structure: What was outlined, or "all structures".
        metric: A name in `METRICS`.
        label: The metric's name for reading, with its unit.
        value: Mean over the cases of the site, or over sites; a share in [0, 1] or a length.
        note: Interval, number of cases and how the step was chosen, in words.
    """

    domain: str
    structure: str
    metric: str
    label: str
    value: float
    note: str


def list_scores(summary: Summary, stamp: str = "") -> list[Score]:
    """Every mean that the Hub's pages are given, without those of nothing.

    Args:
        summary: Of the test cases.
        stamp: Added to each note, e.g. that test images had a part in the selection.
    """
    scores = []
    for row in summary.rows:
        for metric in METRICS:
            interval = row.intervals[metric]
            if math.isnan(interval.mean):
                continue
            known = "" if math.isnan(interval.low) else f"95 % interval {interval.low:.4g} to {interval.high:.4g}, "
            note = f"{known}{row.cases} test cases, {row.patients} patients, protocol {summary.protocol}"
            label = metric_label(metric, summary.unit)
            value = round(interval.mean, 4)
            scores.append(
                Score(row.domain, row.structure, metric, label, value, "; ".join(filter(None, (note, stamp))))
            )
    return scores


def model_index(scores: list[Score], dataset_name: str, dataset_id: str | None) -> list[EvalResult]:
    """The scores as `ModelCardData` takes them, a data set's entry for each site.

    Args:
        scores: From `list_scores`.
        dataset_name: For reading.
        dataset_id: Name on the Hub, if the data set is there.
    """
    return [
        EvalResult(
            task_type=_TASK,
            task_name="Image segmentation",
            dataset_type=dataset_id or _slug(dataset_name),
            dataset_name=f"{dataset_name}, {score.domain}",
            dataset_config=None if score.domain == MEAN_OF_SITES else score.domain,
            dataset_split="test",
            metric_type=score.metric,
            metric_value=score.value,
            metric_name=f"{score.label}, {score.structure}",
            metric_args={"note": score.note},
        )
        for score in scores
    ]


def eval_results(scores: list[Score], dataset_id: str, repo_id: str) -> list[dict[str, Any]]:
    """The same scores in the form of `.eval_results/*.yaml` (https://huggingface.co/docs/hub/eval-results).

    Args:
        scores: From `list_scores`.
        dataset_id: Name of the data set on the Hub, without which this form says nothing.
        repo_id: The model, whose card is the source.
    """
    return [
        {
            "dataset": {"id": dataset_id, "task_id": _slug(f"{score.domain}-{score.structure}-{score.metric}")},
            "value": score.value,
            "source": {"url": f"https://huggingface.co/{repo_id}", "name": "Model card"},
            "notes": score.note,
        }
        for score in scores
    ]


def _slug(text: str) -> str:
    """Letters, digits, "_" and "-" of a text.

    >>> _slug("phantom:fundus"), _slug("Site A-all structures-dice")
    ('phantom-fundus', 'site_a-all_structures-dice')
    """
    return re.sub(r"[^\w-]+", "-", re.sub(r"\s+", "_", text.strip().lower())).strip("-") or "data"
