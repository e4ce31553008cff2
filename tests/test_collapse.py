"""The alarm for pseudo-labels that are one class everywhere."""

import logging

import pytest
import torch

from dim_hf.trainer.collapse import CollapseAlarm
from dim_hf.trainer.views import StepInputs
from tests.tiny import TinyImages, tiny_model, tiny_trainer


class Domains(TinyImages):
    """Two sites: one as bright as the labeled images, one whose images are black."""

    def __init__(self, count, black):
        super().__init__(count, labels=False)
        self.domains = ["site_a" if index % 2 else "site_b" for index in range(count)]
        for sample, domain in zip(self.samples, self.domains, strict=True):
            sample["pixel_values"] *= 0.0 if black and domain == "site_b" else 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "black"), [("batch", True), ("instance", False)])
def test_a_domain_that_collapses_is_named_within_100_steps(tmp_path, caplog, norm, black):
    """One batch normalisation over bright and black images makes background of all of them."""
    settings = {"max_steps": 100, "learning_rate": 0.05, "rho": 0.0}
    trainer = tiny_trainer(tmp_path, tiny_model(norm=norm), unlabeled=Domains(8, black), **settings)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    warnings = [record.getMessage() for record in caplog.records if record.name == "dim_hf.trainer.collapse"]
    assert bool(warnings) == black
    assert trainer.training_summary()["warnings"] == warnings
    if black:
        assert "'site_b'" in warnings[0]
        assert "almost only background" in warnings[0]
        assert "rampup_ratio" in warnings[0]


def test_a_resumed_run_knows_the_warnings_of_before(tmp_path):
    first = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    first.collapse_alarm.messages.append("the pseudo-labels of domain 'a' are almost only background")
    first.train()
    second = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.training_summary()["warnings"] == first.training_summary()["warnings"] != []


def observed(foreground, labeled=0.2, student=0.2, domain=0, size=100):
    """A batch of one labeled and one unlabeled image with these shares of foreground."""

    def classes(share):
        return (torch.arange(size) < round(share * size)).long().view(1, size)

    logits = torch.stack([1 - classes(student), classes(student)], dim=1).float()
    pseudo_labels = classes(foreground)
    inputs = StepInputs(
        torch.zeros(2, 1, size), classes(labeled), pseudo_labels, pseudo_labels >= 0, None, torch.tensor([domain])
    )
    return inputs, logits


def run(steps, alarm=None, **shares):
    alarm = alarm or CollapseAlarm(["a", "b"], lambda tensor: tensor)
    for step in steps:
        alarm.observe(*observed(**shares))
        alarm.step_done(step)
    return alarm


def test_alarm_needs_two_windows_in_a_row_and_speaks_once():
    alarm = run(range(1, 26), foreground=0.0)
    assert alarm.messages == []
    run(range(26, 51), alarm, foreground=0.2)
    run(range(51, 76), alarm, foreground=0.0)
    assert alarm.messages == []
    run(range(76, 301), alarm, foreground=0.0)
    assert len(alarm.messages) == 1
    assert "'a'" in alarm.messages[0]


def test_lost_background_is_named_too():
    (message,) = run(range(1, 76), foreground=1.0, domain=1).messages
    assert "'b' are almost only foreground (100.00% foreground, 20.00% in the labeled masks)" in message


def test_slow_start_is_no_collapse_until_a_hundred_steps():
    alarm = run(range(1, 76), foreground=0.0, student=0.0)
    assert alarm.messages == []
    run(range(76, 101), alarm, foreground=0.0, student=0.0)
    assert "on its labeled images as well" in alarm.messages[0]


def test_small_structures_are_no_collapse():
    assert run(range(1, 101), foreground=0.01, labeled=0.03, student=0.02).messages == []


def test_images_without_domains_have_a_name():
    alarm = CollapseAlarm(None, lambda tensor: tensor)
    assert "'unlabeled images'" in run(range(1, 76), alarm, foreground=0.0).messages[0]
