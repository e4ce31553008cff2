import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dim_hf.losses import (
    LossTerms,
    adapt_to_image_shares,
    class_shares,
    consistency_loss,
    make_pseudo_labels,
    ramp_up,
    supervised_loss,
)


def logits_and_labels(count=3, classes=3, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, size, size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (count, size, size), generator=generator)


def test_ramp_up_rises_from_exp_minus_five_to_one():
    assert ramp_up(0, 100) == pytest.approx(math.exp(-5))
    assert ramp_up(100, 100) == ramp_up(10_000, 100) == ramp_up(0, 0) == 1
    values = [ramp_up(t, 100) for t in range(101)]
    assert values == sorted(values)


def test_pseudo_labels_are_kept_from_the_threshold_on():
    probabilities = torch.tensor([[0.95, 0.94], [0.05, 0.06]]).T  # two pixels, two classes
    logits = probabilities.log().T.reshape(1, 2, 1, 2)
    labels, mask = make_pseudo_labels(logits, 0.945)
    assert labels.flatten().tolist() == [0, 0]
    assert mask.flatten().tolist() == [True, False]


def test_consistency_counts_kept_pixels_over_all_pixels():
    logits, labels = logits_and_labels()
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    per_pixel = F.cross_entropy(logits, labels, reduction="none")
    cross_entropy = (per_pixel * mask).mean()  # FixMatch, eq. 4
    probabilities, one_hot = logits.softmax(1), F.one_hot(labels, 3).movedim(-1, 1)
    kept = mask[:, None]
    overlap = 2 * (probabilities * one_hot * kept).sum((2, 3)) + 1
    sizes = (probabilities**2 * kept).sum((2, 3)) + (one_hot * kept).sum((2, 3)) + 1
    assert consistency_loss(logits, labels, mask).item() == pytest.approx(
        (cross_entropy + 1 - (overlap / sizes).mean()).item(), rel=1e-12
    )


def test_nothing_kept_costs_nothing():
    logits, labels = logits_and_labels()
    logits.requires_grad_()
    loss = consistency_loss(logits, labels, torch.zeros_like(labels, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_losses_of_micro_batches_average_to_that_of_the_batch():
    logits, labels = logits_and_labels(count=4)
    labels[0, :3] = 255
    mask = labels % 2 == 0
    for whole, parts in (
        (supervised_loss(logits, labels), [supervised_loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]),
        (
            consistency_loss(logits, labels.clamp(max=2), mask),
            [consistency_loss(logits[i : i + 2], labels[i : i + 2].clamp(max=2), mask[i : i + 2]) for i in (0, 2)],
        ),
    ):
        assert torch.isclose(whole, sum(parts) / 2, rtol=1e-12)


def test_total_and_ascent_objectives():
    terms = LossTerms(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0))
    assert terms.total(0.5, 0.25) == 3
    assert terms.ascent("total", 0.5, 0.25) == 3
    assert terms.ascent("supervised", 0.5, 0.25) == 1
    assert terms.ascent("divergence", 0.5, 0.25) == 4


# ---- correction to each image's class shares


def random_probabilities(count=3, classes=4, size=6, seed=0, sharpness=2.0):
    logits, _ = logits_and_labels(count, classes, size, seed)
    return (sharpness * logits).softmax(1)


PRIOR = torch.tensor([0.7, 0.15, 0.1, 0.05], dtype=torch.float64)


def adapted_by_hand(probabilities, prior, strength, iterations):
    """Expectation maximisation of Saerens, Latinne and Decaestecker among the foreground classes, image by image."""
    result = []
    prior = (prior[1:] / prior[1:].sum()).numpy()
    for image in probabilities.numpy():
        posteriors = image[1:].reshape(len(image) - 1, -1)
        weights = posteriors.sum(0)  # how much of each pixel is foreground
        given_foreground = posteriors / weights
        shares = (given_foreground * weights).sum(1) / weights.sum()
        for _ in range(iterations):
            joint = given_foreground * ((shares / prior) ** strength)[:, None]
            corrected = joint / joint.sum(0)
            shares = (corrected * weights).sum(1) / weights.sum()
        result.append(np.concatenate([image[:1], (corrected * weights).reshape(image[1:].shape)]))
    return np.stack(result)


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("iterations", [1, 10])
def test_shares_are_adapted_as_by_expectation_maximisation(strength, iterations):
    probabilities = random_probabilities()
    found = adapt_to_image_shares(probabilities, PRIOR, strength, iterations)
    np.testing.assert_allclose(found, adapted_by_hand(probabilities, PRIOR, strength, iterations), rtol=1e-9)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]), rtol=1e-12, atol=0)
    assert torch.equal(found[:, 0], probabilities[:, 0])  # the background keeps its probability
    for index in range(len(probabilities)):  # each image by itself
        alone = adapt_to_image_shares(probabilities[index : index + 1], PRIOR, strength, iterations)
        torch.testing.assert_close(alone[0], found[index], rtol=1e-12, atol=0)


def test_a_strength_of_zero_is_the_identity_bit_for_bit():
    probabilities = random_probabilities().float()
    assert torch.equal(adapt_to_image_shares(probabilities, PRIOR, 0.0), probabilities)
    one_foreground_class = random_probabilities(classes=2).float()
    shares = torch.tensor([0.9, 0.1])
    assert torch.equal(adapt_to_image_shares(one_foreground_class, shares, 1.0), one_foreground_class)


def test_permuting_the_foreground_classes_permutes_the_result():
    probabilities, order = random_probabilities(), torch.tensor([0, 3, 1, 2])
    found = adapt_to_image_shares(probabilities[:, order], PRIOR[order], 0.7)
    torch.testing.assert_close(found, adapt_to_image_shares(probabilities, PRIOR, 0.7)[:, order])


def test_the_shares_of_a_generative_model_are_recovered():
    """Pixels drawn from known densities with other shares than those the classifier was made for."""
    generator = np.random.default_rng(0)
    means, trained, true = np.array([-1.5, 0.0, 1.5]), np.array([0.2, 0.6, 0.2]), np.array([0.6, 0.25, 0.15])
    values = means[generator.choice(3, 40_000, p=true)] + generator.normal(size=40_000)
    joint = trained[:, None] * np.exp(-((values - means[:, None]) ** 2) / 2)
    foreground = torch.from_numpy(joint / joint.sum(0))
    probabilities = torch.cat([torch.zeros_like(foreground[:1]), foreground]).reshape(1, 4, 200, 200)
    prior = torch.tensor([0.0, *trained])
    before, after = (
        adapt_to_image_shares(probabilities, prior, 1.0, iterations).mean((0, 2, 3))[1:].numpy()
        for iterations in (1, 300)
    )
    assert np.abs(after - true).max() < 0.015
    assert np.abs(after - true).max() < np.abs(before - true).max()
    # A fixed point: one more round changes nothing.
    longer = adapt_to_image_shares(probabilities, prior, 1.0, 301).mean((0, 2, 3))[1:].numpy()
    np.testing.assert_allclose(longer, after, atol=1e-5)


def test_degenerate_images_stay_finite():
    certain = F.one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 4).movedim(-1, 1).float()  # all background
    for probabilities in (certain, certain.flip(1), torch.full((1, 4, 4, 4), 0.25)):
        for prior in (PRIOR.float(), torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.5, 0.5, 0, 0])):
            found = adapt_to_image_shares(probabilities, prior, 1.0)
            assert found.isfinite().all()
            torch.testing.assert_close(found.sum(1), torch.ones(1, 4, 4))


def test_class_shares_count_labeled_pixels():
    maps = [torch.tensor([[0, 0], [1, 255]], dtype=torch.uint8), torch.tensor([[2, 2, 2]])]
    torch.testing.assert_close(class_shares(maps, 4), torch.tensor([2, 1, 3, 0], dtype=torch.float64) / 6)
    with pytest.raises(ValueError, match="no pixel"):
        class_shares([torch.full((2, 2), 255)], 3)
