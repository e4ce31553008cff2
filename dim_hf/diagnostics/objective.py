"""A loss as a function of a model's weights: its value, gradient and Hessian-vector product at and around them.

Every measure of the landscape rests on these. The images are fixed and the model is in evaluation mode (running
statistics, no dropout), so that the loss is a deterministic function of the weights: the one that inference sees, not
the one of a training step, whose batch statistics move with the weights.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dim_hf.data.texts import first_line
from dim_hf.losses import resize_logits, supervised_loss


class SecondDerivativeError(ValueError):
    """An operation of the model has no second derivative in torch."""


@contextmanager
def displaced_parameters(parameters: Iterable[Tensor], displacement: Sequence[Tensor]) -> Iterator[None]:
    """Move the weights to θ + d inside the block and back to exactly θ after it, also when the block raises.

    `dim_hf.sharpness.perturbed_parameters` does the same for the perturbation that a gradient gives; here it is any.

    Args:
        parameters: weights θ.
        displacement: d, one tensor of the same shape for each weight.
    """
    weights = [parameter.detach() for parameter in parameters]
    saved = torch._foreach_clone(weights)
    try:
        torch._foreach_add_(weights, list(displacement))
        yield
    finally:
        torch._foreach_copy_(weights, saved)


@dataclass(frozen=True)
class Objective:
    """Σ_b w_b L_b(θ): a loss over fixed batches, as a function of the weights.

    Attributes:
        parameters: the weights θ, those that require a gradient.
        batches: the parts (w_b, L_b); calling L_b gives a scalar with a graph, the same for the same weights.
    """

    parameters: tuple[nn.Parameter, ...]
    batches: tuple[tuple[float, Callable[[], Tensor]], ...]

    def __post_init__(self) -> None:
        """Refuse what has nothing to differentiate."""
        if not self.parameters or not self.batches:
            raise ValueError("an objective needs a parameter that requires a gradient and at least one batch")

    @torch.no_grad()
    def value(self) -> float:
        """L(θ)."""
        return math.fsum(weight * loss().item() for weight, loss in self.batches)

    def value_at(self, displacement: Sequence[Tensor]) -> float:
        """L(θ + d); the weights are back, bit for bit, afterwards."""
        with displaced_parameters(self.parameters, displacement):
            return self.value()

    def value_and_gradient(self) -> tuple[float, list[Tensor]]:
        """L(θ), and its gradient, zero for weights that have no part in it; no `.grad` is touched."""
        total, gradient = 0.0, [torch.zeros_like(parameter) for parameter in self.parameters]
        for weight, batch in self.batches:
            loss = batch()
            total += weight * loss.item()
            _add(gradient, weight, torch.autograd.grad(loss, self.parameters, allow_unused=True))
        return total, gradient

    def value_and_gradient_at(self, displacement: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """L(θ + d) and its gradient there; the weights are back afterwards."""
        with displaced_parameters(self.parameters, displacement):
            return self.value_and_gradient()

    def hessian_vector_product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """H v by differentiating gᵀv once more (Pearlmutter, Neural Computation 6(1), 1994).

        Where the model is piecewise linear (ReLU, max pooling) this is the Hessian of the piece that θ lies in.

        Args:
            vector: v, one tensor for each weight.

        Raises:
            SecondDerivativeError: if an operation cannot be differentiated twice.
        """
        product = [torch.zeros_like(parameter) for parameter in self.parameters]
        # The fused kernels of attention have no second derivative, the plain one has.
        with sdpa_kernel(SDPBackend.MATH):
            for weight, batch in self.batches:
                _add(product, weight, _differentiated_twice(batch(), self.parameters, vector))
        return product


def _add(total: list[Tensor], weight: float, terms: Sequence[Tensor | None]) -> None:
    for one, term in zip(total, terms, strict=True):
        if term is not None:
            one.add_(term.detach(), alpha=weight)


def _differentiated_twice(
    loss: Tensor, parameters: Sequence[Tensor], vector: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    try:
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        # The loss is linear in a weight whose gradient has no graph.
        pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return [None] * len(vector)
        slopes, vectors = zip(*pairs, strict=True)
        if _holds_error(slopes):
            raise NotImplementedError("one of its operations is marked as differentiable once")
        return torch.autograd.grad(slopes, parameters, grad_outputs=vectors, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or "not implemented" in str(error):
            raise SecondDerivativeError(
                f"the model cannot be differentiated twice, as the Hessian needs: {first_line(error)}; "
                "load it with plain operations (for attention: attn_implementation='eager')"
            ) from error
        raise


def _holds_error(tensors: Sequence[Tensor]) -> bool:
    """Whether the graph has a node that torch puts where a function refuses a second derivative.

    Such a node leads to no weight, so that torch would pass it over as unused and give zeros without a word.
    """
    seen, waiting = set(), [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            return True
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return False


def resized_logits(model: nn.Module, pixel_values: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (N, K, *S), float32 at least, interpolated to `size` where the model predicts at another resolution."""
    return resize_logits(model(pixel_values=pixel_values).logits, tuple(size))


def segmentation_objective(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Objective:
    """Supervised loss (cross-entropy + soft Dice) on labeled images, mean over all images.

    Args:
        model: a semantic-segmentation model of transformers, already in evaluation mode.
        batches: `pixel_values` (N, C, *S) and `labels` (N, *S) with classes 0..K-1 or 255, on the model's device.

    Raises:
        ValueError: if there is no batch, or the model has no weight that requires a gradient.
    """
    images = sum(len(batch["labels"]) for batch in batches)

    def part(batch: Mapping[str, Tensor]) -> tuple[float, Callable[[], Tensor]]:
        labels = batch["labels"]
        return len(labels) / images, lambda: supervised_loss(
            resized_logits(model, batch["pixel_values"], labels.shape[1:]), labels
        )

    parameters = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    return Objective(parameters, tuple(part(batch) for batch in batches))
