"""One definition, four executions: one process, accumulation, two processes, two machines end in the same weights."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.run_in_process import run_all

# 20 steps of 4 labeled and 4 unlabeled images (8 of one where unequal), mixed, clipped, with momentum and a schedule.
SETTINGS = {
    "regional": {"divergence_estimator": "regional", "f_divergence": "kl"},
    "marginal": {"divergence_estimator": "marginal", "norm": "group", "ascent_objective": "divergence"},
    "conditional": {"divergence_estimator": "conditional", "num_labels": 3, "share_adaptation": 0.5},
    "variational": {"divergence_estimator": "variational", "ascent_objective": "supervised"},
    "no divergence": {"divergence_weight": 0.0, "adaptive": True, "norm": "group", "sam_every": 2},
    "supervised": {"divergence_weight": 0.0, "consistency_weight": 0.0},
    "float32": {"divergence_estimator": "regional", "dtype": "float32", "rho": 0.02, "learning_rate": 0.02},
    "more labeled": {"sizes": (8, 4)},
    "more unlabeled": {"sizes": (4, 8)},
    "AdamW": {"divergence_estimator": "regional", "optim": "adamw_torch", "optim_args": None, "learning_rate": 1e-3},
}
# Of each weight, relative to the largest one of its tensor. The critic computes in float32.
TOLERANCES = dict.fromkeys(SETTINGS, 1e-9) | {"variational": 1e-4, "float32": 1e-4}

# What each execution is tried with; `test_trainer_step.py` tries accumulation with more.
EXECUTIONS = {
    "2x4": ["regional", "marginal", "conditional", "variational", "float32", "more labeled", "more unlabeled"],
    "4x2": ["regional", "variational", "float32"],
    "2 processes": list(SETTINGS),
    "2 machines": ["regional", "variational", "no divergence"],
    "2 processes, 2x2 each": ["regional"],
}
PARTS = ("student", "teacher", "critic")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(folder, runs, *, machines=1):
    """Start `tests.run_in_process` as two processes; returns the state that each ended with, by run."""
    folder.mkdir()
    # `--cpu --num_processes 2` would silently start one process.
    words = ["--multi_gpu", "--num_processes", "2", "--num_machines", str(machines), "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    command = [sys.executable, "-m", "accelerate.commands.launch", *words]
    task = ["--module", "tests.run_in_process", str(folder), json.dumps(runs)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [*command, "--machine_rank", str(rank), *task],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(machines)
    ]  # fmt: skip
    try:
        errors = [launcher.communicate(timeout=600)[1] for launcher in started]
    finally:
        for launcher in started:
            launcher.kill()
    assert [launcher.returncode for launcher in started] == [0] * machines, "\n".join(errors)
    states = {run: [load_file(folder / f"{run}.rank{rank}.safetensors") for rank in range(2)] for run in runs}
    for of_ranks in states.values():
        assert [int(state["processes"]) for state in of_ranks] == [2, 2]
        assert [int(state["machine"]) for state in of_ranks] == list(range(2) if machines == 2 else [0, 0])
    return states


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The states that each execution of each setting ended with, one for each process."""
    folder = tmp_path_factory.mktemp("runs")

    def runs(execution, cut):
        return {name: SETTINGS[name] | {"cut": cut} for name in EXECUTIONS.get(execution, SETTINGS)}

    def here(execution, cut):
        return {name: [state] for name, state in run_all(folder, runs(execution, cut)).items()}

    # In one start: each costs seconds of imports.
    accumulated = "2 processes, 2x2 each"
    twice = {f"{name}, cut": run for name, run in runs(accumulated, 2).items()}
    dry = {"dry run": {"scenario": "dry_run"}}
    processes = launch(folder / "processes", runs("2 processes", 1) | twice | dry)
    return {
        "1x8": here("1x8", 1),
        "2x4": here("2x4", 2),
        "4x2": here("4x2", 4),
        "2 processes": processes,
        accumulated: {name: processes[f"{name}, cut"] for name in EXECUTIONS[accumulated]},
        "2 machines": launch(folder / "machines", runs("2 machines", 1), machines=2),
    }


def farthest(found, expected):
    """The largest distance between weights of the same name, relative to the largest weight of its tensor."""
    assert found.keys() == expected.keys()
    weights = [(found[name], expected[name]) for name in expected if name.startswith(PARTS)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("execution", "setting"), [(execution, setting) for execution, names in EXECUTIONS.items() for setting in names]
)
def test_executions_end_in_the_same_weights(ended, execution, setting):
    (whole,), states = ended["1x8"][setting], ended[execution][setting]
    for state in states:
        assert (int(state["steps"]), int(state["skipped"])) == (20, 0)
        assert farthest(state, whole) <= TOLERANCES[setting]
    for name, value in states[0].items():  # student, teacher and critic
        assert all(torch.equal(value, other[name]) for other in states) or name == "machine", name


@pytest.mark.slow
def test_a_dry_run_counts_all_processes(ended):
    first, second = ended["2 processes"]["dry run"]
    assert (int(first["counted"]), int(first["images"])) == (2, 8)
    assert first["peak"] == second["peak"]  # of the fullest process


@pytest.mark.slow
def test_the_runs_compared_did_learn(ended):
    """Weights that never move would be equal, too."""
    (regional,), (supervised,) = ended["1x8"]["regional"], ended["1x8"]["supervised"]
    assert farthest(regional, supervised) > 1e-3
    assert (int(regional["steps"]), int(regional["skipped"])) == (20, 0)
