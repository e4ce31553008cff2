"""`dim-hf evaluate`: what it scores, says, writes and refuses."""

import csv
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from dim_hf.cli import main
from dim_hf.metrics.case_files import read_cases_csv, write_cases_csv
from dim_hf.trainer.job import run_job
from dim_hf.trainer.job_arguments import parse_job
from tests.test_job import write_config, write_site


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for domain, shift in (("one", 0), ("other", 40)):
        write_site(folder / "data", domain, 12, shift=shift)
    config = write_config(folder, dataset=str(folder / "data"), hidden_sizes=[4, 8])
    run_job(parse_job(config, ["--output_dir", str(folder / "run"), "--test_fraction", "0.3"]))
    return folder


def test_the_command_scores_what_the_run_held_out(run):
    result = CliRunner().invoke(main, ["evaluate", str(run / "run"), str(run / "data"), "--no-progress"])
    assert result.exit_code == 0, result.output
    folder = run / "run" / "evaluation-image"
    trained = read_cases_csv(run / "run" / "cases.csv")
    scored = read_cases_csv(folder / "cases.csv")
    assert [(case.domain, case.name) for case in scored] == [(case.domain, case.name) for case in trained]
    assert [case.dice for case in scored] == pytest.approx([case.dice for case in trained])  # one size, one grid
    facts = json.loads((folder / "evaluation.json").read_text())
    assert (facts["labeled_domain"], facts["labeled_images"], facts["selected_on_test"]) == ("one", 4, False)
    assert facts["transductive"] is False
    assert facts["split"] == "test"
    assert facts["scored_parts"] == {"labeled": 0, "unlabeled": 0, "validation": 0, "test": len(scored)}
    table = (folder / "table.md").read_text()
    for text in (table, " ".join(result.output.split())):
        assert f"{run / 'run'} on the test images of {run / 'data'}" in text
        assert "Checkpoint: best mean_dice on validation." in text
        assert "Labels for training: 4 images of 4 patients, 1 domain (one). Seeds: 1 (" in text
        assert "Test images in training: no (inductive)." in text
    for name in ("cases.csv", "summary.csv"):
        lines = list(csv.DictReader((folder / name).open(encoding="utf-8")))
        assert {(line["protocol"], line["split"], line["selected"]) for line in lines} == {
            ("image", "test", "best mean_dice on validation")
        }
    assert {path.name for path in folder.iterdir()} == {
        "cases.csv", "summary.csv", "table.md", "evaluation.json", "report.html",
    }  # fmt: skip


def test_other_images_do_not_replace_the_scores_of_test_images(run):
    for split, validation in (("train", 2), ("all", 2)):
        words = ["evaluate", str(run / "run"), str(run / "data"), "--no-progress", "--split", split]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        folder = run / "run" / f"evaluation-image-{split}"
        facts = json.loads((folder / "evaluation.json").read_text())
        assert facts["split"] == split
        assert (facts["scored_parts"]["labeled"], facts["scored_parts"]["validation"]) == (4, validation)
        page = (folder / "report.html").read_text(encoding="utf-8")
        for text in ((folder / "table.md").read_text(), " ".join(done.output.split()), page):
            assert "includes 4 labeled and 2 validation images" in text
            assert {"train": "on the training images of", "all": "on all images of"}[split] in text
            assert "no (inductive)" not in text


def test_scores_of_flips_have_a_folder_of_their_own(run):
    words = ["evaluate", str(run / "run"), str(run / "data"), "--no-progress", "--flips"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    folder = run / "run" / "evaluation-image-flips"
    assert json.loads((folder / "evaluation.json").read_text())["flips"] is True
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (" ".join(done.output.split()), (folder / "table.md").read_text(), page):
        assert "mean of the probabilities over mirror images" in text


def test_of_other_data_nothing_is_said_of_training(run, tmp_path):
    write_site(tmp_path / "more", "elsewhere", 6)
    done = CliRunner().invoke(main, ["evaluate", str(run / "run"), str(tmp_path / "more"), "--no-progress",
                                     "--output_dir", str(tmp_path / "out")])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "unknown: another data set, or its parts are not the run's." in (tmp_path / "out" / "table.md").read_text()
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (facts["transductive"], facts["scored_parts"]) == (None, None)


def test_a_folder_that_takes_no_file_is_refused_before_predicting(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("dim_hf.evaluation.evaluate.evaluate_model", lambda *_, **__: pytest.fail("predicted"))
    words = ["evaluate", str(run / "run"), str(run / "data"), "--output_dir", str(tmp_path / "file" / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "cannot be written to" in done.output


def test_two_evaluations_are_compared(run):
    arguments = ["evaluate", str(run / "run"), str(run / "data"), "--no-progress", "--split", "all"]
    for name in ("a", "b"):
        done = CliRunner().invoke(main, [*arguments, "--output_dir", str(run / name)])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["evaluate", "--compare", str(run / "a"), str(run / "b")])
    assert done.exit_code == 0, done.output
    assert f"A: {run / 'a'}\nB: {run / 'b'}\n" in done.output
    assert "Distances in pixels; empty masks: worst" in done.output
    done = CliRunner().invoke(main, ["evaluate", "--compare", str(run / "a"), str(run / "b"), "--json"])
    said = json.loads(done.stdout)
    assert (said["a"]["name"], said["b"]["protocol"], said["metric"]) == (str(run / "a"), "image", "dice")
    assert {row["difference"]["mean"] for row in said["rows"]} == {0.0}
    done = CliRunner().invoke(
        main, [*arguments, "--against", str(run / "a"), "--output_dir", str(run / "c"), "--json"]
    )
    said = json.loads(done.stdout)
    assert said["report"] == str(run / "c" / "report.html")
    assert said["provenance"]["split"] == "all"
    assert len(said["comparisons"][str(run / "a")]) == len(said["summary"]["rows"])
    done = CliRunner().invoke(main, [*arguments, "--against", str(run / "a"), "--output_dir", str(run / "c")])
    assert done.exit_code == 0, done.output
    missing = CliRunner().invoke(main, ["evaluate", "--compare", str(run / "a"), str(run / "nowhere")])
    assert missing.exit_code == 1
    assert "nowhere" in missing.output
    cases = [replace(case, name="x" + case.name) for case in read_cases_csv(run / "a" / "cases.csv")]
    write_cases_csv(cases, run / "others.csv")
    others = CliRunner().invoke(main, ["evaluate", "--compare", str(run / "a"), str(run / "others.csv")])
    assert others.exit_code == 1
    assert "no case in common" in others.output


def test_other_images_are_not_called_test_images(run, tmp_path):
    for domain, shift in (("one", 0), ("other", 40)):
        write_site(tmp_path / "more", domain, 14, shift=shift)
    done = CliRunner().invoke(main, ["evaluate", str(run / "run"), str(tmp_path / "more"), "--no-progress"])
    assert done.exit_code == 1
    assert "not those that the run held out" in done.output


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["a", "b", "--compare", "c", "d"], "DATASET, MODEL has no effect"),
        (["--compare", "c", "d", "--output_dir", "x"], "--output-dir has no effect"),
        (["--compare", "c", "d", "--split", "test", "--no-progress"], "--no-progress, --split has no effect"),
        (["a", "b", "--metric", "hd95"], "--metric is of --compare"),
        ([".", "b", "--revision", "main"], "--revision is of models of the Hub"),
    ],
)
def test_options_without_effect_are_refused(words, shown):
    done = CliRunner().invoke(main, ["evaluate", *words])
    assert done.exit_code == 2
    assert shown in " ".join(done.output.split())


@pytest.mark.parametrize("words", [[], ["somewhere"], ["--protocol", "best"]])
def test_the_command_says_what_is_missing(words):
    assert CliRunner().invoke(main, ["evaluate", *words]).exit_code == 2


def test_a_model_that_is_nowhere_is_named(run):
    for name in ("no/model", str(run / "data")):
        done = CliRunner().invoke(main, ["evaluate", name, str(run / "data")])
        assert done.exit_code == 1
        assert name in done.output
        assert "Traceback" not in done.output
    assert "no folder that holds a model" in done.output


def test_choosing_on_test_images_is_stamped(run):
    config = write_config(run, dataset=str(run / "data"), hidden_sizes=[4, 8], select="test-legacy")
    run_job(parse_job(config, ["--output_dir", str(run / "legacy"), "--test_fraction", "0.3"]))
    results = json.loads((run / "legacy" / "results.json").read_text())
    assert results["training"]["selected"] == "best mean_dice on TEST images (test-legacy)"
    done = CliRunner().invoke(main, ["evaluate", str(run / "legacy"), str(run / "data"), "--no-progress"])
    assert done.exit_code == 0, done.output
    folder = run / "legacy" / "evaluation-image"
    assert json.loads((folder / "evaluation.json").read_text())["selected_on_test"] is True
    assert "Test images had a part in choosing this checkpoint." in (folder / "table.md").read_text()
    assert "TEST images (test-legacy)" in (run / "legacy" / "table.md").read_text()
    with (folder / "summary.csv").open(encoding="utf-8") as file:
        assert {line["selected"] for line in csv.DictReader(file)} == {results["training"]["selected"]}
    words = ["evaluate", str(run / "run"), str(run / "data"), "--no-progress", "--output_dir", str(run / "beside")]
    done = CliRunner().invoke(main, [*words, "--against", str(folder)])
    assert done.exit_code == 0, done.output
    stamp = f"{folder}: Test images had a part in choosing this checkpoint."
    assert stamp in (run / "beside" / "table.md").read_text()
    assert stamp in (run / "beside" / "report.html").read_text(encoding="utf-8")
    assert "Test images had a part" in " ".join(done.output.split())
    other = CliRunner().invoke(main, [*words, "--against", str(run / "legacy")])
    assert other.exit_code == 1
    assert "was scored by the protocol image" in other.output
