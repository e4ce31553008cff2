"""The Trainer of DiM: two streams of images, a teacher, and a two-pass step."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from dim_hf.batch_norm import average_running_statistics, finite_buffers, synchronize_batch_norm
from dim_hf.data.collator import TwoStreamCollator
from dim_hf.data.datasets import TwoStreamDataset
from dim_hf.losses import LossTerms
from dim_hf.sharpness import (
    NonFiniteGradientError,
    check_finite_gradient,
    frozen_running_statistics,
    perturbed_parameters,
)
from dim_hf.trainer.batches import check_batch
from dim_hf.trainer.collapse import CollapseAlarm
from dim_hf.trainer.dim_training_args import DimTrainingArguments
from dim_hf.trainer.launch import check_launch
from dim_hf.trainer.phases import is_half_resolution, is_weak_view_step
from dim_hf.trainer.pseudo_labels import TeacherPseudoLabels
from dim_hf.trainer.resolution import at_half_resolution
from dim_hf.trainer.step_objective import StepObjective
from dim_hf.trainer.streams import make_batch_sampler
from dim_hf.trainer.teacher_student_trainer import TeacherStudentTrainer
from dim_hf.trainer.termination import heed_only_parent
from dim_hf.trainer.views import StepInputs, ViewMaker
from dim_hf.trainer.window import Logits, MicroBatch, Window

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 100


class _StepCallback(TrainerCallback):
    """Calls back into the trainer at the moments that `Trainer` offers no method for."""

    def __init__(self, trainer: "DimTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: DimTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.forget_unfinished_step()
        self.trainer.share_teacher()

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
            saved beside the model), `structures` (what is scored, name → class ids), and what
            else `transformers.Trainer` takes, but what is made here: metrics, loss and collator.

    Raises:
        ValueError: for a missing or too small dataset, or weights shorter than float32; or as `check_launch`.
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
        check_launch(args)
        _refuse_short_weights(model)
        if getattr(model.config, "deep_supervision", False):
            raise ValueError("deep_supervision adds a loss of its own to the model's forward: set it to False here")
        self.batch_sampler = make_batch_sampler(args, labeled_dataset, unlabeled_dataset)
        if args.world_size > 1 and args.sync_batch_norm and args.perturbation_scope == "global":
            model = synchronize_batch_norm(model, args.device)
        super().__init__(model, args, train_dataset=TwoStreamDataset(labeled_dataset, unlabeled_dataset), **kwargs)
        self.views = ViewMaker.from_arguments(args, getattr(model.config, "num_channels", 3), self.structures)
        self.objective = StepObjective(
            args, model.config.num_labels, self.compute_loss_context_manager, self._sum_over_processes
        )
        self.pseudo_labeler = TeacherPseudoLabels(
            self.teacher, args, labeled_dataset, model.config.num_labels, self.accelerator.autocast
        )
        self.collapse_alarm = CollapseAlarm(getattr(unlabeled_dataset, "domains", None), self._sum_over_processes)
        self._batches: list[dict[str, Tensor]] = []
        self._checked = False
        self._window = Window()
        self._buffers: list[Tensor] = []
        self._abandoned = False
        self._skipped_in_a_row = 0
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
            worker_init_fn=heed_only_parent,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=workers > 0,  # what a worker keeps in memory is lost with it
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Keep the step's micro-batches: both passes go over all of them. None are left after the last step.

        Raises:
            ValueError: if those of the first step do not fit the model, as `check_batch`.
        """
        if self.state.global_step >= self.state.max_steps:  # a finished run was resumed
            self.control.should_training_stop = True
            return [], None
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches = list(batches)
        # Not at construction: items read here would be open when the workers of the loader are forked.
        if not self._checked:
            for batch in batches:
                check_batch(batch, self.model.config)
            self._checked = True
        return batches, num_items_in_batch

    # ---- the two-pass step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """First pass on one micro-batch; after the step's last one, the second pass on all of them.

        In the local scope, both passes on one micro-batch.

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
            self.objective.share_masses(self.model, self._window.first_pass)
        first, full = self._window.next()
        if not self._takes_two_passes:
            loss = self._first_pass(model, first, "total")
        elif self.args.perturbation_scope == "local":
            loss = self._both_passes(model, first, full)
        else:
            loss = self._first_pass(model, first, self.args.ascent_objective)
        if self._window.exhausted:
            self._finish_gradient(model)
        return loss

    @property
    def _takes_two_passes(self) -> bool:
        return self.args.rho > 0 and self.state.global_step % self.args.sam_every == 0

    def _open_window(self, batches: list[dict[str, Tensor]]) -> None:
        # Copies to return to, should this step be abandoned after the running statistics moved.
        self._buffers = [buffer.clone() for buffer in self.model.buffers()]
        full = [MicroBatch(self._step_inputs(self._prepare_inputs(batch))) for batch in batches]
        fraction = self.args.ascent_fraction if self._takes_two_passes else 1.0
        self._window = Window(full, [micro_batch.part(fraction) for micro_batch in full])
        self._batches = []

    def _finish_gradient(self, model: nn.Module) -> None:
        try:
            if self._takes_two_passes and self.args.perturbation_scope == "global":
                self._second_pass(model)
            check_finite_gradient(self.model.parameters())
        except NonFiniteGradientError:
            self._abandon_step()

    def _second_pass(self, model: nn.Module) -> None:
        """Replace the accumulated gradient by the total's gradient at the perturbed weights."""
        micro_batches = self._window.micro_batches
        with self._perturbed_weights():
            self.objective.share_masses(self.model, micro_batches)
            for micro_batch in micro_batches:
                last = micro_batch is micro_batches[-1]
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    self._backward(model, micro_batch, "total")

    def _both_passes(self, model: nn.Module, first: MicroBatch, full: MicroBatch) -> Tensor:
        """Add the total's gradient at weights that this micro-batch alone perturbed, on this process alone."""
        earlier = [parameter.grad for parameter in self.model.parameters()]
        self.model.zero_grad(set_to_none=True)
        with self.accelerator.no_sync(model):
            loss = self._first_pass(model, first, self.args.ascent_objective)
        try:
            with self._perturbed_weights():
                # Before the backward pass, since that sums over processes whatever lies there.
                self._put_gradients(earlier)
                self._backward(model, full, "total")
        except NonFiniteGradientError:
            # The other processes do not know, and wait for a gradient: one that makes all of them abandon the step.
            self.meters.update({"perturbation_norm": loss.new_zeros(())})  # all processes log the same names
            self._put_gradients(earlier)
            self._backward(model, full, "total", factor=math.nan)
        return loss

    def _put_gradients(self, gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient

    @contextlib.contextmanager
    def _perturbed_weights(self) -> Iterator[None]:
        args = self.args
        perturbation = perturbed_parameters(
            self.model.parameters(), args.rho, adaptive=args.adaptive, eta=args.adaptive_eta
        )
        with perturbation as length, frozen_running_statistics(self.model):
            self.meters.update({"perturbation_norm": length})
            yield

    def _first_pass(self, model: nn.Module, batch: MicroBatch, objective: str) -> Tensor:
        """Add the gradient at the unperturbed weights, and measure; returns the total loss, its share of the step."""
        logits, terms = self._backward(model, batch, objective)
        self.meters.update(terms.detached() | batch.inputs.measurements(logits[1]))
        self.collapse_alarm.observe(batch.inputs, logits[0])
        self.objective.observe(logits, len(self._window.micro_batches))
        return terms.total(*self._term_weights).detach() * self._window.share

    def _backward(
        self, model: nn.Module, batch: MicroBatch, objective: str, factor: float = 1.0
    ) -> tuple[Logits, LossTerms]:
        """Add the gradient of one micro-batch's share of the objective, times a factor."""
        logits = self.objective.logits(model, batch)
        terms = self._loss_terms(batch, logits)
        # A loss or a running statistic that is not finite spoils the gradient, which may be finite itself: every
        # process learns of it from the gradient that they share.
        total = terms.total(*self._term_weights).detach()
        finite = torch.isfinite(total) & finite_buffers(self.model)
        spoiled = torch.where(finite, 1.0, math.nan).to(total.dtype)
        self.accelerator.backward(
            terms.ascent(objective, *self._term_weights) * (self._window.share * factor) * spoiled
        )
        return logits, terms

    def _loss_terms(self, batch: MicroBatch, logits: Logits) -> LossTerms:
        return self.objective.terms(logits, batch, len(self._window.micro_batches))

    @property
    def _term_weights(self) -> tuple[float, float]:
        return self.objective.weights(self.state.global_step, self.state.max_steps)

    def _abandon_step(self) -> None:
        """Leave weights, optimizer, running statistics and teacher as they were before this step."""
        self._abandoned = True
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self.is_world_process_zero() and self.skipped_steps & (self.skipped_steps - 1) == 0:  # 1, 2, 4, 8, ...
            logger.warning(
                "step %d was abandoned, a loss, gradient or running statistic is not finite (%d so far): an image may "
                "hold extreme values (`dim-hf doctor`), or learning_rate be too large",
                self.state.global_step + 1, self.skipped_steps,
            )  # fmt: skip
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW and self.accelerator.scaler is None:
            raise ValueError(
                f"{self._skipped_in_a_row} steps in a row gave values that are not finite: nothing is learned any "
                "more. Lower learning_rate, or look for faulty images by `dim-hf doctor`"
            )
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
        self.objective.discard()

    def share_teacher(self) -> None:
        """Give all processes the first one's teacher, as DDP does with the student."""
        if self.args.world_size > 1:
            for tensor in self.teacher.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def finish_optimizer_step(self) -> None:
        """After the optimizer: teacher, critic and memory follow, unless the step was abandoned."""
        stepped = not (self._abandoned or self.accelerator.optimizer_step_was_skipped)
        if stepped:
            self._skipped_in_a_row = 0
            average_running_statistics(self.model)
            self.follow_student()
            self.objective.step(self._mean_over_processes)
        else:
            self.objective.discard()
        self._abandoned = False
        self._buffers = []
        self.collapse_alarm.step_done(self.state.global_step + 1)

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    # ---- views and the teacher's predictions

    @torch.no_grad()
    def _step_inputs(self, inputs: dict[str, Tensor]) -> StepInputs:
        """Everything that both passes share: views, mixing boxes, pseudo-labels."""
        if is_half_resolution(self.state.global_step, self.state.max_steps, self.args.half_resolution_ratio):
            inputs = at_half_resolution(inputs)
        views = self.views
        if is_weak_view_step(self.state.global_step, self.state.max_steps, self.args.weak_view_ratio):
            views = views.without_intensities()
        return views.make(inputs, self.pseudo_labeler)

    # ---- checkpoints

    def training_summary(self) -> dict[str, Any]:
        """What `TeacherStudentTrainer` says, and the warnings of the run."""
        return super().training_summary() | {"warnings": self.collapse_alarm.messages}

    def _recall(self, summary: dict[str, Any]) -> None:
        super()._recall(summary)
        self.collapse_alarm.messages = list(summary.get("warnings", []))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.objective.save(Path(output_dir or self.args.output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.objective.load(Path(checkpoint))


def _refuse_short_weights(model: PreTrainedModel) -> None:
    """In bf16 or fp16, what a teacher follows by and what a perturbation moves are lost in rounding."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize < 4:
            raise ValueError(
                f"the weights {name} are {parameter.dtype}: load the model with dtype=torch.float32, and set "
                "bf16=True or fp16=True to compute in that precision"
            )
