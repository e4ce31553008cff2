"""Files of a folder that are no images: masks beside their images are not predicted, and the summary says so."""

import json

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from dim_hf.cli import main
from dim_hf.data.volumes.volume import Volume, write_nifti
from dim_hf.inference.inputs import find_cases
from dim_hf.models import DimImageProcessor
from tests.tiny import tiny_model


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    "names",
    [("a.nii.gz", "a_segmentation.nii.gz"), ("a.mhd", "a.raw", "A_Segmentation.mhd", "A_Segmentation.raw")],
)
def test_masks_beside_their_images_are_no_images(tmp_path, names):
    touch(tmp_path / "site", *names, "b_segmentation.nii")
    found = find_cases(tmp_path)
    # A name that ends so without an image beside it may be an image.
    assert [case.name for case in found.cases] == [f"site/{names[0]}", "site/b_segmentation.nii"]
    assert (found.left_out, found.ignored) == ({"masks": 1}, 1)


def test_a_mask_that_is_named_is_predicted_as_any_file(tmp_path):
    write_nifti(Volume(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    write_nifti(Volume(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a_segmentation.nii.gz")
    assert len(find_cases(tmp_path / "a_segmentation.nii.gz").cases) == 1


def test_the_summary_says_what_was_left_out(tmp_path):
    tiny_model(num_channels=3).save_pretrained(tmp_path / "model")
    DimImageProcessor(num_channels=3).save_pretrained(tmp_path / "model")
    touch(tmp_path / "in", "b.img", "b.hdr", "b.nii.bz2", "voxels.raw")
    for name in ("a.png", "a_segmentation.png"):
        PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "in" / name)
    command = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(main, [*command, "--no-progress"])
    assert done.exit_code == 0, done.output
    assert "4 files of other kinds were left out (.hdr, .img, .bz2, .raw)" in done.stdout
    assert "1 mask beside its image was left out" in done.stdout
    summary = json.loads(CliRunner().invoke(main, [*command, "--no-progress", "--json"]).stdout)
    assert summary["ignored"] == 5
    assert summary["left_out"] == {".hdr": 1, ".img": 1, ".bz2": 1, ".raw": 1, "masks": 1}
