"""Class masses of earlier steps, which the divergence of this step's images is taken with."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MEMORY_FILE = "divergence_memory.safetensors"


class MassMemory:
    """A decaying sum of what the labeled and the unlabeled images of earlier steps were predicted as.

    The mean class shares of a few labeled images differ from those of a few unlabeled ones for no other reason than
    that they are few, and a divergence between them presses all images towards one size. With the masses of earlier
    steps added to both sides, the means are over many images, and what is left is the difference between the sites.
    Ours. The masses are those of the first pass; they carry no gradient, and both passes of a step see the same.

    Args:
        decay: β in [0, 1), weight of a step's masses one step later: they add up to 1/(1 - β) steps in the long run.

    Attributes:
        masses: (2, cells, classes), labeled and unlabeled, of all processes; None before the first step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.masses: Tensor | None = None
        self._new: list[Tensor] = []

    def accumulate(self, masses: Tensor) -> None:
        """Note the masses of one micro-batch of this step.

        Args:
            masses: (2, cells, classes).
        """
        self._new.append(masses.detach())

    def step(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Take in what was noted, by all processes, and let it and the rest decay by one step."""
        if not self._new:
            return
        masses = sum_over_processes(torch.stack(self._new).sum(0))
        if self.masses is not None:
            masses = masses + self.masses
        self.masses = self.decay * masses
        self.discard()

    def discard(self) -> None:
        """Forget what was noted in this step."""
        self._new = []

    def save(self, folder: Path) -> None:
        """Write the masses into a checkpoint folder; before the first step a file without any."""
        save_file({} if self.masses is None else {"masses": self.masses.cpu()}, folder / MEMORY_FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: if the checkpoint is of a run without memory.
        """
        if not (folder / MEMORY_FILE).is_file():
            raise ValueError(
                f"{folder} has no {MEMORY_FILE}: that run had no memory of class masses, so go on with its "
                "divergence_estimator and divergence_memory=0"
            )
        masses = load_file(folder / MEMORY_FILE).get("masses")
        self.masses = None if masses is None else masses.to(device)
