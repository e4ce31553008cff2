"""Ways of starting that would train something else than was asked for, and the ones that are shipped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from dim_hf.trainer.launch import check_launch
from tests.tiny import tiny_arguments

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "accelerate_configs").glob("*.yaml"))
PROCESSES = {"cpu": 1, "cpu_2_processes": 2, "gpu_bf16": 1, "8_gpus": 8, "2x8_gpus": 16}


def arguments(**changes):
    plain = {"n_gpu": 1, "deepspeed": None, "fsdp": None, "parallelism_config": None, "world_size": 1}
    return SimpleNamespace(**plain | changes)


@pytest.mark.parametrize(
    ("changes", "environment", "reason"),
    [
        ({"n_gpu": 2}, {}, "several GPUs in one process"),
        ({"deepspeed": "zero.json"}, {}, "DeepSpeed steps"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed steps"),
        ({"fsdp": "full_shard"}, {}, "FSDP shards"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "FSDP shards"),
        ({"parallelism_config": object()}, {}, "divides the network"),
        ({}, {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "divides the network"),
        ({}, {"ACCELERATE_USE_MEGATRON_LM": "true"}, "divides the network"),
        ({}, {"WORLD_SIZE": "2"}, "none would know of the others"),
        ({}, {"ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "127.0.0.1"}, "and started one"),
    ],
)
def test_what_cannot_be_right_is_refused(changes, environment, reason):
    with pytest.raises(ValueError, match=reason):
        check_launch(arguments(**changes), environment)


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        ({}, {}),
        ({}, {"MASTER_ADDR": "node-1"}),  # a cluster's prologue sets it for every job
        ({}, {"ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_USE_FSDP": "false"}),
        ({}, {"WORLD_SIZE": "1", "ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "localhost", "RANK": "0"}),
        ({"world_size": 2}, {"WORLD_SIZE": "2", "ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "127.0.0.1"}),
    ],
)
def test_what_is_right_passes(changes, environment):
    check_launch(arguments(**changes), environment)


def test_the_arguments_of_a_run_pass(tmp_path):
    check_launch(tiny_arguments(tmp_path))


def launch(*words, environment):
    """Start `tests.run_launch`; returns what each process says of itself, or the error."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, "--module", "tests.run_launch"]
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "MASTER"))}
    done = subprocess.run(
        command, env=mine | environment, capture_output=True, text=True, timeout=300, cwd=CONFIGS[0].parents[2]
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
    return sorted(said, key=lambda each: each["rank"]), done.stderr


PLAIN = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


@pytest.mark.slow
def test_an_accelerate_launch_that_would_silently_start_one_process_is_refused():
    said, errors = launch("--cpu", "--num_processes", "2", *PLAIN, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert said == []
    assert "and started one" in errors


@pytest.mark.slow
def test_two_processes_find_each_other_without_being_told_to_use_cpus():
    words = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0", *PLAIN)
    said, errors = launch(*words, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert [each["processes"] for each in said] == [2, 2], errors


# ---- the configurations that are shipped


def test_all_configurations_are_there():
    assert {path.stem for path in CONFIGS} == set(PROCESSES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_each_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == PROCESSES[path.stem]
    assert config.num_machines == (2 if path.stem == "2x8_gpus" else 1)
    assert (config.mixed_precision == "bf16") == ("gpu" in path.stem)
    assert (config.distributed_type.value == "MULTI_GPU") == (config.num_processes > 1)
    assert bool(config.use_cpu) == path.stem.startswith("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "cpu_2_processes"])
def test_the_configurations_for_cpus_start_as_many_processes_as_they_say(name):
    path = CONFIGS[0].with_name(f"{name}.yaml")
    said, errors = launch("--config_file", str(path), environment={})
    count = PROCESSES[name]
    assert [each["rank"] for each in said] == list(range(count)), errors
    assert all(each == {"rank": i, "processes": count, "device": "cpu", "steps": 2} for i, each in enumerate(said))
