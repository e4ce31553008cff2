"""3D models see volumes whole, as in training and evaluation; windows are for those who ask for them."""

import datasets
import numpy as np
import pytest
import torch

from dim_hf.data.volumes.volume import Volume, write_nifti
from dim_hf.demo.models import _predictor
from dim_hf.evaluation.prediction import predict_rows
from dim_hf.inference.folder_prediction import predict_folder
from tests.inference_samples import Bands, Sided, predictor, processor, scan
from tests.tiny import tiny_model

LONG = (200, 6, 5)  # longer than a window used to be


class Full(Bands):
    """Finds no memory for inputs of more voxels than it holds."""

    def __init__(self, error, holds):
        super().__init__(3)
        self.error, self.holds = error, holds

    def forward(self, pixel_values):
        if pixel_values.numel() > self.holds:
            raise self.error
        return super().forward(pixel_values)


def volume_of(shape):
    return Volume(scan(np.random.default_rng(0), shape), np.eye(4))


def test_the_mask_of_a_3d_model_is_the_one_that_is_scored(tmp_path):
    volume = volume_of(LONG)
    path = str(tmp_path / "a.nii.gz")
    write_nifti(volume, path)
    found = predictor(3, network=Sided(3))(volume)
    assert (found.labels[:100] == 2).all()
    assert (found.labels[100:] == 0).all()
    table = {"image": [path], "domain": ["a"], "name": ["a"]}
    rows = datasets.Dataset.from_dict(table).cast_column("image", datasets.Nifti())
    (scored,) = predict_rows(Sided(3), processor(3), rows, native=True, progress=False)
    assert np.array_equal(found.labels, scored.prediction.T)


@pytest.mark.parametrize(("window", "largest"), [(None, 200 * 6 * 5), ((5, 6, 96), 8 * 96 * 6 * 5)])
def test_windows_are_used_only_when_asked_for(window, largest):
    network = Bands(3)
    predictor(3, network=network, window=window)(volume_of(LONG))
    assert network.largest_input <= largest
    assert (network.largest_input == 200 * 6 * 5) is (window is None)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 8 B")]
)
def test_a_volume_too_large_for_one_pass_is_told_of_windows(tmp_path, error):
    ask = predictor(3, network=Full(error, holds=1000))
    with pytest.raises(MemoryError, match=r"one pass over 200 x 6 x 5 voxels.*--window 96 96 96"):
        ask(volume_of(LONG))
    (tmp_path / "in").mkdir()
    write_nifti(volume_of(LONG), tmp_path / "in" / "a.nii.gz")
    summary = predict_folder(ask, tmp_path / "in", tmp_path / "out")
    assert "not enough memory" in summary.failed[0][1]
    assert "--window 96 96 96" in summary.failed[0][1]


def test_windows_that_are_too_large_are_told_to_be_smaller():
    ask = predictor(3, network=Full(MemoryError(), holds=500), window=(5, 6, 96), batch_size=1)
    with pytest.raises(MemoryError, match=r"--window 5 6 96 .*smaller"):
        ask(volume_of(LONG))


def test_other_errors_of_a_network_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"):
        predictor(3, network=Full(RuntimeError("shapes differ"), holds=0))(volume_of(LONG))


def test_masks_of_another_window_are_made_again(tmp_path):
    (tmp_path / "in").mkdir()
    write_nifti(volume_of((6, 6, 6)), tmp_path / "in" / "a.nii.gz")
    counts = [
        predict_folder(predictor(3, window=window), tmp_path / "in", tmp_path / "out").predicted
        for window in (None, None, (96, 96, 96), None)
    ]
    assert counts == [1, 0, 1, 1]


@pytest.mark.parametrize(("size", "window"), [(None, (96, 96, 96)), ((8, 8, 8), None)])
def test_the_demo_bounds_the_memory_of_volumes_whose_size_the_visitor_chooses(tmp_path, size, window):
    tiny_model(spatial_dims=3).save_pretrained(tmp_path)
    settings = {} if size is None else {"size": dict(zip(("depth", "height", "width"), size, strict=True))}
    processor(3, **settings).save_pretrained(tmp_path)
    found, kind = _predictor(tmp_path, device="cpu")
    assert (found.options.window, kind) == (window, "volume")
