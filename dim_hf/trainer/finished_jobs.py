"""Jobs that are trained once: read back where they are finished, gone on with where they were interrupted."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from dim_hf.metrics.case_files import read_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.trainer.job import check_job, run_job
from dim_hf.trainer.job_arguments import DataArguments, Job, ModelArguments, field_words, parse_job
from dim_hf.trainer.job_identity import CUTS_OF_A_STEP, START_FOLDER, refuse_other_job
from dim_hf.trainer.job_report import RESULTS_FILE

# Fields of the training that say where and how it computes, not what it learns.
_OF_THE_MACHINE = (
    "seed", "use_cpu", "bf16", "fp16", "auto_bf16", "disable_tqdm", "logging_steps", "report_to", "dataloader_",
    "torch_compile", "ddp_", "log_level", "save_total_limit",
)  # fmt: skip


def finish_job(job: Job, *, but: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[CaseResult]]:
    """What a run left in its folder; it is trained, or its training is finished, where that is due.

    Args:
        job: of the run.
        but: fields that may differ from those the folder was begun with.

    Returns:
        The content of `results.json`, and the test scores by case.

    Raises:
        ValueError: if the folder holds the run of another job; or as `run_job`.
    """
    folder = Path(job.training.output_dir)
    refuse_other_job(folder, job, but=but)
    if not (folder / RESULTS_FILE).exists():
        run_job(job)
        PartialState().wait_for_everyone()  # the first process writes, all of them read
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{folder / RESULTS_FILE} cannot be read ({error}): remove it, and the run is scored again from its last "
            "checkpoint"
        ) from error
    return results, read_cases_csv(folder / "cases.csv")


def job_from_start(config: str | Path | None, start: str | Path, overrides: Sequence[str]) -> Job:
    """A job that goes on from the network of another one, which is trained first, in `start/` of its folder.

    Args:
        config: YAML file of the job; None for the defaults.
        start: YAML file of the job that comes first.
        overrides: words such as `["--labeled_domain", "drishti"]`. Those about data, network and machine count for
            both jobs, the others for the second.

    Raises:
        ValueError: as `parse_job`; if a network to start from is named as well, or the two jobs see other data; or as
            `finish_job`.
    """
    job = parse_job(config, overrides)
    if job.model.model_name_or_path:
        raise ValueError(
            f"model_name_or_path is {job.model.model_name_or_path!r}, but {start} is to be trained and started from: "
            "give one of them"
        )
    folder = Path(job.training.output_dir) / START_FOLDER
    shared = [f.name for part in (DataArguments, ModelArguments) for f in fields(part)]
    own = field_words({"output_dir": str(folder), "resume_from_checkpoint": "last"})
    first = parse_job(start, [*_words_of(overrides, (*shared, *_OF_THE_MACHINE)), *own])
    _refuse_other_data(first.data, job.data, start)
    check_job(replace(job, model=first.model))  # before the first is run, and not after it
    finished = (folder / RESULTS_FILE).exists()
    finish_job(first, but=() if finished else CUTS_OF_A_STEP)
    return parse_job(config, [*overrides, "--model_name_or_path", str(folder)])


def _words_of(words: Sequence[str], names: Iterable[str]) -> list[str]:
    """The words of the fields whose names begin with one of these."""
    kept, wanted = [], False
    for word in words:
        if word.startswith("--"):
            wanted = word[2:].removeprefix("no_").startswith(tuple(names))
        if wanted:
            kept.append(word)
    return kept


def _refuse_other_data(first: DataArguments, second: DataArguments, start: str | Path) -> None:
    for f in fields(DataArguments):
        was, now = getattr(first, f.name), getattr(second, f.name)
        if was != now and now is not None and not f.name.startswith("cache_"):
            raise ValueError(
                f"{f.name} is {was!r} in {start} and {now!r} in the run that goes on from it: both must see the same "
                "images, so give it once, after the files"
            )
