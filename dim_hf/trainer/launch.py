"""How a run may be started: one process a device, each with all of the network; every other way is refused."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import TrainingArguments

_USE_DDP = "networks of this size fit on one GPU: use plain data parallelism (distributed_type: MULTI_GPU)"
_TWO_CPU_PROCESSES = "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 ...`"

_Environment = Mapping[str, str]


@dataclass(frozen=True)
class _Refusal:
    """A way of starting that would train something else than what was asked for.

    Attributes:
        applies: whether arguments and environment ask for it.
        reason: why not, and what to do.
    """

    applies: Callable[[TrainingArguments, _Environment], bool]
    reason: str


def _asks(environment: _Environment, name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes", "on")


def _several_gpus(args: TrainingArguments, environment: _Environment) -> bool:
    return args.n_gpu > 1


def _deepspeed(args: TrainingArguments, environment: _Environment) -> bool:
    return bool(args.deepspeed) or _asks(environment, "ACCELERATE_USE_DEEPSPEED")


def _fsdp(args: TrainingArguments, environment: _Environment) -> bool:
    return bool(args.fsdp) or _asks(environment, "ACCELERATE_USE_FSDP")


def _model_parallel(args: TrainingArguments, environment: _Environment) -> bool:
    names = ("ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_USE_MEGATRON_LM")
    return args.parallelism_config is not None or any(_asks(environment, name) for name in names)


def _processes_apart(args: TrainingArguments, environment: _Environment) -> bool:
    """Started as several that do not know of each other: without a GPU and without being told to use CPUs."""
    return args.world_size == 1 and int(environment.get("WORLD_SIZE") or 1) > 1


def _one_of_several(args: TrainingArguments, environment: _Environment) -> bool:
    """`accelerate launch` without --multi_gpu names a meeting point for several processes and starts one."""
    launched = "ACCELERATE_DYNAMO_MODE" in environment and "MASTER_ADDR" in environment
    return launched and args.world_size == 1 and "WORLD_SIZE" not in environment


_REFUSALS = (
    _Refusal(
        _several_gpus,
        "several GPUs in one process: start one a GPU with `accelerate launch --multi_gpu`, or choose one with "
        "CUDA_VISIBLE_DEVICES=0",
    ),
    _Refusal(
        _deepspeed,
        "DeepSpeed steps inside its backward pass, so a two-pass step cannot be made of it; " + _USE_DDP,
    ),
    _Refusal(
        _fsdp,
        "FSDP shards the weights, but the teacher, the perturbation's copy of the weights and the checkpoints are "
        "whole here; " + _USE_DDP,
    ),
    _Refusal(
        _model_parallel,
        "tensor, context or pipeline parallelism divides the network, of which teacher and perturbation need all; "
        + _USE_DDP,
    ),
    _Refusal(
        _processes_apart,
        "several processes were started, but there is no GPU for them, and none would know of the others: on CPUs, "
        f"start them as {_TWO_CPU_PROCESSES}, or with examples/accelerate_configs/cpu_2_processes.yaml",
    ),
    _Refusal(
        _one_of_several,
        "`accelerate launch` was asked for several processes and started one (that is what `--cpu --num_processes 2` "
        f"does): on CPUs, start them as {_TWO_CPU_PROCESSES}, on GPUs with --multi_gpu; if one process is meant, "
        "launch with --num_processes 1 and unset MASTER_ADDR",
    ),
)


def check_launch(args: TrainingArguments, environment: _Environment | None = None) -> None:
    """Refuse a way of starting under which the two-pass step would not be what it says.

    What `accelerate` is asked for reaches a run by its arguments or by environment variables; both are looked at.

    Args:
        args: the training arguments.
        environment: the environment variables; the process's own when None.

    Raises:
        ValueError: for several GPUs in one process, DeepSpeed, FSDP, a divided network, or processes that do not find
            each other; says what to do instead.
    """
    environment = os.environ if environment is None else environment
    for refusal in _REFUSALS:
        if refusal.applies(args, environment):
            raise ValueError(refusal.reason)


def leave_processes() -> None:
    """Take leave of the other processes: one that ends inside a group may be aborted by a thread of the group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
