"""Real images, where they are: a folder beside the project, or the one that DIM_HF_TEST_DATA names."""

import os
from pathlib import Path

import pytest

from dim_hf.data.checks import check_rows
from dim_hf.data.folders import read_folders
from dim_hf.trainer.job import run_job
from dim_hf.trainer.job_arguments import parse_job
from tests.test_job import write_config

DATA = Path(os.environ.get("DIM_HF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
FIXTURES = DATA / "nuclei_fixtures"
needs_nuclei = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="nuclei_fixtures is not there: set DIM_HF_TEST_DATA to the folder that holds it"
)


@needs_nuclei
def test_real_folders_are_read_and_without_fault():
    rows = read_folders(FIXTURES)
    assert sorted(set(rows["domain"])) == ["fluo_256", "fluo_360", "fluo_520x696", "histology_256x320"]
    counts = [rows["split"].count(split) for split in ("train", "test")]
    assert counts == [4 * 24, 4 * 8]
    check_rows(rows, num_labels=2, progress=False)


@needs_nuclei
def test_job_on_real_images_honours_their_split(tmp_path):
    changes = {"dataset": str(FIXTURES), "num_channels": 3, "intensity": "percentile", "image_size": 64}
    result = run_job(parse_job(write_config(tmp_path, **changes), ["--output_dir", str(tmp_path / "run")]))
    assert [result.table.row(domain).cases for domain in result.table.domains] == [8, 8, 8, 8]
