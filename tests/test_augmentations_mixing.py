import dataclasses
import random

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import scipy.stats
import torch

from dim_hf.augmentations.geometry import WeakView
from dim_hf.augmentations.intensity import FUNDUS_STRONG
from dim_hf.augmentations.mixing import AmplitudeMixing, MixingBoxes, cutmix, draw_boxes, mix_amplitudes, unmix
from dim_hf.augmentations.seeds import sample_seeds
from tests.augmentation_samples import SEEDS, SHAPES, assert_share, some_images, some_masks


def test_global_random_states_are_left_alone():
    weak_view = WeakView(zoom_probability=1, rotation_probability=1, elastic_probability=1)
    strong_view = dataclasses.replace(FUNDUS_STRONG, noise_probability=1, bias_probability=1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    images, masks = some_images((16, 16)), some_masks((16, 16))
    state = torch.get_rng_state()
    weak = weak_view.apply(images, masks, weak_view.draw(SEEDS))[0]
    strong = strong_view.apply(weak, strong_view.draw(SEEDS, 3))
    cutmix(images, strong, draw_boxes(SEEDS, (16, 16)))
    mixing = AmplitudeMixing(probability=1)
    mixing.apply(images, strong, mixing.draw(SEEDS))
    assert torch.equal(state, before[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


# boxes


@pytest.mark.parametrize("shape", SHAPES)
def test_unmix_undoes_cutmix(shape):
    labeled, unlabeled = some_images(shape, seed=1), some_images(shape, seed=2)
    boxes = draw_boxes(SEEDS, shape, probability=0.7)
    mixed_a, mixed_b = cutmix(labeled, unlabeled, boxes)
    back_a, back_b = unmix(mixed_a, mixed_b, boxes)
    assert torch.equal(back_a, labeled)
    assert torch.equal(back_b, unlabeled)
    inside = boxes.inside()
    assert torch.equal(mixed_a.ne(labeled).any(1), inside)
    assert torch.equal(mixed_b.ne(unlabeled).any(1), inside)
    # Label maps and images are cut along the same lines.
    tags = torch.zeros(8, *shape, dtype=torch.long), torch.ones(8, *shape, dtype=torch.long)
    tags_a, tags_b = cutmix(*tags, boxes)
    assert torch.equal(tags_a.bool(), inside)
    assert torch.equal(tags_b.bool(), ~inside)


@pytest.mark.parametrize(("labeled", "unlabeled"), [(16, 8), (8, 24)])
def test_unequal_streams_have_the_pairs_of_their_parts(labeled, unlabeled):
    """A step of 8 pairs is the same cut into 4 micro-batches of 2."""
    shape = (9, 7)
    images, others = some_images(shape, labeled, seed=1), some_images(shape, unlabeled, seed=2)
    boxes = draw_boxes(SEEDS, shape)
    mixed = cutmix(images, others, boxes)
    parts = [
        cutmix(*stream, MixingBoxes(bounds, shape))
        for *stream, bounds in zip(images.chunk(4), others.chunk(4), boxes.bounds.chunk(4), strict=True)
    ]
    for whole, cut in zip(mixed, zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(cut))
    for whole, back in zip((images, others), unmix(*mixed, boxes), strict=True):
        assert torch.equal(whole, back)
    changed = [(whole != plain).flatten(1).any(1) for whole, plain in zip(mixed, (images, others), strict=True)]
    assert [int(which.sum()) for which in changed] == [8, 8]


def test_one_box_by_hand():
    boxes = MixingBoxes(torch.tensor([[[1, 3], [0, 2]], [[0, 0], [0, 0]]]), (4, 3))
    mixed, _ = cutmix(torch.zeros(2, 4, 3), torch.ones(2, 4, 3), boxes)
    assert mixed[0].tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert not mixed[1].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_distribution_of_boxes(shape):
    seeds = sample_seeds(0, "test", range(2000))
    boxes = draw_boxes(seeds, shape, (0.25, 0.75), 0.6)
    assert boxes.bounds.dtype == torch.int64
    start, stop = boxes.bounds.unbind(-1)
    mixed = (stop > start).all(1)
    assert_share(mixed, 0.6)
    assert not boxes.bounds[~mixed].any()
    sides = torch.tensor(shape)
    assert (start >= 0).all()
    assert (stop <= sides).all()
    ratios = (stop - start)[mixed] / sides
    assert (ratios >= 0.25 - 0.5 / sides).all()
    assert (ratios <= 0.75 + 0.5 / sides).all()
    centers = ((start + stop)[mixed] / 2 / sides).mean(0)
    torch.testing.assert_close(centers, torch.full_like(centers, 0.5), atol=0.03, rtol=0)
    assert torch.equal(draw_boxes(seeds[7:8], shape, (0.25, 0.75), 0.6).bounds[0], boxes.bounds[7])


def test_boxes_of_extreme_ratios():
    whole = draw_boxes(SEEDS, (7, 5), (1.0, 1.0))
    assert whole.inside().all()
    assert not draw_boxes(SEEDS, (7, 5), (0.0, 0.0)).inside().any()


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "message"),
    [
        ((8, 3, 6, 6), (12, 3, 6, 6), "do not make 8 pairs"),
        ((4, 3, 6, 6), (4, 3, 6, 6), "do not make 8 pairs"),
        ((16, 3, 6, 6), (16, 3, 6, 6), "a box for each"),
        ((0, 3, 6, 6), (8, 3, 6, 6), "do not make 8 pairs"),
        ((8, 3, 6, 6), (8, 1, 6, 6), "one shape"),
        ((8, 3, 3, 3), (8, 3, 3, 3), "resize"),
        ((8, 3, 2, 6, 6), (8, 3, 2, 6, 6), "spatial axes"),
    ],
)
def test_shapes_that_cannot_be_mixed(labeled, unlabeled, message):
    with pytest.raises(ValueError, match=message):
        cutmix(torch.zeros(labeled), torch.zeros(unlabeled), draw_boxes(SEEDS, (6, 6)))


def test_no_pairs_at_all():
    with pytest.raises(ValueError, match="do not make 0 pairs"):
        cutmix(torch.zeros(0, 6, 6), torch.zeros(0, 6, 6), draw_boxes([], (6, 6)))


def test_boxes_of_bad_settings():
    with pytest.raises(ValueError, match="ratio"):
        draw_boxes(SEEDS, (8, 8), (0.5, 1.5))
    with pytest.raises(ValueError, match="probability"):
        draw_boxes(SEEDS, (8, 8), probability=-1)


# amplitudes


def reference_amplitude_mixing(image, other, ratio, beta):
    """FDA as published, on the full centered spectrum of one channel."""
    spectrum, foreign = (np.fft.fftshift(np.fft.fftn(values)) for values in (image, other))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    window = tuple(slice(s // 2 - int(beta * s), s // 2 + int(beta * s) + 1) for s in image.shape)
    amplitude[window] = (1 - ratio) * amplitude[window] + ratio * np.abs(foreign[window])
    mixed = np.fft.ifftn(np.fft.ifftshift(amplitude * np.exp(1j * phase)))
    assert np.abs(mixed.imag).max() < 1e-9
    return mixed.real


@pytest.mark.parametrize("shape", [(16, 20), (15, 17), (9, 12), (5, 12, 10)])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3])
def test_amplitude_mixing_against_the_full_spectrum(shape, beta):
    images, others = some_images(shape, 3, 2, seed=1).double() - 0.5, some_images(shape, 3, 2, seed=2).double()
    ratios = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    mixed = mix_amplitudes(images, others, ratios, beta)
    assert torch.equal(mixed[0], images[0])
    for i in range(3):
        for c in range(2):
            expected = reference_amplitude_mixing(images[i, c].numpy(), others[i, c].numpy(), float(ratios[i]), beta)
            np.testing.assert_allclose(mixed[i, c], expected, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_amplitude_mixing_keeps_phases_and_takes_amplitudes(shape):
    images, others = some_images(shape, seed=1).double(), some_images(shape, seed=2).double()
    mixed = mix_amplitudes(images, others, torch.ones(8), 0.5)
    dims = tuple(range(2, images.ndim))
    before, foreign, after = (torch.fft.fftn(values, dim=dims) for values in (images, others, mixed))
    torch.testing.assert_close(after.abs(), foreign.abs())
    torch.testing.assert_close(after / after.abs(), before / before.abs())
    torch.testing.assert_close(mix_amplitudes(images, images, torch.full((8,), 0.6), 0.3), images)


def test_amplitude_mixing_in_a_batch_and_of_constant_images():
    images, others = some_images((24, 20), seed=1), some_images((24, 20), seed=2)
    mixing = AmplitudeMixing(beta=0.1, probability=1.0)
    together = mixing.apply(images, others, mixing.draw(SEEDS))
    assert together.dtype == torch.float32
    for i, seed in enumerate(SEEDS):
        alone = mixing.apply(images[i : i + 1], others[i : i + 1], mixing.draw([seed]))
        torch.testing.assert_close(alone[0], together[i])
    flat = mixing.apply(torch.zeros_like(images), torch.full_like(others, 0.3), torch.ones(8))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))


def test_distribution_of_amplitude_ratios():
    ratios = AmplitudeMixing(ratio=(0.2, 0.8), probability=0.3).draw(sample_seeds(0, "test", range(3000)))
    assert_share(ratios > 0, 0.3)
    assert scipy.stats.kstest(ratios[ratios > 0].numpy(), "uniform", (0.2, 0.6)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 0.6),
        ("ratio", (0.0, 1.1)),
        ("probability", -0.5),
    ],
)
def test_settings_outside_their_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"AmplitudeMixing\.{field} "):
        AmplitudeMixing(**{field: value})


def test_amplitudes_of_other_shapes():
    with pytest.raises(ValueError, match="do not fit"):
        mix_amplitudes(some_images((8, 8)), some_images((8, 8), 4), torch.ones(8), 0.1)
