"""`examples/tune.py`: the images that were named are scored, and runs are trained once."""

import json
import runpy
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.phantom_files import columns, write_images
from tests.test_study import BOTH, STAGE1, STAGE2

SHIPPED = Path("examples/configs/tuning-fundus-64.yaml")
EXAMPLE = runpy.run_path("examples/tune.py")


def test_places_of_tuning_images():
    table = columns(images=8, tests=2)
    found = EXAMPLE["tuning_places"](table, "camera_b", 1, 4)
    assert [table["labeled_order"][index] for index in found] == [1, 2, 3]
    assert {table["domain"][index] for index in found} == {"camera_b"}
    assert {table["split"][index] for index in found} == {"train"}


def write_tuning(folder, **changes):
    """A tuning file of one step a stage, its images beside it, and the words that run it."""
    write_images(folder / "data", columns(images=16))
    said = {
        "stage1": STAGE1 | {"max_steps": 1},
        "stage2": STAGE2 | {"max_steps": 1},
        "both": {name: value for name, value in BOTH.items() if name != "dataset"},
        "labeled_domains": ["camera_a", "camera_b"],
        "tuning_domains": ["camera_a", "camera_b", "camera_c"],
        "tuning_images": [6, 9],
        "starts": {"plain": {}, "range": {"intensity": "range"}},
        "variants": {"dim": {}, "dim-after-range": {"start": "range"}},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(said | changes))
    words = ["run", folder / "tiny.yaml", "--runs", folder / "runs", "--results", folder / "results"]
    return [*map(str, words), "--dataset", str(folder / "data")]


def test_starts_and_variants_are_trained_once_and_tabulated(tmp_path):
    words = write_tuning(tmp_path)
    done = CliRunner().invoke(EXAMPLE["main"], words)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "results" / "camera_a-range-dim-after-range.json").read_text())
    assert set(record["tuning_dice"]) == {"camera_b", "camera_c", "mean of sites"}
    assert set(record["tuning_dice"]["camera_b"]) == {"disc", "cup", "all structures"}
    start = json.loads(
        (tmp_path / "runs" / "camera_a" / "range" / "dim-after-range" / "dim_training.json").read_text()
    )
    assert start["started_from"]["model"].endswith("camera_a/range/stage1")
    files = sorted((tmp_path / "results").glob("*.json"))
    assert len(files) == 8
    before = [file.stat().st_mtime_ns for file in files]
    assert CliRunner().invoke(EXAMPLE["main"], words).exit_code == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    refused = CliRunner().invoke(EXAMPLE["main"], [*words, "--weight_decay", "0.5"])
    assert "made with other settings" in refused.output
    printed = CliRunner().invoke(EXAMPLE["main"], ["table", str(tmp_path / "results")])
    mean = record["tuning_dice"]["mean of sites"]["all structures"]
    assert f"| range | dim-after-range | {mean:.2f} |" in printed.output


def test_no_variant_starts_from_another_tunings_network(tmp_path):
    one = {"labeled_domains": ["camera_a"], "starts": {"plain": {}}}
    words = write_tuning(tmp_path, **one, variants={})
    assert CliRunner().invoke(EXAMPLE["main"], words).exit_code == 0
    start, network = tmp_path / "runs" / "camera_a" / "plain" / "stage1", "model.safetensors"
    before = (start / network).read_bytes()

    # Other settings and another --results folder, as the message of the first refusal says, but the same --runs.
    others = [*words, "--results", str(tmp_path / "others"), "--weight_decay", "0.5"]
    refused = CliRunner().invoke(EXAMPLE["main"], others)
    assert "was run with weight_decay=0.0001, now it is 0.5: choose another --runs" in refused.output
    assert (start / network).read_bytes() == before

    # The network of other settings lies where the variant looks for its start.
    assert CliRunner().invoke(EXAMPLE["main"], [*others, "--runs", str(tmp_path / "elsewhere")]).exit_code == 0
    (start / "job.json").write_bytes(
        (tmp_path / "elsewhere" / start.relative_to(tmp_path / "runs") / "job.json").read_bytes()
    )
    write_tuning(tmp_path, **one, variants={"dim": {}})
    for spoil, message in (
        (lambda: None, "was run with weight_decay=0.5, now it is 0.0001: choose another --runs"),
        (
            (start / "job.json").unlink,
            "holds a network, but no job.json that says of which settings: choose another --runs",
        ),
        ((start / "config.json").unlink, "holds no network to start from"),
    ):
        spoil()
        refused = CliRunner().invoke(EXAMPLE["main"], words)
        assert refused.exit_code == 1
        assert message in " ".join(refused.output.split())
        assert not (tmp_path / "runs" / "camera_a" / "plain" / "dim").exists()


def test_a_network_of_unknown_settings_is_not_overwritten(tmp_path):
    words = write_tuning(tmp_path, labeled_domains=["camera_a"], starts={"plain": {}}, variants={})
    start = tmp_path / "runs" / "camera_a" / "plain" / "stage1"
    start.mkdir(parents=True)
    (start / "config.json").write_text("{}")
    refused = CliRunner().invoke(EXAMPLE["main"], words)
    assert "holds a network, but no job.json" in refused.output
    assert [path.name for path in start.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no result"), ("{}", "no result of a tuning"), ("{", "cannot read")]
)
def test_a_table_of_something_else_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "a.json").write_text(content)
    refused = CliRunner().invoke(EXAMPLE["main"], ["table", str(tmp_path)])
    assert refused.exit_code == 1
    assert message in refused.output


def test_one_structure_stands_for_all():
    scores = {"camera_b": {"nucleus": 81.5}, "mean of sites": {"nucleus": 81.5}}
    record = {"labels": "camera_a", "start": "plain", "variant": "dim", "tuning_dice": scores}
    table = EXAMPLE["format_tuning"]([record | {"validation_dice": {"nucleus": 90.25}}])
    assert table.endswith("| plain | dim | 81.50 | 81.50 | 90.25 |")
    assert EXAMPLE["format_tuning"]([record | {"validation_dice": {}}]).endswith("| 81.50 | 81.50 | – |")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage3": {}}, "missing or unknown: \\['stage3'\\]"),
        ({"starts": {}}, "names no starts"),
        ({"variants": ["dim"]}, "variants must be lines of `name: .field: value.`, got \\['dim'\\]"),
        ({"starts": {"plain": 3}}, "starts must be lines of"),
        ({"variants": {"dim": {"start": "nope"}}}, "dim starts from 'nope'"),
    ],
)
def test_faulty_files_are_refused(tmp_path, changes, message):
    said = yaml.safe_load(SHIPPED.read_text())
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(said | changes))
    with pytest.raises(ValueError, match=message):
        EXAMPLE["read_tuning"](tmp_path / "wrong.yaml")


@pytest.mark.parametrize("file", sorted(SHIPPED.parent.glob("tuning-*.yaml")), ids=lambda file: file.stem)
def test_every_job_of_the_shipped_files_is_one(tmp_path, file):
    said = EXAMPLE["read_tuning"](file)
    tuner = EXAMPLE["Tuner"](said, SHIPPED.parent, tmp_path, tmp_path, ())
    for start, changes in said["starts"].items():
        assert tuner.job("drishti", start, "stage1", changes).training.consistency_weight == 0
    for variant, fields in said["variants"].items():
        changes = {name: value for name, value in fields.items() if name != "start"}
        start = fields.get("start", next(iter(said["starts"])))
        assert tuner.job("drishti", start, variant, changes).model.model_name_or_path.endswith("stage1")


def test_faults_of_a_variant_are_found_before_its_start_is_trained(tmp_path):
    words = write_tuning(tmp_path, variants={"dim": {"rhoo": 0.1}})
    refused = CliRunner().invoke(EXAMPLE["main"], words)
    assert "unknown field '--rhoo'" in refused.output
    assert not (tmp_path / "runs").exists()


def test_images_that_are_not_there_are_named_before_the_training(tmp_path):
    write_images(tmp_path / "data", columns(images=16))
    said = EXAMPLE["read_tuning"](SHIPPED) | {"tuning_images": [90, 95], "tuning_domains": ["camera_b"]}
    tuner = EXAMPLE["Tuner"](said, SHIPPED.parent, tmp_path, tmp_path, ("--dataset", str(tmp_path / "data")))
    with pytest.raises(ValueError, match=r"'camera_b' has no training images \[90, 95\]"):
        tuner._train_and_score(tuner.job("camera_a", "zscore", "stage1", {}))
