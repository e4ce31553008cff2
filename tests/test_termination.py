"""SIGTERM: the step is finished, its checkpoint complete, the exit code 143."""

import logging
import os
import signal
import subprocess
import sys

import pytest
import torch

from dim_hf.trainer.termination import EXIT_CODE, TerminatedError, heed_only_parent
from tests.tiny import TinyImages, tiny_model, tiny_trainer


def trainer_in(folder, **changes):
    return tiny_trainer(folder, tiny_model(norm="batch", dropout=0.3), **({"max_steps": 6, "rho": 0.05} | changes))


def terminated_at(trainer, step):
    """Send SIGTERM to this process in the middle of a step."""
    original = trainer.training_step

    def training_step(*args):
        if trainer.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    trainer.training_step = training_step
    return trainer


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_sigterm_ends_the_training_after_its_step_with_a_checkpoint(tmp_path, caplog, save_strategy):
    settings = {"save_strategy": save_strategy, "save_steps": 4}
    whole = trainer_in(tmp_path / "whole", **settings)
    whole.train()
    with caplog.at_level(logging.WARNING), pytest.raises(TerminatedError) as ended:
        terminated_at(trainer_in(tmp_path / "cut", **settings), 3).train()
    assert ended.value.code == EXIT_CODE == 143
    assert "SIGTERM: left after step 3 with a complete checkpoint" in caplog.text
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["checkpoint-3"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    again = trainer_in(tmp_path / "cut", **settings)
    again.train(resume_from_checkpoint="last")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_sigterm_at_the_end_of_an_epoch_loses_no_evaluation(tmp_path):
    """8 + 8 images by 2 + 2: an epoch has 4 steps, and validation is due after its last one."""
    settings = {"eval_dataset": TinyImages(2), "eval_strategy": "epoch", "save_strategy": "no", "max_steps": 8}
    with pytest.raises(TerminatedError):
        terminated_at(trainer_in(tmp_path, **settings), 4).train()
    again = trainer_in(tmp_path, **settings)
    again.train(resume_from_checkpoint="last")
    assert [line["step"] for line in again.state.log_history if "eval_mean_dice" in line] == [4, 8]


@pytest.mark.parametrize(
    ("program", "said", "code"),
    [
        ("with TerminationWatch() as w: kill(); print(w.requested)\nprint('after')", "True", -signal.SIGTERM),
        ("with TerminationWatch() as w: kill(); raise SystemExit(7)", "", 7),
        ("signal.signal(15, lambda *_: print('own'))\nwith TerminationWatch() as w: kill(); print(w.requested)",
         "own\nFalse", 0),
    ],
    ids=["passed on after the last step", "not in the way of another end", "left to a handler that is there"],
)  # fmt: skip
def test_the_watch_for_sigterm(program, said, code):
    program = (
        "import os, signal\nfrom dim_hf.trainer.termination import TerminationWatch\n"
        f"kill = lambda: os.kill(os.getpid(), signal.SIGTERM)\n{program}"
    )
    done = subprocess.run([sys.executable, "-u", "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (said, code), done.stderr


def test_sigterm_to_all_processes_of_a_job_leaves_the_workers_at_work(tmp_path):
    """As some schedulers send it; here to a group of this test's own."""
    program = """
import os, subprocess, sys
from torch.utils.data import DataLoader
from dim_hf.trainer.termination import TerminationWatch, heed_only_parent

assert os.getpgrp() == os.getpid()
signal_group = "import os, sys; os.killpg(int(sys.argv[1]), 15)"
loader = DataLoader(range(40), num_workers=2, persistent_workers=True, worker_init_fn=heed_only_parent)
with TerminationWatch() as watch:
    for index, _ in enumerate(loader):
        if index == 3:
            command = [sys.executable, "-c", signal_group, str(os.getpid())]
            subprocess.run(command, start_new_session=True, check=True)
    print(watch.requested, index)
    watch.requested = False
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=600)
    assert (done.stdout.strip(), done.returncode) == ("True 39", 0), done.stderr
    assert tiny_trainer(tmp_path).get_eval_dataloader(TinyImages(2)).worker_init_fn is heed_only_parent
