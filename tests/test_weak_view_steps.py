"""The last steps, which see weak views only: when, what stays of the views, and which rows of a table have them."""

import pytest
import torch

from dim_hf.trainer.comparison import SETTINGS, setting_job
from tests.test_trainer_step import Recording, weights_of
from tests.tiny import tiny_arguments, tiny_trainer


def steps_with_strong_views(trainer, monkeypatch):
    """The steps in which the strong view is called, filled as the training goes on."""
    seen = []
    view = type(trainer.views.strong)
    apply = view.apply
    monkeypatch.setattr(view, "apply", lambda *args: seen.append(trainer.state.global_step) or apply(*args))
    return seen


@pytest.mark.parametrize(("ratio", "strong"), [(0.0, 4), (0.5, 2), (0.7, 1), (1.0, 0)])
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"half_resolution_ratio": 0.75}])
def test_only_the_last_steps_see_weak_views(tmp_path, monkeypatch, ratio, strong, settings):
    trainer = tiny_trainer(tmp_path, trainer_class=Recording, weak_view_ratio=ratio, max_steps=4, rho=0.1, **settings)
    seen = steps_with_strong_views(trainer, monkeypatch)
    trainer.train()
    assert sorted(set(seen)) == list(range(strong))
    assert len(trainer.windows) == 4


def test_steps_are_counted_where_epochs_are_asked_for(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, weak_view_ratio=0.5, max_steps=-1, num_train_epochs=2)
    seen = steps_with_strong_views(trainer, monkeypatch)
    trainer.train()
    assert trainer.state.max_steps > 1
    assert set(seen) == set(range(trainer.state.max_steps - round(0.5 * trainer.state.max_steps)))


def test_a_step_outside_of_a_training_sees_strong_views(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, weak_view_ratio=0.5, max_steps=2)
    batch = next(iter(trainer.get_train_dataloader()))
    seen = steps_with_strong_views(trainer, monkeypatch)
    trainer._step_inputs(batch)
    assert seen == [0, 0]  # labeled and unlabeled images
    trainer.train()
    seen.clear()
    trainer._step_inputs(batch)
    assert seen == [2, 2]


@pytest.mark.parametrize("amplitude", [0.0, 1.0])
def test_weak_views_are_strong_ones_without_changes_of_intensity(tmp_path, monkeypatch, amplitude):
    """Same geometry, labels, pseudo-labels, boxes and pixels, once the strong view and spectra are left out."""
    windows = {}
    for ratio in (1.0, 0.0):
        trainer = tiny_trainer(
            tmp_path / str(ratio), trainer_class=Recording, weak_view_ratio=ratio, max_steps=1,
            cutmix_probability=1.0, amplitude_mixing_probability=amplitude,
        )  # fmt: skip
        if ratio == 0:
            monkeypatch.setattr(type(trainer.views.strong), "apply", lambda self, images, draws: images)
            monkeypatch.setattr(type(trainer.views.amplitude), "apply", lambda self, images, others, draws: images)
        trainer.train()
        (windows[ratio],) = trainer.windows[0]
    strong, weak = windows[0.0], windows[1.0]
    for name in ("pixel_values", "labels", "pseudo_labels", "pseudo_label_mask"):
        assert torch.equal(getattr(strong, name), getattr(weak, name)), name
    assert torch.equal(strong.boxes.bounds, weak.boxes.bounds)


def test_a_resumed_run_changes_the_views_at_the_same_step(tmp_path):
    settings = {"weak_view_ratio": 0.25, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = tiny_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = tiny_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_shares_outside_the_range_are_refused(tmp_path, ratio):
    with pytest.raises(ValueError, match="weak_view_ratio must be between 0 and 1"):
        tiny_arguments(tmp_path, weak_view_ratio=ratio)


def test_what_has_the_ending_and_what_goes_without(tmp_path):
    words = ["--dataset", "phantom:fundus", "--weak_view_ratio", "0.2", "--teacher_buffers", "copied"]
    training = {name: setting_job(words, name, 0, tmp_path).training for name in SETTINGS}
    without = {name for name, arguments in training.items() if arguments.weak_view_ratio == 0}
    assert without == {"supervised-strong"}
    assert {arguments.teacher_buffers for name, arguments in training.items() if name not in without} == {"copied"}
