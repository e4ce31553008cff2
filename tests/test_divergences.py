"""Laws of the f-divergences, and their estimators against direct sums."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, kl_divergence

from dim_hf.divergences import (
    F_DIVERGENCES,
    PROBABILITY_FLOOR,
    alpha_divergence,
    closed_form,
    divergence_between,
    get_f_divergence,
)

ALPHAS = (-4.0, 0.9, 5.0)
ROWS = [*F_DIVERGENCES.values(), *(alpha_divergence(alpha) for alpha in ALPHAS)]
IDS = [*F_DIVERGENCES, *(f"alpha={alpha}" for alpha in ALPHAS)]
CONJUGATE_ROWS = [row for row in ROWS if row.conjugate]
CONJUGATE_IDS = [name for name, row in zip(IDS, ROWS, strict=True) if row.conjugate]
every_row = pytest.mark.parametrize("row", ROWS, ids=IDS)
every_conjugate = pytest.mark.parametrize("row", CONJUGATE_ROWS, ids=CONJUGATE_IDS)
few_examples = settings(deadline=None, max_examples=10, derandomize=True)
RATIOS = torch.logspace(-2, 2, 40, dtype=torch.float64)  # none is 1, where total variation has its kink
ratios = st.floats(1e-3, 1e3)


@st.composite
def categorical_pairs(draw, min_probability=1e-3):
    size = draw(st.integers(2, 6))
    weights = st.lists(st.floats(min_probability, 1), min_size=size, max_size=size)
    p, q = (torch.tensor(draw(weights), dtype=torch.float64) for _ in range(2))
    return p / p.sum(), q / q.sum()


def exact(row, p, q):
    return closed_form(row, p.log(), q.log(), probability_floor=0)


def random_logits(*shape, seed=0, scale=2.0, dtype=torch.float32):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the table -----------------------------------------------------------------------------------------------------


@every_row
def test_generator_is_zero_at_one(row):
    assert row.generator(torch.ones(1, dtype=torch.float64)).item() == 0


@every_row
@few_examples
@given(ratios, ratios, st.floats(0, 1))
def test_generator_is_convex(row, a, b, share):
    f = [row.generator(torch.tensor(t, dtype=torch.float64)).item() for t in (share * a + (1 - share) * b, a, b)]
    chord = share * f[1] + (1 - share) * f[2]
    assert f[0] <= chord + 1e-9 * (1 + abs(chord))


@every_row
def test_derivative_is_that_of_the_generator(row):
    t = RATIOS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(row.generator(t).sum(), t)
    torch.testing.assert_close(row.derivative(RATIOS), gradient)


@every_conjugate
def test_conjugate_at_the_derivative(row):
    slope = row.derivative(RATIOS)
    torch.testing.assert_close(row.conjugate(slope), RATIOS * slope - row.generator(RATIOS), rtol=1e-5, atol=1e-7)


@every_conjugate
def test_conjugate_is_the_supremum_over_the_ratios(row):
    # The grid holds t = 0 nearly, where the supremum lies for a u below the slope there; its step is 0.2 %.
    t = torch.cat([torch.logspace(-9, 3, 14_000, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
    highest = min(row.conjugate_domain[1], 3.0)
    u = torch.linspace(-5, highest - 0.05 * (1 + abs(highest)), 15, dtype=torch.float64)
    u = u[u <= row.derivative(t[-2])]  # its supremum lies within the grid
    assert len(u) > 8
    supremum = (u[:, None] * t - row.generator(t)).amax(1)
    torch.testing.assert_close(row.conjugate(u), supremum, rtol=1e-4, atol=1e-4)


@every_conjugate
@few_examples
@given(ratios, st.floats(-8, 4))
def test_fenchel_young_inequality(row, t, u):
    t, u = (torch.tensor(x, dtype=torch.float64) for x in (t, u))
    if u < row.conjugate_domain[1]:
        bound = row.generator(t) + row.conjugate(u)
        assert t * u <= bound + 1e-9 * (1 + bound.abs())


@every_conjugate
def test_derivative_stays_in_the_conjugates_domain(row):
    slope = row.derivative(RATIOS)
    assert (slope > row.conjugate_domain[0]).all()
    assert (slope <= row.conjugate_domain[1] + 1e-12).all()


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_functions_keep_shape_and_dtype(row, dtype):
    t = torch.tensor([[0.5, 2.0, 3.0]], dtype=dtype)
    results = [row.generator(t), row.derivative(t)] + ([row.conjugate(-t)] if row.conjugate else [])
    assert {(result.shape, result.dtype) for result in results} == {(t.shape, dtype)}


def test_the_table_is_complete_and_frozen():
    names = "kl reverse_kl jensen_shannon pearson_chi2 neyman_chi2 squared_hellinger total_variation jeffreys alpha"
    assert " ".join(F_DIVERGENCES) == " ".join(row.name for row in F_DIVERGENCES.values()) == names
    with pytest.raises(AttributeError):
        F_DIVERGENCES["kl"].name = "other"


@pytest.mark.parametrize(
    ("alpha", "name", "factor", "tolerance"),
    [
        (2.0, "pearson_chi2", 0.5, 1e-9),
        (-1.0, "neyman_chi2", 0.5, 1e-9),
        (0.5, "squared_hellinger", 2.0, 1e-9),
        (0.011, "reverse_kl", 1.0, 0.02),
        (0.989, "kl", 1.0, 0.02),
    ],
)
@few_examples
@given(categorical_pairs(min_probability=0.05))
def test_alpha_divergence_meets_its_special_cases(alpha, name, factor, tolerance, pair):
    expected = factor * exact(F_DIVERGENCES[name], *pair)
    torch.testing.assert_close(exact(alpha_divergence(alpha), *pair), expected, rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@few_examples
@given(categorical_pairs(min_probability=0.05))
def test_alpha_divergence_mirrors_at_one_half(alpha, pair):
    p, q = pair
    torch.testing.assert_close(exact(alpha_divergence(alpha), p, q), exact(alpha_divergence(1 - alpha), q, p))


@pytest.mark.parametrize("alpha", [0, 1, 0.001, 0.999, -4.1, 5.1, math.nan, math.inf])
def test_alpha_divergence_refuses(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in.*'reverse_kl'.*'kl'"):
        alpha_divergence(alpha)


def test_get_f_divergence():
    assert get_f_divergence("kl") is F_DIVERGENCES["kl"]
    assert get_f_divergence("alpha", 2.0).generator(torch.tensor(3.0)).item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"unknown f_divergence 'klrev'; choose one of: kl, reverse_kl"):
        get_f_divergence("klrev")
    with pytest.raises(ValueError, match="not of 'kl'; leave it out"):
        get_f_divergence("kl", alpha=0.5)


# --- closed form ---------------------------------------------------------------------------------------------------

DIRECT_SUMS = {
    "kl": lambda p, q: np.sum(p * np.log(p / q)),
    "reverse_kl": lambda p, q: np.sum(q * np.log(q / p)),
    "jensen_shannon": lambda p, q: np.sum(p * np.log(2 * p / (p + q))) / 2 + np.sum(q * np.log(2 * q / (p + q))) / 2,
    "pearson_chi2": lambda p, q: np.sum((p - q) ** 2 / q),
    "neyman_chi2": lambda p, q: np.sum((p - q) ** 2 / p),
    "squared_hellinger": lambda p, q: np.sum((np.sqrt(p) - np.sqrt(q)) ** 2),
    "total_variation": lambda p, q: np.sum(np.abs(p - q)) / 2,
    "jeffreys": lambda p, q: np.sum((p - q) * (np.log(p) - np.log(q))),
    "alpha": lambda p, q: 4 * (1 - np.sum(np.sqrt(p * q))),
}


@pytest.mark.parametrize("name", F_DIVERGENCES)
@few_examples
@given(categorical_pairs())
def test_closed_form_against_direct_sums(name, pair):
    expected = DIRECT_SUMS[name](*(x.numpy() for x in pair))
    assert exact(F_DIVERGENCES[name], *pair).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # A thousandth is far above the floor, which then changes the result in the third digit at most.
    floored = closed_form(F_DIVERGENCES[name], *(x.log() for x in pair)).item()
    assert floored == pytest.approx(expected, rel=2e-2, abs=1e-9)


@few_examples
@given(categorical_pairs())
def test_kl_against_torch_distributions(pair):
    p, q = pair
    forward, backward = (kl_divergence(Categorical(a), Categorical(b)) for a, b in ((p, q), (q, p)))
    torch.testing.assert_close(exact(F_DIVERGENCES["kl"], p, q), forward)
    torch.testing.assert_close(exact(F_DIVERGENCES["reverse_kl"], p, q), backward)
    torch.testing.assert_close(exact(F_DIVERGENCES["jeffreys"], p, q), forward + backward)


@few_examples
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_kl_of_bernoullis(a, b):
    p, q = (torch.tensor([1 - x, x], dtype=torch.float64) for x in (a, b))
    expected = kl_divergence(*(Bernoulli(torch.tensor(x, dtype=torch.float64)) for x in (a, b)))
    torch.testing.assert_close(exact(F_DIVERGENCES["kl"], p, q), expected, rtol=1e-6, atol=1e-12)


@every_row
@few_examples
@given(categorical_pairs())
def test_divergence_is_zero_exactly_where_both_agree(row, pair):
    p, q = pair
    assert exact(row, p, p).item() == 0
    value = exact(row, p, q).item()
    assert value > -1e-12
    if (p - q).abs().max() > 1e-3:
        assert value > 1e-8


@pytest.mark.parametrize(
    ("name", "limit"), [("jensen_shannon", math.log(2)), ("total_variation", 1), ("squared_hellinger", 2)]
)
@few_examples
@given(categorical_pairs())
def test_bounded_divergences(name, limit, pair):
    assert exact(F_DIVERGENCES[name], *pair).item() <= limit + 1e-12
    disjoint = torch.tensor([0.0, -math.inf], dtype=torch.float64)
    assert limit - 0.01 < closed_form(F_DIVERGENCES[name], disjoint, disjoint.flip(0)).item() <= limit


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_symmetric_ones_and_only_these_are_symmetric(name):
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.7, 0.2, 0.1], [0.1, 0.5, 0.4]))
    there, back = exact(F_DIVERGENCES[name], p, q), exact(F_DIVERGENCES[name], q, p)
    symmetric = {"jensen_shannon", "squared_hellinger", "total_variation", "jeffreys", "alpha"}
    assert torch.isclose(there, back).item() == (name in symmetric)


@every_row
@few_examples
@given(categorical_pairs())
def test_floor_never_raises_the_divergence(row, pair):
    floored = closed_form(row, *(x.log() for x in pair), probability_floor=0.05).item()
    assert floored <= exact(row, *pair).item() * (1 + 1e-9) + 1e-12


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_values_and_gradients(row, dtype):
    extremes = torch.tensor([[60.0, -60.0, 0.0], [-60.0, 60.0, -60.0], [6.9, -6.9, -60.0]], dtype=dtype)
    for p, q in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0)):
        logits = [extremes[i].view(1, 3, 1, 1).repeat(2, 1, 2, 2).requires_grad_() for i in (p, q)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = divergence_between(*logits, row)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert value > -1e-5
        assert all(x.grad.isfinite().all() for x in logits)


@every_row
def test_float32_agrees_with_float64(row):
    labeled, unlabeled = random_logits(2, 3, 8, 8), random_logits(3, 3, 8, 8, seed=1) + 1
    expected = divergence_between(labeled.double(), unlabeled.double(), row, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = divergence_between(labeled, unlabeled, row, 2)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    half = labeled.bfloat16(), unlabeled.half()
    assert torch.equal(divergence_between(*half, row, 2), divergence_between(*(x.float() for x in half), row, 2))


@every_row
def test_gradient_in_float64(row):
    logits = [random_logits(1, 2, 2, 3, seed=seed, dtype=torch.float64).requires_grad_() for seed in (0, 1)]
    mask = torch.tensor([[[1, 0, 1], [1, 1, 0]]], dtype=torch.bool)
    estimate = partial(divergence_between, f_divergence=row, grid_size=2, labeled_mask=mask)
    assert torch.autograd.gradcheck(estimate, logits, fast_mode=True)


def test_closed_form_takes_leading_axes_and_refuses_what_does_not_fit():
    log_p, log_q = random_logits(2, 5, 3).log_softmax(-1), random_logits(2, 5, 3, seed=1).log_softmax(-1)
    assert closed_form(F_DIVERGENCES["kl"], log_p, log_q).shape == (2, 5)
    with pytest.raises(ValueError, match="log_p has 3 classes, log_q has 2"):
        closed_form(F_DIVERGENCES["kl"], log_p, log_q[..., :2])
    for floor in (-1e-3, 1 / 3, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"probability_floor must be in \[0, 1/3\)"):
            closed_form(F_DIVERGENCES["kl"], log_p, log_q, floor)


def test_floor_is_the_least_probability():
    log_p = torch.tensor([0.0, -math.inf])
    # KL of (1 - ε, ε) against its mirror image, ε the floor: (1 - 2ε) log((1 - ε)/ε).
    expected = (1 - 2 * PROBABILITY_FLOOR) * math.log((1 - PROBABILITY_FLOOR) / PROBABILITY_FLOOR)
    assert closed_form(F_DIVERGENCES["kl"], log_p, log_p.flip(0)).item() == pytest.approx(expected, rel=1e-5)
