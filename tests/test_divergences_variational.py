"""The variational estimator: the critic and the lower bound."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.divergences import (
    F_DIVERGENCES,
    LOG_RATIO_LIMIT,
    Critic,
    alpha_divergence,
    closed_form,
    divergence_between,
    variational_lower_bound,
)

ROWS = [row for row in F_DIVERGENCES.values() if row.conjugate] + [
    alpha_divergence(alpha) for alpha in (-4.0, 0.9, 5.0)
]
every_conjugate = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

COUNTS_P, COUNTS_Q = (torch.tensor(counts) for counts in ([6, 3, 3], [2, 4, 6]))  # of 12 pixels each
P, Q = COUNTS_P.double() / 12, COUNTS_Q.double() / 12


def exact(row):
    return closed_form(row, P.log(), Q.log(), probability_floor=0)


def random_logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(counts):
    """Logits (1, 3, 3, 4) whose pixels are nearly certain of one class each, in these numbers."""
    classes = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return 10 * torch.nn.functional.one_hot(classes, len(counts)).float().T.reshape(1, len(counts), 3, 4)


def sampled(values, counts):
    return values.repeat_interleave(counts)


@every_conjugate
def test_bound_is_tight_at_the_optimal_critic(row):
    optimum = row.derivative(P / Q)
    bound = variational_lower_bound(row, sampled(optimum, COUNTS_P), sampled(optimum, COUNTS_Q))
    torch.testing.assert_close(bound, exact(row))


@every_conjugate
@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_bound_stays_below_for_any_critic(row, outputs):
    v = torch.tensor(outputs, dtype=torch.float64)
    critic = (row.activation or (lambda x: row.derivative(x.exp())))(v)
    bound = variational_lower_bound(row, sampled(critic, COUNTS_P), sampled(critic, COUNTS_Q))
    assert bound.item() <= exact(row).item() + 1e-9


@every_conjugate
def test_bound_stays_below_for_an_untrained_network(row):
    critic = Critic(3, row, hidden_size=8)
    bound = variational_lower_bound(row, critic(pixels(COUNTS_P)), critic(pixels(COUNTS_Q)))
    assert bound.item() <= exact(row).item() + 1e-5


@pytest.mark.parametrize("name", ["kl", "jensen_shannon", "pearson_chi2"])
def test_trained_critic_gets_near_the_closed_form(name):
    row = F_DIVERGENCES[name]
    critic, labeled, unlabeled = Critic(3, row, hidden_size=16), pixels(COUNTS_P), pixels(COUNTS_Q)
    parameters = list(critic.parameters())
    for _ in range(150):
        bound = variational_lower_bound(row, critic(labeled), critic(unlabeled))
        gradients = torch.autograd.grad(bound, parameters)
        torch._foreach_add_([parameter.data for parameter in parameters], gradients, alpha=0.2)
    expected = exact(row).item()
    assert 0.95 * expected <= bound.item() <= expected + 1e-5


def test_student_lowers_the_bound_through_the_critic():
    row = F_DIVERGENCES["kl"]
    critic, labeled, unlabeled = Critic(2, row), torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4).requires_grad_()
    labeled[:, 0] = 3
    variational_lower_bound(row, critic(labeled), critic(unlabeled)).backward()
    assert unlabeled.grad.abs().sum() > 0


@every_conjugate
@pytest.mark.parametrize("sign", [-1, 1])
def test_critic_stays_finite_and_in_the_domain_at_its_limits(row, sign):
    critic = Critic(3, row)
    torch.nn.init.constant_(critic.layers[-1].bias, sign * 50.0)
    labeled, unlabeled = (60 * random_logits(1, 3, 4, 4, seed=seed) for seed in (0, 1))
    labeled.requires_grad_()
    output = critic(labeled)
    assert output.dtype == torch.float32
    assert (output <= row.conjugate_domain[1]).all()
    bound = variational_lower_bound(row, output, critic(unlabeled))
    bound.backward()
    assert bound.isfinite()
    assert labeled.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in critic.parameters())


def test_critic_limits_the_log_ratio():
    critic = Critic(2, F_DIVERGENCES["kl"])
    torch.nn.init.constant_(critic.layers[-1].bias, 1e4)
    assert (critic(torch.zeros(1, 2, 2, 2)) - 1).max().item() == pytest.approx(LOG_RATIO_LIMIT, rel=1e-5)


def test_critic_is_pointwise_and_blind_to_a_shift_of_the_logits():
    critic = Critic(3, F_DIVERGENCES["jensen_shannon"])
    logits = random_logits(2, 3, 4, 5, 6)
    output = critic(logits)
    assert output.shape == (2, 4, 5, 6)
    torch.testing.assert_close(critic(logits[:, :, 1]), output[:, 1])
    torch.testing.assert_close(critic(logits + 7), output)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(critic(logits), output)


def test_critic_is_seeded_without_touching_the_global_random_state():
    state = torch.get_rng_state()
    weights = [Critic(3, F_DIVERGENCES["kl"], seed=seed).layers[0].weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_marginal_divergence_never_exceeds_that_between_the_pixels():
    # Pixels equally sure of either class on one side, undecided on the other: equal means, other distributions.
    labeled, unlabeled = torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4)
    labeled[:, 0, 0], labeled[:, 1, 1] = 5.0, 5.0
    row = F_DIVERGENCES["jensen_shannon"]
    assert divergence_between(labeled, unlabeled, row).item() == pytest.approx(0, abs=1e-6)
    log_ratio = torch.tensor([20.0, -20.0], dtype=torch.float64)  # labeled pixels, unlabeled pixels
    t_p, t_q = row.derivative(log_ratio.exp())
    assert variational_lower_bound(row, t_p, t_q).item() == pytest.approx(math.log(2), abs=1e-6)


def test_jeffreys_has_no_variational_estimator():
    with pytest.raises(ValueError, match=r"'jeffreys' lacks.*'kl'.*'marginal' or 'regional'"):
        Critic(3, F_DIVERGENCES["jeffreys"])
    with pytest.raises(ValueError, match="'jeffreys' lacks"):
        variational_lower_bound(F_DIVERGENCES["jeffreys"], torch.zeros(2), torch.zeros(2))


def test_variational_refuses_what_does_not_fit():
    critic = Critic(3, F_DIVERGENCES["kl"])
    with pytest.raises(ValueError, match=r"shape \(N, 3, \*S\), got \(1, 2, 4, 4\)"):
        critic(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="a mask left none"):
        variational_lower_bound(F_DIVERGENCES["kl"], torch.zeros(2)[:0], torch.zeros(2))
