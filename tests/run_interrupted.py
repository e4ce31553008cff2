"""Trains tiny models in forked children that are killed, stopped or resumed, for `test_interruptions.py`.

Importing transformers takes seconds and a fork none, so this module is started once for many trainings. It prints one
JSON object with what it saw; the test judges it.
"""

import functools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from dim_hf.cli import main as command_line
from dim_hf.trainer import checkpoints
from tests.tiny import TinyImages, tiny_model, tiny_trainer

STEPS = 6
DEADLINE = 120  # seconds after which a child is taken for hung

EVERYTHING = {
    "divergence_estimator": "variational",
    "rho": 0.05,
    "optim": "adamw_torch",
    "optim_args": None,
    "learning_rate": 0.01,
    "max_grad_norm": 0.0,  # clipping needs the half precision that goes with the scaler
    "labeled_batch_size": 3,
    "unlabeled_batch_size": 3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "metric_for_best_model": "validation_student_loss",
    "greater_is_better": False,
    "max_steps": STEPS,
}


# ---- in a child


def make_trainer(folder):
    """A trainer that has a state of every kind: dropout, running statistics, critic, scaler, schedule, best score."""
    trainer = tiny_trainer(
        folder, tiny_model(norm="batch", dropout=0.3), eval_dataset=TinyImages(2, seed=5), **EVERYTHING
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
    return trainer


def watch_streams(trainer):
    """Note which samples each step sees."""
    seen, original = {}, trainer.training_step

    def training_step(model, inputs, *rest):
        names = ("labeled_positions", "unlabeled_positions", "unlabeled_indices")
        seen.setdefault(trainer.state.global_step, []).append([inputs[name].tolist() for name in names])
        return original(model, inputs, *rest)

    trainer.training_step = training_step
    return seen


def final_state(trainer):
    """All that a training leaves, but for the time that it took."""
    critic = trainer.objective.critic
    return {
        "student": trainer.model.state_dict(),
        "teacher": trainer.teacher.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": trainer.accelerator.scaler.state_dict(),
        "critic": critic.critic.state_dict(),
        "critic_optimizer": critic.optimizer.state_dict(),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
        "log": [line for line in trainer.state.log_history if "train_runtime" not in line],
        "best": (trainer.state.best_global_step, trainer.state.best_metric),
    }


def train(folder, resume=None):
    """One attempt; a finished one leaves `final.pt`."""
    trainer = make_trainer(folder)
    seen = watch_streams(trainer)
    trainer.train(resume_from_checkpoint=resume)
    torch.save({"state": final_state(trainer), "streams": seen}, folder / "final.pt")


def die_at(count):
    """Let this process be killed at the given one of the moments between which a checkpoint comes and goes."""
    left = [count]

    def before(function):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    for module, name in ((os, "fsync"), (os, "unlink"), (os, "rmdir"), (torch, "save"), (pathlib.Path, "rename")):
        setattr(module, name, before(getattr(module, name)))


def train_part(folder, images, steps=6, resume=None, dropout=0.0, hook=None):
    """Double precision and instance norm, so that two processes can equal one; each leaves what it saw."""
    trainer = tiny_trainer(
        folder,
        tiny_model(dropout=dropout).double(),
        labeled_batch_size=images,
        unlabeled_batch_size=images,
        rho=0.1,
        divergence_grid_size=2,
        save_strategy="steps",
        save_steps=2,
        max_steps=steps,
        lr_scheduler_type="constant",
    )
    seen = watch_streams(trainer)
    if hook is not None:
        call_at(trainer, 2, hook)
    trainer.train(resume_from_checkpoint=resume)
    state = {"student": trainer.model.state_dict(), "teacher": trainer.teacher.state_dict()}
    random_state = torch.get_rng_state()
    left = {"state": state, "streams": seen, "processes": trainer.args.world_size, "random": random_state}
    torch.save(left, folder / f"rank{trainer.args.process_index}.pt")


def call_at(trainer, step, hook):
    """Call a function in process 1, in the middle of a step that is followed by no regular checkpoint."""
    original = trainer.training_step

    def training_step(*args):
        if trainer.state.global_step == step and trainer.args.process_index == 1:
            hook()
        return original(*args)

    trainer.training_step = training_step


def fill_the_disk():
    """From now on, this process cannot write a checkpoint."""
    torch.save = _no_space


def _no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


# ---- in the parent


def fork(action, log, environment=()):
    """Run an action in a child, its output in a file; returns the child's number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        action()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid, seconds=DEADLINE):
    """The exit code of a child, negative for a signal; None if it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def finish(pid):
    """The exit code of a child that should end by itself."""
    code = wait(pid)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code


def wait_for(condition):
    """Wait until something can be seen from outside."""
    end = time.monotonic() + DEADLINE
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def difference(first, second, where=""):
    """The first place at which two states differ in a bit, or None."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return f"{where}: keys {sorted(map(str, first.keys() ^ second.keys()))}"
        pairs = [(first[key], second[key], f"{where}/{key}") for key in first]
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return f"{where}: {len(first)} and {len(second)} entries"
        pairs = [(a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(first, second, strict=True))]
    elif isinstance(first, torch.Tensor):
        return None if first.dtype == second.dtype and torch.equal(first, second) else f"{where}: tensors differ"
    else:
        return None if first == second or first != first else f"{where}: {first} and {second}"
    return next((found for pair in pairs if (found := difference(*pair))), None)


def compare(folder, whole):
    """How a run that was interrupted differs from the one that was not."""
    left = torch.load(folder / "final.pt", weights_only=True)
    expected = {step: keys for step, keys in whole["streams"].items() if step in left["streams"]}
    return difference(left["state"], whole["state"], "state") or difference(left["streams"], expected, "streams")


def kills(folder, number, seed):
    """Kill trainings at random moments, each time going on from the last checkpoint, until all kills are done."""
    draws, started = random.Random(seed), time.monotonic()
    finish(fork(lambda: train(folder / "whole"), folder / "whole.log"))
    duration = time.monotonic() - started
    whole = torch.load(folder / "whole" / "final.pt", weights_only=True)
    report = {"seed": seed, "killed": 0, "inside_saving": 0, "steps_at": [], "runs": [], "codes": []}
    while report["killed"] < number:
        run = folder / f"run{len(report['runs'])}"
        run.mkdir()
        while not (run / "final.pt").exists():
            if report["killed"] < number and draws.random() < 0.5:
                count = draws.randrange(1, 120)
                pid = fork(lambda run=run, count=count: (die_at(count), train(run, "last")), run / "log")
                code = finish(pid)
            else:
                pid = fork(lambda run=run: train(run, "last"), run / "log")
                code = wait(pid, draws.random() * duration / 2 if report["killed"] < number else DEADLINE)
                if code is None:
                    os.kill(pid, signal.SIGKILL)
                    code = finish(pid)
            report["codes"].append(code)
            if code not in (0, -signal.SIGKILL):
                return report | {"log": (run / "log").read_text()[-3000:]}
            if code:
                report["killed"] += 1
                report["inside_saving"] += any(path.name.startswith("_checkpoint") for path in run.iterdir())
                found = checkpoints.checkpoints_in(run)
                faults = {path.name: fault for path in found if (fault := checkpoints.find_fault(path))}
                if faults:
                    return report | {"damaged": faults}
                report["steps_at"].append(checkpoints.step_of(found[-1]) if found else 0)
        kept = [path.name for path in run.iterdir() if "checkpoint" in path.name]
        report["runs"].append({"difference": compare(run, whole), "kept": sorted(kept)})
        shutil.rmtree(run)
    return report


def terminate(folder):
    """SIGTERM between the steps of a trainer and of `dim-hf train`, and again before the end of the run."""
    finish(fork(lambda: train(folder / "whole"), folder / "whole.log"))
    whole = torch.load(folder / "whole" / "final.pt", weights_only=True)
    run, codes = folder / "run", []
    run.mkdir()
    for step in (2, 5):
        pid = fork(lambda: train(run, "last"), folder / "run.log")
        wait_for(lambda step=step: (run / f"checkpoint-{step}").exists())
        os.kill(pid, signal.SIGTERM)
        codes.append(finish(pid))
    codes.append(finish(fork(lambda: train(run, "last"), folder / "run.log")))
    report = {"codes": codes, "difference": compare(run, whole), "log": (folder / "run.log").read_text()}
    return report | _terminate_command(folder)


def _terminate_command(folder):
    words = ["train", "--config", str(folder / "job.yaml"), "--output_dir", str(folder / "job")]
    pid = fork(lambda: command_line(words), folder / "job.log")
    wait_for((folder / "job" / "checkpoint-1").exists)
    os.kill(pid, signal.SIGTERM)
    codes = [finish(pid)]
    unfinished = not (folder / "job" / "results.json").exists()
    codes.append(finish(fork(lambda: command_line([*words, "--resume_from_checkpoint", "last"]), folder / "job.log")))
    finished = (folder / "job" / "results.json").exists()
    return {
        "command_codes": codes,
        "command_finished": [not unfinished, finished],
        "command_log": (folder / "job.log").read_text(),
    }


def together(processes, action, log):
    """Start as many children as `accelerate launch` would, in its environment; returns their numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [fork(action, log, shared | rank if processes > 1 else {}) for rank in ranks]


def processes(folder):
    """Runs that change the number of processes on the way, and accidents in one process of two."""
    legs = {
        "one": [(1, {"images": 2})],
        "one to two": [(1, {"images": 2, "steps": 4}), (2, {"images": 1})],
        "two to one": [(2, {"images": 1, "steps": 4}), (1, {"images": 2})],
        "two": [(2, {"images": 1, "dropout": 0.3})],
        "two killed": [(2, {"images": 1, "dropout": 0.3, "hook": die}), (2, {"images": 1, "dropout": 0.3})],
        "two terminated": [
            (2, {"images": 1, "dropout": 0.3, "hook": ask_to_leave}),
            (2, {"images": 1, "dropout": 0.3}),
        ],
        "other images": [(1, {"images": 2, "steps": 4}), (2, {"images": 2})],
        "full": [(2, {"images": 1, "hook": fill_the_disk})],
    }
    report = {}
    for name, parts in legs.items():
        run, codes, resume = folder / name, [], None
        run.mkdir()
        for number, settings in parts:
            action = functools.partial(train_part, run, resume=resume, **settings)
            codes.append([finish(pid) for pid in together(number, action, folder / f"{name}.log")])
            resume = "last"
        log = (folder / f"{name}.log").read_text()
        found = sorted(path.name for path in run.iterdir() if "checkpoint" in path.name)
        report[name] = {"codes": codes, "checkpoints": found, "log": log}
    return report


def die():
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_leave():
    """SIGTERM to this process alone."""
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where, *numbers = sys.argv[1:]
    task = {"kills": kills, "terminate": terminate, "processes": processes}[what]
    print("\n" + json.dumps(task(Path(where), *map(int, numbers))), flush=True)
