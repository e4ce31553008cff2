"""The variational estimator: a critic T, and the lower bound of a divergence that it raises."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dim_hf.divergences.class_masses import at_least_float32
from dim_hf.divergences.generators import ElementwiseFunction, FDivergence

# exp(-12) is fifty times float32's spacing at 1: nearer to the end of its domain a conjugate loses its digits.
LOG_RATIO_LIMIT = 6.0


def _conjugate_of(f_divergence: FDivergence) -> ElementwiseFunction:
    if f_divergence.conjugate is None:
        raise ValueError(
            f"the variational estimator needs a conjugate, which f_divergence {f_divergence.name!r} lacks; choose "
            "another, such as 'kl' or 'jensen_shannon', or the estimator 'marginal' or 'regional'"
        )
    return f_divergence.conjugate


class Critic(nn.Module):
    """Critic T of the variational bound: a small network applied to each pixel's class probabilities.

    Its input is softmax(logits): logits are defined up to a constant only, log-probabilities have no lower bound. Its
    output v estimates log(dP/dQ), is held softly within ± `LOG_RATIO_LIMIT`, and becomes T = f'(exp(v)), the optimal
    critic's form: the activation of f-GAN, Table 2, for reverse KL and Jensen-Shannon, up to a shift for KL, up to the
    scale of v for Neyman χ² and Hellinger. Total variation's step is smoothed as there, to ½ tanh(v).

    Args:
        num_labels: K.
        f_divergence: Which divergence; its conjugate must be known.
        hidden_size: Width of the two hidden layers.
        seed: Of the initial weights, which leave torch's global random state untouched.

    Raises:
        ValueError: If the divergence has no conjugate, or logits of another shape are given.

    Examples:
        >>> from dim_hf.divergences import F_DIVERGENCES
        >>> critic = Critic(num_labels=3, f_divergence=F_DIVERGENCES["jensen_shannon"])
        >>> critic(torch.zeros(2, 3, 4, 5)).shape, critic(torch.zeros(2, 3, 4, 5, 6)).shape
        (torch.Size([2, 4, 5]), torch.Size([2, 4, 5, 6]))
    """

    def __init__(self, num_labels: int, f_divergence: FDivergence, hidden_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        _conjugate_of(f_divergence)
        self.num_labels = num_labels
        self.f_divergence = f_divergence
        sizes = (num_labels, hidden_size, hidden_size, 1)
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, *pair) for pair in pairwise(sizes))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, logits: Tensor) -> Tensor:
        """Return T (N, *S) of logits (N, K, *S), in the conjugate's domain and the weights' type (autocast or not)."""
        if logits.ndim < 2 or logits.shape[1] != self.num_labels:
            raise ValueError(f"logits must have shape (N, {self.num_labels}, *S), got {tuple(logits.shape)}")
        with torch.autocast(logits.device.type, enabled=False):
            hidden = logits.to(self.layers[0].weight.dtype).softmax(1).movedim(1, -1)
            for layer in self.layers[:-1]:
                hidden = F.silu(layer(hidden))
            log_ratio = LOG_RATIO_LIMIT * torch.tanh(self.layers[-1](hidden).squeeze(-1) / LOG_RATIO_LIMIT)
            activation = self.f_divergence.activation or (lambda v: self.f_divergence.derivative(v.exp()))
            return activation(log_ratio)


def variational_lower_bound(f_divergence: FDivergence, critic_p: Tensor, critic_q: Tensor) -> Tensor:
    """Return E_P[T] - E_Q[f*(T)], a scalar that no T raises above D_f(P || Q) (Nguyen, Wainwright and Jordan).

    T = f'(dP/dQ) reaches it; a poor T may go below 0. The critic is trained to raise, the student to lower it.

    Args:
        f_divergence: Which divergence; its conjugate must be known.
        critic_p: T on samples of P (labeled), in the conjugate's domain; ``critic(logits)[mask]`` leaves pixels out.
        critic_q: T on samples of Q (unlabeled).

    Raises:
        ValueError: If the divergence has no conjugate, or a side has no sample.

    Examples:
        >>> from dim_hf.divergences import F_DIVERGENCES
        >>> variational_lower_bound(F_DIVERGENCES["pearson_chi2"], torch.zeros(4), torch.zeros(4))
        tensor(0.)
    """
    conjugate = _conjugate_of(f_divergence)
    if not critic_p.numel() or not critic_q.numel():
        raise ValueError("the variational bound needs a pixel or more on both sides; a mask left none")
    return at_least_float32(critic_p).mean() - conjugate(at_least_float32(critic_q)).mean()
