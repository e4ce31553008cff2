"""Images, label maps and seeds that the tests of the augmentations share."""

import dataclasses
import math

import numpy as np
import scipy.ndimage
import torch

from dim_hf.augmentations.seeds import sample_seeds

SHAPES = [(24, 20), (6, 18, 16)]
SEEDS = sample_seeds(0, "test", range(8))


def some_images(shape, count=8, channels=3, seed=0):
    return torch.rand((count, channels, *shape), generator=torch.Generator().manual_seed(seed))


def some_masks(shape, count=8, seed=0):
    # Blobs of three classes and of the ignored one.
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    smooth = scipy.ndimage.gaussian_filter(noise, [0] + [2] * len(shape), mode="wrap")
    ranks = np.digitize(smooth, np.quantile(smooth, [0.4, 0.7, 0.9]))
    return torch.from_numpy(np.array([0, 1, 2, 255])[ranks])


def select(draws, samples):
    return type(draws)(**{f.name: getattr(draws, f.name)[samples] for f in dataclasses.fields(draws)})


def assert_share(drawn, probability):
    """A binomial share may miss its probability by 4.5 standard deviations: once in 150,000 draws of new seeds."""
    drawn = drawn.double()
    assert abs(drawn.mean() - probability) < 4.5 * math.sqrt(probability * (1 - probability) / drawn.numel()) + 1e-12
