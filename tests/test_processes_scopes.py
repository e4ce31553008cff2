"""Two processes: batch normalisation as of one, a perturbation each, and a value that is not finite in one of them."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.run_scopes import CASES


def launch(folder, processes, images, cases):
    launcher = ["--multi_gpu", "--num_processes", "2"] if processes == 2 else ["--cpu", "--num_processes", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["--module", "tests.run_scopes", str(folder), str(images), *cases]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """By case and number of processes, the state of each process."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        launch(folder, processes, 2 // processes, CASES)
        for case in CASES:
            found[case, processes] = [load_file(path) for path in sorted(folder.glob(f"{case}.rank*"))]
            assert [int(s["processes"]) for s in found[case, processes]] == [processes] * processes
    return found


def assert_equal(first, second, exact):
    for name, value in first.items():
        if name.startswith(("student.", "teacher.")):
            close = torch.equal(value, second[name]) if exact else torch.allclose(value, second[name], 1e-6, 1e-8)
            assert close, name


@pytest.mark.slow
@pytest.mark.parametrize("case", ["batch", "batch_teacher", "weak_views"])
def test_batch_normalisation_of_two_processes_equals_that_of_one(states, case):
    assert_equal(states[case, 1][0], states[case, 2][0], exact=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_students_and_teachers_are_equal_on_both_processes(states, case):
    assert_equal(*states[case, 2], exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["local_nan", "global_nan"])
def test_a_value_that_is_not_finite_in_one_process_is_skipped_by_both(states, case):
    assert [int(state["skipped"]) for state in states[case, 2]] == [1, 1]
    assert all(torch.isfinite(value).all() for value in states[case, 2][0].values())


@pytest.mark.slow
def test_local_ascent_sends_nothing(states):
    """Global: gradients and class masses in either pass. Local: gradients in the descent alone."""
    counts = {
        case: {moment: int(states[case, 2][0][f"collectives.{moment}"]) for moment in ("ascent", "descent")}
        for case in ("local_count", "global_count")
    }
    assert counts["local_count"] == {"ascent": 0, "descent": 4}
    assert counts["global_count"] == {"ascent": 8, "descent": 8}
