"""Class masses behind the closed-form estimators, in the cells of a grid and given the predicted class."""

import math

import numpy as np
import pytest
import torch

from dim_hf.divergences import (
    F_DIVERGENCES,
    closed_form,
    conditional_mass,
    divergence_between,
    divergence_between_masses,
    regional_log_probabilities,
    regional_mass,
)
from tests.test_divergences import every_row, random_logits


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 6, 7), (2, 3, 4, 5, 7)])
@pytest.mark.parametrize("grid_size", [1, 2, 3])
def test_regional_mass_against_direct_sums(shape, grid_size):
    logits = random_logits(*shape)
    mask = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(1))
    probabilities = (logits.double().softmax(1) * mask.double().unsqueeze(1)).numpy()
    cells = [np.array_split(np.arange(size), grid_size) for size in shape[2:]]
    expected = [
        probabilities[
            np.ix_(range(shape[0]), range(shape[1]), *(cell[i] for cell, i in zip(cells, at, strict=True)))
        ].sum(axis=(0, *range(2, len(shape))))
        for at in np.ndindex(*[grid_size] * len(cells))
    ]
    np.testing.assert_allclose(regional_mass(logits, grid_size, mask).numpy(), expected, rtol=1e-5)


def test_a_cell_keeps_its_place():
    # Four pixels a cell, two images; class 1 has the upper right quarter of one image.
    logits = torch.zeros(2, 2, 4, 4)
    logits[:, 0] = 30
    logits[0, :, :2, 2:] = torch.tensor([0.0, 30.0]).view(2, 1, 1)
    torch.testing.assert_close(regional_mass(logits, 2), torch.tensor([[8.0, 0], [4, 4], [8, 0], [8, 0]]))
    log_probabilities = regional_log_probabilities(logits, 2)
    torch.testing.assert_close(log_probabilities[1].exp(), torch.tensor([0.5, 0.5]))
    assert log_probabilities.isfinite().all()


def test_marginal_is_the_grid_of_one_cell():
    labeled, unlabeled = random_logits(2, 3, 5, 6), random_logits(1, 3, 4, 4, seed=1)
    p, q = (x.softmax(1).mean((0, 2, 3)) for x in (labeled, unlabeled))
    expected = closed_form(F_DIVERGENCES["kl"], p.log(), q.log())
    torch.testing.assert_close(divergence_between(labeled, unlabeled, F_DIVERGENCES["kl"]), expected)
    torch.testing.assert_close(regional_log_probabilities(labeled, 1), p.log()[None])


def test_regional_is_the_mean_over_the_cells_and_sees_what_marginal_does_not():
    labeled = torch.zeros(1, 2, 4, 4)
    labeled[:, 1, :, :2], labeled[:, 0, :, 2:] = 3.0, 3.0
    unlabeled = labeled.flip(3)
    kl = F_DIVERGENCES["kl"]
    assert divergence_between(labeled, unlabeled, kl).item() == pytest.approx(0, abs=1e-6)
    share = 1 / (1 + math.exp(-3))  # each of the four cells: KL of Bernoullis of share and 1 - share
    expected = (2 * share - 1) * 3
    assert divergence_between(labeled, unlabeled, kl, grid_size=2).item() == pytest.approx(expected, rel=1e-4)


def test_masses_of_the_parts_add_up_to_that_of_the_batch():
    parts = [random_logits(2, 3, 6, 5, seed=seed) for seed in (0, 1)]
    masks = [random_logits(2, 6, 5, seed=seed) > 0 for seed in (2, 3)]
    whole = regional_mass(torch.cat(parts), 2, torch.cat(masks))
    torch.testing.assert_close(sum(regional_mass(x, 2, mask) for x, mask in zip(parts, masks, strict=True)), whole)
    mean = sum(regional_log_probabilities(x, 2).exp() for x in parts) / 2
    torch.testing.assert_close(regional_log_probabilities(torch.cat(parts), 2).exp(), mean)


def conditional_divergence(labeled, unlabeled, row):
    return divergence_between_masses(conditional_mass(labeled), conditional_mass(unlabeled), row)


def test_conditional_mass_against_direct_sums():
    logits = random_logits(2, 3, 5, 4)
    p = logits.double().softmax(1).numpy()
    expected = [[(p[:, k] * p[:, j]).sum() for j in range(3)] for k in range(3)]
    np.testing.assert_allclose(conditional_mass(logits).numpy(), expected, rtol=1e-5)
    # Symmetric, and its rows add up to the marginal mass.
    torch.testing.assert_close(conditional_mass(logits).sum(0), regional_mass(logits)[0])
    parts = sum(conditional_mass(image[None]) for image in logits)
    torch.testing.assert_close(parts, conditional_mass(logits))
    volumes = random_logits(2, 3, 4, 5, 2)
    torch.testing.assert_close(conditional_mass(volumes), conditional_mass(volumes.flatten(2)))
    with pytest.raises(ValueError, match="spatial axis or more"):
        conditional_mass(logits[..., 0, 0])


@every_row
def test_conditional_divergence_is_blind_to_shares_and_sees_confusion(row):
    """Pixels of three kinds, each predicted as a class with near certainty; their numbers differ, then sharpness."""
    kinds = torch.tensor([[18.0, 0, -3], [0, 18, -3], [-3, 0, 18]], dtype=torch.float64)

    def image(*counts, sharpness=1.0):
        return (sharpness * kinds).repeat_interleave(torch.tensor(counts), dim=0).T.reshape(1, 3, -1, 1)

    few, many = image(90, 5, 5), image(40, 30, 30)
    assert conditional_divergence(few, many, row).abs() < 1e-4
    assert divergence_between(few, many, row) > 0.01
    assert conditional_divergence(few, image(90, 5, 5, sharpness=0.1), row) > 0.01
    permuted = conditional_divergence(few[:, [2, 0, 1]], image(9, 3, 4, sharpness=0.1)[:, [2, 0, 1]], row)
    torch.testing.assert_close(permuted, conditional_divergence(few, image(9, 3, 4, sharpness=0.1), row))


@every_row
def test_conditional_divergence_of_equal_images_is_zero_with_a_finite_gradient(row):
    logits, other = (random_logits(2, 3, 4, 4, seed=seed).double().requires_grad_() for seed in (0, 1))
    assert conditional_divergence(logits, logits.detach(), row).abs() < 1e-12
    value = conditional_divergence(logits, other, row)
    assert value > 0
    value.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()
    extreme = (1e4 * random_logits(2, 3, 4, 4)).requires_grad_()
    conditional_divergence(extreme, random_logits(2, 3, 4, 4, seed=1), row).backward()
    assert extreme.grad.isfinite().all()


def test_masked_pixels_do_not_count():
    logits, mask = random_logits(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    mask[:, :, 2:] = False
    changed = logits + random_logits(2, 3, 4, 4, seed=1) * ~mask.unsqueeze(1)
    torch.testing.assert_close(regional_mass(changed, 1, mask), regional_mass(logits[..., :2]))
    for weights in (mask.float(), mask.double(), mask.long()):
        assert torch.equal(regional_mass(changed, 1, weights), regional_mass(changed, 1, mask))


def test_empty_cells_are_left_out():
    row = F_DIVERGENCES["jensen_shannon"]
    labeled = random_logits(1, 2, 4, 4).requires_grad_()
    unlabeled = random_logits(1, 2, 4, 4, seed=1)
    mask = torch.zeros(1, 4, 4)
    assert divergence_between(labeled, unlabeled, row, 2, labeled_mask=mask).item() == 0
    torch.testing.assert_close(regional_log_probabilities(labeled, 2, mask).exp(), torch.full((4, 2), 0.5))
    mask[:, :2, :2] = 1
    value = divergence_between(labeled, unlabeled, row, 2, labeled_mask=mask)
    torch.testing.assert_close(value, divergence_between(labeled[..., :2, :2], unlabeled[..., :2, :2], row))
    value.backward()
    assert labeled.grad.isfinite().all()
    assert (labeled.grad[..., 2:] == 0).all()


def test_nan_is_not_taken_for_an_empty_cell():
    logits = torch.full((1, 2, 4, 4), math.nan)
    assert divergence_between(logits, torch.zeros(1, 2, 4, 4), F_DIVERGENCES["kl"]).isnan()


def test_grid_refuses_what_does_not_fit():
    logits = torch.zeros(2, 3, 4, 8)
    for grid_size in (0, 5):
        with pytest.raises(ValueError, match=rf"shortest side of the logits, \(4, 8\); got {grid_size}"):
            regional_mass(logits, grid_size)
    with pytest.raises(ValueError, match=r"mask of shape \(2, 4, 8\), got \(2, 8, 8\); resize it"):
        regional_mass(logits, 1, torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match=r"spatial axis or more, got \(2, 3\)"):
        regional_mass(logits[..., 0, 0])
    with pytest.raises(ValueError, match=r"are \(1, 3\) and \(1, 2\)"):
        divergence_between(logits, logits[:, :2], F_DIVERGENCES["kl"])
    with pytest.raises(ValueError, match=r"are \(4, 3\) and \(8, 3\)"):
        divergence_between_masses(regional_mass(logits, 2), torch.ones(8, 3), F_DIVERGENCES["kl"])
