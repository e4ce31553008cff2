"""Mixed precision and values that are not finite: the step is abandoned as a whole, and the run goes on."""

import logging
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs

from dim_hf.losses import LossTerms
from tests.tiny import TinyImages, tiny_model, tiny_trainer


@pytest.fixture
def fp16_trainer(tmp_path, monkeypatch):
    """A trainer as it is under `fp16=True`, with torch's CPU scaler: accelerate starts one on GPUs only."""

    def make(init_scale=2.0**10, model=None, **arguments):
        trainer = tiny_trainer(tmp_path, model, **arguments)
        monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
        trainer.accelerator.native_amp = True
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=10**6)
        return trainer

    return make


def state_of(trainer):
    """Everything that an abandoned step must leave alone."""
    state = {f"student.{name}": value for name, value in trainer.model.state_dict().items()}
    state |= {f"teacher.{name}": value for name, value in trainer.teacher.state_dict().items()}
    for index, moments in enumerate(trainer.optimizer.state.values()):
        state |= {f"optimizer.{index}.{name}": value for name, value in moments.items() if torch.is_tensor(value)}
    if trainer.objective.critic is not None:
        state |= {f"critic.{name}": value for name, value in trainer.objective.critic.critic.state_dict().items()}
    return {name: value.clone() for name, value in state.items()}


def spoil(trainer, step, call, change):
    """Change the terms of one backward pass: the `call`-th, from 0, of optimizer step `step`, from 0."""
    original, calls = trainer._loss_terms, []

    def spoiled(batch, logits):
        terms = original(batch, logits)
        if trainer.state.global_step != step:
            return terms
        calls.append(None)
        return change(terms) if len(calls) == call + 1 else terms

    trainer._loss_terms = spoiled


def watch_states(trainer):
    states, finish = [], trainer.finish_optimizer_step

    def record():
        finish()
        states.append(state_of(trainer))

    trainer.finish_optimizer_step = record
    return states


CHANGES = {
    "nan": lambda t: LossTerms(t.supervised * math.nan, t.consistency, t.divergence),
    "infinite gradient": lambda t: LossTerms(t.supervised * math.inf, t.consistency, t.divergence),
    # A constant: its gradient is zero, so that only the loss itself tells.
    "infinite loss": lambda t: LossTerms(t.supervised, t.consistency + math.inf, t.divergence),
    "divergence": lambda t: LossTerms(t.supervised, t.consistency, t.divergence * math.nan),
}


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("call", [0, 1], ids=["pass 1", "pass 2"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_value_that_is_not_finite_changes_nothing(tmp_path, fp16_trainer, precision, scope, call, change):
    settings = {"rho": 0.1, "perturbation_scope": scope, "max_steps": 4, "ascent_objective": "supervised"}
    settings |= {"divergence_estimator": "variational"} if call == 0 else {}
    model = tiny_model(norm="batch")
    if precision == "fp16":
        trainer = fp16_trainer(model=model, **settings)
    else:
        trainer = tiny_trainer(tmp_path, model, bf16=precision == "bf16", **settings)
    spoil(trainer, 1, call, CHANGES[change])
    states = watch_states(trainer)
    trainer.train()
    before, after, following = states[0], states[1], states[2]
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert any(not torch.equal(value, following[name]) for name, value in after.items())
    assert all(torch.isfinite(value).all() for value in states[3].values())
    assert trainer.skipped_steps == 1
    assert [line["skipped_steps"] for line in trainer.state.log_history if "skipped_steps" in line] == [0, 1, 1, 1]
    if precision == "fp16":
        assert trainer.accelerator.scaler.get_scale() == 2.0**9  # backed off once


@pytest.mark.parametrize("scope", ["global", "local"])
def test_the_scale_of_the_loss_changes_nothing(fp16_trainer, scope):
    """Neither perturbation nor clipping nor update depends on the scaler's factor; a power of 2 leaves every bit."""
    weights = []
    for scale in (1.0, 2.0**7):
        settings = {"perturbation_scope": scope, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
        trainer = fp16_trainer(init_scale=scale, rho=0.1, **settings)
        # The scaler alone: fp16 itself would round small numbers differently.
        trainer.accelerator.autocast_handler = AutocastKwargs(enabled=False)
        trainer.train()
        weights.append(torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()]))
        assert trainer.skipped_steps == 0
    assert torch.equal(*weights)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_float32_weights_and_learns_the_same(tmp_path, fp16_trainer, precision):
    def train(trainer):
        trainer.train()
        return torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])

    start = torch.cat([p.detach().reshape(-1) for p in tiny_model().parameters()])
    settings = {"rho": 0.1, "max_steps": 8, "learning_rate": 0.02}
    exact = train(tiny_trainer(tmp_path, **settings))
    half = train(fp16_trainer(**settings) if precision == "fp16" else tiny_trainer(tmp_path, bf16=True, **settings))
    assert half.dtype == torch.float32
    # Rounding moves the weights by much less than learning does.
    assert (half - exact).norm() < 0.1 * (exact - start).norm()


@pytest.mark.parametrize("scope", ["global", "local"])
def test_an_extreme_pixel_does_not_reach_the_running_statistics(tmp_path, scope, caplog):
    """Finite itself, but not its square: loss and gradient are finite, the batch's variance is not."""
    images = TinyImages(8)
    images.samples[3]["pixel_values"][0, 5, 5] = 1e38
    trainer = tiny_trainer(
        tmp_path, tiny_model(norm="batch"), labeled=images, rho=0.1, perturbation_scope=scope, max_steps=4
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.skipped_steps == 1
    assert "was abandoned" in caplog.text
    for network in (trainer.model, trainer.teacher):
        assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert all(math.isfinite(value) for line in trainer.state.log_history for value in line.values())


def test_a_run_that_learns_nothing_any_more_ends_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("dim_hf.trainer.dim_trainer.MAX_SKIPPED_IN_A_ROW", 3)
    trainer = tiny_trainer(tmp_path, rho=0.1, max_steps=9)
    original = trainer._loss_terms

    def spoiled(batch, logits):
        terms = original(batch, logits)
        return CHANGES["nan"](terms) if trainer.state.global_step != 2 else terms

    trainer._loss_terms = spoiled
    with pytest.raises(ValueError, match="3 steps in a row gave values that are not finite"):
        trainer.train()
    assert trainer.state.global_step == 5  # two were skipped before the good one
