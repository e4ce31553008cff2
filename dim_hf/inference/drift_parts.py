"""The numbers that a drift score is made of, taken along the forward passes that a prediction makes anyway."""

import inspect
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_FEATURES = 64
"""Numbers that the features become: neighboring channels are averaged, which keeps the statistics a small file."""

_MOST_PIXELS = 2**16  # of a channel, evenly spaced, behind its quantiles
_LEAST_SHARE = 0.01  # of the image: an empty prediction has a finite entropy over its size


class DriftMeter:
    """Describes the images of one batch while they are predicted.

    A part that was not seen is left out: features of a network that gives none, or of windows, whose features are
    those of other images; flips of a single pass.

    Args:
        passes: Forward passes of a network for each image: itself, then its mirror images.
        networks: Number of networks that answer: the second is only compared with the first.
    """

    def __init__(self, passes: int = 1, networks: int = 1) -> None:
        self._compares = passes > 1 or networks > 1
        self._passes = passes
        self._seen = [0] * networks
        self._values: dict[str, Tensor] = {}
        self._first: Tensor | None = None
        self._total: Tensor | None = None
        self._entropies: Tensor | None = None

    def see_pixels(self, pixels: Tensor) -> None:
        """(N, C, *S) as the network gets them: the part "intensity"."""
        self._values["intensity"] = intensity(pixels)

    def see_features(self, states: Sequence[Tensor] | None, count: int) -> None:
        """Hidden states of the first pass of the first network: the part "features".

        Args:
            states: As transformers gives them; only the first call counts.
            count: Images of the pass.
        """
        if "features" not in self._values and not self._seen[0]:
            found = pooled_features(states or (), count)
            if found is not None:
                self._values["features"] = found

    def see_logits(self, network: int, logits: Tensor) -> None:
        """Logits (N, K, *S') of one pass, turned back: the parts "entropy", "flips" and "teacher_student".

        Args:
            network: 0 for the one that predicts, 1 for the one it is compared with.
            logits: Of its next pass; the first is that of the image itself.
        """
        is_first = self._seen[network] == 0
        self._seen[network] += 1
        if network and not is_first:
            return
        probabilities = logits.float().softmax(1)
        if network:
            assert self._first is not None
            self._values["teacher_student"] = _mean(_disagreement([self._first, probabilities]))
            return
        spread = torch.special.entr(probabilities).sum(1)
        if is_first:
            foreground = _mean(1 - probabilities[:, 0]) + _LEAST_SHARE
            self._values["entropy"] = (_mean(spread) / foreground + 1e-6).log()
            self._first = probabilities if self._compares else None
        if self._passes > 1:
            # Sums, so that memory does not grow with the number of passes.
            self._total = probabilities if self._total is None else self._total + probabilities
            self._entropies = spread if self._entropies is None else self._entropies + spread
            if self._seen[0] == self._passes:
                assert self._total is not None
                assert self._entropies is not None
                apart = torch.special.entr(self._total / self._passes).sum(1) - self._entropies / self._passes
                self._values["flips"] = _mean(apart.clamp(min=0)) / math.log(min(self._passes, logits.shape[1]))

    def values(self) -> dict[str, np.ndarray]:
        """(N, D) float64 by part, as `drift` takes them."""
        found = {}
        for name, part in self._values.items():
            array = part.detach().double().cpu().numpy()
            found[name] = array if array.ndim == 2 else array[:, None]
        return found


def intensity(pixels: Tensor) -> Tensor:
    """Of each channel five quantiles, mean, standard deviation, and the mean step to the next pixel along each axis.

    Args:
        pixels: (N, C, *S).

    Returns:
        (N, C · (7 + number of axes)).
    """
    pixels = pixels.float()
    flat = pixels.flatten(2)
    few = flat[..., :: max(1, -(-flat.shape[2] // _MOST_PIXELS))]
    levels = torch.tensor(QUANTILES, device=pixels.device)
    # One by one: torch refuses quantiles of large batches.
    quantiles = torch.stack([torch.quantile(image, levels, dim=1) for image in few], dim=1)
    moments = [*quantiles, flat.mean(2), flat.std(2, correction=0)]
    steps = [_step(pixels, axis) for axis in range(2, pixels.ndim)]
    return torch.stack([*moments, *steps], dim=2).flatten(1)


def _step(pixels: Tensor, axis: int) -> Tensor:
    """(N, C); 0 along an axis of one pixel."""
    if pixels.shape[axis] < 2:
        return pixels.new_zeros(pixels.shape[:2])
    return pixels.diff(dim=axis).abs().flatten(2).mean(2)


def pooled_features(states: Sequence[Tensor], count: int) -> Tensor | None:
    """Means of the deepest features over the image.

    Args:
        states: Hidden states, (N, C, *S) or, of transformers without a grid, (N, L, C).
        count: N; states of other extents are passed over.

    Returns:
        Of the coarsest grid, or else of the last state: (N, at most `MAX_FEATURES`); None where there is none.
    """
    fitting = [s for s in states if isinstance(s, Tensor) and s.ndim >= 3 and s.shape[0] == count]
    on_grid = [s for s in fitting if s.ndim >= 4]
    if on_grid:
        pooled = min(on_grid, key=lambda state: state[0, 0].numel()).float().flatten(2).mean(2)
    elif fitting:
        pooled = fitting[-1].float().mean(1)
    else:
        return None
    width = -(-pooled.shape[1] // MAX_FEATURES)
    return torch.stack([part.mean(1) for part in pooled.split(width, dim=1)], dim=1)


def gives_features(network: nn.Module) -> bool:
    """Whether the network can be asked for hidden states in the same pass."""
    known = inspect.signature(network.forward).parameters
    return "output_hidden_states" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())


def watched_logits(network: nn.Module, pixels: Tensor, meter: DriftMeter | None) -> Tensor:
    """Logits of a pass, while a meter, if there is one, sees the features.

    Args:
        network: Gives `logits` and perhaps `hidden_states` for `pixel_values`.
        pixels: (N, C, *S), on the network's device, in its type.
        meter: What looks on.
    """
    if meter is None or not gives_features(network):
        return network(pixel_values=pixels).logits
    output = network(pixel_values=pixels, output_hidden_states=True)
    meter.see_features(getattr(output, "hidden_states", None), len(pixels))
    return output.logits


def _mean(maps: Tensor) -> Tensor:
    """(N, *S) → (N,)."""
    return maps.flatten(1).mean(1)


def _disagreement(answers: Sequence[Tensor]) -> Tensor:
    """Entropy of the mean minus mean of the entropies, over its largest value; (N, K, *S) each → (N, *S) in [0, 1]."""
    mean = torch.stack(list(answers)).mean(0)
    apart = torch.special.entr(mean).sum(1) - sum(torch.special.entr(one).sum(1) for one in answers) / len(answers)
    return apart.clamp(min=0) / math.log(min(len(answers), mean.shape[1]))
