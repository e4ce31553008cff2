"""The alarm for pseudo-labels that have become one class everywhere in a domain."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dim_hf.trainer.views import StepInputs

logger = logging.getLogger(__name__)

WINDOW = 25  # optimizer steps whose shares are looked at together
FEW = 0.02  # of the share that the labeled masks have: a domain below it has lost the class
PATIENCE = 2  # windows in a row
SLOW_START = 100  # steps by which the student should have found something on its labeled images

_ADVICE = (
    "Try a longer rampup_ratio, a smaller consistency_weight, labeled_view=strong, cutmix_probability=0.5 or "
    "teacher_statistics=batch, and compare the domain with the others by `dim-hf doctor`: where it truly holds "
    "nothing of what is labeled, leave it out"
)


class CollapseAlarm:
    """Warns of a domain whose pseudo-labels are almost all background, or almost all foreground.

    Pseudo-labels teach the student to make the same pseudo-labels: a domain that has lost a class does not find it
    again, and no loss tells, since agreement is perfect. The alarm compares the share of foreground among the
    teacher's predictions with that among the labeled masks, as soon as the student has learned the labeled images.

    Args:
        domains: domain of each unlabeled image; None for one nameless domain.
        sum_over_processes: the sum of a tensor over all processes; all of them call it at the same steps.

    Attributes:
        messages: the warnings given so far.
    """

    def __init__(self, domains: Sequence[str] | None, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        self.names = list(dict.fromkeys(domains)) if domains else ["unlabeled images"]
        number = {name: index for index, name in enumerate(self.names)}
        self._codes = torch.tensor([number[name] for name in domains]) if domains else None
        self._sum_over_processes = sum_over_processes
        self._sums: Tensor | None = None
        self._windows = dict.fromkeys(self.names, 0)
        self.messages: list[str] = []

    @torch.no_grad()
    def observe(self, inputs: StepInputs, labeled_logits: Tensor) -> None:
        """Add one micro-batch's pixels to the counts."""
        if inputs.pseudo_labels is None:
            return
        if self._sums is None:
            self._sums = labeled_logits.new_zeros(2 + len(self.names), 2, dtype=torch.int64)
        for row, classes in enumerate((inputs.labels, labeled_logits.argmax(dim=1))):
            self._sums[row] += _counts(classes).sum(0)
        codes = torch.zeros(len(inputs.pseudo_labels), dtype=torch.long)
        if self._codes is not None:
            codes = self._codes[inputs.unlabeled_indices.cpu()]
        self._sums.index_add_(0, 2 + codes.to(self._sums.device), _counts(inputs.pseudo_labels))

    def step_done(self, step: int) -> None:
        """After `step` optimizer steps: at the end of a window, look at its counts and warn."""
        if self._sums is None or step % WINDOW:
            return
        counts = self._sum_over_processes(self._sums).cpu().double()
        self._sums = torch.zeros_like(self._sums)
        # Shares of background and foreground: of the masks, of the student on the same images, of each domain.
        labeled, student, *domains = (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
        lost_at_home = _lost(student, labeled)
        if lost_at_home and step >= SLOW_START and not self.messages:
            self._warn(
                f"after {step} steps the student predicts almost only {lost_at_home} on its labeled images as well. "
                "Try another learning_rate, or compare masks and class names by `dim-hf doctor`"
            )
        for name, shares in zip(self.names, domains, strict=True):
            lost = _lost(shares, labeled) if sum(shares) and not lost_at_home else None
            self._windows[name] = self._windows[name] + 1 if lost else 0
            if self._windows[name] == PATIENCE:
                self._warn(
                    f"step {step}: the pseudo-labels of domain {name!r} are almost only {lost} ({shares[1]:.2%} "
                    f"foreground, {labeled[1]:.2%} in the labeled masks). {_ADVICE}"
                )

    def _warn(self, message: str) -> None:
        self.messages.append(message)
        logger.warning(message)


def _counts(classes: Tensor) -> Tensor:
    """Pixels of background and of foreground of each image, (N, 2); ignored ones (255) are neither."""
    classes = classes.flatten(1)
    return torch.stack([(classes == 0).sum(1), ((classes > 0) & (classes != 255)).sum(1)], dim=1)


def _lost(shares: list[float], expected: list[float]) -> str | None:
    """What remains where background or foreground has fallen far below its expected share."""
    for index, remaining in ((1, "background"), (0, "foreground")):
        if shares[index] < FEW * expected[index]:
            return remaining
    return None
