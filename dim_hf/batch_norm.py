"""Batch normalisation over the images of all processes, so that a process's share of a batch is normalised as in it.

torch's `SyncBatchNorm` does this on GPUs only; its rule, in plain differentiable operations, serves CPUs.
"""

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
