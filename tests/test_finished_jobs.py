"""`dim-hf train --start`: a run that goes on from the network of another one, which is trained once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from dim_hf.cli.train import command
from dim_hf.trainer.finished_jobs import finish_job, job_from_start
from dim_hf.trainer.job_arguments import job_with
from tests.test_study import BOTH, STAGE1, STAGE2


@pytest.fixture
def files(tmp_path):
    for name, fields in (("first", BOTH | STAGE1), ("second", BOTH | STAGE2)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    return [str(tmp_path / "second.yaml"), str(tmp_path / "first.yaml")]


def test_the_second_run_starts_from_the_first_which_is_trained_once(files, tmp_path):
    config, start = files
    run = tmp_path / "run"
    words = ["--config", config, "--start", start, "--output_dir", str(run), "--resume_from_checkpoint", "last"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    summary = json.loads((run / "dim_training.json").read_text())
    assert summary["max_steps"] == STAGE2["max_steps"]
    assert summary["started_from"]["step"] == STAGE1["max_steps"]
    # As the two commands would have done it.
    apart = job_with(
        [*(f"--{name}={value}" for name, value in (BOTH | STAGE2).items())],
        model_name_or_path=str(run / "start"),
        output_dir=str(tmp_path / "apart"),
    )
    finish_job(apart)
    together, alone = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "apart"))
    assert all(torch.equal(value, alone[name]) for name, value in together.items())
    written = (run / "start" / "results.json").stat().st_mtime_ns
    assert CliRunner().invoke(command, words).exit_code == 0
    assert (run / "start" / "results.json").stat().st_mtime_ns == written


def test_a_network_to_start_from_is_named_once(files, tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        job_from_start(*files, ["--model_name_or_path", "elsewhere", "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_start_of_other_settings_is_refused(files, tmp_path):
    words = ["--output_dir", str(tmp_path / "run")]
    job_from_start(*files, words)
    with pytest.raises(ValueError, match=r"start was run with .*split_seed=0, now it is 1"):
        job_from_start(*files, [*words, "--split_seed", "1"])
    (tmp_path / "run" / "start" / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json cannot be read"):
        job_from_start(*files, words)


def test_a_run_from_before_a_field_was_there_had_its_default(files, tmp_path):
    words = ["--output_dir", str(tmp_path / "run")]
    job_from_start(*files, words)
    file = tmp_path / "run" / "start" / "job.json"
    found = json.loads(file.read_text())
    del found["training"]["structure_warp_probability"], found["model"]["norm"]
    file.write_text(json.dumps(found))
    job_from_start(*files, words)
    with pytest.raises(ValueError, match=r"start was run with norm='batch', now it is 'instance'"):
        job_from_start(*files, [*words, "--norm", "instance"])


def test_words_about_the_method_are_for_the_second_run(files, tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--rho", "0.5", "--seed", "3"]
    second = job_from_start(*files, words)
    first = json.loads((tmp_path / "run" / "start" / "job.json").read_text())["training"]
    assert (first["max_steps"], first["rho"], first["seed"]) == (STAGE1["max_steps"], 0, 3)
    assert (second.training.max_steps, second.training.rho, second.training.seed) == (1, 0.5, 3)


def test_both_runs_must_see_the_same_images(files, tmp_path):
    (config, start), words = files, ["--output_dir", str(tmp_path / "run")]
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(BOTH | STAGE2 | {"split_seed": 1}))
    with pytest.raises(ValueError, match=r"split_seed is 0 in .*first\.yaml and 1 in the run"):
        job_from_start(config, start, words)
    with pytest.raises(ValueError, match="nowhere"):
        job_from_start(*files, [*words, "--split_seed", "1", "--labeled_domain", "nowhere"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labeled_batch_size", "50"], "labeled_batch_size is 50, but there are only 4 labeled images"),
        (["--divergence_estimator", "regional", "--divergence_grid_size", "33"], "fewer than divergence_grid_size=33"),
    ],
)
def test_what_the_second_run_would_be_refused_for_is_found_before_the_first(files, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        job_from_start(*files, [*words, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_faults_of_the_first_file_name_it(files, tmp_path):
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(BOTH | STAGE1 | {"max_steps": "many"}))
    with pytest.raises(ValueError, match=r"first\.yaml"):
        job_from_start(*files, ["--output_dir", str(tmp_path / "run")])


def test_a_run_that_was_moved_goes_on(files, tmp_path):
    config, start = files
    words = ["--config", config, "--start", start, "--resume_from_checkpoint", "last", "--save_steps", "1"]
    first = CliRunner().invoke(command, [*words, "--output_dir", str(tmp_path / "one")])
    assert first.exit_code == 0, first.output
    shutil.move(tmp_path / "one", tmp_path / "moved")
    again = CliRunner().invoke(command, [*words, "--output_dir", str(tmp_path / "moved"), "--max_steps", "3"])
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "moved" / "dim_training.json").read_text())["step"] == 3


@pytest.mark.slow
def test_two_processes_wait_for_what_the_first_one_writes(files, tmp_path):
    config, start = files
    words = ["examples/train.py", "--config", config, "--start", start, "--output_dir", str(tmp_path / "run")]
    words += ["--labeled_batch_size", "2"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *words], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder in (tmp_path / "run", tmp_path / "run" / "start"):
        assert json.loads((folder / "results.json").read_text())["environment"]["processes"] == 2


def test_a_dry_run_measures_one_run(files):
    config, start = files
    done = CliRunner().invoke(command, ["--config", config, "--start", start, "--dry_run"])
    assert done.exit_code == 2
    assert "--dry_run measures one run" in done.output
