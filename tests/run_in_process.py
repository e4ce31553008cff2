"""Trains a tiny double-precision model for `test_processes.py`; started once or by `accelerate launch`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.tiny import tiny_model, tiny_trainer

if __name__ == "__main__":
    folder, images, estimator = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    trainer = tiny_trainer(
        folder,
        tiny_model().double(),
        labeled_batch_size=images,
        unlabeled_batch_size=images,
        divergence_estimator=estimator,
        divergence_grid_size=2,
        rho=0.1,
        max_steps=4,
    )
    trainer.train()
    state = {"processes": torch.tensor(trainer.args.world_size)}
    state |= {f"student.{name}": value for name, value in trainer.model.state_dict().items()}
    state |= {f"teacher.{name}": value for name, value in trainer.teacher.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / f"rank{trainer.args.process_index}.safetensors")
