"""A few real steps before a long run: what it will take, and what to change where that is too much."""

import copy
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import DefaultFlowCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from dim_hf.data.texts import first_line
from dim_hf.inference.memory import is_out_of_memory
from dim_hf.trainer.dim_trainer import DimTrainer
from dim_hf.trainer.dim_training_args import DimTrainingArguments
from dim_hf.trainer.preflight_report import PreflightReport

WARM_UP_STEPS = 2
TIMED_STEPS = 3
_FULL = 0.9  # share of the memory above which the next larger image or allocation may fail


def run_dry(trainer: DimTrainer, output_dir: str | Path | None = None) -> PreflightReport:
    """Take a few steps and score one batch of validation images, and write nothing.

    The weights move; the trainer is of no use afterwards.

    Args:
        trainer: a new one; every process of the run calls this.
        output_dir: where the run will write, if not where the trainer would: transformers makes that folder.

    Returns:
        What the whole run will take, or, when memory is short, what to change.

    Raises:
        ValueError: when memory is short in one of several processes, with the report as its text: the others wait for
            that process, so it can only end all of them.
    """
    device = trainer.args.device
    plan = _Plan.of(trainer, Path(output_dir or trainer.args.output_dir))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, waiting, validation, failure = None, None, None, None
    try:
        with tempfile.TemporaryDirectory() as folder, _dry(trainer, folder):
            seconds, waiting = _time_steps(trainer)
            validation = _time_validation(trainer)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = first_line(error)
    report = plan.report(trainer, seconds, waiting, validation, failure)
    if failure is not None and trainer.args.world_size > 1:
        raise ValueError(str(report))
    return report


# ---- what the run was going to do


@dataclass(frozen=True)
class _Plan:
    """What the arguments say before they are changed for the dry run."""

    args: DimTrainingArguments
    output_dir: Path
    steps: int
    validations: int
    checkpoints: int

    @classmethod
    def of(cls, trainer: DimTrainer, output_dir: Path) -> "_Plan":
        args = copy.copy(trainer.args)
        per_epoch = max(1, len(trainer.get_train_dataloader()) // args.gradient_accumulation_steps)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        validates = trainer.eval_dataset is not None
        saved = _times(args.save_strategy, args.save_steps, steps, per_epoch)
        limit = args.save_total_limit or saved  # to transformers, 0 is no limit
        kept = min(saved, max(limit, 2) if args.load_best_model_at_end else limit)  # the best one is kept, too
        return cls(
            args=args,
            output_dir=output_dir,
            steps=steps,
            validations=_times(args.eval_strategy, args.eval_steps, steps, per_epoch) if validates else 0,
            checkpoints=min(kept + 1, saved),  # a new one is complete before an old one goes
        )

    def report(
        self,
        trainer: DimTrainer,
        seconds: float | None,
        waiting: float | None,
        validation: float | None,
        failure: str | None,
    ) -> PreflightReport:
        args, device = self.args, self.args.device
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else str(trainer.model.dtype).removeprefix("torch.")
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        peak, memory = _peak_memory(device), _memory(device)
        if failure is None:
            peak = int(trainer.accelerator.gather(torch.tensor([peak], device=device)).max())
        checkpoint, free = checkpoint_bytes(trainer), _free_disk(self.output_dir)
        advice = []
        if failure or (memory and peak > _FULL * memory):
            advice += _advice_on_memory(args)
        if checkpoint * self.checkpoints > free:
            advice.append("save_total_limit=1, a larger save_steps, or an output_dir on a larger disk")
        images = (args.labeled_batch_size + args.unlabeled_images_per_step) * args.gradient_accumulation_steps
        return PreflightReport(
            parameters=sum(p.numel() for p in trainer.model.parameters()),
            device=f"{name}, {precision}",
            processes=args.world_size,
            steps=self.steps,
            peak_memory=peak,
            memory=memory,
            seconds_per_step=seconds,
            seconds_waiting=waiting,
            seconds_per_validation=validation,
            validations=self.validations,
            images_per_step=images * args.world_size,
            checkpoint=checkpoint,
            checkpoints=self.checkpoints,
            free_disk=free,
            failure=failure,
            advice=tuple(advice),
        )


def _times(strategy: str, every: float | None, steps: int, steps_per_epoch: int) -> int:
    """How often something is done that is due each epoch, or each so many steps (below 1: each such share of all)."""
    if strategy == IntervalStrategy.EPOCH:
        return math.ceil(steps / steps_per_epoch)
    if strategy != IntervalStrategy.STEPS or not every:
        return 0 if strategy == IntervalStrategy.NO else 1
    return max(1, int(steps / (every if every >= 1 else math.ceil(every * steps))))


# ---- the steps


class _Clock(TrainerCallback):
    """When each optimizer step began and ended."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.begins: list[float] = []
        self.ends: list[float] = []

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def on_step_begin(
        self, args: DimTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begins.append(self.now())

    def on_step_end(
        self, args: DimTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ends.append(self.now())

    def seconds(self) -> float:
        """Of a step, after the warm-up."""
        pairs = list(zip(self.begins, self.ends, strict=True))[WARM_UP_STEPS:]
        return statistics.median(end - begin for begin, end in pairs)

    def waiting(self) -> float:
        """For the images of a step."""
        return statistics.fmean(b - e for b, e in zip(self.begins[1:], self.ends[:-1], strict=True))


def _time_steps(trainer: DimTrainer) -> tuple[float, float]:
    """Seconds of a step and of waiting before it; the mean of both kinds where only some steps are sharpness-aware."""
    args = trainer.args
    if args.rho == 0 or args.sam_every == 1:
        return _train(trainer)
    with _changed(args, sam_every=1):
        both_passes, waiting = _train(trainer)
    with _changed(args, rho=0.0):
        plain, _ = _train(trainer)
    return (both_passes + (args.sam_every - 1) * plain) / args.sam_every, waiting


def _train(trainer: DimTrainer) -> tuple[float, float]:
    clock = _Clock(trainer.args.device)
    trainer.add_callback(clock)
    try:
        trainer.train()
    finally:
        trainer.remove_callback(clock)
    return clock.seconds(), clock.waiting()


def _time_validation(trainer: DimTrainer) -> float | None:
    """Seconds that all validation images take, from one batch of the first data set."""
    datasets = trainer.eval_dataset
    if not datasets:
        return None
    name, dataset = next(iter(datasets.items()))
    count = min(len(dataset), trainer.args.per_device_eval_batch_size * trainer.args.world_size)
    clock = _Clock(trainer.args.device)
    begin = clock.now()
    trainer.evaluate({name: Subset(dataset, range(count))})
    return (clock.now() - begin) / count * sum(len(each) for each in datasets.values())


@contextmanager
def _dry(trainer: DimTrainer, folder: str) -> Iterator[None]:
    """Let a training take a few steps, save nothing, report to nobody, and write into `folder` if at all."""
    handler = trainer.callback_handler
    callbacks = handler.callbacks
    # Trackers, early stopping, progress bars and the user's own have no part in this; the trainer's own have.
    handler.callbacks = [
        callback
        for callback in callbacks
        if isinstance(callback, DefaultFlowCallback)
        or (type(callback).__module__.startswith("dim_hf.") and not isinstance(callback, ProgressCallback))
    ]
    changes = {
        "output_dir": folder,
        "max_steps": WARM_UP_STEPS + TIMED_STEPS,
        # Whether a step at half the resolution is possible at all, and the cost of those at the full one with strong
        # views, which cost more.
        "half_resolution_ratio": 1 / (WARM_UP_STEPS + TIMED_STEPS) if trainer.args.half_resolution_ratio > 0 else 0.0,
        "weak_view_ratio": 0.0,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "load_best_model_at_end": False,
        "push_to_hub": False,
    }
    try:
        with _changed(trainer.args, **changes):
            yield
    finally:
        handler.callbacks = callbacks


@contextmanager
def _changed(args: DimTrainingArguments, **values: Any) -> Iterator[None]:
    saved = {name: getattr(args, name) for name in values}
    try:
        for name, value in values.items():
            setattr(args, name, value)
        yield
    finally:
        for name, value in saved.items():
            setattr(args, name, value)


# ---- memory and disk


def _advice_on_memory(args: DimTrainingArguments) -> list[str]:
    labeled, unlabeled, cuts = (
        args.labeled_batch_size,
        args.unlabeled_images_per_step,
        args.gradient_accumulation_steps,
    )
    divisor = next((d for d in range(2, labeled + 1) if labeled % d == 0 and unlabeled % d == 0), None)
    advice = []
    if divisor:
        sizes = f"labeled_batch_size={labeled // divisor}"
        sizes += f" unlabeled_batch_size={unlabeled // divisor}" if unlabeled else ""
        advice.append(
            f"{sizes} gradient_accumulation_steps={cuts * divisor}: the same step in {divisor} parts (with batch "
            "normalization each part is normalized by itself: see norm=group)"
        )
    elif labeled + unlabeled > 2:
        advice.append(f"a smaller labeled_batch_size ({labeled}) or unlabeled_batch_size ({unlabeled})")
    if not (args.bf16 or args.fp16):
        advice.append("bf16=true, where the device has it: activations take half the memory")
    advice.append("smaller images (image_size), whose activations take most of the memory: half the side, a quarter")
    advice.append("smaller hidden_sizes of the network")
    if args.rho > 0:
        advice.append("rho=0, which saves the perturbation's copy of the weights, but is another method")
    if args.rho > 0 and args.ascent_fraction == 1:
        advice.append("ascent_fraction=0.5 saves time, not memory: the second pass sees all images")
    return advice


def checkpoint_bytes(trainer: DimTrainer) -> int:
    """Bytes of a checkpoint: student, teacher and critic, and with them what their optimizers hold.

    Args:
        trainer: one that took a step; before, what the optimizers hold is not known, and not counted.
    """
    modules: list[nn.Module] = [trainer.model, trainer.teacher]
    optimizers = [] if trainer.args.save_only_model or trainer.optimizer is None else [trainer.optimizer]
    critic = trainer.objective.critic
    if critic is not None:
        modules.append(critic.critic)
        optimizers.append(critic.optimizer)
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    for optimizer in optimizers:
        states = optimizer.state_dict()["state"].values()
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_memory(device: torch.device) -> int:
    """On a GPU what was allocated at once since the steps began; else the process's, imports and all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory(device: torch.device) -> int | None:
    """Of the GPU, or of the machine; a container's limit below that counts."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else ""
    return min(machine, int(text)) if text.isdigit() else machine


def _free_disk(folder: Path) -> int:
    """Where a folder is or will be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
