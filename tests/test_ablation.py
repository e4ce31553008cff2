"""`examples/ablation.py`: every setting is checked before the first one is trained."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from dim_hf.trainer.comparison import SETTINGS, run_settings, setting_job
from dim_hf.trainer.job_arguments import config_words
from dim_hf.trainer.study import described
from examples.ablation import main
from tests.test_job import write_config

CONFIGS = [
    path for path in sorted(Path("examples/configs").glob("*.yaml")) if not path.stem.startswith(("tuning", "study"))
]


def test_a_misspelled_setting_is_found_before_the_first_one_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("dim_hf.trainer.comparison.finish_job", lambda *_, **__: pytest.fail("trained"))
    words = ["--config", str(write_config(tmp_path)), "--output_dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(main, [*words, "--settings", "supervised,dimm"])
    assert done.exit_code == 1
    assert "unknown setting 'dimm'" in done.output


def test_settings_may_be_written_with_spaces(tmp_path, monkeypatch):
    asked = []

    def stop(words, settings, *_):
        asked.extend(settings)
        raise ValueError("enough")

    monkeypatch.setattr("dim_hf.trainer.comparison.run_settings", stop)
    words = ["--config", str(write_config(tmp_path)), "--output_dir", str(tmp_path / "runs")]
    CliRunner().invoke(main, [*words, "--settings", "supervised, dim"])
    assert asked == ["supervised", "dim"]


def test_without_the_divergence_the_ascent_climbs_what_is_left(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("dim_hf.trainer.comparison.finish_job", lambda job: made.append(job) or ({}, []))
    words = [*config_words(write_config(tmp_path)), "--ascent_objective", "divergence"]
    run_settings(words, SETTINGS, [0], tmp_path)
    climbed = {
        name: job.training.ascent_objective for name, job in zip(SETTINGS, made, strict=True) if job.training.rho > 0
    }
    assert climbed == {"supervised-sam": "total", "teacher-student-sam": "total", "dim": "divergence"}
    kept = setting_job([*words, "--ascent_objective", "supervised"], "teacher-student-sam", 0, tmp_path)
    assert kept.training.ascent_objective == "supervised"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_recorded_settings_of_the_shipped_recipes_say_nothing_of_the_ascent(tmp_path, file):
    words = [*config_words(file), "--use_cpu", "True"]
    for setting in ("supervised-sam", "teacher-student-sam"):
        assert "ascent_objective" not in described(setting_job(words, setting, 0, tmp_path))
