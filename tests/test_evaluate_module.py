"""The `evaluate` module, loaded by its path in a process of its own, offline and with an empty cache."""

import ast
import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dim_hf.metrics.cases import score_case

pytest.importorskip("evaluate")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "dim_hf" / "metrics" / "dim_segmentation"

# What the process prints, by name; one process for all tests, since importing evaluate takes seconds.
SCRIPT = """
import doctest, json, os, shutil, sys
from pathlib import Path
import evaluate, numpy as np
from tests.test_evaluate_module import FOLDER, maps

found = {}
module = evaluate.load("dim_hf/metrics/dim_segmentation")
found["class"] = [type(module).__name__, isinstance(module, evaluate.Metric), module.name, module.license]
predictions, references = maps()
options = {"structures": {"disc": [1, 2], "cup": [2]}, "tolerance_mm": 1.0}
found["at once"] = module.compute(predictions=predictions, references=references, spacing=0.5, **options)
for start in range(0, 4, 2):
    module.add_batch(predictions=predictions[start : start + 2], references=references[start : start + 2])
module.add(prediction=predictions[4].tolist(), reference=references[4].tolist())
found["streamed"] = module.compute(spacing=0.5, **options)
spacings = [(0.5, 0.5), (1.0, 2.0), (0.5, 0.5), (1.0, 1.0), (3.0, 1.0, 1.0)]
found["by case"] = module.compute(predictions=predictions, references=references, spacing=spacings, **options)
found["defaults"] = module.compute(predictions=predictions, references=references)
empty = np.zeros((3, 4), int)
full = empty + 1
for policy in ("worst", "nan", "legacy-100", "legacy-0"):
    pairs = {"predictions": [empty, full, full], "references": [full, empty, full]}
    found[policy] = module.compute(**pairs, empty_policy=policy, num_labels=3)
pairs = {"predictions": [full, full, empty], "references": [empty + 255, full, full]}
found["ignored"] = module.compute(**pairs, num_labels=2)
pairs = {"predictions": [full] * 2, "references": [full] * 2}
found["equal spacings"] = module.compute(**pairs, spacing=[2, 2])
found["nested spacings"] = module.compute(**pairs, spacing=[[1, 2], [1, 2]])
alone = evaluate.load(str(FOLDER), keep_in_memory=True)
found["in memory"] = alone.compute(predictions=[full], references=[full])
found["files left"] = len(list(Path(os.environ["HF_HOME"]).rglob("*.arrow")))
failures = {
    "counts": lambda: module.add_batch(predictions=[full], references=[full, full]),
    "shapes": lambda: module.add_batch(predictions=[full], references=[full[:2]]),
    "types": lambda: module.add_batch(predictions=[full * 0.5], references=[full]),
    "policy": lambda: module.compute(predictions=[full], references=[full], empty_policy="best"),
    "spacings": lambda: module.compute(predictions=[full], references=[full], spacing=[(1, 1), (1, 1)]),
    "ambiguous": lambda: module.compute(predictions=[full] * 2, references=[full] * 2, spacing=[1, 2]),
    "nothing": lambda: module.compute(predictions=[empty], references=[empty]),
}
for name, function in failures.items():
    module = evaluate.load("dim_hf/metrics/dim_segmentation", experiment_id=name)
    try:
        function()
    except ValueError as error:
        found[name] = str(error)
module = evaluate.load("dim_hf/metrics/dim_segmentation")
examples = {"README": (FOLDER / "README.md").read_text(), "inputs": module.inputs_description}
parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
for name, text in examples.items():
    test = parser.get_doctest(text, {"evaluate": evaluate}, name, name, 0)
    found["examples in " + name] = [len(test.examples), runner.run(test).failed]
space = shutil.copytree(FOLDER, Path(os.environ["HF_HOME"], "app"))  # a Space's folder has a name of its own
sys.path.insert(0, str(space))
import app
found["app"] = app.score(*app.EXAMPLE.values(), "[0.5, 0.5]", "nan", 1.0)
for name, fields in {"json": ["[[0,", "[[0]]"], "kind": ["[[0]]", "5"], "shape": ["[[1]]", "[[1, 0]]"]}.items():
    try:
        app.score(*fields)
    except ValueError as error:
        found["app " + name] = str(error)
print("FOUND" + json.dumps(found))
"""


def maps():
    """Five cases of different sizes, one of them a volume; the reference of the first has ignored pixels."""
    generator = np.random.default_rng(0)
    shapes = [(12, 14), (9, 20), (16, 8), (5, 5), (3, 8, 9)]
    predictions, references = ([generator.integers(0, 3, shape) for shape in shapes] for _ in range(2))
    references[0][:3] = 255
    return predictions, references


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_EVALUATE_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("FOUND")[1])


def averages(spacings, structures, **options):
    """What the module must give, from the cases' rows."""
    rows = [
        row
        for prediction, reference, spacing in zip(*maps(), spacings, strict=True)
        for row in score_case(prediction, reference, structures, spacing, **options)
    ]
    by_name = {name: [row for row in rows if row.structure == name] for name in structures}
    metrics = ("dice", "jaccard", "hd95", "hd", "asd", "assd", "nsd", "volume_difference")
    means = {f"{n}_{m}": np.mean([getattr(row, m) for row in of]) for n, of in by_name.items() for m in metrics}
    return means | {m: np.mean([means[f"{n}_{m}"] for n in structures]) for m in metrics}


def test_it_is_a_metric(found):
    assert found["class"] == ["DimSegmentation", True, "dim_segmentation", "Apache-2.0"]


@pytest.mark.parametrize(
    ("name", "spacings"),
    [
        ("at once", [0.5] * 5),
        ("streamed", [0.5] * 5),
        ("by case", [(0.5, 0.5), (1.0, 2.0), (0.5, 0.5), (1.0, 1.0), (3.0, 1.0, 1.0)]),
    ],
)
def test_scores_are_the_means_of_the_cases(found, name, spacings):
    expected = averages(spacings, {"disc": [1, 2], "cup": [2]}, tolerance_mm=1.0)
    scores = {key: found[name][key] for key in expected}
    assert scores == pytest.approx(expected, rel=1e-12)
    about = {"cases": 5, "unit": "mm", "empty_policy": "worst", "missed": 0, "cup_spurious": 0}
    assert found[name] == found[name] | about


def test_by_default_each_class_that_occurs_is_a_structure_in_pixels(found):
    expected = averages([None] * 5, {"1": [1], "2": [2]})
    scores = found["defaults"]
    assert {key for key in scores if key.endswith("dice")} == {"dice", "1_dice", "2_dice"}
    assert scores["unit"] == "px"
    assert "nsd" not in scores
    assert scores["2_hd95"] == pytest.approx(expected["2_hd95"], rel=1e-12)


@pytest.mark.parametrize(
    ("policy", "distance"), [("worst", 10 / 3), ("nan", 0.0), ("legacy-100", 200 / 3), ("legacy-0", 0.0)]
)
def test_one_empty_mask_follows_the_policy_and_is_counted(found, policy, distance):
    scores = found[policy]  # of three images of 3 × 4 pixels one is missed, one spurious, one perfect
    assert scores["1_hd95"] == scores["1_asd"] == pytest.approx(distance)
    assert (scores["1_missed"], scores["1_spurious"], scores["missed"], scores["spurious"]) == (1, 1, 1, 1)
    assert scores["1_dice"] == pytest.approx(1 / 3)
    assert scores["2_dice"] == 1.0  # in no map at all: nothing to miss
    assert scores["empty_policy"] == policy


def test_a_reference_of_ignored_pixels_is_left_out_and_counted(found):
    scores = found["ignored"]
    assert (scores["dice"], scores["undefined"], scores["missed"], scores["cases"]) == (0.5, 1, 1, 3)


def test_spacings_that_can_mean_one_thing_only_are_taken(found):
    assert found["equal spacings"]["unit"] == found["nested spacings"]["unit"] == "mm"


def test_it_works_without_files_and_deletes_those_it_writes(found):
    assert found["files left"] == 0
    assert found["in memory"]["1_dice"] == 1.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("counts", "1 predictions and 2 references"),
        ("shapes", "case 0 of the batch: prediction has shape (3, 4), reference (2, 4)"),
        ("types", "type float64"),
        ("policy", "empty_policy is 'best'"),
        ("spacings", "2 entries for 1 cases"),
        ("ambiguous", "spacing has 2 numbers for 2 cases, which may mean one an axis or one a case"),
        ("nothing", "no class but the background"),
    ],
)
def test_errors_say_what_is_wrong(found, name, words):
    assert words in found[name]


def test_examples_of_the_card_and_of_the_inputs_are_right(found):
    for name in ("README", "inputs"):
        count, failed = found[f"examples in {name}"]
        assert count >= 4
        assert failed == 0


def test_the_page_scores_its_example(found):
    assert found["app"]["disc_dice"] == pytest.approx(2 * 4 / 9)
    assert (found["app"]["unit"], found["app"]["nsd_tolerance"]) == ("mm", 1.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("json", "Prediction is no JSON: "),
        ("kind", "Reference is '5'; write it like the example"),
        ("shape", "prediction has shape (1, 1), reference (1, 2)"),
    ],
)
def test_the_page_says_which_field_is_wrong(found, name, words):
    assert words in found["app " + name]


# ---- what the Hub reads


def test_front_matter_and_requirements():
    card = (FOLDER / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["sdk"] == "gradio"
    assert {"evaluate", "metric"} <= set(front["tags"])
    assert (FOLDER / front["app_file"]).exists()
    assert {"title", "emoji", "colorFrom", "colorTo", "description", "license"} <= set(front)
    assert "dim-hf" in (FOLDER / "requirements.txt").read_text().split()


def test_every_import_of_the_module_is_one_that_evaluates_parser_sees():
    """Its parser reads line by line: one statement a line, none of them in brackets, and none of siblings."""
    lines = (FOLDER / "dim_segmentation.py").read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert node.lineno == node.end_lineno
            assert "(" not in lines[node.lineno - 1]
            assert getattr(node, "level", 0) == 0
            assert isinstance(node, ast.ImportFrom) or len(node.names) == 1


def test_importing_the_package_does_not_import_evaluate():
    code = "import sys, dim_hf, dim_hf.metrics, dim_hf.metrics.dim_segmentation; print('evaluate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert doctest.DocTestParser().get_examples((FOLDER / "README.md").read_text())
