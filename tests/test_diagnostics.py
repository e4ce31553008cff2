"""Measures of the loss around the weights: against quadratics, and a network's full Hessian."""

import math

import pytest
import torch
from torch import nn

from dim_hf.diagnostics.hessian import hessian_trace, largest_eigenvalue
from dim_hf.diagnostics.landscape import explore_landscape, filter_normalized_direction
from dim_hf.diagnostics.loss_sharpness import measure_sharpness
from dim_hf.diagnostics.objective import (
    Objective,
    SecondDerivativeError,
    displaced_parameters,
    segmentation_objective,
)
from dim_hf.losses import supervised_loss
from dim_hf.sharpness import perturbed_parameters
from tests.tiny import TinyImages, tiny_model


def quadratic(eigenvalues, at=None, seed=0):
    """½ xᵀ H x with a known spectrum in random axes, its weights in two tensors."""
    size = len(eigenvalues)
    torch.manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    hessian = axes @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ axes.T
    start = torch.zeros(size, dtype=torch.float64) if at is None else torch.as_tensor(at, dtype=torch.float64)
    weights = (nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone().view(-1, 1)))

    def loss():
        x = torch.cat([weights[0], weights[1].flatten()])
        return x @ hessian @ x / 2

    # Two batches with unequal weights: the sum is the loss.
    return Objective(weights, ((0.25, loss), (0.75, loss))), hessian


def tiny_objective(batches=1, dtype=torch.float32, **config):
    model = tiny_model(hidden_sizes=[4, 4], **config).eval().to(dtype)
    samples = TinyImages(4, size=8)
    images = torch.stack([sample["pixel_values"] for sample in samples.samples]).to(dtype)
    labels = torch.stack([sample["labels"] for sample in samples.samples]).long()
    sizes = [1, 3] if batches == 2 else [4]
    parts = [
        {"pixel_values": some, "labels": theirs}
        for some, theirs in zip(images.split(sizes), labels.split(sizes), strict=True)
    ]
    return model, segmentation_objective(model, parts), {"pixel_values": images, "labels": labels}


def bits(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def test_objective_is_the_supervised_loss_whatever_the_batches():
    model, objective, stacked = tiny_objective()
    _, split, _ = tiny_objective(batches=2)
    loss = supervised_loss(model(pixel_values=stacked["pixel_values"]).logits, stacked["labels"])
    assert objective.value() == pytest.approx(loss.item(), rel=1e-6)
    assert split.value() == pytest.approx(loss.item(), rel=1e-6)
    expected = torch.autograd.grad(loss, objective.parameters)
    for own in (objective, split):
        for found, reference in zip(own.value_and_gradient()[1], expected, strict=True):
            torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_come_back_bit_for_bit_also_after_an_error():
    _, objective, _ = tiny_objective(norm="batch")
    before = bits(objective.parameters)
    measure_sharpness(objective, 0.3, ascent_steps=2, random_directions=2)
    explore_landscape(objective, line_points=3, plane_points=3)
    largest_eigenvalue(objective, max_iterations=2)
    with pytest.raises(RuntimeError, match="inside"), displaced_parameters(objective.parameters, before):
        raise RuntimeError("inside")
    assert all(torch.equal(a, b) for a, b in zip(before, objective.parameters, strict=True))


def test_running_statistics_stay():
    model, objective, _ = tiny_objective(norm="batch")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    measure_sharpness(objective, 0.1, ascent_steps=1, random_directions=2)
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


# ---- sharpness


def test_worst_rise_of_a_bowl_at_its_bottom_is_half_the_largest_eigenvalue():
    objective, _ = quadratic([1.0, 2.0, 3.0, 8.0])
    found = measure_sharpness(objective, 0.5, ascent_steps=200)
    assert found.sam_rise == 0  # no slope, no step
    assert found.worst_rise == pytest.approx(8 / 2 * 0.5**2, rel=1e-6)


def test_random_rise_of_a_bowl_is_the_mean_eigenvalue():
    objective, _ = quadratic([1.0, 2.0, 3.0, 8.0])
    found = measure_sharpness(objective, 0.5, random_directions=4000, ascent_steps=0)
    expected = (1 + 2 + 3 + 8) / 4 / 2 * 0.5**2
    assert found.random_mean == pytest.approx(expected, abs=4 * found.random_sd / math.sqrt(4000))
    assert found.random_sd > 0


def test_sam_rise_is_that_of_the_trainers_perturbation():
    for adaptive in (False, True):
        model, objective, _ = tiny_objective()
        found = measure_sharpness(objective, 0.2, adaptive=adaptive)
        loss = objective.batches[0][1]()
        loss.backward()
        with perturbed_parameters(model.parameters(), 0.2, adaptive=adaptive):
            assert found.sam_rise == pytest.approx(objective.value() - loss.item(), rel=1e-3)
        assert found.worst_rise >= max(found.sam_rise, found.random_mean)
        assert found.loss == pytest.approx(loss.item(), rel=1e-6)


def test_ascent_stays_in_the_ball_and_is_seeded():
    objective, hessian = quadratic([1.0, 2.0, 3.0, 8.0], at=[1.0, -1.0, 0.5, 2.0])
    found = measure_sharpness(objective, 0.5, ascent_steps=100)
    x = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    directions = torch.randn(20000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = x + 0.5 * directions / directions.norm(dim=1, keepdim=True)
    best = ((points @ hessian) * points).sum(1).max() / 2 - x @ hessian @ x / 2
    # The sampled best is below the maximum by a little, and no point of the ball is above it.
    assert best.item() <= found.worst_rise <= best.item() * 1.01
    assert found == measure_sharpness(objective, 0.5, ascent_steps=100)


def test_adaptive_rise_is_free_of_the_scale_of_layers():
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
    first, second = (torch.randn(3, 5, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))

    def objective(scale):
        weights = nn.Parameter(first * scale), nn.Parameter(second / scale)
        return Objective(weights, ((1.0, lambda: ((x @ weights[0]).relu() @ weights[1] - y).square().mean()),))

    plain, scaled = (measure_sharpness(objective(s), 0.1, adaptive=True, eta=1e-12) for s in (1.0, 10.0))
    assert scaled.worst_rise == pytest.approx(plain.worst_rise, rel=1e-6)
    assert scaled.random_mean == pytest.approx(plain.random_mean, rel=1e-6)
    assert measure_sharpness(objective(10.0), 0.1).worst_rise > 2 * measure_sharpness(objective(1.0), 0.1).worst_rise


@pytest.mark.parametrize("wrong", [{"rho": 0}, {"rho": math.inf}, {"ascent_steps": -1}, {"random_directions": 1}])
def test_sharpness_refuses(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        measure_sharpness(quadratic([1.0, 2.0, 3.0])[0], **{"rho": 0.1} | wrong)


def test_sharpness_refuses_a_loss_that_is_not_finite():
    objective, _ = quadratic([1.0, 2.0, 3.0], at=[math.nan] * 3)
    with pytest.raises(ValueError, match="loss at the model's weights is nan"):
        measure_sharpness(objective, 0.1)


# ---- Hessian


@pytest.mark.parametrize("eigenvalues", [[1.0, 2.0, 5.0], [-9.0, 1.0, 4.0], [-3.0, -2.0, -1.0], [0.0, 0.0, 7.0]])
def test_largest_eigenvalue_of_a_quadratic(eigenvalues):
    objective, _ = quadratic(eigenvalues, at=[1.0, 2.0, 3.0])
    found = largest_eigenvalue(objective, tolerance=1e-9, max_iterations=500)
    assert found.converged
    assert found.value == pytest.approx(max(eigenvalues), abs=1e-5)
    assert found.residual < 1e-2


def test_hessian_of_a_plane_is_zero():
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    objective = Objective((weight,), ((1.0, lambda: weight.sum()),))
    assert largest_eigenvalue(objective).value == 0
    assert hessian_trace(objective) == (0.0, 0.0)


def full_hessian(objective):
    """Column by column, by finite differences of the gradient in float64: another way than the code's."""
    sizes = [parameter.numel() for parameter in objective.parameters]
    columns, step = [], 1e-5
    for index in range(sum(sizes)):
        unit = torch.zeros(sum(sizes), dtype=torch.float64)
        unit[index] = step
        moved = [part.view_as(p) for part, p in zip(unit.split(sizes), objective.parameters, strict=True)]
        ahead, behind = (objective.value_and_gradient_at([sign * part for part in moved])[1] for sign in (1, -1))
        columns.append(torch.cat([(a - b).flatten() for a, b in zip(ahead, behind, strict=True)]) / (2 * step))
    return torch.stack(columns)


@pytest.fixture
def smooth_network():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1)).double()
    images, labels = torch.randn(3, 1, 6, 6, dtype=torch.float64), torch.randint(0, 2, (3, 6, 6))
    return Objective(tuple(network.parameters()), ((1.0, lambda: supervised_loss(network(images), labels)),))


def test_eigenvalue_and_trace_match_the_full_hessian_of_a_network(smooth_network):
    hessian = full_hessian(smooth_network)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-4, atol=1e-7)
    eigenvalues = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
    found = largest_eigenvalue(smooth_network, tolerance=1e-7, max_iterations=400)
    assert found.value == pytest.approx(eigenvalues[-1].item(), rel=1e-3)
    assert (eigenvalues - found.value).abs().min() <= found.residual + 1e-6
    trace, error = hessian_trace(smooth_network, probes=200)
    assert trace == pytest.approx(hessian.trace().item(), abs=4 * error)


def test_hessian_vector_product_of_a_unet_is_the_slope_of_its_gradient():
    _, objective, _ = tiny_objective(dtype=torch.float64, activation="silu")
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(p.shape, generator=generator).double() for p in objective.parameters]
    step = 1e-6
    ahead, behind = (objective.value_and_gradient_at([s * step * v for v in vector])[1] for s in (1, -1))
    product = torch.cat([part.flatten() for part in objective.hessian_vector_product(vector)])
    slope = torch.cat([(a - b).flatten() for a, b in zip(ahead, behind, strict=True)]) / (2 * step)
    assert (product - slope).norm() < 1e-4 * slope.norm()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


def test_an_operation_without_second_derivative_is_named():
    weight = nn.Parameter(torch.ones(3))
    objective = Objective((weight,), ((1.0, lambda: Once.apply(weight).square().sum()),))
    with pytest.raises(SecondDerivativeError, match="cannot be differentiated twice"):
        largest_eigenvalue(objective)


def test_attention_can_be_differentiated_twice():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(1, 2, 4, 8))
    attend = nn.functional.scaled_dot_product_attention
    objective = Objective((weight,), ((1.0, lambda: attend(weight, weight, weight).square().sum()),))
    assert math.isfinite(largest_eigenvalue(objective, max_iterations=3).value)


def test_hessian_refuses():
    objective, _ = quadratic([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="tolerance must be > 0"):
        largest_eigenvalue(objective, tolerance=0)
    with pytest.raises(ValueError, match="probes must be at least 2"):
        hessian_trace(objective, probes=1)
    with pytest.raises(ValueError, match="needs a parameter"):
        Objective((), ())


# ---- landscape


def test_directions_have_the_norms_of_the_filters():
    model = tiny_model()
    parameters = list(model.parameters())
    for direction, weight in zip(
        filter_normalized_direction(parameters, torch.Generator().manual_seed(0)), parameters, strict=True
    ):
        if weight.dim() > 1:
            torch.testing.assert_close(direction.flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1))
        else:
            assert not direction.any()


def test_landscape_is_the_loss_at_moved_weights():
    model, objective, _ = tiny_objective()
    found = explore_landscape(objective, line_points=5, plane_points=3, extent=0.4, seed=7)
    assert found.line[2] == pytest.approx(objective.value(), rel=1e-6)
    assert found.plane[1, 1] == pytest.approx(objective.value(), rel=1e-6)
    assert found.plane.shape == (3, 3)
    generator = torch.Generator().manual_seed(7)
    first, second = (filter_normalized_direction(objective.parameters, generator) for _ in range(2))
    with torch.no_grad():
        for weight, one, two in zip(model.parameters(), first, second, strict=True):
            weight += 0.4 * one - 0.4 * two
    assert found.plane[0, 2] == pytest.approx(objective.value(), rel=1e-5)  # row: second direction, column: first


def test_landscape_without_a_plane_and_refusals():
    _, objective, _ = tiny_objective()
    assert explore_landscape(objective, line_points=3, plane_points=0).plane.size == 0
    for wrong in ({"line_points": 4}, {"plane_points": 1}, {"extent": 0.0}):
        with pytest.raises(ValueError, match="must be odd"):
            explore_landscape(objective, **{"line_points": 3, "plane_points": 3} | wrong)
