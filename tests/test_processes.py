"""Two processes on one machine against one process: the same steps, the same weights."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file


def launch(folder, processes, images, estimator):
    """Train under `accelerate launch`; returns the state that each process ended with."""
    folder.mkdir()
    # `--cpu --num_processes 2` would silently start one process.
    launcher = ["--multi_gpu", "--num_processes", "2"] if processes == 2 else ["--cpu", "--num_processes", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["--module", "tests.run_in_process", str(folder), str(images), estimator]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    states = [load_file(path) for path in sorted(folder.glob("rank*.safetensors"))]
    assert [int(state.pop("processes")) for state in states] == [processes] * processes
    return states


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["regional", "variational"])
def test_two_processes_equal_one(tmp_path, estimator):
    """Divergence of means included, of which each process sees a half; float64, instance norm, 4 steps."""
    (one,) = launch(tmp_path / "one", 1, 2, estimator)
    two = launch(tmp_path / "two", 2, 1, estimator)
    # The critic computes in float32.
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if estimator == "variational" else {"rtol": 1e-6, "atol": 1e-8}
    for name, value in one.items():  # student and teacher
        assert torch.equal(two[0][name], two[1][name]), name
        assert torch.allclose(value, two[0][name], **tolerance), name
