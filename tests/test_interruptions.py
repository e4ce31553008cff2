"""Trainings that are killed, stopped, or resumed with other processes end where the uninterrupted one does."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from tests.run_interrupted import STEPS, difference

SEED = 20240607
JOB = {
    "dataset": "phantom:prostate",
    "phantom_images_per_domain": 16,
    "num_labeled": 4,
    "num_validation": 2,
    "image_size": 32,
    "hidden_sizes": [8, 16],
    "max_steps": 6,
    "eval_steps": 1,
    "save_steps": 1,
    "labeled_batch_size": 2,
    "unlabeled_batch_size": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "auto_bf16": False,
}


def run(task, folder, *numbers):
    """What `tests.run_interrupted` saw."""
    command = [sys.executable, "-m", "tests.run_interrupted", task, str(folder), *map(str, numbers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_thirty_kills_at_random_moments_change_nothing(tmp_path):
    """Student, teacher, optimizer, schedule, scaler, critic, both streams, random states, log and best step.

    Half the kills come by the clock, half at one of the moments between which a checkpoint comes and goes. A kill
    loses no write that the kernel was given: that fsync comes before the rename is another test.
    """
    print(f"seed {SEED}")
    report = run("kills", tmp_path, 30, SEED)
    assert "damaged" not in report, report
    assert "log" not in report, report["log"]
    assert report["killed"] == 30
    assert report["inside_saving"] > 0
    assert len(set(report["steps_at"])) > 2
    for each in report["runs"]:
        assert each["difference"] is None
        assert f"checkpoint-{STEPS}" in each["kept"]
        assert len(each["kept"]) == 2  # save_total_limit; nothing half written


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_143(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    report = run("terminate", tmp_path)
    assert report["codes"] == [143, 143, 0], report["log"]
    assert report["log"].count("with a complete checkpoint in") == 2
    assert report["difference"] is None
    assert report["command_codes"] == [143, 0], report["command_log"]
    assert report["command_finished"] == [False, True]
    assert "Traceback" not in report["command_log"]


@pytest.mark.slow
def test_processes_may_change_and_agree_on_every_end(tmp_path):
    report = run("processes", tmp_path)

    def ranks(name):
        assert report[name]["codes"][-1] in ([0], [0, 0]), report[name]["log"]
        left = [torch.load(path, weights_only=True) for path in sorted((tmp_path / name).glob("rank*.pt"))]
        processes = len(report[name]["codes"][-1])
        return [each for each in left if each["processes"] == processes][:processes]

    (one,) = ranks("one")
    for name, processes in (("one to two", 2), ("two to one", 1)):
        resumed = ranks(name)
        assert len(resumed) == processes
        assert report[name]["log"].count("start anew in process") == processes
        for part in ("student", "teacher"):
            for key, value in one["state"][part].items():
                assert all(torch.equal(each["state"][part][key], resumed[0]["state"][part][key]) for each in resumed)
                assert torch.allclose(value, resumed[0]["state"][part][key], rtol=1e-6, atol=1e-8), (name, key)
        for step in (4, 5):
            assert positions(resumed, step) == positions([one], step), name

    whole = ranks("two")
    for name, code in (("two killed", -9), ("two terminated", 143)):
        assert report[name]["codes"][0][1] == code
        assert difference(ranks(name)[0]["state"], whole[0]["state"]) is None, name
        for first, second in zip(ranks(name), whole, strict=True):
            assert torch.equal(first["random"], second["random"]), name
    assert report["two terminated"]["codes"][0] == [143, 143]
    assert "checkpoint-3" in report["two terminated"]["checkpoints"]
    assert "checkpoint-3" not in report["two killed"]["checkpoints"]

    assert report["other images"]["codes"] == [[0], [1, 1]]
    assert "set labeled_batch_size × gradient_accumulation_steps to 1" in report["other images"]["log"]
    assert report["full"]["codes"] == [[1, 1]]
    assert report["full"]["checkpoints"] == ["checkpoint-2"]
    for words in ("checkpoint-4: [Errno 28] No space left on device", "another process failed"):
        assert words in report["full"]["log"]


def positions(ranks, step):
    """Positions in both streams, and indices, that a step saw in all its micro-batches and processes."""
    parts = [part for rank in ranks for part in rank["streams"][step]]
    return [sorted(number for part in parts for number in part[kind]) for kind in range(3)]
