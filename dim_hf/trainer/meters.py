"""Running means of what a training step measures, kept on the device until the log asks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Meters:
    """Means of named scalars since the last `pop`, of those that are finite, with no copy to the host in between."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add one observation of each scalar; abandoned steps may hold infinities and NaN."""
        for name, value in values.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach().float()
            finite = torch.isfinite(value)
            observed = torch.stack([torch.where(finite, value, 0), finite.to(value.dtype)])
            self._sums[name] = self._sums[name] + observed if name in self._sums else observed

    def pop(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over observations and, by `reduce` (a mean over processes), over processes; then start anew.

        All processes have to have observed the same names.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        totals = reduce(torch.stack([self._sums[name] for name in names])).tolist()
        self._sums.clear()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
