"""What the first batches of a training must be like."""

import pytest
import torch
from transformers import ConvNextConfig, UperNetConfig

from dim_hf.models import DimUNetConfig
from dim_hf.trainer.batches import check_batch

CONFIG = DimUNetConfig(num_channels=3, num_labels=2)


def batch_of(**tensors):
    batch = {"labeled_pixel_values": torch.zeros(2, 3, 8, 6), "labels": torch.ones(2, 8, 6, dtype=torch.int64)}
    batch["unlabeled_pixel_values"] = torch.zeros(4, 3, 8, 6)
    return {name: tensor for name, tensor in (batch | tensors).items() if tensor is not None}


def test_what_fits_passes():
    labels = torch.full((2, 8, 6), 255)
    labels[0, 0, 0] = 1
    check_batch(batch_of(labels=labels), CONFIG)
    check_batch(batch_of(unlabeled_pixel_values=None), CONFIG)
    around = UperNetConfig(backbone_config=ConvNextConfig(num_channels=4, out_features=["stage1"]), num_labels=2)
    check_batch(batch_of(), around)  # says nothing of channels


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"labels": torch.full((2, 8, 6), -1)}, r"labels hold -1, but the model has the classes 0\.\.1"),
        ({"labels": torch.arange(96).reshape(2, 8, 6)}, r"labels hold 2, 3, 4, 5, 6, \.\.\., but"),
        ({"labels": torch.zeros(2, 1, 8, 6)}, r"labels have the shape \(1, 8, 6\), but their images \(8, 6\)"),
        (
            {"labeled_pixel_values": torch.zeros(2, 8, 6)},
            r"the labeled images have the shape \(8, 6\): give \(channels",
        ),
        (
            {"labeled_pixel_values": torch.zeros(2, 1, 8, 6)},
            "the labeled images have 1 channel, but the model takes 3",
        ),
        ({"unlabeled_pixel_values": torch.zeros(4, 3, 6, 8)}, r"\(3, 8, 6\) and unlabeled ones \(3, 6, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        check_batch(batch_of(**tensors), CONFIG)
