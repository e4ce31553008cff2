"""Stub networks whose answer is a function of the pixel, so that the expected mask is known exactly."""

import numpy as np
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from dim_hf.inference.options import PredictionOptions
from dim_hf.inference.predictor import Predictor
from dim_hf.models import DimImageProcessor

TOP = 1000
STRUCTURES = {"disc": [1, 2], "cup": [2]}


class Config:
    """What a predictor asks of a configuration."""

    def __init__(self, dims=2, names=("background", "rim", "cup"), structures=STRUCTURES):
        self.id2label = dict(enumerate(names))
        self.spatial_dims = dims
        self.structures = structures

    def to_dict(self):
        return {"id2label": self.id2label, "spatial_dims": self.spatial_dims}


class Bands(torch.nn.Module):
    """Class 0, 1 or 2 where a pixel in [0, 1] is nearest to 0, a half or 1, whatever the number of axes."""

    def __init__(self, dims=2, sharpness=200.0):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(sharpness))
        self.config = Config(dims)
        self.largest_input = 0

    def forward(self, pixel_values):
        self.largest_input = max(self.largest_input, pixel_values.numel())
        levels = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, *[1] * (pixel_values.ndim - 2))
        return SemanticSegmenterOutput(logits=-self.sharpness * (pixel_values[:, :1] - levels) ** 2)


class Sided(Bands):
    """Says "cup" in the left half and "background" in the right one, whatever it sees."""

    def forward(self, pixel_values):
        logits = torch.zeros(len(pixel_values), 3, *pixel_values.shape[2:])
        half = pixel_values.shape[-1] // 2
        logits[:, 2, ..., :half] = self.sharpness
        logits[:, 0, ..., half:] = self.sharpness
        return SemanticSegmenterOutput(logits=logits)


def processor(dims=2, top=TOP, **settings):
    return DimImageProcessor(num_channels=1, spatial_dims=dims, intensity_range=(0, top), **settings)


def predictor(dims=2, top=TOP, network=None, **options):
    return Predictor(network or Bands(dims), processor(dims, top), PredictionOptions(**options))


def scan(generator, shape, dtype=np.int16, top=TOP):
    """Values that are far from the borders of the bands at a quarter and three quarters of `top`."""
    levels = generator.choice([0.1, 0.4, 0.6, 0.9], size=shape)
    return np.rint(top * levels).astype(dtype)


def bands(array, top=TOP):
    """The mask that `Bands` must give, by another way."""
    return np.digitize(array.astype(float) / top, [0.25, 0.75]).astype(np.uint8)
