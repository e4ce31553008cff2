"""The numbers behind a drift score, taken from forward passes; and statistics of whole networks."""

import math

import datasets
import numpy as np
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dim_hf.inference.drift_fitting import MAX_IMAGES, evenly, fit_site_statistics
from dim_hf.inference.drift_parts import (
    MAX_FEATURES,
    QUANTILES,
    DriftMeter,
    gives_features,
    intensity,
    pooled_features,
    watched_logits,
)

from .inference_samples import Bands
from .tiny import TinyImages, tiny_model


class Rows(TinyImages):
    """Images with a site and a patient each, as rows of a data set have them."""

    def __init__(self, count, site="a", **settings):
        super().__init__(count, **settings)
        patients = [f"{site}{settings.get('seed', 0)}-{index}" for index in range(count)]
        self.rows = datasets.Dataset.from_dict({"domain": [site] * count, "patient": patients})


def segformer():
    torch.manual_seed(0)
    config = SegformerConfig(
        num_channels=1, num_labels=2, depths=[1] * 4, hidden_sizes=[4, 4, 8, 8], num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config).eval()


def test_intensity_is_quantiles_moments_and_steps_of_each_channel():
    pixels = torch.rand(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = intensity(pixels).numpy().reshape(3, 2, -1)
    for image, values in zip(pixels.numpy(), found, strict=True):
        for channel, own in zip(image, values, strict=True):
            steps = [np.abs(np.diff(channel, axis=axis)).mean() for axis in (0, 1)]
            expected = [*np.quantile(channel, QUANTILES), channel.mean(), channel.std(), *steps]
            np.testing.assert_allclose(own, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(300, 3, 8, 8), (1, 1, 2000, 2000), (1, 1, 1, 6, 6)])
def test_intensity_takes_any_size(shape):
    assert torch.isfinite(intensity(torch.rand(shape))).all()


def test_features_are_those_of_the_coarsest_grid_in_few_numbers():
    coarse = torch.rand(2, 100, 4, 4)
    found = pooled_features([torch.rand(2, 8, 16, 16), coarse, torch.rand(2, 8, 8, 8)], 2)
    assert found.shape[1] <= MAX_FEATURES
    np.testing.assert_allclose(found[:, 0], coarse[:, :2].mean((1, 2, 3)), rtol=1e-5)
    assert pooled_features([torch.rand(2, 9, 6)], 2).shape == (2, 6)
    assert pooled_features([torch.rand(3, 4, 4, 4)], 2) is None  # of windows, or of other images


@pytest.mark.parametrize("make", [tiny_model, segformer])
def test_a_networks_features_come_from_the_pass_of_its_logits(make):
    network, passes = make().eval(), []
    network.register_forward_hook(lambda *_: passes.append(1))
    pixels, meter = torch.rand(2, 1, 32, 32), DriftMeter()
    meter.see_pixels(pixels)
    with torch.inference_mode():
        logits = watched_logits(network, pixels, meter)
        assert len(passes) == 1
        torch.testing.assert_close(logits, network(pixel_values=pixels).logits)
    meter.see_logits(0, logits)
    assert set(meter.values()) == {"intensity", "features", "entropy"}
    assert all(part.shape[0] == 2 and part.dtype == np.float64 for part in meter.values().values())


def test_a_network_without_hidden_states_has_pixels_and_answers_alone():
    assert not gives_features(Bands())
    meter, pixels = DriftMeter(), torch.rand(2, 1, 8, 8)
    meter.see_pixels(pixels)
    meter.see_logits(0, watched_logits(Bands(), pixels, meter))
    assert set(meter.values()) == {"intensity", "entropy"}


def test_entropy_is_over_the_size_of_the_foreground():
    logits = torch.zeros(1, 2, 4, 4)  # all pixels: one half
    meter = DriftMeter()
    meter.see_logits(0, logits)
    assert meter.values()["entropy"][0, 0] == pytest.approx(math.log(math.log(2) / (0.5 + 0.01)), abs=1e-4)
    sure = DriftMeter()
    sure.see_logits(0, torch.stack([logits[:, 0] + 50, logits[:, 1]], dim=1))  # nothing but background
    assert np.isfinite(sure.values()["entropy"]).all()


def test_disagreement_is_zero_among_equals_and_one_among_opposites():
    first, second = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    first[:, 0], second[:, 1] = 100, 100
    equal, opposite = DriftMeter(2, 2), DriftMeter(2, 2)
    for meter, other in ((equal, first), (opposite, second)):
        for network, logits in ((0, first), (0, other), (1, other), (1, first)):
            meter.see_logits(network, logits)
    assert [float(equal.values()[name][0, 0]) for name in ("flips", "teacher_student")] == [0, 0]
    found = [float(opposite.values()[name][0, 0]) for name in ("flips", "teacher_student")]
    assert found == pytest.approx([1, 1], abs=1e-5)


def test_a_descriptions_rows_do_not_depend_on_their_batch():
    network, pixels = tiny_model().eval(), torch.rand(4, 1, 32, 32)

    def describe(part):
        meter = DriftMeter()
        meter.see_pixels(part)
        with torch.inference_mode():
            meter.see_logits(0, watched_logits(network, part, meter))
        return meter.values()

    together, alone = describe(pixels), [describe(pixels[index : index + 1]) for index in range(4)]
    for name, part in together.items():
        np.testing.assert_allclose(part, np.concatenate([one[name] for one in alone]), rtol=1e-4, atol=1e-6)


# ---- fitting


def test_statistics_of_a_network_tell_a_shifted_site_from_fresh_images():
    network = tiny_model()
    network.train()
    statistics = fit_site_statistics(network, [Rows(24), Rows(24, "b", seed=1, shift=0.2)], other=tiny_model(1))
    assert network.training
    assert dict(statistics.sites) == {"a": 24, "b": 24}
    assert set(statistics.calibration) == {"intensity", "features", "entropy", "flips", "teacher_student"}

    def flagged(dataset):
        meter = DriftMeter()
        pixels = torch.stack([sample["pixel_values"] for sample in dataset.samples])
        meter.see_pixels(pixels)
        with torch.inference_mode():
            meter.see_logits(0, watched_logits(network.eval(), pixels, meter))
        return (statistics.scores(meter.values()) >= statistics.threshold).mean()

    assert flagged(TinyImages(40, seed=5)) <= 0.2
    assert flagged(TinyImages(40, seed=6, shift=0.8)) == 1


def test_statistics_of_any_network_of_transformers_and_of_a_stub():
    data = [Rows(10)]
    assert "features" in fit_site_statistics(segformer(), data).moments
    assert set(fit_site_statistics(Bands(), data).moments) == {"intensity", "entropy"}


def test_images_behind_the_statistics_are_few_and_of_all_sites():
    sites, held_out = ["a"] * 2000 + ["b"] * 10 + ["c"] * 900, [False] * 1990 + [True] * 10 + [False] * 910
    chosen = evenly(sites, held_out, MAX_IMAGES)
    assert len(chosen) == len(set(chosen)) == MAX_IMAGES
    assert {site: [sites[i] for i in chosen].count(site) for site in "abc"} == {"a": 245, "b": 10, "c": 245}
    assert set(range(1990, 2000)) <= set(chosen)
