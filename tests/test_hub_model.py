"""What is published of a run, what is refused, and the card, without a Hub."""

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard, get_token
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from dim_hf.cli import main
from dim_hf.evaluation.result import SELECTED_ON_TEST
from dim_hf.hub.eval_results import eval_results, list_scores
from dim_hf.hub.privacy import KEY_FILE, pseudonymous
from dim_hf.hub.push import preview_push, push_run
from dim_hf.hub.run_folder import file_sha256, read_finished_run
from dim_hf.hub.staging import stage
from dim_hf.hub.statements import Statements, completed, find_obstacles
from dim_hf.metrics.case_files import read_cases_csv
from tests.hub_runs import SAID, change_results, make_run, matches, on_one_width, state_hashes

EXPECTED = Path(__file__).parent / "references" / "model_card.md"
NAME = "org/dim-fundus"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    """A copy to change."""
    return Path(
        shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*", ".push_key"))
    )


@pytest.fixture(scope="module")
def staged(finished, tmp_path_factory):
    """The repository of the unchanged run, with the data set's name on the Hub."""
    folder = tmp_path_factory.mktemp("staged")
    stage_run(finished, folder, replace(SAID, dataset_id="org/fundus"))
    return folder


def stage_run(run, folder, said=SAID, **options):
    found = read_finished_run(run)
    folder.mkdir(exist_ok=True)
    stage(found, completed(said, found), NAME, folder, **({"keep_names": False, "token": None} | options))
    return folder


def obstacles_of(run, said=SAID):
    found = read_finished_run(run)
    return find_obstacles(found, completed(said, found))


def refused(run, *parts, said=SAID):
    with pytest.raises(ValueError, match="org/dim-fundus was not pushed") as error:
        preview_push(run, NAME, said)
    assert all(part in str(error.value) for part in parts), str(error.value)


# ---- the card


def test_the_whole_card(finished):
    matches(on_one_width(preview_push(finished, NAME, SAID).card), EXPECTED.read_text(encoding="utf-8"))


def test_metadata_and_eval_results_hold_the_same_scores(staged, finished):
    data = ModelCard((staged / "README.md").read_text(encoding="utf-8")).data
    assert (data.license, data.pipeline_tag, data.datasets) == ("cc-by-4.0", "image-segmentation", ["org/fundus"])
    front = yaml.safe_load((staged / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    name, indexed = model_index_to_eval_results(front["model-index"])
    entries = yaml.safe_load((staged / ".eval_results" / "dim-hf.yaml").read_text(encoding="utf-8"))
    assert name == "dim-fundus"
    assert [result.metric_value for result in indexed] == [entry["value"] for entry in entries]
    summary = read_finished_run(finished).summary()
    assert len(entries) == 2 * len(summary.rows)
    assert entries[0]["value"] == round(summary.rows[0].intervals["dice"].mean, 4)
    assert {entry["dataset"]["id"] for entry in entries} == {"org/fundus"}
    assert len({entry["dataset"]["task_id"] for entry in entries}) == len(entries)


def test_eval_results_are_what_the_client_reads(finished):
    hub = pytest.importorskip("huggingface_hub", minversion="1.4")
    entries = eval_results(list_scores(read_finished_run(finished).summary(), "stamp"), "org/fundus", NAME)
    parsed = hub.parse_eval_result_entries(entries)
    assert hub.eval_result_entries_to_yaml(parsed) == entries
    assert parsed[0].notes.endswith("; stamp")
    assert parsed[0].source_url.endswith(NAME)


def test_without_a_data_set_on_the_hub_there_are_no_eval_results(finished):
    preview = preview_push(finished, NAME, SAID)
    assert not any(path.startswith(".eval_results") for path in preview.sizes)
    assert "model-index:" in preview.card


def test_selection_on_test_images_is_stamped_everywhere(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    change_results(
        run, {"training": results["training"] | {"selected": "best mean_dice on TEST images (test-legacy)"}}
    )
    folder = stage_run(run, tmp_path / "out", replace(SAID, dataset_id="org/fundus"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"**{SELECTED_ON_TEST}**" in card
    assert "TEST images (test-legacy)" in card
    assert "used for nothing else" not in card
    assert "| testing, and choosing the weights | 8 | 8 |" in card
    assert "| choosing the weights |" not in card
    entries = yaml.safe_load((folder / ".eval_results" / "dim-hf.yaml").read_text(encoding="utf-8"))
    assert all("test images had a part in the selection" in entry["notes"] for entry in entries)


def test_the_card_claims_no_more_than_the_run_did(run):
    results = json.loads((run / "results.json").read_text())
    arguments = results["job"]["training"] | {"consistency_weight": 0.0, "divergence_weight": 0.0, "rho": 0.0}
    training = results["training"] | {"selected": "last step", "step": 2, "warnings": ["pseudo-labels of b collapsed"]}
    change_results(run, {"job": results["job"] | {"training": arguments}, "training": training})
    card = preview_push(run, NAME, SAID).card
    assert "In this run: supervised: the network learned from the outlined images alone." in card
    assert "the last one: no image had a part in choosing the step" in card
    assert "- pseudo-labels of b collapsed" in card
    assert "teacher, the moving average" not in card
    assert "images of one site\nwith outlines.\n" in card
    assert not re.search(r"without outlines|\| choosing the weights", card)


def test_what_a_run_started_from_is_told_without_its_place(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    start = {
        "model": "/home/me/runs/old",
        "selected": "best mean_dice on TEST images (test-legacy)",
        "labeled_images": 7,
    }
    selected = f"last step, started from {start['model']} ({start['selected']})"
    change_results(run, {"training": results["training"] | {"selected": selected, "started_from": start}})
    folder = stage_run(run, tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "the last one: no image had a part in choosing the step. Training started from another model, which had "
        "learned from 7 labeled images (its weights were chosen on TEST images (test-legacy), so these scores owe"
        in card
    )
    assert f"**{SELECTED_ON_TEST}**" in card
    assert "| testing | 8 | 8 |" in card
    training = json.loads((folder / "results.json").read_text())["training"]
    assert training["started_from"]["model"] == "(local)"
    assert training["selected"].startswith("last step, started from (local) (best mean_dice on TEST")
    older = {"model": "/home/me/runs/new", "selected": selected}
    selected = f"last step, started from {older['model']} ({older['selected']})"
    change_results(run, {"training": results["training"] | {"selected": selected, "started_from": older}})
    card = preview_push(run, NAME, SAID).card
    assert "(its weights: last step, but it goes back to a model chosen on TEST images (test-legacy))" in card


def test_labels_of_several_sites_have_no_gap(run):
    results = json.loads((run / "results.json").read_text())
    labeled = results["split"]["labeled"] | {"domains": {"camera_a": 2, "camera_b": 2}}
    change_results(run, {"split": results["split"] | {"labeled": labeled}})
    card = preview_push(run, NAME, SAID).card
    assert "4 images of 2 sites\nwith outlines" in card
    assert not re.search(r"labels are from|site of the outlines|Labeled domain", card)


def test_names_of_sites_are_shown_as_they_are(run):
    for path in (run / "cases.csv", run / "results.json"):
        path.write_text(path.read_text().replace("camera_b", "B | <i>x</i>").replace("camera_a", "Zürich *1*"))
    state_hashes(run)
    card = preview_push(run, NAME, SAID).card
    body = card.split("---\n", 2)[2]
    assert "| B \\| &lt;i&gt;x&lt;/i&gt; " in body
    assert "<i>" not in body
    assert "Zürich \\*1\\*: 4" in body
    rows = [line for line in body.splitlines() if line.startswith("| B ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}
    assert "B | <i>x</i>" in card.split("---\n", 2)[1]  # YAML needs no escapes


@pytest.mark.parametrize("dataset", ["phantom:fundus", "phantom:prostate_3d"])
def test_the_code_of_the_card_is_code(run, dataset):
    if dataset.endswith("3d"):
        make_run(run.parent / "volumes", dataset=dataset, volume_size=[8, 16, 16], divergence_grid_size=2)
    card = preview_push(run.parent / "volumes" if dataset.endswith("3d") else run, NAME, SAID).card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    ast.parse(code)
    assert ("scan.png" in code) != dataset.endswith("3d")
    assert ("- 3d\n" in card) == dataset.endswith("3d")


# ---- what is published


def test_weights_travel_byte_for_byte_and_nothing_that_runs_code_unasked(staged, finished):
    files = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    assert file_sha256(staged / "model.safetensors") == file_sha256(finished / "model.safetensors")
    assert not {file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert not {file for file in files if "checkpoint" in file or file.startswith(("training_args", "evaluation"))}
    auto_map = json.loads((staged / "config.json").read_text())["auto_map"]
    auto_map |= json.loads((staged / "preprocessor_config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", "AutoModelForSemanticSegmentation", "AutoImageProcessor"}
    assert {f"{value.split('.')[0]}.py" for value in auto_map.values()} <= files


def test_what_was_published_can_be_checked_and_pushed_again(staged):
    assert obstacles_of(staged, replace(SAID, data_licence="CC0-1.0")) == []


def test_nothing_of_the_machine_is_published(staged, finished):
    results = json.loads((staged / "results.json").read_text())
    assert results["job"]["training"]["output_dir"] is None
    assert results["job"]["data"]["dataset"] == "org/fundus"
    assert results["job"]["training"]["rho"] == 0.05
    assert results["split"] == json.loads((finished / "results.json").read_text())["split"]
    assert json.loads((staged / "job.json").read_text()) == results["job"]
    for path in staged.rglob("*"):
        if path.is_file():
            assert str(finished).encode() not in path.read_bytes()


def test_names_are_codes_unless_asked_for(staged, finished, tmp_path):
    names = {case.name for case in read_cases_csv(finished / "cases.csv")}
    patients = {case.patient for case in read_cases_csv(finished / "cases.csv")}
    for path in filter(Path.is_file, staged.rglob("*")):
        text = path.read_bytes().decode(errors="ignore")
        assert not any(name in text for name in names | patients), path
    coded, known = read_cases_csv(staged / "cases.csv"), read_cases_csv(finished / "cases.csv")
    assert sorted(case.dice for case in coded) == sorted(case.dice for case in known)
    assert len({(case.domain, case.name) for case in coded}) == len({(case.domain, case.name) for case in known})
    kept = stage_run(finished, tmp_path / "kept", keep_names=True)
    assert (kept / "cases.csv").read_bytes() == (finished / "cases.csv").read_bytes()
    assert "replaced by codes" not in (kept / "README.md").read_text(encoding="utf-8")


def test_codes_need_the_key_and_keep_patients_together(finished):
    cases = read_cases_csv(finished / "cases.csv")
    one, again, other = (pseudonymous(cases, key) for key in (b"a", b"a", b"b"))
    assert one == again
    assert {case.name for case in one}.isdisjoint(case.name for case in other)
    empty = pseudonymous([replace(case, patient="") for case in cases], b"a")
    assert {case.patient for case in empty} == {""}
    assert (finished / KEY_FILE).stat().st_mode & 0o077 == 0 if (finished / KEY_FILE).exists() else True


def test_an_equal_push_has_equal_files(run, tmp_path):
    one, two = (stage_run(run, tmp_path / name) for name in ("one", "two"))
    for path in one.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_models_of_transformers_travel_without_code(run, tmp_path):
    labels = {0: "background", 1: "rim", 2: "cup"}
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], num_attention_heads=[1, 1],
        patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[1, 1], decoder_hidden_size=8, id2label=labels,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(run)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(run)
    state_hashes(run)
    folder = stage_run(run, tmp_path / "out")
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in (folder / "config.json").read_text()
    assert "trust_remote_code" not in (folder / "README.md").read_text(encoding="utf-8")


# ---- what is refused


def test_everything_that_is_missing_is_listed(run):
    (run / "results.json").unlink()
    (run / "cases.csv").unlink()
    (run / "preprocessor_config.json").unlink()
    refused(
        run,
        "1. the licence of the weights is missing",
        "2. the intended use is missing",
        "3. the data statement is missing",
        "4. the licence of the data is unknown",
        "5. " + str(run) + " has no preprocessor_config.json",
        "6. the run is unfinished: it has no results.json",
        "7. results by site are missing",
        said=Statements(licence="unknown", intended_use=" \n", data_statement="TODO."),
    )
    (run / "model.safetensors").unlink()
    assert any("holds no model.safetensors" in obstacle for obstacle in obstacles_of(run))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", "cases.csv"])
def test_files_of_another_run_are_named(run, name):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content.replace(b"0.0", b"1.0", 1) if name == "cases.csv" else content + b" ")
    if name == "model.safetensors":
        (run / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (obstacle,) = obstacles_of(run)
    assert obstacle.startswith(f"the results are not those of this model: {name} changed")


def test_runs_that_do_not_say_what_was_scored(run):
    results = json.loads((run / "results.json").read_text())
    del results["sha256"]
    (run / "results.json").write_text(json.dumps(results))
    refused(run, "does not say which weights were scored")


def test_a_site_that_was_not_scored_wholly(run):
    lines = (run / "cases.csv").read_text().splitlines(keepends=True)
    (run / "cases.csv").write_text("".join(line for line in lines if not line.startswith("camera_c")))
    state_hashes(run)
    refused(run, "results of site 'camera_c' are incomplete: 0 of 2 test images were scored")


def test_weights_that_do_not_fill_the_model(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"hidden_sizes": [8, 16, 16]}))
    state_hashes(run)
    with pytest.raises(ValueError, match=r"the weights (do not fit|cannot be loaded)"):
        preview_push(run, NAME, SAID)
    (run / "model.safetensors").write_bytes(b"no weights")
    state_hashes(run)
    with pytest.raises(ValueError, match="the weights cannot be loaded"):
        preview_push(run, NAME, SAID)


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ("copied from /home/me/scans", "README.md names a local path"),
        ("the key is hf_" + "a1" * 15, "README.md holds an access token"),
        ("secret-of-mine", "README.md holds an access token"),
    ],
)
def test_statements_that_tell_too_much(run, tmp_path, said, part):
    with pytest.raises(ValueError, match=part):
        stage_run(run, tmp_path / "out", replace(SAID, data_statement=said), token="secret-of-mine")


def test_the_licence_of_the_data_comes_from_its_description(run, tmp_path):
    description = {"id2label": {"0": "a", "1": "b"}, "structures": {"b": [1]}, "licence": "CC0-1.0"}
    (tmp_path / "dim_dataset.json").write_text(json.dumps(description))
    results = json.loads((run / "results.json").read_text())
    for dataset, licence in ((str(tmp_path / "manifest.csv"), "CC0-1.0"), ("org/elsewhere", None)):
        job = results["job"] | {"data": results["job"]["data"] | {"dataset": dataset}}
        change_results(run, {"job": job})
        found = read_finished_run(run)
        assert completed(SAID, found).data_licence == licence
        assert completed(replace(SAID, data_licence="mine"), found).data_licence == "mine"
    refused(run, "1. the licence of the data is unknown")
    said = replace(SAID, data_licence="CC BY 4.0", data_statement="From our lab.")
    card = preview_push(run, NAME, said).card
    assert "Data set: unpublished data. Licence of the data: CC BY 4.0" in card
    assert "drawn by a program" not in card


@pytest.mark.parametrize("name", ["seg", "org/", "org/a/b", "../x", "https://a/b"])
def test_names_of_models(name, tmp_path):
    with pytest.raises(ValueError, match="is no name of a model on the Hub"):
        push_run(tmp_path, name, SAID)


def test_a_name_of_a_data_set_is_checked(run):
    refused(run, "--dataset-id", said=replace(SAID, dataset_id="somewhere"))


def test_a_push_needs_a_token(finished, monkeypatch):
    monkeypatch.setattr("dim_hf.data.hub.commit.get_token", lambda: None)
    with pytest.raises(ValueError, match="cannot be pushed without a token: run `hf auth login`"):
        push_run(finished, NAME, SAID)


# ---- the command


def test_the_command_shows_what_it_would_publish(finished):
    words = ["push", str(finished), NAME, "--licence", "mit", "--intended-use", "x", "--data_statement", "y"]
    result = CliRunner().invoke(main, [*words, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "license: mit" in result.stdout
    assert "model.safetensors" in result.stderr
    said = json.loads(CliRunner().invoke(main, [*words, "--dry-run", "--json"]).stdout)
    assert said["card"].strip() == result.stdout.strip()
    assert said["files"]["model.safetensors"] == (finished / "model.safetensors").stat().st_size
    assert get_token() not in result.output if get_token() else True


def test_the_command_lists_what_is_missing(finished, tmp_path):
    result = CliRunner().invoke(main, ["push", str(finished), NAME])
    assert result.exit_code == 1
    assert all(f"  {number}. " in result.output for number in (1, 2, 3))
    result = CliRunner().invoke(main, ["push", str(tmp_path / "nothing"), NAME])
    assert (result.exit_code, "is no folder" in result.output) == (1, True)
