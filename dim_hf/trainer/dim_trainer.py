"""The Trainer of DiM: two streams of images, a teacher, and a two-pass step."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from dim_hf.data.collator import TwoStreamCollator
from dim_hf.data.datasets import TwoStreamDataset
from dim_hf.data.sampler import TwoStreamBatchSampler
from dim_hf.divergences import get_f_divergence
from dim_hf.losses import LossTerms, consistency_loss, make_pseudo_labels, ramp_up, resize_logits, supervised_loss
from dim_hf.sharpness import (
    NonFiniteGradientError,
    check_finite_gradient,
    frozen_running_statistics,
    perturbed_parameters,
)
from dim_hf.trainer.critic_training import CriticTraining
from dim_hf.trainer.dim_training_args import DimTrainingArguments
from dim_hf.trainer.teacher_student_trainer import TeacherStudentTrainer
from dim_hf.trainer.views import StepInputs, ViewMaker
from dim_hf.trainer.window import ClosedFormDivergence, Logits, MicroBatch, Window


class _StepCallback(TrainerCallback):
    """Calls back into the trainer at the moments that `Trainer` offers no method for."""

    def __init__(self, trainer: "DimTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: DimTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.forget_unfinished_step()

    def on_epoch_begin(
        self, args: DimTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # After a resume, transformers does not reach a batch sampler that is wrapped twice.
        self.trainer.batch_sampler.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(
        self, args: DimTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.finish_optimizer_step()


class DimTrainer(TeacherStudentTrainer):
    """Trains a semantic-segmentation model on labeled and unlabeled images with DiM.

    One step: the teacher makes pseudo-labels from weak views; the student sees labeled images
    and strong views of unlabeled ones in one forward pass; the gradient of the ascent objective
    moves the weights to θ + ε; the gradient of the total there updates θ; the teacher follows.
    Our reconstruction of arXiv 2411.12350; SAM is arXiv 2010.01412.

    Args:
        model: any model of transformers whose output has `logits` (N, K, *S'), at the input's
            resolution or a lower one.
        args: the arguments; their defaults when None.
        labeled_dataset: map-style, items `pixel_values` (C, *S) and `labels` (*S).
        unlabeled_dataset: map-style, items `pixel_values`; may be None where no term uses it.
        **kwargs: `eval_dataset` (labeled datasets by domain for validation; never the test sets,
            since the best checkpoint is chosen on them), `processing_class` (the image processor,
            saved beside the model), `structures` (what is scored, name → class ids), and whatever
            else `transformers.Trainer` takes.

    Raises:
        ValueError: for a missing or too small dataset, several GPUs in one process, or DeepSpeed.
    """

    args: DimTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel,
        args: DimTrainingArguments | None = None,
        *,
        labeled_dataset: Dataset,
        unlabeled_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else DimTrainingArguments(output_dir="dim_output")
        _check_launch(args)
        if getattr(model.config, "deep_supervision", False):
            raise ValueError("deep_supervision adds a loss of its own to the model's forward: set it to False here")
        self.batch_sampler = _batch_sampler(args, labeled_dataset, unlabeled_dataset)
        super().__init__(model, args, train_dataset=TwoStreamDataset(labeled_dataset, unlabeled_dataset), **kwargs)
        self.views = ViewMaker.from_arguments(args, getattr(model.config, "num_channels", 3))
        self.critic, self.closed_form = self._make_divergence()
        self._batches: list[dict[str, Tensor]] = []
        self._window = Window()
        self._buffers: list[Tensor] = []
        self._abandoned = False
        self.add_callback(_StepCallback(self))

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of both streams; `accelerate` deals whole batches to processes."""
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=TwoStreamCollator(),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=workers > 0,  # what a worker keeps in memory is lost with it
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Keep the step's micro-batches: both passes go over all of them. None are left after the last step."""
        if self.state.global_step >= self.state.max_steps:  # a finished run was resumed
            self.control.should_training_stop = True
            return [], None
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches = list(batches)
        return batches, num_items_in_batch

    # ---- the two-pass step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """First pass on one micro-batch; after the step's last one, the second pass on all of them.

        Args:
            model: the student, wrapped for its processes.
            inputs: the next batch of those that `get_batch_samples` gave; alone, a step of its own.
            num_items_in_batch: unused; the loss is a mean over images.

        Returns:
            The total loss at the unperturbed weights, its share of the step.
        """
        model.train()
        if self._window.exhausted:
            self._open_window(self._batches or [inputs])
        two_pass = self._takes_two_passes()
        objective = self.args.ascent_objective if two_pass else "total"
        loss = self._forward_backward(model, self._window.next(), objective, observe=True)
        if self._window.exhausted:
            self._finish_gradient(model, two_pass)
        return loss

    def _takes_two_passes(self) -> bool:
        return self.args.rho > 0 and self.state.global_step % self.args.sam_every == 0

    def _open_window(self, batches: list[dict[str, Tensor]]) -> None:
        # Copies to return to, should this step be abandoned after the running statistics moved.
        self._buffers = [buffer.clone() for buffer in self.model.buffers()]
        self._window = Window([MicroBatch(self._step_inputs(self._prepare_inputs(batch))) for batch in batches])
        self._batches = []
        self._share_masses()

    def _finish_gradient(self, model: nn.Module, two_pass: bool) -> None:
        try:
            if two_pass:
                self._second_pass(model)
            check_finite_gradient(self.model.parameters())
        except NonFiniteGradientError:
            self._abandon_step()

    def _second_pass(self, model: nn.Module) -> None:
        """Replace the accumulated gradient by the total's gradient at the perturbed weights."""
        perturbation = perturbed_parameters(
            self.model.parameters(), self.args.rho, adaptive=self.args.adaptive, eta=self.args.adaptive_eta
        )
        with perturbation as norm, frozen_running_statistics(self.model):
            self.meters.update({"perturbation_norm": norm})
            self._share_masses()
            micro_batches = self._window.micro_batches
            for micro_batch in micro_batches:
                last = micro_batch is micro_batches[-1]
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    self._forward_backward(model, micro_batch, "total", observe=False)

    def _forward_backward(self, model: nn.Module, batch: MicroBatch, objective: str, *, observe: bool) -> Tensor:
        """Add the gradient of one micro-batch; returns the total loss, divided by the micro-batches of the step."""
        logits = self._forward(model, batch)
        terms = self._loss_terms(batch, logits)
        share = 1 / len(self._window.micro_batches)
        rise = ramp_up(self.state.global_step, round(self.args.rampup_ratio * self.state.max_steps))
        weights = (rise * self.args.consistency_weight, rise * self.args.divergence_weight)
        self.accelerator.backward(terms.ascent(objective, *weights) * share)
        if observe:
            self.meters.update(terms.detached() | batch.inputs.measurements(logits[1]))
            if self.critic is not None:
                self.critic.accumulate(*logits, share)
        return terms.total(*weights).detach() * share

    def _forward(self, model: nn.Module, batch: MicroBatch) -> Logits:
        inputs = batch.inputs
        with batch.drawing(self.args.device), self.compute_loss_context_manager():
            logits = model(pixel_values=inputs.pixel_values.to(self.model.dtype)).logits
        return inputs.separate(resize_logits(logits, inputs.labels.shape[1:]))

    def _loss_terms(self, batch: MicroBatch, logits: Logits) -> LossTerms:
        labeled, unlabeled = logits
        consistency = divergence = labeled.new_zeros(())
        if unlabeled is not None and self.args.consistency_weight > 0:
            consistency = consistency_loss(unlabeled, batch.inputs.pseudo_labels, batch.inputs.pseudo_label_mask)
        if self.critic is not None:
            divergence = self.critic.divergence(labeled, unlabeled)
        elif self.closed_form is not None:
            parts = len(self._window.micro_batches) * self.args.world_size
            divergence = self.closed_form.value(logits, batch.rest, parts)
        return LossTerms(supervised_loss(labeled, batch.inputs.labels), consistency, divergence)

    def _make_divergence(self) -> tuple[CriticTraining | None, ClosedFormDivergence | None]:
        """The estimator that the arguments ask for; neither where the term is off."""
        args = self.args
        if args.divergence_weight == 0:
            return None, None
        f_divergence = get_f_divergence(args.f_divergence, args.divergence_alpha)
        if args.divergence_estimator != "variational":
            grid_size = 1 if args.divergence_estimator == "marginal" else args.divergence_grid_size
            return None, ClosedFormDivergence(f_divergence, grid_size)
        sizes = (self.model.config.num_labels, args.critic_hidden_size)
        return CriticTraining(f_divergence, *sizes, args.critic_learning_rate, args.device), None

    @torch.no_grad()
    def _share_masses(self) -> None:
        """Where several micro-batches or processes make one step, let each know the class masses of the others.

        This costs a forward pass without gradient for each micro-batch and pass; one batch on one
        process needs none.
        """
        if self.closed_form is None or len(self._window.micro_batches) * self.args.world_size == 1:
            return
        self.model.train()
        with frozen_running_statistics(self.model):
            masses = [self.closed_form.masses(self._forward(self.model, b)) for b in self._window.micro_batches]
        self._window.set_rests(masses, lambda total: self.accelerator.reduce(total, reduction="sum"))

    def _abandon_step(self) -> None:
        """Leave weights, optimizer, running statistics and teacher as they were before this step."""
        self._abandoned = True
        self.skipped_steps += 1
        for buffer, saved in zip(self.model.buffers(), self._buffers, strict=True):
            buffer.copy_(saved)
        if self.accelerator.scaler is None:
            # Optimizers pass over a parameter without a gradient: no decay, no momentum.
            # A gradient scaler must see the infinity instead: it skips the step and backs off.
            self.model.zero_grad(set_to_none=True)

    def forget_unfinished_step(self) -> None:
        """Start anew after a training that was interrupted in the middle of a step."""
        self._window, self._batches, self._buffers = Window(), [], []
        self._abandoned = False
        if self.critic is not None:
            self.critic.discard()

    def finish_optimizer_step(self) -> None:
        """After the optimizer: the teacher and the critic follow, unless the step was abandoned."""
        stepped = not (self._abandoned or self.accelerator.optimizer_step_was_skipped)
        if stepped:
            self.follow_student()
        if self.critic is not None:
            self.critic.step(self._mean_over_processes) if stepped else self.critic.discard()
        self._abandoned = False
        self._buffers = []

    # ---- views and the teacher's predictions

    @torch.no_grad()
    def _step_inputs(self, inputs: dict[str, Tensor]) -> StepInputs:
        """Everything that both passes share: views, mixing boxes, pseudo-labels."""
        return self.views.make(inputs, self._pseudo_labels)

    def _pseudo_labels(self, weak_views: Tensor) -> tuple[Tensor, Tensor]:
        with self._teacher_normalisation(), self.accelerator.autocast():
            logits = self.teacher(pixel_values=weak_views.to(self.model.dtype)).logits
        return make_pseudo_labels(resize_logits(logits, weak_views.shape[2:]), self.args.confidence_threshold)

    @contextlib.contextmanager
    def _teacher_normalisation(self) -> Iterator[None]:
        """Running statistics, or the batch's: normalisation layers in train mode, their averages still."""
        if self.args.teacher_statistics == "running":
            yield
            return
        layers = [m for m in self.teacher.modules() if getattr(m, "track_running_stats", False)]
        for layer in layers:
            layer.train()
        try:
            with frozen_running_statistics(self.teacher):
                yield
        finally:
            self.teacher.eval()

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.critic is not None and self.args.should_save:
            self.critic.save(Path(output_dir or self.args.output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.critic is not None and checkpoint is not None:
            self.critic.load(Path(checkpoint))


def _check_launch(args: DimTrainingArguments) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process: start one process a GPU with "
            "`accelerate launch`, or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    if args.deepspeed:
        raise ValueError("DeepSpeed steps inside its backward pass, so a two-pass step cannot be made of it: use DDP")


def _batch_sampler(
    args: DimTrainingArguments, labeled: Dataset | None, unlabeled: Dataset | None
) -> TwoStreamBatchSampler:
    if labeled is None or len(labeled) == 0:
        raise ValueError("no labeled images: labeled_dataset is empty")
    if args.uses_unlabeled_images and (unlabeled is None or len(unlabeled) == 0):
        raise ValueError(
            "no unlabeled images, but the objective uses them: give unlabeled_dataset, "
            "or set consistency_weight and divergence_weight to 0"
        )
    num_unlabeled = len(unlabeled) if args.uses_unlabeled_images else 0
    batch_sizes = (args.labeled_batch_size, args.unlabeled_images_per_step)
    passes = [math.ceil(n / b) for n, b in zip((len(labeled), num_unlabeled), batch_sizes, strict=True) if b]
    # Whole steps: no epoch ends inside an accumulation window or before every process has its batch.
    window = args.gradient_accumulation_steps * args.world_size
    seed = args.data_seed if args.data_seed is not None else args.seed
    return TwoStreamBatchSampler(
        len(labeled),
        num_unlabeled,
        *batch_sizes,
        batches_per_epoch=math.ceil(max(passes) / window) * window,
        seed=seed,
        labeled_domains=_domains(labeled, "labeled_dataset") if args.balance_domains else None,
        unlabeled_domains=_domains(unlabeled, "unlabeled_dataset") if args.balance_domains and num_unlabeled else None,
    )


def _domains(dataset: Dataset, name: str) -> list[str]:
    domains = getattr(dataset, "domains", None)
    if domains is None:
        raise ValueError(
            f"balance_domains needs the domain of each image: give {name} an attribute `domains`, or set it to False"
        )
    return domains
