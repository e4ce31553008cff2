import pytest
import torch
from torch import nn

from dim_hf.sharpness import (
    NonFiniteGradientError,
    RandomState,
    check_finite_gradient,
    frozen_running_statistics,
    global_norm,
    perturbed_parameters,
)


def weights_with_gradients(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in ((3, 4), (5,), ())]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
    return parameters


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def test_global_norm_is_the_norm_of_the_concatenation():
    parameters = weights_with_gradients()
    assert torch.isclose(global_norm([p.detach() for p in parameters]), flat(parameters).norm())
    assert global_norm([]) == 0


def test_sam_moves_by_rho_along_the_gradient():
    parameters = weights_with_gradients()
    before, gradient = flat(parameters), flat(p.grad for p in parameters)
    with perturbed_parameters(parameters, 0.05) as length:
        moved = flat(parameters) - before
        assert torch.allclose(moved, 0.05 * gradient / gradient.norm(), rtol=1e-12)
        assert torch.isclose(length, torch.tensor(0.05, dtype=torch.float64))
        assert all(p.grad is None for p in parameters)


def test_asam_follows_its_formula():
    parameters = weights_with_gradients()
    before, gradient = flat(parameters), flat(p.grad for p in parameters)
    operator = before.abs() + 0.01
    expected = 0.5 * operator**2 * gradient / (operator * gradient).norm()
    with perturbed_parameters(parameters, 0.5, adaptive=True, eta=0.01):
        assert torch.allclose(flat(parameters) - before, expected, rtol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_perturbation_does_not_depend_on_the_gradients_scale(adaptive):
    moved = []
    for scale in (1.0, 65536.0):
        parameters = weights_with_gradients()
        before = flat(parameters)
        for p in parameters:
            p.grad *= scale
        with perturbed_parameters(parameters, 0.1, adaptive=adaptive):
            moved.append(flat(parameters) - before)
    assert torch.allclose(*moved, rtol=1e-12)


@pytest.mark.parametrize("fail", [False, True])
def test_weights_come_back_bit_for_bit_even_after_an_error(fail):
    parameters = weights_with_gradients(dtype=torch.float32)
    before = flat(parameters).clone()
    try:
        with perturbed_parameters(parameters, 1e-3):
            assert not torch.equal(flat(parameters), before)
            if fail:
                raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(flat(parameters), before)


def test_flat_point_is_not_perturbed():
    parameters = weights_with_gradients()
    before = flat(parameters).clone()
    for p in parameters:
        p.grad.zero_()
    with perturbed_parameters(parameters, 0.1) as length:
        assert torch.equal(flat(parameters), before)
        assert length == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_gradient_is_refused_and_kept(value):
    parameters = weights_with_gradients()
    before = flat(parameters).clone()
    parameters[1].grad[2] = value
    with pytest.raises(NonFiniteGradientError), perturbed_parameters(parameters, 0.1):
        pass
    assert torch.equal(flat(parameters), before)
    assert all(p.grad is not None for p in parameters)


def test_large_finite_gradients_are_finite():
    parameters = weights_with_gradients(dtype=torch.float32)
    parameters[0].grad.fill_(1e30)  # the sum of squares overflows float32
    check_finite_gradient(parameters)


@pytest.mark.parametrize("rho", [0.0, -0.1, float("nan")])
def test_rho_must_be_positive(rho):
    with pytest.raises(ValueError, match="rho must be positive"), perturbed_parameters(weights_with_gradients(), rho):
        pass


def test_no_gradient_at_all_is_an_error():
    with (
        pytest.raises(ValueError, match="no parameter has a gradient"),
        perturbed_parameters([nn.Parameter(torch.ones(2))], 0.1),
    ):
        pass


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.InstanceNorm2d(3, track_running_stats=True)],
    ids=["batch", "cumulative", "instance"],
)
def test_running_statistics_stay_while_batch_statistics_are_used(norm):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 2
    model.train()
    model(images)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with frozen_running_statistics(model):
        inside = model(images)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert set(norm.state_dict()) == set(before)
    assert torch.equal(inside, model(images))  # the same normalisation as in plain training
    model(images + 1)
    assert not torch.equal(norm.running_mean, before["running_mean"])  # and it moves again afterwards


def test_layers_in_evaluation_mode_are_left_alone():
    model = nn.BatchNorm2d(2).eval()
    images = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 5
    expected = model(images)
    with frozen_running_statistics(model):
        assert torch.equal(model(images), expected)


def test_random_state_is_replayed_and_then_goes_on():
    torch.manual_seed(3)
    state = RandomState.capture(torch.device("cpu"))
    first = torch.rand(4)
    after = torch.get_rng_state()
    with state.replayed():
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), after)
