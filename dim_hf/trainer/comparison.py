"""Several settings of one job, several seeds each: run what is missing, and put the scores side by side."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.report import MEAN_OF_SITES, SiteTable, read_cases_csv, site_table
from dim_hf.trainer.ablations import ABLATIONS, ablation_overrides
from dim_hf.trainer.job import refuse_other_job, run_job
from dim_hf.trainer.job_arguments import ALL_LABELED, Job, job_with
from dim_hf.trainer.job_report import RESULTS_FILE

UPPER_BOUND = "upper-bound"
SETTINGS = (*ABLATIONS, UPPER_BOUND)


@dataclass(frozen=True)
class Outcome:
    """What one setting reached with one seed."""

    setting: str
    seed: int
    cases: list[CaseResult]
    results: dict[str, Any]

    @property
    def table(self) -> SiteTable:
        """Scores by site."""
        return site_table(self.cases)


def setting_job(words: Sequence[str], setting: str, seed: int, folder: Path) -> Job:
    """The job of one setting: the same data, network, steps and seed, and as many images a step.

    A setting without unlabeled images gets that many more labeled ones in each step, so that no
    setting sees fewer images than another; `upper-bound` is `supervised` with every training image
    of every domain labeled.

    Args:
        words: fields of the full method, as `config_words` gives them.
        setting: one of `SETTINGS`.
        seed: of network, streams and draws; the split has its own.
        folder: where the run goes.

    Raises:
        ValueError: for an unknown setting.
    """
    if setting not in SETTINGS:
        raise ValueError(f"unknown setting {setting!r}: choose from {', '.join(SETTINGS)}")
    base = job_with(words)
    changes: dict[str, Any] = ablation_overrides("supervised" if setting == UPPER_BOUND else setting)
    changes |= {"seed": seed, "output_dir": str(folder), "resume_from_checkpoint": "last"}
    if setting == UPPER_BOUND:
        changes["num_labeled"] = ALL_LABELED
    if "consistency_weight" in changes:
        images = base.training.labeled_batch_size + base.training.unlabeled_batch_size
        every = setting == UPPER_BOUND or base.data.num_labeled == ALL_LABELED
        pool = images if every else base.data.num_labeled
        changes["labeled_batch_size"] = min(images, pool)
    return job_with(words, **changes)


def run_settings(words: Sequence[str], settings: Iterable[str], seeds: Iterable[int], folder: Path) -> list[Outcome]:
    """Run each setting with each seed, going on where an earlier call was interrupted.

    A finished run is read back, not repeated; an unfinished one goes on from its last checkpoint.
    """
    outcomes = []
    for seed in seeds:
        for setting in settings:
            run = folder / setting / f"seed{seed}"
            job = setting_job(words, setting, seed, run)
            refuse_other_job(run, job)
            if not (run / RESULTS_FILE).exists():
                run_job(job)
            results = json.loads((run / RESULTS_FILE).read_text(encoding="utf-8"))
            outcomes.append(Outcome(setting, seed, read_cases_csv(run / "cases.csv"), results))
    return outcomes


def summarize(outcomes: Sequence[Outcome], metric: str = "dice") -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and sample standard deviation over seeds of a metric, by setting and domain.

    Args:
        outcomes: of `run_settings`.
        metric: a name in `dim_hf.metrics.report.MEANS`.

    Returns:
        setting → domain (and the mean of sites) → (mean, sd); the sd of one seed is NaN.
    """
    summary: dict[str, dict[str, tuple[float, float]]] = {}
    for setting in dict.fromkeys(outcome.setting for outcome in outcomes):
        tables = [outcome.table for outcome in outcomes if outcome.setting == setting]
        summary[setting] = {}
        for domain in [*tables[0].domains, MEAN_OF_SITES]:
            values = np.array([table.row(domain).means[metric] for table in tables])
            sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            summary[setting][domain] = (float(values.mean()), sd)
    return summary


def format_summary(outcomes: Sequence[Outcome], metric: str = "dice", factor: float = 100.0) -> str:
    """Markdown table of `summarize`: a row a setting, a column a site, and what a step costs."""
    summary = summarize(outcomes, metric)
    domains = list(next(iter(summary.values())))
    lines = [
        "| setting | " + " | ".join(domains) + " | ms a step |",
        "|---|" + "---|" * (len(domains) + 1),
    ]
    for setting, row in summary.items():
        cells = [_mean_and_sd(factor * mean, factor * sd) for mean, sd in row.values()]
        costs = [o.results["cost"]["seconds_per_step"] for o in outcomes if o.setting == setting]
        known = [1000 * cost for cost in costs if cost is not None]
        lines.append(f"| {setting} | {' | '.join(cells)} | {f'{np.median(known):.0f}' if known else '–'} |")
    seeds = sorted({outcome.seed for outcome in outcomes})
    return "\n".join(lines) + f"\n\n{metric}, mean of structures; mean ± sd over seeds {', '.join(map(str, seeds))}.\n"


def _mean_and_sd(mean: float, sd: float) -> str:
    return f"{mean:.1f}" if np.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"
