"""What tells one job from another, and whether the run in a folder is that of a job."""

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from dim_hf.trainer.job_arguments import DataArguments, Job, JobTrainingArguments, ModelArguments
from dim_hf.whole_files import write_text

JOB_FILE = "job.json"
START_FOLDER = "start"  # of a run that another one goes on from, in the folder of that one
_JOB_PARTS = {"data": DataArguments, "model": ModelArguments, "training": JobTrainingArguments}

# Training fields in which two runs of one experiment may differ: where files go, and what is shown.
_IRRELEVANT = (
    "output_dir", "resume", "run_name", "project", "logging", "log_", "report_to", "disable_tqdm", "save_", "hub",
    "push_to_hub", "trackio", "dataloader", "cache_", "remove_unused", "ddp_", "debug", "skip_memory",
)  # fmt: skip

# How the images of a step are dealt to processes and micro-batches: another number of processes takes other values.
# The trainer sees to it that a resumed run has as many images a step.
CUTS_OF_A_STEP = (
    "labeled_batch_size", "unlabeled_batch_size", "gradient_accumulation_steps", "per_device_train_batch_size",
    "train_batch_size",
)  # fmt: skip


def job_as_json(job: Job) -> dict[str, Any]:
    """All fields of a job, as the run's files hold them."""
    return {"data": vars(job.data), "model": vars(job.model), "training": job.training.to_sanitized_dict()}


def write_job(folder: Path, job: Job) -> None:
    """State in the folder of a run which job it is of."""
    write_text(folder / JOB_FILE, json.dumps(job_as_json(job), indent=2, default=str) + "\n")


def relevant_fields(job: Job) -> dict[str, dict[str, Any]]:
    """What tells one experiment from another, part by part, as a JSON file would give it back."""
    parts = json.loads(json.dumps(job_as_json(job), default=str))
    return {
        part: {name: value for name, value in fields.items() if not name.startswith(_IRRELEVANT)}
        for part, fields in parts.items()
    }


def refuse_other_job(folder: Path, job: Job, *, but: tuple[str, ...] = (), option: str = "--output_dir") -> None:
    """A run that is there, finished or not, may only stand for the job that is asked for.

    Args:
        folder: of the run; one without `job.json` is new.
        job: what is asked for.
        but: further fields that may differ.
        option: of the command, by which another folder is chosen.

    Raises:
        ValueError: naming the first field that differs, and both values.
    """
    if not (folder / JOB_FILE).exists():
        return
    found = _read_job(folder / JOB_FILE, option)
    for part, fields in relevant_fields(job).items():
        for name, value in fields.items():
            was = found[part][name] if name in found[part] else _default(part, name)
            if was != value and not name.startswith(but) and not _is_own_start(folder, name, was, value):
                raise ValueError(f"{folder} was run with {name}={was!r}, now it is {value!r}: choose another {option}")


def _default(part: str, name: str) -> Any:
    """What a field is for a run from before it was there."""
    own = _JOB_PARTS[part].__dataclass_fields__.get(name)
    if own is None:
        return None
    return own.default if own.default_factory is MISSING else own.default_factory()


def _read_job(file: Path, option: str) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in _JOB_PARTS):
            raise ValueError(f"it must hold {', '.join(_JOB_PARTS)}")
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}): choose another {option}") from error
    return found


def _is_own_start(folder: Path, name: str, was: Any, value: Any) -> bool:
    """Whether both name the run that lies within this one's folder, which may have been moved since."""
    if name != "model_name_or_path" or not was or not value:
        return False
    return Path(was).name == START_FOLDER and Path(value).resolve() == (folder / START_FOLDER).resolve()
