"""The last steps, which see weak views only: when, what stays of the views, and what the teacher normalises by."""

import pytest
import torch

from tests.test_trainer_step import Recording, weights_of
from tests.tiny import tiny_arguments, tiny_model, tiny_trainer


@pytest.mark.parametrize(("ratio", "strong"), [(0.0, 4), (0.5, 2), (0.7, 1), (1.0, 0)])
def test_only_the_last_steps_see_weak_views(tmp_path, monkeypatch, ratio, strong):
    trainer = tiny_trainer(tmp_path, trainer_class=Recording, weak_view_ratio=ratio, max_steps=4, rho=0.1)
    seen = []
    view = type(trainer.views.strong)
    apply = view.apply
    monkeypatch.setattr(view, "apply", lambda *args: seen.append(trainer.state.global_step) or apply(*args))
    trainer.train()
    assert sorted(set(seen)) == list(range(strong))
    assert len(trainer.windows) == 4


def test_weak_views_are_those_that_strong_ones_are_made_of(tmp_path):
    """Same geometry, labels, pseudo-labels and boxes: only the intensities differ."""
    windows = {}
    for ratio in (0.0, 1.0):
        trainer = tiny_trainer(
            tmp_path / str(ratio), trainer_class=Recording, weak_view_ratio=ratio, max_steps=1, cutmix_probability=1.0
        )
        trainer.train()
        (windows[ratio],) = trainer.windows[0]
    strong, weak = windows[0.0], windows[1.0]
    assert torch.equal(strong.labels, weak.labels)
    assert torch.equal(strong.pseudo_labels, weak.pseudo_labels)
    assert torch.equal(strong.boxes.bounds, weak.boxes.bounds)
    assert not torch.equal(strong.pixel_values, weak.pixel_values)


def test_the_teacher_goes_by_running_statistics_there(tmp_path):
    trainer = tiny_trainer(
        tmp_path, tiny_model(norm="batch"), weak_view_ratio=0.5, max_steps=4, teacher_statistics="batch"
    )
    layer = next(module for module in trainer.teacher.modules() if isinstance(module, torch.nn.BatchNorm2d))
    modes = {}
    layer.register_forward_pre_hook(lambda module, _: modes.update({trainer.state.global_step: module.training}))
    trainer.train()
    assert modes == {0: True, 1: True, 2: False, 3: False}


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
