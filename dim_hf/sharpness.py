"""Sharpness-aware ascent: perturb the weights, and put everything back exactly.

The three undoable states of the two-pass step are context managers: the perturbed weights
(`perturbed_parameters`), the running statistics of normalisation layers
(`frozen_running_statistics`), and the random state that dropout draws from (`RandomState`).
Sources: SAM, arXiv 2010.01412, eq. 2-3 and Algorithm 1; ASAM, arXiv 2102.11600, eq. 6-8.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ASCENT_OBJECTIVES = ("total", "supervised", "divergence")


class NonFiniteGradientError(ArithmeticError):
    """A gradient holds an infinity or NaN: the step has to be abandoned."""


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all tensors seen as one vector, in float32 at least.

    Args:
        tensors: tensors of any shapes on one device; may be empty.

    Returns:
        A scalar tensor; zero for an empty collection.
    """
    tensors = list(tensors)
    if not tensors:
        return torch.zeros(())
    accumulate_in = torch.promote_types(tensors[0].dtype, torch.float32)
    norms = torch._foreach_norm(tensors, 2, dtype=accumulate_in)
    return torch.linalg.vector_norm(torch.stack(norms))


def check_finite_gradient(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse an accumulated gradient that holds an infinity or NaN.

    Args:
        parameters: weights whose `.grad` is looked at; those without one count as zero.

    Raises:
        NonFiniteGradientError: if any gradient is not finite.
    """
    # Elementwise, not by the norm: finite gradients can overflow the sum of their squares.
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients, float("inf")))).all():
        raise NonFiniteGradientError("the gradient holds an infinity or NaN")


def turn_into_perturbation(
    gradients: list[Tensor], parameters: list[Tensor], rho: float, *, adaptive: bool = False, eta: float = 0.01
) -> Tensor:
    """Turn a gradient, in its own memory, into the first-order worst direction within radius ρ around the weights.

    SAM: ε = ρ g / ‖g‖₂ (arXiv 2010.01412, eq. 2). ASAM: ε = ρ T² g / ‖T g‖₂ with the
    elementwise operator T = |θ| + η (arXiv 2102.11600, eq. 8). Both are unchanged when g is
    multiplied by a positive number, so a gradient scaler's factor need not be removed first.

    Args:
        gradients: g, the gradient of the ascent objective at θ; overwritten by ε, one tensor for each weight: zero
            where the gradient is zero everywhere (a flat point has no worst direction), not finite where it is not.
        parameters: weights θ, of the same shapes; read by ASAM only.
        rho: radius ρ > 0 of the neighbourhood, in the units of the weights (SAM) or relative to
            them (ASAM).
        adaptive: ASAM instead of SAM.
        eta: η ≥ 0 of ASAM: keeps weights near zero movable.

    Returns:
        ‖ε‖₂, a scalar tensor.
    """
    operators = torch._foreach_add(torch._foreach_abs(parameters), eta) if adaptive else None
    if adaptive:
        torch._foreach_mul_(gradients, operators)
    norm = global_norm(gradients)
    if adaptive:
        torch._foreach_mul_(gradients, operators)
    # A tensor factor keeps the step free of a device-to-host copy.
    factor = torch.where(norm == 0, torch.zeros_like(norm), rho / norm)
    torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    return global_norm(gradients) if adaptive else factor * norm


@contextmanager
def perturbed_parameters(
    parameters: Iterable[nn.Parameter], rho: float, *, adaptive: bool = False, eta: float = 0.01
) -> Iterator[Tensor]:
    """Move the weights to θ + ε inside the block and back to exactly θ after it.

    The gradient of the ascent objective is taken from `.grad` on entry (its memory becomes the perturbation and is
    then freed), so that the block's backward pass leaves the gradient at θ + ε alone. The weights come back from a
    saved copy, also when the block raises: adding and then subtracting ε would not return the same bits.

    Args:
        parameters: the weights to perturb; those without a gradient stay where they are.
        rho: radius ρ > 0.
        adaptive: ASAM instead of SAM.
        eta: η of ASAM.

    Yields:
        ‖ε‖₂, the length of the perturbation, as a scalar tensor.

    Raises:
        ValueError: if `rho` is not positive or no parameter has a gradient.
        NonFiniteGradientError: if the ascent gradient is not finite; weights and gradient are
            then left as they were.
    """
    if not rho > 0:
        raise ValueError(f"rho must be positive to perturb the weights, got {rho}; with rho = 0 take the plain step")
    with_gradient = [p for p in parameters if p.grad is not None]
    if not with_gradient:
        raise ValueError("no parameter has a gradient: run the ascent pass's backward first")
    check_finite_gradient(with_gradient)
    weights = [p.detach() for p in with_gradient]
    gradients = [p.grad for p in with_gradient]
    length = turn_into_perturbation(gradients, weights, rho, adaptive=adaptive, eta=eta)
    # The one copy that a sharpness-aware step costs: the perturbation lies where the gradient lay.
    saved = torch._foreach_clone(weights)
    try:
        torch._foreach_add_(weights, gradients)
        del gradients
        for p in with_gradient:
            p.grad = None
        yield length
    finally:
        torch._foreach_copy_(weights, saved)


@contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running means and variances still while normalisation goes on by batch statistics.

    The second pass of a two-pass step sees the same batch at perturbed weights; its statistics
    must not enter the averages that evaluation uses. `momentum` is not set to zero for this:
    layers with `momentum=None` (cumulative averages) would ignore it, and `num_batches_tracked`
    would still count.

    Args:
        model: any module; layers with `track_running_stats` are looked for in it.

    Yields:
        Nothing; `track_running_stats` and the buffers are back afterwards, whatever happened.
    """
    # A layer in evaluation mode normalises by its running statistics and does not move them: left alone.
    layers = [m for m in model.modules() if m.training and getattr(m, "track_running_stats", False)]
    buffers = [(m, dict(m._buffers)) for m in layers]
    try:
        for layer in layers:
            # Batch normalisation asks the flag, instance normalisation asks whether there are buffers.
            layer.track_running_stats = False
            for name in layer._buffers:
                layer._buffers[name] = None
        yield
    finally:
        for layer, saved in buffers:
            layer.track_running_stats = True
            layer._buffers.update(saved)


@dataclass(frozen=True)
class RandomState:
    """The state of the random generators that a forward pass draws from (dropout, drop path)."""

    cpu: Tensor
    device: torch.device
    accelerator: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> "RandomState":
        """Read the CPU's state and, on a GPU, that device's."""
        accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, accelerator)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw again what was drawn from the captured state on; afterwards, go on as if nothing had been drawn."""
        devices = [self.device] if self.accelerator is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.accelerator is not None:
                torch.cuda.set_rng_state(self.accelerator, self.device)
            yield
