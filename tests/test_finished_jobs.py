"""`dim-hf train --start`: a run that goes on from the network of another one, which is trained once."""

import json

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


def test_a_dry_run_measures_one_run(files):
    config, start = files
    done = CliRunner().invoke(command, ["--config", config, "--start", start, "--dry_run"])
    assert done.exit_code == 2
    assert "--dry_run measures one run" in done.output
