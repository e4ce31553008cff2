"""Several settings of one job, several seeds each: run what is missing, and put the scores side by side."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dim_hf.metrics.case_files import safe_cell
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.labels import scoring_sentence
from dim_hf.metrics.report import MEAN_OF_SITES, SiteTable, site_table
from dim_hf.trainer.ablations import ABLATIONS, ablation_overrides
from dim_hf.trainer.finished_jobs import finish_job
from dim_hf.trainer.job_arguments import ALL_LABELED, Job, job_with
from dim_hf.trainer.job_report import stamp

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

    @property
    def images_per_step(self) -> int:
        """Training images of a step, labeled and unlabeled, of all micro-batches and processes."""
        training = self.results["job"]["training"]
        images = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
        return images * self.results["environment"]["processes"]


def setting_job(words: Sequence[str], setting: str, seed: int, folder: Path) -> Job:
    """The job of one setting: the same data, network, steps and seed, and as many images a step.

    A setting without unlabeled images gets that many more labeled ones in each step, but no more than
    there are labels: with fewer labels than images a step it sees fewer images, and the caption of
    `format_summary` says how many. `upper-bound` is `supervised` with every training image of every
    domain labeled. A perturbation that climbs the divergence climbs the whole loss where there is no divergence.

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
    if base.training.ascent_objective == "divergence" and "divergence_weight" in changes and "rho" not in changes:
        changes["ascent_objective"] = "total"
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

    Raises:
        ValueError: as `setting_job`, before anything is trained; or as `finish_job`.
    """
    settings = list(settings)
    for setting in settings:  # a fault in the last one would else be found after the others were trained
        setting_job(words, setting, 0, folder)
    outcomes = []
    for seed in seeds:
        for setting in settings:
            results, cases = finish_job(setting_job(words, setting, seed, folder / setting / f"seed{seed}"))
            outcomes.append(Outcome(setting, seed, cases, results))
    return outcomes


def scores_by_seed(outcomes: Sequence[Outcome], metric: str = "dice") -> dict[str, dict[str, list[float]]]:
    """Setting → domain (and the mean of sites) → the metric's value for each seed.

    Args:
        outcomes: of `run_settings`.
        metric: a name in `dim_hf.metrics.report.MEANS`.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for setting in dict.fromkeys(outcome.setting for outcome in outcomes):
        tables = [outcome.table for outcome in outcomes if outcome.setting == setting]
        domains = [*tables[0].domains, MEAN_OF_SITES]
        scores[setting] = {domain: [table.row(domain).means[metric] for table in tables] for domain in domains}
    return scores


def summarize(outcomes: Sequence[Outcome], metric: str = "dice") -> dict[str, dict[str, tuple[float, float]]]:
    """Setting → domain (and the mean of sites) → mean and sample standard deviation over seeds; NaN for one seed."""
    return {
        setting: {
            domain: (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"))
            for domain, values in row.items()
        }
        for setting, row in scores_by_seed(outcomes, metric).items()
    }


@dataclass(frozen=True)
class Cost:
    """What a setting costs, medians over its seeds; None where no run measured it.

    Attributes:
        seconds_per_step: Of training, validation included.
        images_per_second: Training images of all processes.
        peak_memory_gib: Of the GPU; None on a CPU.
    """

    seconds_per_step: float | None
    images_per_second: float | None
    peak_memory_gib: float | None


def cost_of(outcomes: Sequence[Outcome], setting: str) -> Cost:
    """The cost of one setting."""
    own = [outcome.results["cost"] for outcome in outcomes if outcome.setting == setting]
    medians = {}
    for item in fields(Cost):
        known = [cost[item.name] for cost in own if cost.get(item.name) is not None]
        medians[item.name] = float(np.median(known)) if known else None
    return Cost(**medians)


def format_summary(outcomes: Sequence[Outcome], metric: str = "dice", factor: float = 100.0) -> str:
    """Markdown table of `summarize`: a row a setting, a column a site, and what a step costs."""
    summary = summarize(outcomes, metric)
    domains = list(next(iter(summary.values())))
    costs = ["ms a step", "images/s", "peak GiB"]
    lines = [
        "| setting | " + " | ".join([*domains, *costs]) + " |",
        "|---|" + "---|" * (len(domains) + len(costs)),
    ]
    for setting, row in summary.items():
        cells = [_mean_and_sd(factor * mean, factor * sd) for mean, sd in row.values()]
        cost = cost_of(outcomes, setting)
        milliseconds = None if cost.seconds_per_step is None else 1000 * cost.seconds_per_step
        cells += [_number(milliseconds, 0), _number(cost.images_per_second, 1), _number(cost.peak_memory_gib, 2)]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    seeds = sorted({outcome.seed for outcome in outcomes})
    return "\n".join(lines) + f"\n\n{_caption(outcomes, metric, seeds)}\n"


def write_summary(outcomes: Sequence[Outcome], path: Path, metrics: Sequence[str] = ("dice", "hd95")) -> None:
    """Write one line for each setting, domain and metric: mean and sd over seeds, cost, and how steps were chosen."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ["setting", "domain", "metric", "mean", "sd", "seeds", *(item.name for item in fields(Cost))]
        writer.writerow([*header, "images_per_step", "selected"])
        for metric in metrics:
            for setting, row in summarize(outcomes, metric).items():
                own = [outcome for outcome in outcomes if outcome.setting == setting]
                about = [len(own), *astuple(cost_of(own, setting)), own[0].images_per_step, _chosen(own)]
                for domain, values in row.items():
                    writer.writerow([safe_cell(cell) for cell in (setting, domain, metric, *values, *about)])


def _caption(outcomes: Sequence[Outcome], metric: str, seeds: Sequence[int]) -> str:
    table = outcomes[0].table
    scored = scoring_sentence(table.unit, table.empty_policy, table.nsd_tolerance)
    scored = "" if metric in ("dice", "jaccard") else f" {scored}"
    costs = "ms a step: of the whole training, validation included; peak GiB: of the GPU, not known on a CPU."
    return " ".join(
        [
            f"{metric}, mean of structures; mean ± sd over seeds {', '.join(map(str, seeds))}; "
            f"step chosen: {_chosen(outcomes)}.{scored} {costs}",
            *filter(None, [_unequal_steps(outcomes), stamp_of(outcomes)]),
        ]
    )


def _chosen(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(sorted({outcome.results["training"]["selected"] for outcome in outcomes}))


def stamp_of(outcomes: Sequence[Outcome]) -> str:
    """The warning that tables and figures of these runs carry, naming the settings; "" where no run has it."""
    stamped = {outcome.setting: text for outcome in outcomes if (text := stamp(outcome.results["training"]))}
    return " ".join([f"{', '.join(stamped)}:", next(iter(stamped.values()))]) if stamped else ""


def _unequal_steps(outcomes: Sequence[Outcome]) -> str:
    images = {outcome.setting: outcome.images_per_step for outcome in outcomes}
    if len(set(images.values())) < 2:
        return ""
    numbers = ", ".join(f"{setting} {number}" for setting, number in images.items())
    return f"Images a step differ, as there are fewer labels than images a step: {numbers}."


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _mean_and_sd(mean: float, sd: float) -> str:
    return f"{mean:.1f}" if np.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"
