"""A network over volumes larger than one pass holds: overlapping windows, weighted by a Gaussian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dim_hf.data.volumes.header import require
from dim_hf.inference.drift_parts import DriftMeter, watched_logits
from dim_hf.losses import resize_logits

Forward = Callable[[Tensor], Tensor]
"""pixel_values (N, C, *S) → logits (N, K, *S'), where S' may be coarser than S."""


def whole(network: nn.Module, meter: DriftMeter | None = None) -> Forward:
    """The network on its own device, in the type of its weights; a meter sees its features."""

    def forward(pixels: Tensor) -> Tensor:
        weight = next(network.parameters())
        return watched_logits(network, pixels.to(weight.device, weight.dtype), meter)

    return forward


def in_windows(
    network: nn.Module,
    window: Sequence[int],
    overlap: float,
    windows_per_pass: int,
    meter: DriftMeter | None = None,
) -> Forward:
    """The network window by window, by MONAI's inferer.

    Logits of overlapping windows are averaged with Gaussian weights, on the CPU, so that the device holds windows
    only. An input no larger than the window goes through in one pass, without MONAI.

    Args:
        network: Takes (N, C, D, H, W).
        window: (D, H, W); along a shorter axis the window is that axis.
        overlap: Share of the window, in [0, 1).
        windows_per_pass: Windows of a forward pass.
        meter: Sees the features of inputs that go through in one pass; those of windows are of other images.

    Raises:
        ImportError: At the first input that is larger than the window, if MONAI is not installed.
    """
    at_once, by_window = whole(network, meter), whole(network)

    def forward(pixels: Tensor) -> Tensor:
        size = tuple(pixels.shape[2:])
        # Never larger than the input: a padding that the training did not know would shift its statistics.
        fitting = tuple(min(length, extent) for length, extent in zip(window, size, strict=True))
        if fitting == size:
            return at_once(pixels)
        inferers = require("monai.inferers")
        return inferers.sliding_window_inference(
            pixels,
            fitting,
            windows_per_pass,
            lambda part: resize_logits(by_window(part), part.shape[2:]),
            overlap=overlap,
            mode="gaussian",
            sw_device=next(network.parameters()).device,
            device=torch.device("cpu"),
        )

    return forward
