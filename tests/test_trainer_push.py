"""Pushing from the trainer is the push of the command line."""

import json
from dataclasses import asdict

import pytest

from dim_hf.hub.run_folder import run_hashes
from dim_hf.trainer.job import run_job
from dim_hf.trainer.job_arguments import job_with
from tests.hub_runs import SAID, SETTINGS
from tests.tiny import tiny_trainer


def test_the_trainer_ends_in_the_same_push(tmp_path, monkeypatch):
    result = run_job(job_with([], **SETTINGS, output_dir=str(tmp_path / "run")))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["sha256"] == run_hashes(tmp_path / "run")
    sent = []
    monkeypatch.setattr(
        "dim_hf.hub.push.commit_folder",
        lambda api, target, *_: sent.append((target.repo_id, target.private)) or "url",
    )
    monkeypatch.setattr("dim_hf.hub.push.remote_state", lambda *_: None)
    with pytest.raises(ValueError, match=r"1\. the licence of the weights is missing"):
        result.trainer.push_to_hub("org/seg")
    assert result.trainer.push_to_hub("org/seg", private=True, token="hf_x", **asdict(SAID)) == "url"
    assert sent == [("org/seg", True)]


def test_pushes_during_training_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dim-hf push"):
        tiny_trainer(tmp_path, push_to_hub=True)
