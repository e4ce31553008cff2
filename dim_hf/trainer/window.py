"""The micro-batches of one optimizer step, kept so that both passes see the same."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dim_hf.divergences import FDivergence, conditional_mass, divergence_between_masses, regional_mass
from dim_hf.sharpness import RandomState
from dim_hf.trainer.mass_memory import MassMemory
from dim_hf.trainer.views import StepInputs

# Logits of one micro-batch: labeled (N, K, *S), unlabeled (M, K, *S) or None.
Logits = tuple[Tensor, Tensor | None]


@dataclass
class MicroBatch:
    """One micro-batch of a step.

    Attributes:
        inputs: what its forward passes need.
        randomness: what its first forward pass draws dropout from; the later ones draw the same.
        rest: class masses (2, cells, classes) of all other micro-batches and processes of the step
            at the present weights, where there are any.
    """

    inputs: StepInputs
    randomness: RandomState | None = None
    rest: Tensor | None = None

    def part(self, fraction: float) -> "MicroBatch":
        """The first images of each stream, with draws of their own; itself for the whole."""
        return self if fraction == 1 else MicroBatch(self.inputs.part(fraction))

    @contextmanager
    def drawing(self, device: torch.device) -> Iterator[None]:
        """Draw dropout masks once; replay them in every later forward pass."""
        replay = self.randomness is not None
        if not replay:
            self.randomness = RandomState.capture(device)
        with self.randomness.replayed() if replay else nullcontext():
            yield


@dataclass(frozen=True)
class ClosedFormDivergence:
    """D_f between the mean class probabilities of the WHOLE step's labeled and unlabeled images.

    A divergence of means is not a mean of divergences: micro-batches and processes each see a part,
    and averaging their divergences would be another objective than that of one large batch. The
    masses add up, however. So D is taken of the sum of all masses, of which only the micro-batch's
    own carry a gradient; those gradients add up to the gradient of the large batch.

    Attributes:
        f_divergence: which divergence.
        grid_size: G, regions along each axis; 1 is the `marginal` estimator.
        conditional: whether the masses are those of the `conditional` estimator, which has no grid.
    """

    f_divergence: FDivergence
    grid_size: int = 1
    conditional: bool = False

    def masses(self, logits: Logits) -> Tensor:
        """Class masses of one micro-batch, (2, cells, classes): labeled, unlabeled."""
        if self.conditional:
            return torch.stack([conditional_mass(side) for side in logits])
        return torch.stack([regional_mass(side, self.grid_size) for side in logits])

    def value(
        self,
        masses: Tensor,
        rest: Tensor | None = None,
        parts: int = 1,
        memory: MassMemory | None = None,
    ) -> Tensor:
        """D of the whole step, with this micro-batch's part of the gradient.

        With a memory, D of this step's and the remembered images. The gradient is that which the images of this step
        would have if those of the memory changed with them: otherwise a long memory would leave none of it.

        Args:
            masses: of this micro-batch.
            rest: masses of all others at the same weights, or None where there is no other.
            parts: micro-batches times processes, by which the gradient will be divided later.
            memory: masses of earlier steps.
        """
        others = [] if rest is None else [rest]
        factor = parts
        if memory is not None and memory.masses is not None:
            others.append(memory.masses)
            # By pixels of each side, whatever the resolution and the share of the images that the first pass sees.
            factor = parts + memory.masses.sum((1, 2), keepdim=True) / masses.detach().sum((1, 2), keepdim=True)
        if others:
            own = masses.detach()
            masses = sum(others, own) + factor * (masses - own)
        return divergence_between_masses(masses[0], masses[1], self.f_divergence)


@dataclass
class Window:
    """The micro-batches of one optimizer step on this process.

    Attributes:
        micro_batches: all of their images, in the order of their forward passes.
        first_pass: what the first pass sees of each; the very same where it sees all.
        taken: how many have had their first pass.
    """

    micro_batches: list[MicroBatch] = field(default_factory=list)
    first_pass: list[MicroBatch] = field(default_factory=list)
    taken: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether a new window is due."""
        return self.taken == len(self.micro_batches)

    @property
    def share(self) -> float:
        """Of one micro-batch in the step's mean loss."""
        return 1 / len(self.micro_batches)

    def next(self) -> tuple[MicroBatch, MicroBatch]:
        """The micro-batch whose first pass is due: what that sees of it, and the whole."""
        self.taken += 1
        return self.first_pass[self.taken - 1], self.micro_batches[self.taken - 1]


def set_rests(
    micro_batches: Sequence[MicroBatch], masses: Sequence[Tensor], sum_over_processes: Callable[[Tensor], Tensor]
) -> None:
    """Tell each micro-batch the masses of all others, from those of each."""
    total = sum_over_processes(torch.stack(list(masses)).sum(0))
    for micro_batch, own in zip(micro_batches, masses, strict=True):
        micro_batch.rest = total - own
