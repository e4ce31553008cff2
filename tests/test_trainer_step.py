"""The two-pass step of one process, held against references written out by hand."""

import copy

import pytest
import torch
from torch.func import functional_call
from transformers import Trainer

from dim_hf.augmentations.mixing import MixingBoxes
from dim_hf.divergences import PROBABILITY_FLOOR
from dim_hf.losses import consistency_loss, supervised_loss
from dim_hf.trainer.dim_trainer import DimTrainer
from dim_hf.trainer.views import StepInputs
from tests.references import two_pass_step as by_hand
from tests.tiny import TinyImages, tiny_arguments, tiny_model, tiny_trainer


def weights_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Recording(DimTrainer):
    """Keeps each step's inputs, so that a reference can take the same step."""

    def _open_window(self, batches):
        super()._open_window(batches)
        self.__dict__.setdefault("windows", []).append([copy.copy(b.inputs) for b in self._window.micro_batches])


def jensen_shannon(p, q):
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1)) / 2


def mean_shares(logits, cells):
    """(cells², K): class probabilities averaged over images and the pixels of a cell, floored as documented."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(logits.softmax(1), cells).mean(0)
    return (1 - logits.shape[1] * PROBABILITY_FLOOR) * pooled.flatten(1).T + PROBABILITY_FLOOR


def gradient_function(model, divergence_weight=0.0, cells=1):
    """The gradient of L_sup + L_con + λ_div L_div for any weights and inputs, by torch.func: no Trainer."""
    names = [name for name, _ in model.named_parameters()]
    network = copy.deepcopy(model).train()

    def gradient(values, inputs):
        values = [v.clone().requires_grad_() for v in values]
        output = functional_call(network, dict(zip(names, values, strict=True)), (inputs.pixel_values.double(),))
        labeled, unlabeled = inputs.separate(output.logits)
        loss = supervised_loss(labeled, inputs.labels)
        loss = loss + consistency_loss(unlabeled, inputs.pseudo_labels, inputs.pseudo_label_mask)
        if divergence_weight:
            divergence = jensen_shannon(mean_shares(labeled, cells), mean_shares(unlabeled, cells)).mean()
            loss = loss + divergence_weight * divergence
        return torch.autograd.grad(loss, values)

    return gradient


@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_three_steps_equal_the_reference_by_hand(tmp_path, adaptive, optimizer):
    arguments = {
        "rho": 0.3,
        "adaptive": adaptive,
        "optim": optimizer,
        "optim_args": "momentum=0.9" if optimizer == "sgd" else None,
        "learning_rate": 0.05,
        "weight_decay": 0.01,
        "max_grad_norm": 0.7,
        "lr_scheduler_type": "linear",
        "divergence_weight": 0.0,
    }
    model = tiny_model().double()
    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    gradient = gradient_function(model)
    trainer = tiny_trainer(tmp_path, model, trainer_class=Recording, **arguments)
    trainer.train()
    decayed = trainer.get_decay_parameter_names(model)
    assert set(decayed) < set(names)  # biases and scales are not decayed, weights are: both cases are met

    states = {name: {} for name in names}
    for step, (inputs,) in enumerate(trainer.windows):
        lr = 0.05 * (1 - step / 3)
        there = by_hand.ascend(weights, gradient(weights, inputs), 0.3, adaptive)
        descent = by_hand.clip(gradient(there, inputs), 0.7)
        for index, name in enumerate(names):
            decay = 0.01 if name in decayed else 0.0
            update = (
                by_hand.sgd([weights[index]], [descent[index]], states[name], lr, 0.9, decay)
                if optimizer == "sgd"
                else by_hand.adamw([weights[index]], [descent[index]], states[name], lr, decay)
            )
            weights[index] = update[0]
    expected = torch.cat([w.reshape(-1) for w in weights])
    assert torch.allclose(weights_of(model), expected, rtol=1e-9, atol=1e-11)


PLAIN_SGD = {
    "rho": 0.3,
    "optim": "sgd",
    "optim_args": None,
    "learning_rate": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "divergence_weight": 0.0,
}


@pytest.mark.parametrize(("estimator", "cells"), [("marginal", 1), ("regional", 4)])
def test_steps_with_the_divergence_equal_the_reference_by_hand(tmp_path, estimator, cells):
    """All three terms, in the ascent as in the descent; Jensen-Shannon written out in the test."""
    model = tiny_model().double()
    weights = [p.detach().clone() for p in model.parameters()]
    gradient = gradient_function(model, divergence_weight=5.0, cells=cells)
    settings = PLAIN_SGD | {"divergence_weight": 5.0, "f_divergence": "jensen_shannon", "divergence_memory": 0}
    estimate = {"divergence_estimator": estimator, "divergence_grid_size": cells}
    trainer = tiny_trainer(tmp_path, model, trainer_class=Recording, **settings, **estimate)
    trainer.train()
    for (inputs,) in trainer.windows:
        there = by_hand.ascend(weights, gradient(weights, inputs), 0.3, False)
        weights = [w - 0.05 * g for w, g in zip(weights, gradient(there, inputs), strict=True)]
    expected = torch.cat([w.reshape(-1) for w in weights])
    assert torch.allclose(weights_of(model), expected, rtol=1e-9, atol=1e-11)


def test_local_scope_perturbs_by_each_micro_batch_alone(tmp_path):
    """m-sharpness: the mean, over micro-batches, of gradients at weights that each of them perturbed by itself."""
    model = tiny_model().double()
    weights = [p.detach().clone() for p in model.parameters()]
    gradient = gradient_function(model)
    settings = PLAIN_SGD | {"perturbation_scope": "local", "gradient_accumulation_steps": 2}
    trainer = tiny_trainer(tmp_path, model, trainer_class=Recording, **settings)
    trainer.train()
    for window in trainer.windows:
        assert len(window) == 2
        descents = [gradient(by_hand.ascend(weights, gradient(weights, x), 0.3, False), x) for x in window]
        weights = [w - 0.05 * (a + b) / 2 for w, a, b in zip(weights, *descents, strict=True)]
    assert torch.allclose(weights_of(model), torch.cat([w.reshape(-1) for w in weights]), rtol=1e-9, atol=1e-11)


def test_scopes_agree_on_one_micro_batch(tmp_path):
    states = []
    for scope in ("global", "local"):
        trainer = tiny_trainer(tmp_path, tiny_model(norm="batch", dropout=0.3), rho=0.1, perturbation_scope=scope)
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize(("count", "taken", "labeled"), [(3, 2, 2), (6, 2, 4)])
def test_ascent_on_a_part_of_the_batch(tmp_path, scope, count, taken, labeled):
    """The perturbation comes from the first half of each stream, in whole pairs, the update from all images."""
    model = tiny_model().double()
    weights = [p.detach().clone() for p in model.parameters()]
    gradient = gradient_function(model)
    settings = PLAIN_SGD | {"ascent_fraction": 0.5, "perturbation_scope": scope, "cutmix_probability": 1.0}
    sizes = {"labeled_batch_size": count, "unlabeled_batch_size": 3}
    trainer = tiny_trainer(tmp_path, model, trainer_class=Recording, **settings, **sizes)
    trainer.train()
    for (inputs,) in trainer.windows:
        images = inputs.pixel_values
        part = StepInputs(  # two of three: half, rounded up
            torch.cat([images[:labeled], images[count : count + taken]]),
            inputs.labels[:labeled],
            inputs.pseudo_labels[:taken],
            inputs.pseudo_label_mask[:taken],
            MixingBoxes(inputs.boxes.bounds[:taken], inputs.boxes.spatial_shape),
        )
        descent = gradient(by_hand.ascend(weights, gradient(weights, part), 0.3, False), inputs)
        weights = [w - 0.05 * g for w, g in zip(weights, descent, strict=True)]
    assert torch.allclose(weights_of(model), torch.cat([w.reshape(-1) for w in weights]), rtol=1e-9, atol=1e-11)


def test_rho_zero_is_the_plain_trainer_bit_for_bit(tmp_path):
    arguments = {"rho": 0.0, "consistency_weight": 0.0, "divergence_weight": 0.0, "max_steps": 5, "max_grad_norm": 0.5}
    # All steps in one epoch: a loader draws from torch's generator, as dropout does, whenever it starts anew.
    images = TinyImages(10)
    model = tiny_model(norm="batch", dropout=0.2)
    ours = tiny_trainer(tmp_path, model, labeled=images, trainer_class=Recording, **arguments)
    ours.train()
    batches = [(window[0].pixel_values, window[0].labels) for window in ours.windows]

    class Plain(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return supervised_loss(model(pixel_values=inputs["pixel_values"]).logits, inputs["labels"])

    model = tiny_model(norm="batch", dropout=0.2)
    items = [{"pixel_values": x[i], "labels": y[i]} for x, y in batches for i in range(2)]
    plain_arguments = tiny_arguments(tmp_path, **arguments)
    plain_arguments.train_sampling_strategy = "sequential"
    plain = Plain(model, plain_arguments, train_dataset=items)
    plain.model_accepts_loss_kwargs = False
    model.to(memory_format=torch.channels_last)
    plain.train()
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("estimator", ["marginal", "regional", "variational"])
@pytest.mark.parametrize("ascent", ["total", "supervised", "divergence"])
def test_accumulation_equals_one_large_batch(tmp_path, estimator, ascent):
    """1 x 4, 2 x 2 and 4 x 1 images of each stream end in the same weights, divergence of means included."""
    weights = []
    for accumulation in (1, 2, 4):
        size = 4 // accumulation
        trainer = tiny_trainer(
            tmp_path,
            tiny_model().double(),
            gradient_accumulation_steps=accumulation,
            labeled_batch_size=size,
            unlabeled_batch_size=size,
            rho=0.1,
            ascent_objective=ascent,
            divergence_estimator=estimator,
            divergence_grid_size=2,
            f_divergence="kl",
        )
        trainer.train()
        weights.append(weights_of(trainer.model))
        assert trainer.state.global_step == 3
    # The critic computes in float32.
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if estimator == "variational" else {"rtol": 1e-7, "atol": 1e-9}
    assert torch.allclose(weights[0], weights[1], **tolerance)
    assert torch.allclose(weights[0], weights[2], **tolerance)


def test_both_passes_draw_the_same_dropout_and_only_the_first_moves_statistics(tmp_path):
    """With ρ → 0 the second pass repeats the first: same loss, same gradient, statistics moved once."""
    results = []
    for rho in (0.0, 1e-12):
        model = tiny_model(norm="batch", dropout=0.5).double()
        trainer = tiny_trainer(tmp_path, model, rho=rho)
        trainer.train()
        results.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("where", ["first", "second"])
def test_non_finite_gradient_abandons_the_step(tmp_path, where):
    trainer = tiny_trainer(tmp_path, tiny_model(norm="batch"), rho=0.1, max_steps=2)
    passes = {"first": 1, "second": 2}[where]
    seen = []
    original = trainer._loss_terms

    def poisoned(batch, logits):
        seen.append(None)
        terms = original(batch, logits)
        if trainer.state.global_step == 1 and len(seen) == 2 + passes:
            return type(terms)(terms.supervised * float("nan"), terms.consistency, terms.divergence)
        return terms

    trainer._loss_terms = poisoned
    snapshots = []
    original_finish = trainer.finish_optimizer_step

    def snapshot():
        original_finish()
        state = {**trainer.model.state_dict(), **{f"teacher.{k}": v for k, v in trainer.teacher.state_dict().items()}}
        momentum = [v["momentum_buffer"] for v in trainer.optimizer.state.values()]
        snapshots.append([v.clone() for v in state.values()] + [m.clone() for m in momentum])

    trainer.finish_optimizer_step = snapshot
    trainer.train()
    assert trainer.skipped_steps == 1
    assert [line["skipped_steps"] for line in trainer.state.log_history if "skipped_steps" in line] == [0, 1]
    assert len(snapshots) == 2
    assert all(torch.equal(a, b) for a, b in zip(*snapshots, strict=True))


def test_every_k_th_step_is_sharpness_aware(tmp_path):
    trainer = tiny_trainer(tmp_path, rho=0.1, sam_every=2, max_steps=4)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss_supervised" in line]
    assert ["perturbation_norm" in line for line in lines] == [True, False, True, False]
    assert lines[0]["perturbation_norm"] == pytest.approx(0.1)


def test_teacher_is_the_average_of_the_students(tmp_path):
    trainer = tiny_trainer(tmp_path, rho=0.1, ema_decay=0.6)
    expected = weights_of(trainer.teacher)
    step = trainer.finish_optimizer_step
    students = []

    def record():
        students.append(weights_of(trainer.model))
        step()

    trainer.finish_optimizer_step = record
    trainer.train()
    for t, student in enumerate(students):
        decay = min(1 - 1 / (t + 1), 0.6)
        expected = decay * expected + (1 - decay) * student
    assert torch.allclose(weights_of(trainer.teacher), expected, atol=1e-6)


def test_critic_learns_and_stays_out_of_the_perturbation(tmp_path):
    trainer = tiny_trainer(tmp_path, divergence_estimator="variational", rho=0.1, max_steps=4)
    critic = trainer.objective.critic.critic
    before = [p.detach().clone() for p in critic.parameters()]
    forward = trainer._backward
    seen = []

    def watch(*arguments, **options):
        seen.append([p.detach().clone() for p in critic.parameters()])
        return forward(*arguments, **options)

    trainer._backward = watch
    trainer.train()
    for first, second in zip(seen[::2], seen[1::2], strict=True):  # the passes of one step
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_supervised_setting_loads_no_unlabeled_image(tmp_path):
    class Forbidden(TinyImages):
        def __getitem__(self, index):
            raise AssertionError("an unlabeled image was read")

    off = {"consistency_weight": 0.0, "divergence_weight": 0.0, "rho": 0.0}
    trainer = tiny_trainer(tmp_path, unlabeled=Forbidden(8), **off)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss_supervised" in line]
    assert all(line["loss"] == pytest.approx(line["loss_supervised"], rel=1e-3) for line in lines)


def test_bfloat16_steps_keep_float32_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True, rho=0.1)
    before = weights_of(trainer.model).clone()
    trainer.train()
    assert trainer.model.dtype == torch.float32
    after = weights_of(trainer.model)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
