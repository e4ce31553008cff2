"""The teacher: an exponential moving average of the student's parameters and buffers.

Source: Mean Teacher, arXiv 1703.01780, section 3.
"""

import copy

import torch
from torch import nn

TEACHER_BUFFERS = ("averaged", "copied")


def ema_decay_at(step: int, decay: float) -> float:
    """Weight of the OLD value at an optimizer step: a_t = min(1 - 1/(t + 1), a).

    The warm-up makes the first averages follow the student closely: a_0 = 0 copies it.

    Args:
        step: t ≥ 0, the number of the optimizer step.
        decay: a in [0, 1), the weight of the old value in the long run.

    Returns:
        a_t in [0, decay].

    >>> [ema_decay_at(t, 0.99) for t in (0, 1, 3, 10_000)]
    [0.0, 0.5, 0.75, 0.99]
    """
    return min(1 - 1 / (step + 1), decay)


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of the student that takes no gradient and starts in evaluation mode."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float, buffers: str = "averaged") -> None:
    """θ' ← a θ' + (1 - a) θ, in place, for parameters; buffers as asked.

    Args:
        teacher: the module to move, of the student's architecture.
        student: the module to follow; its weights must be unperturbed.
        decay: a in [0, 1], the weight of the old value.
        buffers: what becomes of floating-point buffers (running means and variances): `averaged`
            like the parameters, or `copied` from the student. Integer buffers (counters) are
            always copied: an average of counters counts nothing.

    Raises:
        ValueError: if `buffers` is unknown or the two modules differ in structure.
    """
    if buffers not in TEACHER_BUFFERS:
        raise ValueError(f"buffers must be one of {', '.join(TEACHER_BUFFERS)}, got {buffers!r}")
    old, new = list(teacher.parameters()), list(student.parameters())
    pairs = list(zip(teacher.buffers(), student.buffers(), strict=True))
    averaged = [pair for pair in pairs if buffers == "averaged" and pair[0].is_floating_point()]
    copied = [pair for pair in pairs if not (buffers == "averaged" and pair[0].is_floating_point())]
    old += [pair[0] for pair in averaged]
    new += [pair[1] for pair in averaged]
    if len(old) != len(new):
        raise ValueError(f"teacher and student differ: {len(old)} against {len(new)} tensors")
    torch._foreach_lerp_(old, new, 1 - decay)
    for target, source in copied:
        target.copy_(source)
