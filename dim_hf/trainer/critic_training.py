"""The critic of the variational divergence, and its own optimizer."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dim_hf.divergences import Critic, FDivergence, variational_lower_bound

CRITIC_FILE = "critic.safetensors"
OPTIMIZER_FILE = "critic_optimizer.pt"


class CriticTraining:
    """Trains T to raise E_P[T] - E_Q[f*(T)]; the student is given the same bound to lower.

    The critic never takes part in the sharpness perturbation or the teacher: it has its own Adam,
    its gradient comes from the first pass alone, on detached logits.

    Args:
        f_divergence: a divergence with a conjugate.
        num_labels: K, channels of the logits.
        hidden_size: width of the critic.
        learning_rate: of the critic's Adam.
        device: where the logits live.
    """

    def __init__(
        self, f_divergence: FDivergence, num_labels: int, hidden_size: int, learning_rate: float, device: torch.device
    ) -> None:
        self.f_divergence = f_divergence
        self.critic = Critic(num_labels, f_divergence, hidden_size).to(device)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=learning_rate)

    def divergence(self, labeled_logits: Tensor, unlabeled_logits: Tensor) -> Tensor:
        """The bound as the student's loss: a gradient for the logits, none for the critic."""
        self.critic.requires_grad_(False)
        try:
            return self._bound(labeled_logits, unlabeled_logits)
        finally:
            self.critic.requires_grad_(True)

    def accumulate(self, labeled_logits: Tensor, unlabeled_logits: Tensor, share: float) -> None:
        """Add this micro-batch's gradient of the critic's own loss, weighted by its share of the step."""
        loss = -self._bound(labeled_logits.detach(), unlabeled_logits.detach())
        (loss * share).backward()

    def step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """One step of the critic from the accumulated gradient, averaged over processes by `reduce`."""
        for parameter in self.critic.parameters():
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad)
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Forget the accumulated gradient."""
        self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into a checkpoint folder."""
        save_file(self.critic.state_dict(), folder / CRITIC_FILE)
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the optimizer state is read without running code from it.

        Raises:
            ValueError: if the checkpoint is of a run without a critic.
        """
        if not (folder / CRITIC_FILE).is_file():
            raise ValueError(
                f"{folder} has no {CRITIC_FILE}: that run had no critic, so go on with its divergence_estimator"
            )
        self.critic.load_state_dict(load_file(folder / CRITIC_FILE))
        # By way of the CPU: the device that it was saved from may not be there.
        state = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state)

    def _bound(self, labeled_logits: Tensor, unlabeled_logits: Tensor) -> Tensor:
        return variational_lower_bound(self.f_divergence, self.critic(labeled_logits), self.critic(unlabeled_logits))
