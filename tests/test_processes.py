"""Two processes on one machine against one process: the same steps, the same weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.test_job import TINY

JOB = TINY | {
    "norm": "instance",
    "max_steps": 4,
    "eval_steps": 4,
    "save_steps": 4,
    "optim": "sgd",
    "learning_rate": 0.05,
    "divergence_weight": 0.5,
    "rho": 0.1,
    "rampup_ratio": 0,
    "confidence_threshold": 0.5,
    "load_best_model_at_end": False,
}


def launch(folder, processes, **changes):
    """Train with `accelerate launch`; returns the cost that the run wrote."""
    folder.mkdir()
    config = folder / "job.yaml"
    config.write_text(yaml.safe_dump(JOB | changes | {"output_dir": str(folder / "run")}))
    # `--cpu --num_processes 2` would silently start one process.
    launcher = ["--multi_gpu", "--num_processes", "2"] if processes == 2 else ["--cpu", "--num_processes", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "examples/train.py", "--config", str(config)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Divergence of means included, which each process sees a half of; float32, 4 steps."""
    one = launch(tmp_path / "one", 1, labeled_batch_size=2, unlabeled_batch_size=2)
    two = launch(tmp_path / "two", 2, labeled_batch_size=1, unlabeled_batch_size=1)
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    for weights in ("model.safetensors", "checkpoint-4/model.safetensors"):  # teacher and student
        first, second = (load_file(tmp_path / name / "run" / weights) for name in ("one", "two"))
        for name, value in first.items():
            assert torch.allclose(value, second[name], rtol=1e-5, atol=1e-7), name
    assert (tmp_path / "one/run/cases.csv").read_text() == (tmp_path / "two/run/cases.csv").read_text()
