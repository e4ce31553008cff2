"""Jobs that are trained once: read back where they are finished, gone on with where they were interrupted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim_hf.metrics.case_files import read_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.trainer.job import refuse_other_job, run_job
from dim_hf.trainer.job_arguments import Job, config_words, job_with, parse_job
from dim_hf.trainer.job_report import RESULTS_FILE

START_FOLDER = "start"


def finish_job(job: Job) -> tuple[dict[str, Any], list[CaseResult]]:
    """What a run left in its folder; it is trained, or its training is finished, where that is due.

    Returns:
        The content of `results.json`, and the test scores by case.

    Raises:
        ValueError: if the folder holds the run of another job; or as `run_job`.
    """
    folder = Path(job.training.output_dir)
    refuse_other_job(folder, job)
    if not (folder / RESULTS_FILE).exists():
        run_job(job)
    results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    return results, read_cases_csv(folder / "cases.csv")


def job_from_start(config: str | Path | None, start: str | Path, overrides: Sequence[str]) -> Job:
    """A job that goes on from the network of another one, which is trained first, in `start/` of its folder.

    Args:
        config: YAML file of the job; None for the defaults.
        start: YAML file of the job that comes first.
        overrides: words for both, such as `["--labeled_domain", "drishti"]`.

    Raises:
        ValueError: as `parse_job`; if a network to start from is named as well; or as `finish_job`.
    """
    job = parse_job(config, overrides)
    if job.model.model_name_or_path:
        raise ValueError(
            f"model_name_or_path is {job.model.model_name_or_path!r}, but {start} is to be trained and started from: "
            "give one of them"
        )
    folder = Path(job.training.output_dir) / START_FOLDER
    resumed = {"output_dir": str(folder), "resume_from_checkpoint": "last"}
    finish_job(job_with([*config_words(start), *overrides], **resumed))
    return parse_job(config, [*overrides, "--model_name_or_path", str(folder)])
