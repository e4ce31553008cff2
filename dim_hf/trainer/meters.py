"""Running means of what a training step measures, kept on the device until the log asks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Meters:
    """Means of named scalars since the last `pop`, with no copy to the host in between."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add one observation of each scalar."""
        for name, value in values.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach().float()
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over observations and, by `reduce` (a mean over processes), over processes; then start anew."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = reduce(torch.stack([self._sums[name] / self._counts[name] for name in names]))
        self._sums.clear()
        self._counts.clear()
        return dict(zip(names, means.tolist(), strict=True))
