import math

import pytest
import torch
import torch.nn.functional as F

from dim_hf.losses import LossTerms, consistency_loss, make_pseudo_labels, ramp_up, supervised_loss


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
