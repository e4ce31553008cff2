"""`examples/robustness.py`: the variants of a data set hold what they promise; the command tabulates them."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from dim_hf.data.manifest import read_manifest, write_manifest
from dim_hf.data.splits import semi_supervised_split
from dim_hf.trainer.study_table import format_variants
from tests.phantom_files import columns, write_images
from tests.test_study import BOTH, STAGE1, STAGE2

EXAMPLE = runpy.run_path("examples/robustness.py")


def split_of(table, folder, **options):
    rows = read_manifest(write_manifest(table, folder / "manifest.csv"))
    settings = {"labeled_domain": "camera_a", "num_labeled": 6, "num_validation": 2, "seed": 0} | options
    return semi_supervised_split(rows, **settings)


def test_labels_without_a_shift_go_round_the_domains(tmp_path):
    plain = split_of(columns(), tmp_path)
    split = split_of(EXAMPLE["without_shift"](columns()), tmp_path, labeled_domain=EXAMPLE["ALL_SITES"])
    assert sorted(split.labeled["name"]) == sorted(f"camera_{d}_{index}" for d in "abc" for index in (2, 3))
    assert {d: list(rows["name"]) for d, rows in split.test.items()} == {
        d: list(rows["name"]) for d, rows in plain.test.items()
    }
    assert len(set(split.labeled["patient"])) == 6  # a number is another patient in another domain
    assert len(split.labeled) + len(split.unlabeled) + len(split.validation) == 30


def test_unlabeled_images_of_one_foreign_domain(tmp_path):
    table = EXAMPLE["one_foreign"](columns(), "camera_a", "camera_c")
    split = split_of(table, tmp_path)
    assert set(split.unlabeled["domain"]) == {"camera_a", "camera_c"}
    assert set(split.test) == {"camera_a", "camera_b", "camera_c"}
    assert list(split.labeled["name"]) == list(split_of(columns(), tmp_path).labeled["name"])


def test_a_fifth_of_the_pool_is_irrelevant(tmp_path):
    pictures = [Path(f"/elsewhere/{index}.png") for index in range(40)]
    split = split_of(EXAMPLE["with_irrelevant"](columns(), pictures, 8), tmp_path)
    irrelevant = [domain == "irrelevant" for domain in split.unlabeled["domain"]]
    assert np.mean(irrelevant) == pytest.approx(0.2, abs=0.02)
    assert "irrelevant" not in split.test
    with pytest.raises(ValueError, match="only 3 were found"):
        EXAMPLE["with_irrelevant"](columns(), pictures[:3], 8)


def test_the_command_runs_variants_and_makes_a_table(tmp_path):
    table = columns(images=54, tests=2)
    write_images(tmp_path / "data", table)
    (tmp_path / "other").mkdir()
    for index in range(40):
        Image.fromarray(np.full((32, 32, 3), index, np.uint8)).save(tmp_path / "other" / f"{index}.png")
    study = {
        "stage1": STAGE1 | {"max_steps": 1},
        "stage2": STAGE2 | {"max_steps": 1},
        "both": {name: value for name, value in BOTH.items() if name not in ("dataset", "num_labeled")},
        "labeled_domains": ["camera_a"],
        "rows": ["supervised", "dim"],
        "seeds": [0],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    words = ["run", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    words += ["--dataset", tmp_path / "data", "--irrelevant", tmp_path / "other"]
    words += ["--only", "a-fifth-irrelevant", "--only", "labels-of-all-domains"]
    done = CliRunner().invoke(EXAMPLE["main"], [*map(str, words)])
    assert done.exit_code == 0, done.output
    assert sum(line.endswith(".json") for line in done.output.splitlines()) == 2 * 2
    printed = CliRunner().invoke(EXAMPLE["main"], ["table", str(tmp_path / "results")])
    assert printed.exit_code == 0, printed.output
    lines = printed.output.strip().splitlines()
    assert lines[0].startswith("| variant | seeds | supervised | dim | DiM minus supervised |")
    assert len(lines) == 2 + 2
    unknown = CliRunner().invoke(EXAMPLE["main"], [*map(str, words), "--only", "none"])
    assert unknown.exit_code == 1
    assert "choose from labels-05, labels-10" in unknown.output
    lacking = CliRunner().invoke(
        EXAMPLE["main"], [*words_without(words, "--irrelevant"), "--only", "a-fifth-irrelevant"]
    )
    assert "needs --irrelevant" in lacking.output
    assert any(line.startswith("| labels-of-all-domains | 0 |") for line in lines)


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "count", "expected"),
    [(8, 8, 5, 4), (8, 8, 20, 8), (8, 8, 1, 1), (4, 4, 10, 4), (12, 4, 10, 8), (6, 3, 5, 3), (3, 9, 2, 1)],
)
def test_with_few_labels_a_step_has_what_can_be_paired(labeled, unlabeled, count, expected):
    assert EXAMPLE["paired_size"](labeled, unlabeled, count) == expected


def words_without(words, option):
    index = words.index(option)
    return [*map(str, [*words[:index], *words[index + 2 :]])]


def test_data_without_an_order_of_labeling_is_refused(tmp_path):
    table = {name: values for name, values in columns().items() if name != "labeled_order"}
    write_manifest(table, tmp_path / "manifest.csv")
    words = ["run", "examples/configs/study-robustness.yaml", "--runs", tmp_path, "--results", tmp_path]
    done = CliRunner().invoke(EXAMPLE["main"], [*map(str, words), "--dataset", str(tmp_path)])
    assert done.exit_code == 1
    assert "no column labeled_order" in done.output


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no study"):
        format_variants({})
