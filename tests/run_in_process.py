"""Trains tiny models one after another, for `test_processes.py`; called, or started by `accelerate launch`.

python -m tests.run_in_process FOLDER '{"name of the run": {"scenario": "train", ...}}'

Each run is a scenario, a function of this module, with its settings; what it returns is written for each process.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dim_hf.trainer.launch import leave_processes
from dim_hf.trainer.preflight import run_dry
from tests.tiny import TinyImages, tiny_model, tiny_trainer


def build(folder, *, dtype="float64", norm="instance", num_labels=2, cut=1, sizes=(4, 4), **arguments):
    """A trainer whose step of labeled and unlabeled images is cut into `cut` micro-batches on each process."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    settings = {
        "labeled_batch_size": sizes[0] // cut // processes,
        "unlabeled_batch_size": sizes[1] // cut // processes,
        "gradient_accumulation_steps": cut,
        "divergence_grid_size": 2,
        "rho": 0.1,
        "max_steps": 20,
        "logging_steps": 20,
    }
    model = tiny_model(norm=norm, num_labels=num_labels).to(getattr(torch, dtype))
    images = TinyImages(8, size=16), TinyImages(8, size=16, seed=1, shift=0.3, labels=False)
    return tiny_trainer(folder, model, *images, **settings | arguments)


def networks(trainer) -> dict[str, Tensor]:
    """All that a run ends with: student, teacher, critic."""
    modules = {"student": trainer.model, "teacher": trainer.teacher}
    if trainer.objective.critic is not None:
        modules["critic"] = trainer.objective.critic.critic
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


# ---- scenarios: folder and settings → tensors by name, numbers among them


def train(folder, **settings):
    """A whole training."""
    trainer = build(folder, **settings)
    trainer.train()
    return networks(trainer) | {"steps": trainer.state.global_step, "skipped": trainer.skipped_steps}


def dry_run(folder, **settings):
    """What a dry run reports."""
    report = run_dry(build(folder, **settings))
    return {"counted": report.processes, "images": report.images_per_step, "peak": report.peak_memory}


def run_all(folder, runs):
    """Each run's tensors; on every process, written to `folder` as well, with what tells the processes apart."""
    found = {}
    for name, run in runs.items():
        settings = dict(run)
        scenario = globals()[settings.pop("scenario", "train")]
        here = {"processes": int(os.environ.get("WORLD_SIZE", 1)), "machine": int(os.environ.get("GROUP_RANK", 0))}
        found[name] = {key: torch.as_tensor(value) for key, value in (scenario(folder, **settings) | here).items()}
        # Views of one memory would be refused.
        state = {key: value.detach().clone().contiguous() for key, value in found[name].items()}
        save_file(state, folder / f"{name}.rank{os.environ.get('RANK', 0)}.safetensors")
    return found


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), json.loads(sys.argv[2]))
    leave_processes()
