"""Batch normalisation: over the images of all processes, and with running statistics estimated anew.

A process's share of a batch must be normalised as in the whole batch. torch's `SyncBatchNorm` does this on GPUs only;
its rule, in plain differentiable operations, serves CPUs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch-normalisation layer normalise by the statistics of all processes while it trains.

    Weights, running statistics and their names stay; with one process, and in evaluation mode, so do the values.

    Args:
        model: any module, changed in place.
        device: where it will run.

    Returns:
        The module; another one only where it is a batch-normalisation layer itself.
    """
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if isinstance(model, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        layer = GatheredBatchNorm(model.num_features, model.eps, model.momentum, model.affine)
        layer.__dict__.update(model.__dict__)
        return layer
    for name, child in model.named_children():
        setattr(model, name, synchronize_batch_norm(child, device))
    return model


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their floating-point buffers, where there are several processes."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers or not _several_processes():
        return
    mean = torch.cat([buffer.reshape(-1) for buffer in buffers])
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    for buffer, values in zip(buffers, mean.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


@torch.no_grad()
def estimate_running_statistics(
    network: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], Any], share: float = 1.0
) -> int:
    """Move the running statistics to those of all images of the batches: means, and variances about these means.

    Source: arXiv 2105.07576, section 3 ("precise" statistics, at the final weights); with images of another site,
    arXiv 1603.04779 (AdaBN). Everything but the normalisation layers stays as it is and runs in the mode that it has.
    Layers that no batch reaches keep what they have, and so do all of them if an error is raised.

    Args:
        network: changed in place; layers without running statistics are left alone.
        batches: network inputs, (N, C, *S) each, of equal size; without any, nothing changes.
        forward: runs the network on one of them.
        share: in [0, 1], how far they are moved; 1 replaces them.

    Returns:
        How many batches were left out, since they gave values that are not finite.
    """
    layers = nn.ModuleList(_tracking_layers(network))
    estimates = [_Estimate(layer) for layer in layers]
    left_out = 0
    try:
        for batch in batches:
            for estimate in estimates:
                estimate.open()
            forward(batch)
            finite = bool(finite_buffers(layers))
            left_out += not finite
            for estimate in estimates:
                estimate.close(finite)
    except BaseException:
        for estimate in estimates:
            estimate.restore()
        raise
    for estimate in estimates:
        estimate.write(share)
    return left_out


class _Estimate:
    """What is added up for one layer, in float64, from each batch's own statistics."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer = layer
        self.before = (layer.training, layer.momentum, {name: b.clone() for name, b in layer.named_buffers()})
        self.sums = torch.zeros(3, layer.num_features, dtype=torch.float64)
        self.count = 0

    def open(self) -> None:
        self.layer.reset_running_stats()  # a value that is not finite would outlive even a momentum of 1
        self.layer.train()
        self.layer.momentum = 1.0  # this batch's statistics alone

    def close(self, counts: bool) -> None:
        if counts and self.layer.num_batches_tracked > 0:
            mean, variance = (s.double().cpu() for s in (self.layer.running_mean, self.layer.running_var))
            self.sums += torch.stack([mean, mean.square(), variance])
            self.count += 1

    def restore(self) -> None:
        training, self.layer.momentum, buffers = self.before
        self.layer.train(training)
        for name, value in buffers.items():
            getattr(self.layer, name).copy_(value)

    def write(self, share: float) -> None:
        self.restore()
        if self.count == 0:
            return
        mean, square, variance = self.sums / self.count
        variance = variance + square - mean.square()  # within batches, and between them
        for buffer, value in ((self.layer.running_mean, mean), (self.layer.running_var, variance)):
            buffer.copy_(buffer.double().cpu().lerp(value, share))
        self.layer.num_batches_tracked.fill_(self.count)


def has_running_statistics(network: nn.Module) -> bool:
    """Whether there is a layer whose statistics `estimate_running_statistics` would replace."""
    return bool(_tracking_layers(network))


def _tracking_layers(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def finite_buffers(model: nn.Module) -> Tensor:
    """Whether no floating-point buffer holds an infinity or NaN: a boolean scalar on the buffers' device."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers:
        return torch.tensor(True)
    return torch.isfinite(torch.stack(torch._foreach_norm(buffers, float("inf")))).all()


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class GatheredBatchNorm(_BatchNorm):
    """Batch normalisation (arXiv 1502.03167) whose means and variances are those of all processes' images.

    Input and output are (N, C, *S); N may differ between processes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all processes in train mode, by the running ones in evaluation mode."""
        if not (self.training and _several_processes()):
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        channels = [-1 if axis == 1 else 1 for axis in range(input.dim())]
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = _SumOverProcesses.apply(values.new_tensor(input.numel() / input.shape[1]))
        mean = _SumOverProcesses.apply(values.sum(axes)) / count
        centered = values - mean.view(channels)
        variance = _SumOverProcesses.apply(centered.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None:
            self._move_statistics(mean.detach(), variance.detach() * count / (count - 1))
        output = centered * torch.rsqrt(variance + self.eps).view(channels)
        if self.affine:
            output = output * self.weight.view(channels) + self.bias.view(channels)
        return output.to(input.dtype)

    @torch.no_grad()
    def _move_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation takes (N, C, *S), got {tuple(input.shape)}")


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes; each process's gradient is the sum of what all of them make of that sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
