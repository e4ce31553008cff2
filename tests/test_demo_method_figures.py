"""The figures of the method's page: their numbers are those of the formulas, and of the functions that train."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from dim_hf.demo import svg
from dim_hf.demo.divergence_figure import WORDINGS, class_shares, draw_divergence, number, read_divergence
from dim_hf.demo.landscape_figure import LEARNING_RATE, START_ACROSS, Valley, compare_descents, descend, draw_landscape
from dim_hf.demo.tables import table
from dim_hf.divergences import F_DIVERGENCES, closed_form, divergence_between
from dim_hf.sharpness import perturbed_parameters

P, Q = class_shares(20, 25), class_shares(30, 60)

# Σ over classes, written out by hand as textbooks do, of p and q.
BY_HAND = {
    "kl": lambda p, q: p * math.log(p / q),
    "reverse_kl": lambda p, q: q * math.log(q / p),
    "jensen_shannon": lambda p, q: (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))) / 2,
    "jeffreys": lambda p, q: (p - q) * math.log(p / q),
    "pearson_chi2": lambda p, q: (p - q) ** 2 / q,
    "neyman_chi2": lambda p, q: (p - q) ** 2 / p,
    "squared_hellinger": lambda p, q: (math.sqrt(p) - math.sqrt(q)) ** 2,
    "total_variation": lambda p, q: abs(p - q) / 2,
    "alpha": lambda p, q: 2 * (math.sqrt(p) - math.sqrt(q)) ** 2,
}


def pictures(html):
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def test_every_divergence_that_trains_is_explained():
    assert set(WORDINGS) == set(F_DIVERGENCES) == set(BY_HAND)


@pytest.mark.parametrize("name", list(WORDINGS))
def test_values_are_those_of_the_textbook_and_of_the_training(name):
    found = read_divergence(name, P, Q)
    assert found.value == pytest.approx(sum(BY_HAND[name](p, q) for p, q in zip(P, Q, strict=True)), rel=1e-4)
    assert found.reverse == pytest.approx(read_divergence(name, Q, P).value, rel=1e-12)
    assert found.value == pytest.approx(sum(found.terms), rel=1e-9)
    logits = [torch.tensor(shares).log().view(1, 3, 1, 1).expand(1, 3, 4, 4) for shares in (P, Q)]
    assert found.value == pytest.approx(divergence_between(*logits, F_DIVERGENCES[name]).item(), rel=1e-3)


@pytest.mark.parametrize("name", list(WORDINGS))
def test_equal_shares_are_worth_nothing_and_zero_shares_stay_finite(name):
    assert read_divergence(name, P, P).value == pytest.approx(0, abs=1e-12)
    extreme = read_divergence(name, class_shares(0, 0), class_shares(90, 100))
    assert math.isfinite(extreme.value)
    assert extreme.value > 0
    bound = {"jensen_shannon": math.log(2), "total_variation": 1, "squared_hellinger": 2, "alpha": 4}.get(
        name, math.inf
    )
    assert extreme.value <= bound


@pytest.mark.parametrize(
    ("alpha", "name", "factor"),
    [(0, "reverse_kl", 1), (1, "kl", 1), (2, "pearson_chi2", 0.5), (-1, "neyman_chi2", 0.5)],
)
def test_alpha_leads_through_the_family(alpha, name, factor):
    expected = factor * read_divergence(name, P, Q).value
    found = read_divergence("alpha", P, Q, alpha)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert ("whose limit is" in draw_divergence(found)) == (alpha in (0, 1)), "f is another one there, and it is said"


def test_ratios_and_terms_of_a_hand_made_case():
    found = read_divergence("pearson_chi2", (0.5, 0.25, 0.25), (0.25, 0.25, 0.5))
    assert found.ratios == pytest.approx((2, 1, 0.5), rel=1e-4)
    assert found.terms == pytest.approx((0.25, 0, 0.125), abs=1e-4)
    log_p, log_q = (torch.tensor(side, dtype=torch.float64).log() for side in (found.p, found.q))
    assert found.value == pytest.approx(closed_form(F_DIVERGENCES["pearson_chi2"], log_p, log_q).item())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: class_shares(101, 0), "disc is 101 %"),
        (lambda: class_shares(float("nan"), 0), "disc is nan %"),
        (lambda: class_shares(10, -1), "cup is -1 %"),
        (lambda: read_divergence("<b>", P, Q), "no f-divergence '<b>'"),
        (lambda: read_divergence("alpha", P, Q, 4), "alpha is 4"),
        (lambda: read_divergence("alpha", P, Q, float("nan")), "alpha is nan"),
        (lambda: compare_descents(float("nan"), 0, 20), "rho is nan"),
        (lambda: compare_descents(0.1, 9, 20), "start is 9"),
        (lambda: compare_descents(0.1, 0, 1e9), "curvature is 1e\\+09"),
    ],
)
def test_values_out_of_range_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("name", list(WORDINGS))
@pytest.mark.parametrize(("p", "q"), [(P, Q), (class_shares(0, 0), Q), (class_shares(90, 100), class_shares(0, 0))])
def test_the_figure_of_a_divergence_shows_its_number(name, p, q):
    reading = read_divergence(name, p, q)
    html = draw_divergence(reading)
    assert f"(P‖Q) = {number(reading.value)}<" in html
    assert html.count('aria-current="true"') == 1
    for picture in pictures(html):
        assert picture.get("role") == "img"
        assert picture.get("aria-label")
        places = re.findall(r'(?:cx|cy|x|y|width|height)="(-?[\d.]+|nan|inf)"', ElementTree.tostring(picture).decode())
        assert all(-1 <= float(place) <= 361 for place in places)


def test_gradient_of_the_valley_is_that_of_its_loss():
    valley = Valley(20.0)
    for x, y in ((0.5, -1.2), (-0.2, 0.1), (0.0, 1.0)):
        step = 1e-6
        across = (valley.loss(x + step, y) - valley.loss(x - step, y)) / (2 * step)
        along = (valley.loss(x, y + step) - valley.loss(x, y - step)) / (2 * step)
        assert valley.gradient(x, y) == pytest.approx((across, along), abs=1e-6)
        assert valley.curvature(y) == pytest.approx(
            (valley.loss(step * 100, y) + valley.loss(-step * 100, y) - 2 * valley.loss(0, y)) / (step * 100) ** 2,
            rel=1e-3,
        )


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.4])
def test_steps_are_those_of_the_training(rho):
    valley = Valley(20.0)
    weights = torch.nn.Parameter(torch.tensor([START_ACROSS, -0.9], dtype=torch.float64))
    optimizer = torch.optim.SGD([weights], lr=LEARNING_RATE)

    def backward():
        x, y = weights
        curvature = 1 + (20.0 - 1) / (1 + torch.exp(3 * y))
        (curvature * x**2 / 2 + 0.6 * (y**2 - 1) ** 2 / 4).backward()

    path = [weights.tolist()]
    for _ in range(50):
        optimizer.zero_grad()
        backward()
        if rho > 0:
            with perturbed_parameters([weights], rho):
                backward()
        optimizer.step()
        path.append(weights.tolist())
    np.testing.assert_allclose(descend(valley, -0.9, rho, steps=50), path, rtol=1e-9, atol=1e-12)


def test_rho_zero_is_plain_descent():
    plain, sharpness_aware = compare_descents(0.0, -0.9, 20)
    np.testing.assert_array_equal(plain.path, sharpness_aware.path)
    assert sharpness_aware.worst == sharpness_aware.loss


def test_plain_descent_stays_where_it_is_narrow_and_sam_leaves():
    plain, sharpness_aware = compare_descents(0.3, -0.9, 20)
    assert plain.path[-1] == pytest.approx((0, -1), abs=0.01)
    assert sharpness_aware.path[-1] == pytest.approx((0, 1), abs=0.02)
    assert sharpness_aware.worst < plain.worst / 5
    small = compare_descents(0.1, -0.9, 20)[1]
    assert small.path[-1, 1] < -0.9, "a small ρ does not leave, and the page does not hide it"


def test_worst_loss_in_the_ball_against_random_points():
    valley, rng = Valley(12.0), np.random.default_rng(0)
    angles, radii = rng.uniform(0, 2 * math.pi, 20_000), 0.3 * np.sqrt(rng.uniform(0, 1, 20_000))
    for x, y in ((0.0, -1.0), (0.1, 0.4), (0.0, 1.0)):
        found = valley.worst(x, y, 0.3)
        drawn = valley.loss(x + radii * np.cos(angles), y + radii * np.sin(angles)).max()
        assert drawn <= found * (1 + 1e-3)
        assert found == pytest.approx(drawn, rel=0.02)


@pytest.mark.parametrize(
    ("rho", "start", "said"),
    [
        (0, -0.9, "With ρ = 0 SAM is plain gradient descent"),
        (0.1, -0.9, "Both ended in the narrow part"),
        (0.3, -0.9, "Plain gradient descent ended in the narrow part, SAM in the broad part"),
        (0.3, 1.0, "Both ended in the broad part"),
    ],
)
def test_the_page_says_what_happened(rho, start, said):
    html = draw_landscape(rho, start, 20)
    assert said in html
    plain, sharpness_aware = compare_descents(rho, start, 20)
    assert number(plain.worst) in html
    assert number(sharpness_aware.worst) in html


@pytest.mark.parametrize("narrow", [1, 8, 30])
@pytest.mark.parametrize("start", [-1.5, 0, 1.5])
@pytest.mark.parametrize("rho", [0, 0.25, 0.5])
def test_the_map_is_sound_everywhere(rho, start, narrow):
    for found in compare_descents(rho, start, narrow):
        assert np.isfinite(found.path).all()
    assert len(pictures(draw_landscape(rho, start, narrow))) == 2


@pytest.mark.parametrize("color", [svg.FIRST, svg.SECOND])
@pytest.mark.parametrize("ground", ["#ffffff", "#f4f4f5", "#0b0f19", "#1f2937", "#27272a"])
def test_colors_are_seen_on_light_and_dark(color, ground):
    assert svg.contrast(color, ground) >= 3


def test_words_of_strangers_stay_words():
    html = table(["<i>", "&"], [["<script>alert(1)</script>", "&"]], "<b>")
    html += svg.Panel("<u>", (0, 1), (0, 1)).axes((), (), '"')
    assert not re.search("<(script|i|b|u)>", html)


def test_a_figure_is_a_small_message():
    for html in (draw_landscape(0.3, -0.9, 20), draw_divergence(read_divergence("kl", P, Q))):
        assert len(html) < 60_000
