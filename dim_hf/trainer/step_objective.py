"""The objective of one micro-batch: a forward pass of the student, and the terms of the loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from dim_hf.divergences import get_f_divergence
from dim_hf.losses import LossTerms, consistency_loss, ramp_up, resize_logits, supervised_loss
from dim_hf.sharpness import frozen_running_statistics
from dim_hf.trainer.critic_training import CriticTraining
from dim_hf.trainer.dim_training_args import DimTrainingArguments
from dim_hf.trainer.mass_memory import MassMemory
from dim_hf.trainer.window import ClosedFormDivergence, Logits, MicroBatch, set_rests


class StepObjective:
    """L = L_sup + λ_con w(t) L_con + λ_div w(t) L_div of the micro-batches of a step.

    In the global scope a divergence of means is that of the whole step: of all its micro-batches on all processes.
    In the local scope it is each micro-batch's own.

    Args:
        args: the training arguments.
        num_labels: K, channels of the logits.
        autocast: makes the context that forward passes run in.
        sum_over_processes: the sum of a tensor over all processes.

    Attributes:
        critic: of the variational estimator, with its training; None without.
        closed_form: the estimator from class masses; None without.
        memory: class masses of earlier steps for that estimator; None without.
    """

    def __init__(
        self,
        args: DimTrainingArguments,
        num_labels: int,
        autocast: Callable[[], AbstractContextManager],
        sum_over_processes: Callable[[Tensor], Tensor],
    ) -> None:
        self.args = args
        self._autocast = autocast
        self._sum_over_processes = sum_over_processes
        self.critic: CriticTraining | None = None
        self.closed_form: ClosedFormDivergence | None = None
        self.memory: MassMemory | None = None
        if args.divergence_weight == 0:
            return
        f_divergence = get_f_divergence(args.f_divergence, args.divergence_alpha)
        if args.divergence_estimator == "variational":
            sizes = (num_labels, args.critic_hidden_size)
            self.critic = CriticTraining(f_divergence, *sizes, args.critic_learning_rate, args.device)
        else:
            grid_size = args.divergence_grid_size if args.divergence_estimator == "regional" else 1
            self.closed_form = ClosedFormDivergence(
                f_divergence, grid_size, args.divergence_estimator == "conditional"
            )
            self.memory = MassMemory(args.divergence_memory) if args.divergence_memory > 0 else None

    def weights(self, step: int, max_steps: int) -> tuple[float, float]:
        """λ_con w(t) and λ_div w(t) at an optimizer step."""
        rise = ramp_up(step, round(self.args.rampup_ratio * max_steps))
        return rise * self.args.consistency_weight, rise * self.args.divergence_weight

    def logits(self, model: nn.Module, batch: MicroBatch) -> Logits:
        """The student's logits on labeled and on unlabeled images, at the label maps' size."""
        inputs = batch.inputs
        dtype = next(model.parameters()).dtype
        with batch.drawing(self.args.device), self._autocast():
            logits = model(pixel_values=inputs.pixel_values.to(dtype)).logits
        return inputs.separate(resize_logits(logits, inputs.labels.shape[1:]))

    def terms(self, logits: Logits, batch: MicroBatch, micro_batches: int) -> LossTerms:
        """The terms of one of a step's micro-batches on this process; those that are off are zero."""
        labeled, unlabeled = logits
        consistency = divergence = labeled.new_zeros(())
        if unlabeled is not None and self.args.consistency_weight > 0:
            consistency = consistency_loss(unlabeled, batch.inputs.pseudo_labels, batch.inputs.pseudo_label_mask)
        if self.critic is not None:
            divergence = self.critic.divergence(labeled, unlabeled)
        elif self.closed_form is not None:
            divergence = self._closed_form_divergence(logits, batch, self._parts(micro_batches))
        return LossTerms(supervised_loss(labeled, batch.inputs.labels), consistency, divergence)

    def _closed_form_divergence(self, logits: Logits, batch: MicroBatch, parts: int) -> Tensor:
        masses = self.closed_form.masses(logits)
        rest = batch.rest if parts > 1 else None
        if parts > 1 and rest is None:  # the only micro-batch of its process
            rest = self._sum_over_processes(masses.detach()) - masses.detach()
        return self.closed_form.value(masses, rest, parts, self.memory)

    def observe(self, logits: Logits, micro_batches: int) -> None:
        """Learn from the first pass on one micro-batch, for what is updated once a step: the critic, the memory.

        Args:
            logits: of the first pass.
            micro_batches: of the step, on this process.
        """
        if self.critic is not None:
            self.critic.accumulate(*logits, 1 / micro_batches)
        if self.memory is not None:
            with torch.no_grad():
                self.memory.accumulate(self.closed_form.masses(logits))

    def step(self, mean_over_processes: Callable[[Tensor], Tensor]) -> None:
        """After the student's step: take in what was observed."""
        if self.critic is not None:
            self.critic.step(mean_over_processes)
        if self.memory is not None:
            self.memory.step(self._sum_over_processes)

    def discard(self) -> None:
        """Forget what was observed in a step that is not taken."""
        for state in (self.critic, self.memory):
            if state is not None:
                state.discard()

    def save(self, folder: Path) -> None:
        """Write what outlives a step into a checkpoint folder."""
        for state in (self.critic, self.memory):
            if state is not None:
                state.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: if the checkpoint is of a run without critic or memory.
        """
        if self.critic is not None:
            self.critic.load(folder)
        if self.memory is not None:
            self.memory.load(folder, self.args.device)

    def _parts(self, micro_batches: int) -> int:
        """Into how many parts the images are divided of which a divergence of means is taken."""
        return 1 if self.args.perturbation_scope == "local" else micro_batches * self.args.world_size

    @torch.no_grad()
    def share_masses(self, model: nn.Module, micro_batches: list[MicroBatch]) -> None:
        """Let each of several micro-batches know the class masses of the others, at the present weights.

        This costs a forward pass without gradient for each: an earlier one cannot wait for the later ones' masses.
        The only micro-batch of a process needs none: its own forward pass tells the others what they need.
        """
        if self.closed_form is None or len(micro_batches) == 1 or self._parts(len(micro_batches)) == 1:
            return
        with frozen_running_statistics(model):
            masses = [self.closed_form.masses(self.logits(model, batch)) for batch in micro_batches]
        set_rests(micro_batches, masses, self._sum_over_processes)
