"""Two processes against one: the same cases with the same scores, none twice and none left out."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.importers.writer import WriteOptions
from tests.run_evaluation import SIZES, evaluate_everything
from tests.test_evaluation import hospital  # noqa: F401  a fixture
from tests.test_job import write_site
from tests.tiny import TinyImages


def launch(*arguments):
    # `--cpu --num_processes 2` would silently start one process.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "--module", "tests.run_evaluation", *map(str, arguments)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory, hospital):  # noqa: F811
    """What one process finds, and what each of two finds."""
    folder = tmp_path_factory.mktemp("processes")
    for domain, size in (("one", 32), ("other", 48)):
        write_site(folder / "data", domain, 4, size=size)
    job = ImportJob("folders", hospital / "src", folder / "slices", write=WriteOptions(plane="axial"))
    manifest = import_dataset(job, progress=False)
    launch(folder / "data", manifest, folder)
    both = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [one.pop("processes") for one in both] == [[2, 2], [2, 2]]
    alone = json.loads(json.dumps(evaluate_everything(folder / "data", manifest, folder / "alone")))
    return alone, both


@pytest.mark.slow
@pytest.mark.parametrize("data", [*(f"{size} pictures" for size in SIZES), "volumes"])
def test_evaluate_model_gives_each_process_what_one_finds(found, data):
    alone, both = found
    cases = alone[data]["cases"]
    assert len(cases) == (3 if data == "volumes" else int(data.split()[0]))
    assert len({(case["domain"], case["name"]) for case in cases}) == len(cases)
    assert len(cases) < 3 or len({(case["dice"], case["reference_volume"]) for case in cases}) > 1
    for one in both:
        assert one[data] == alone[data]


@pytest.mark.slow
def test_the_trainer_scores_each_image_once(found):
    alone, both = found
    scores = alone["trainer"]["scores"]
    assert len(scores) > 6 * len(SIZES)
    for one in both:
        assert one["trainer"]["scores"] == pytest.approx(scores, rel=1e-12)
        for size in SIZES:
            expected = np.stack([sample["labels"] for sample in TinyImages(size, seed=size).samples])
            assert np.array_equal(one["trainer"]["labels"][str(size)], expected)
