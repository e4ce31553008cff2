"""Batch normalisation over two processes against torch's own over the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dim_hf.batch_norm import GatheredBatchNorm, average_running_statistics, synchronize_batch_norm


def make(momentum=0.1, affine=True):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=momentum, affine=affine)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Tanh(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)).double()


def batch():
    return torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 1


def loss_of(output):
    return (output.sin() * torch.arange(output[0].numel(), dtype=output.dtype).view_as(output[0])).sum()


def train(model, images):
    for step in range(3):
        output = model(images + step)
        loss_of(output).backward()
    gradients = [p.grad for p in model.parameters()]
    return output.detach(), gradients, [buffer.clone() for buffer in model.buffers()]


def worker(rank, folder, momentum, affine):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = synchronize_batch_norm(make(momentum, affine), torch.device("cpu"))
    images = batch()[:3] if rank == 0 else batch()[3:]  # unequal parts
    output, gradients, buffers = train(model, images)
    for gradient in gradients:
        dist.all_reduce(gradient)
    lone = nn.BatchNorm1d(2)
    lone.running_mean.fill_(rank)
    average_running_statistics(lone)
    torch.save((output, gradients, buffers, lone.running_mean), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("momentum", "affine"), [(0.1, True), (None, False)])
def test_two_processes_normalise_as_one(tmp_path, momentum, affine):
    mp.spawn(worker, args=(str(tmp_path), momentum, affine), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    output, gradients, buffers = train(make(momentum, affine), batch())
    assert torch.allclose(torch.cat([ranks[0][0], ranks[1][0]]), output, rtol=1e-10)
    for index, (_, parts, statistics, mean) in enumerate(ranks):
        for name, expected, value in zip("wbgbwbgb", gradients, parts, strict=False):
            assert torch.allclose(value, expected, rtol=1e-9, atol=1e-10), (index, name)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(statistics, buffers, strict=True))
        assert torch.equal(mean, torch.tensor([0.5, 0.5]))


def test_one_process_is_left_as_it_is():
    model = make()
    synchronized = synchronize_batch_norm(copy.deepcopy(model), torch.device("cpu"))
    assert isinstance(synchronized[1], GatheredBatchNorm)
    assert synchronized.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(model(batch()), synchronized(batch()))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), synchronized.buffers(), strict=True))
    assert torch.equal(model.eval()(batch()), synchronized.eval()(batch()))
    assert isinstance(synchronize_batch_norm(nn.BatchNorm2d(3), torch.device("cpu")), GatheredBatchNorm)


def test_gpus_get_torchs_own_layer():
    assert isinstance(synchronize_batch_norm(make(), torch.device("cuda"))[1], nn.SyncBatchNorm)
