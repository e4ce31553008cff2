"""A training job from end to end: data, checks, split, training, test scores, files to look at."""

import copy
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import (
    AutoImageProcessor,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from dim_hf.data.cache import SampleCache
from dim_hf.data.checks import find_faults, refuse_faults
from dim_hf.data.datasets import SegmentationDataset
from dim_hf.data.doctor.intake import Intake
from dim_hf.data.sources import PhantomOptions, Source, load_source
from dim_hf.data.splits import SemiSupervisedSplit, semi_supervised_split
from dim_hf.inference.loading import refuse_missing_folder
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.report import SiteTable, check_names, site_table
from dim_hf.models import DimImageProcessor
from dim_hf.trainer.checkpoints import RESUME_HINT, checkpoints_in, step_of
from dim_hf.trainer.dim_trainer import DimTrainer
from dim_hf.trainer.job_arguments import (
    ALL_LABELED,
    DataArguments,
    Job,
    JobTrainingArguments,
)
from dim_hf.trainer.job_cache import job_cache, memory_bytes
from dim_hf.trainer.job_identity import CUTS_OF_A_STEP, job_as_json, refuse_other_job, write_job
from dim_hf.trainer.job_model import make_model
from dim_hf.trainer.job_report import RESULTS_FILE, write_report
from dim_hf.trainer.job_scores import score_test_sets, training_cost, validation_scores
from dim_hf.trainer.job_statistics import write_site_statistics
from dim_hf.trainer.launch import check_launch
from dim_hf.trainer.preflight import run_dry
from dim_hf.trainer.preflight_report import PreflightReport
from dim_hf.trainer.resumable_trainer import LAST
from dim_hf.trainer.streams import make_batch_sampler
from dim_hf.trainer.views import ViewMaker


@dataclass(frozen=True)
class JobResult:
    """What a finished job leaves.

    Attributes:
        output_dir: folder of the run; the scored model lies at its root.
        table: test scores by site.
        cases: test scores by case and structure.
        predictions: predicted label maps (N, *S) of each test domain.
        trainer: the trainer, with the scored model loaded.
        test: test datasets by domain.
    """

    output_dir: Path
    table: SiteTable
    cases: list[CaseResult]
    predictions: dict[str, np.ndarray]
    trainer: DimTrainer
    test: dict[str, SegmentationDataset]


def job_source(data: DataArguments) -> Source:
    """Read the rows that `data.dataset` names, with what the job says differently about them.

    Raises:
        ValueError: as `load_source`; or for structures that are no JSON object.
    """
    source = load_source(
        data.dataset,
        class_names=data.class_names,
        structures=_parse_structures(data.structures),
        patient_pattern=data.patient_pattern,
        phantom=PhantomOptions(data.phantom_images_per_domain, data.image_size, data.phantom_seed),
    )
    said = {"num_channels": data.num_channels, "intensity": data.intensity}
    changes = {name: value for name, value in said.items() if value is not None}
    return replace(source, description=replace(source.description, **changes))


def split_source(source: Source, data: DataArguments) -> SemiSupervisedSplit:
    """The parts of the experiment, by the stated rule of `semi_supervised_split`."""
    domains = list(dict.fromkeys(source.rows["domain"]))
    return semi_supervised_split(
        source.rows,
        labeled_domain=data.labeled_domain or domains[0],
        num_labeled="all" if data.num_labeled == ALL_LABELED else data.num_labeled,
        num_validation=data.num_validation,
        seed=data.split_seed,
        test_fraction=data.test_fraction,
        allow_shared_patients=data.allow_shared_patients,
    )


def make_processor(source: Source, data: DataArguments) -> DimImageProcessor:
    """The processor that brings every image to the job's size and intensities."""
    about = source.description
    return DimImageProcessor(num_channels=about.num_channels, intensity=about.intensity, **_sizes(source, data))


def _sizes(source: Source, data: DataArguments) -> dict[str, Any]:
    """What a processor has to know of the size that it brings images, or volumes, to."""
    if source.description.spatial_dims == 2:
        if data.volume_size:
            raise ValueError(f"volume_size is {data.volume_size}, but the images are no volumes: give image_size")
        return {"size": {"height": data.image_size, "width": data.image_size}}
    if not data.volume_size:
        return {"spatial_dims": 3, "do_resize": False}
    if len(data.volume_size) != 3:
        raise ValueError(f"volume_size must be depth, height and width, got {data.volume_size}")
    size = dict(zip(("depth", "height", "width"), data.volume_size, strict=True))
    return {"spatial_dims": 3, "do_resize": True, "size": size}


def make_trainer(
    job: Job, cache: SampleCache | None = None
) -> tuple[DimTrainer, dict[str, SegmentationDataset], SemiSupervisedSplit]:
    """Everything a run needs, checked: the trainer, the test sets by domain, and the split.

    Args:
        job: what to train on what.
        cache: holds the decoded images of all data sets; one in memory when not given.

    Raises:
        ValueError: for any fault in data or arguments, before a step is taken.
    """
    check_launch(job.training)  # before the files are checked
    disable_progress_bar()  # of loading and saving weights: the bar of the training is another
    source, processor = _source_and_processor(job)
    _check_files(source, _intake_of(processor), job.training)
    source = _as_taken(source, processor)
    split = split_source(source, job.data)
    set_seed(job.training.seed)
    model = make_model(source, job.model)
    _check_processing(source.rows, processor, job)
    if not split.test:
        raise ValueError("no test images: raise test_fraction, or give images of a `test` folder masks")
    cache = cache or SampleCache(memory_bytes(job.data))

    def processed(rows: datasets.Dataset) -> SegmentationDataset:
        return SegmentationDataset(rows, processor, cache=cache)

    test = {domain: processed(rows) for domain, rows in split.test.items()}
    validation = {split.labeled_domain: processed(split.validation)} if len(split.validation) else None
    if job.training.select == "test-legacy":
        validation = test
    trainer = DimTrainer(
        model,
        _without_validation(job.training) if validation is None else job.training,
        labeled_dataset=processed(split.labeled),
        unlabeled_dataset=processed(split.unlabeled) if len(split.unlabeled) else None,
        eval_dataset=validation,
        processing_class=processor,
        structures=source.description.structures,
    )
    return trainer, test, split


def check_job(job: Job) -> None:
    """Refuse what `make_trainer` would refuse, faults of files and weights aside.

    Args:
        job: of a run that starts from a network that is still to be trained; it names none, or what that one starts
            from.

    Raises:
        ValueError: for what the data cannot give, or images that do not fit the objective or the views.
    """
    source, processor = _source_and_processor(job)
    source = _as_taken(source, processor)
    split = split_source(source, job.data)
    _check_processing(source.rows, processor, job)
    parts = [SegmentationDataset(rows, processor, cache_bytes=0) for rows in (split.labeled, split.unlabeled)]
    make_batch_sampler(job.training, *parts)
    ViewMaker.from_arguments(job.training, getattr(processor, "num_channels", 3), source.description.structures)


def _source_and_processor(job: Job) -> tuple[Source, Any]:
    """What a job reads, as it lies in the files, and what brings it to the network's input."""
    source = job_source(job.data)
    check_names(set(source.rows["domain"]), source.description.structures)
    return source, _processor_of(job, source)


def _as_taken(source: Source, processor: Any) -> Source:
    """Pictures as the processors of other models take them: three channels of 8 bits."""
    if isinstance(processor, DimImageProcessor) or not isinstance(source.rows.features["image"], datasets.Image):
        return source
    return replace(source, rows=source.rows.cast_column("image", datasets.Image(mode="RGB")))


def _intake_of(processor: Any) -> Intake:
    if not isinstance(processor, DimImageProcessor):
        return Intake(eight_bits=True)
    return Intake(default_range=processor.intensity == "range" and processor.intensity_range is None)


def _check_files(source: Source, intake: Intake, training: JobTrainingArguments) -> None:
    """Read every file once before an hour is lost, each process its share; all of them know of each fault."""
    rank, world_size = training.process_index, training.world_size
    progress = rank == 0 and not training.disable_tqdm
    num_labels = source.description.num_labels
    faults = find_faults(source.rows, num_labels, intake=intake, progress=progress, rank=rank, world_size=world_size)
    refuse_faults(gather_object(faults), len(source.rows))


def run_job(job: Job) -> JobResult:
    """Train, save the scored model, score the test sets once, write the run's tables and figures.

    A run that was interrupted goes on from its last complete checkpoint when `resume_from_checkpoint` is set.

    Raises:
        ValueError: for any fault in data or arguments, before a step is taken.
        OSError: if a checkpoint cannot be written.
        TerminatedError: (a `SystemExit` with code 143) after SIGTERM, with a checkpoint.
    """
    with job_cache(job) as cache:
        return _run(job, cache)


def dry_run_job(job: Job) -> PreflightReport:
    """Take a few steps of a job, and write nothing into its folder.

    Raises:
        ValueError: as `run_job` and `run_dry`.
    """
    with tempfile.TemporaryDirectory() as folder, job_cache(job) as cache:
        training = copy.copy(job.training)
        training.output_dir = folder  # transformers makes the folder of its arguments
        trainer, _, _ = make_trainer(replace(job, training=training), cache)
        return run_dry(trainer, job.training.output_dir)


def _run(job: Job, cache: SampleCache) -> JobResult:
    trainer, test, split = make_trainer(job, cache)
    checkpoint = trainer.find_checkpoint(_checkpoint_asked_for(job))
    with trainer.args.main_process_first():
        if trainer.is_world_process_zero():
            _prepare_folder(job, checkpoint)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    predictions, cases = score_test_sets(trainer, test)
    validation = validation_scores(trainer)  # all processes predict
    table = site_table(cases)
    result = JobResult(Path(job.training.output_dir), table, cases, predictions, trainer, test)
    if trainer.is_world_process_zero():
        summary = {
            "training": trainer.training_summary(),
            "cost": training_cost(trained.metrics, trainer),
            "validation": validation,
            "split": split.summary(),
            "job": job_as_json(job),
        }
        write_site_statistics(trainer)
        write_report(result.output_dir, summary, table, cases, trainer.state.log_history)
    return result


def _prepare_folder(job: Job, checkpoint: str | None) -> None:
    """State the job in its folder; a folder of another run is not mixed with this one."""
    folder = Path(job.training.output_dir)
    if checkpoint is None and checkpoints_in(folder):
        raise ValueError(
            f"{folder} holds checkpoints of an earlier run: choose another --output_dir, or go on with that run by "
            f"{RESUME_HINT}"
        )
    if checkpoint is None and (folder / RESULTS_FILE).exists():
        refuse_other_job(folder, job)  # finished, its checkpoints cleared away
    if checkpoint is not None:
        for run in dict.fromkeys((folder, Path(checkpoint).parent)):
            refuse_other_job(run, job, but=("max_steps", *CUTS_OF_A_STEP))
        if 0 < job.training.max_steps < step_of(Path(checkpoint)):
            raise ValueError(f"max_steps is {job.training.max_steps}, but {checkpoint} is beyond it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_FILE).unlink(missing_ok=True)  # written last: its presence says that the run is complete
    write_job(folder, job)


def _processor_of(job: Job, source: Source) -> Any:
    if job.model.model_name_or_path:
        refuse_missing_folder(job.model.model_name_or_path)
        processor = AutoImageProcessor.from_pretrained(job.model.model_name_or_path)
        # Ours are 0..K-1 already: ADE20k's processors would take class 0 away and shift the others.
        processor.do_reduce_labels = False
        for name in ("intensity", "num_channels"):
            asked, trained = getattr(job.data, name), getattr(processor, name, None)
            if asked not in (None, trained):
                raise ValueError(
                    f"{name} is {asked!r}, but {job.model.model_name_or_path} has {trained!r}: "
                    "leave it out, or train a new network"
                )
        sizes = _sizes(source, job.data)
        sizes.pop("spatial_dims", None)  # those of the network stay
        for name, value in sizes.items():
            setattr(processor, name, value)
        return processor
    return make_processor(source, job.data)


def _first_of_each_domain(rows: datasets.Dataset) -> Iterator[tuple[str, datasets.Dataset]]:
    """One row of each domain, with words that name it."""
    domains = rows["domain"]
    for domain in dict.fromkeys(domains):
        first = rows.select([domains.index(domain)])
        yield f"image {first.select_columns('name')[0]['name']!r} of domain {domain!r}", first


def _check_processing(rows: datasets.Dataset, processor: Any, job: Job) -> None:
    """Bring one image of each domain to the network's input, so that what cannot be is known before training."""
    for name, first in _first_of_each_domain(rows):
        sample = SegmentationDataset(first, processor, cache_bytes=0)[0]
        shape = tuple(sample["pixel_values"].shape[1:])
        if job.training.half_resolution_ratio > 0:
            shape = tuple(side // 2 for side in shape)
        grid_size = job.training.divergence_grid_size if job.training.divergence_estimator == "regional" else 1
        if min(shape) < grid_size and job.training.divergence_weight > 0:
            halved = " at half the resolution" if job.training.half_resolution_ratio > 0 else ""
            raise ValueError(
                f"{name} has {shape} pixels{halved}, fewer than divergence_grid_size={grid_size} along an axis"
            )


def _without_validation(training: Any) -> Any:
    """With no validation images there is nothing to select by: the last step is kept."""
    training = copy.copy(training)  # the job stays what was asked for, else its own next call would be refused
    training.eval_strategy = "no"
    training.load_best_model_at_end = False
    return training


def _checkpoint_asked_for(job: Job) -> str | None:
    wanted = job.training.resume_from_checkpoint
    return LAST if wanted in (True, "True", "true") else wanted


def _parse_structures(text: str | None) -> dict[str, list[int]] | None:
    if text is None:
        return None
    try:
        structures = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'structures is no JSON: {error}; write it like {{"cup": [2]}}') from error
    if not isinstance(structures, dict) or not all(isinstance(classes, list) for classes in structures.values()):
        raise ValueError(f"structures must map names to lists of class ids, got {text}")
    return structures
