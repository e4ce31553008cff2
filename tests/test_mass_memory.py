"""The memory of class masses: what it adds up to, the gradient with it, and how it survives."""

import pytest
import torch

from dim_hf.divergences import F_DIVERGENCES
from dim_hf.trainer.mass_memory import MassMemory
from dim_hf.trainer.window import ClosedFormDivergence
from tests.tiny import TinyImages, tiny_trainer

ALONE = ClosedFormDivergence(F_DIVERGENCES["jensen_shannon"], 2)


def some_logits(seed, count=3, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    labeled, unlabeled = (torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return labeled, unlabeled + shift


def one_process(tensor):
    return tensor


def test_masses_decay_by_the_step():
    memory = MassMemory(0.5)
    first, second, third = (ALONE.masses(some_logits(seed)) for seed in range(3))
    memory.accumulate(first)
    assert memory.masses is None  # not before the step is taken
    memory.step(one_process)
    memory.accumulate(second)
    memory.accumulate(third)
    memory.step(one_process)
    torch.testing.assert_close(memory.masses, 0.25 * first + 0.5 * (second + third))
    memory.accumulate(first)
    memory.discard()
    before = memory.masses
    memory.step(one_process)
    assert memory.masses is before


def test_two_processes_remember_the_images_of_both():
    memory = MassMemory(0.5)
    masses = ALONE.masses(some_logits(0))
    memory.accumulate(masses)
    memory.step(lambda tensor: 2 * tensor)  # the other process saw the same
    torch.testing.assert_close(memory.masses, masses)


def test_a_memory_of_the_same_images_changes_neither_value_nor_gradient():
    """D does not depend on how many images the masses are of; the gradient is as if all of them moved."""
    logits = [side.requires_grad_() for side in some_logits(0, shift=1.0)]
    masses = ALONE.masses(logits)
    value = ALONE.value(masses)
    expected = torch.autograd.grad(value, logits, retain_graph=True)
    memory = MassMemory(0.9)
    for _ in range(7):
        memory.accumulate(masses)
        memory.step(one_process)
    remembered = ALONE.value(masses, memory=memory)
    assert remembered.item() == pytest.approx(value.item(), rel=1e-6)
    for found, wanted in zip(torch.autograd.grad(remembered, logits), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_memory_of_another_resolution_weighs_by_pixels(conditional):
    """Four images of a quarter of the pixels stand for one: value and gradient are as with that one."""
    form = ClosedFormDivergence(F_DIVERGENCES["jensen_shannon"], 1 if conditional else 2, conditional)
    now = [side.requires_grad_() for side in some_logits(0, count=1, shift=1.0)]
    small = some_logits(1, count=4)
    small = tuple(side[..., :4, :4] for side in small)
    large = tuple(torch.cat([torch.cat([s[0], s[1]], -1), torch.cat([s[2], s[3]], -1)], -2)[None] for s in small)
    gradients = []
    for logits in (small, large):
        memory = MassMemory(0.9)
        masses = form.masses(logits)
        memory.accumulate(masses)
        memory.step(one_process)
        # The pixels lie in other cells of the grid: give both memories the same shares, and keep the sums.
        memory.masses = memory.masses.sum(1, keepdim=True).expand_as(memory.masses) / memory.masses.shape[1]
        gradients.append(torch.autograd.grad(form.value(form.masses(now), memory=memory), now))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


def test_parts_of_a_step_add_up_with_a_memory():
    """The mean of two micro-batches' gradients is that of one large batch: the memory counts pixels, not batches."""
    memory = MassMemory(0.9)
    memory.accumulate(ALONE.masses(some_logits(5)))
    memory.accumulate(ALONE.masses(some_logits(6)))
    memory.step(one_process)
    halves = [[side.requires_grad_() for side in some_logits(seed, shift=1.0)] for seed in (1, 2)]
    masses = [ALONE.masses(half) for half in halves]
    whole = ALONE.value(masses[0] + masses[1], memory=memory)
    expected = torch.autograd.grad(whole, [*halves[0], *halves[1]], retain_graph=True)
    for index, half in enumerate(halves):
        value = ALONE.value(masses[index], masses[1 - index].detach(), 2, memory)
        assert value.item() == pytest.approx(whole.item())
        for found, wanted in zip(torch.autograd.grad(value / 2, half), expected[2 * index :], strict=False):
            torch.testing.assert_close(found, wanted)


def test_streams_of_which_a_pass_sees_unequal_parts_weigh_by_their_own_pixels():
    """One of one labeled and one of four unlabeled images: each side's gradient is as if all of it moved."""
    whole = [side.requires_grad_() for side in some_logits(0, shift=1.0)]
    masses = ALONE.masses(whole)
    expected = torch.autograd.grad(ALONE.value(masses), whole, retain_graph=True)
    memory = MassMemory(0.9)
    memory.accumulate(masses * torch.tensor([1.0, 0.25]).view(2, 1, 1))  # the same shares of fewer images
    memory.step(one_process)
    found = torch.autograd.grad(ALONE.value(masses, memory=memory), whole)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-10)


def test_small_batches_of_one_site_differ_less_with_a_memory():
    """What it is for: between random images of one population, D of few images is chance."""
    values = {0.0: [], 0.95: []}
    for decay, found in values.items():
        memory = MassMemory(decay) if decay else None
        for seed in range(60):
            masses = ALONE.masses(tuple(8 * side for side in some_logits(seed, count=1)))
            found.append(ALONE.value(masses, memory=memory).item())
            if memory is not None:
                memory.accumulate(masses)
                memory.step(one_process)
    assert sum(values[0.95][30:]) < 0.2 * sum(values[0.0][30:])


def test_both_passes_see_the_same_memory_and_a_step_adds_to_it_once(tmp_path):
    trainer = tiny_trainer(tmp_path, rho=0.05, max_steps=3, divergence_memory=0.5)
    seen = []
    value = ClosedFormDivergence.value

    def watched(self, masses, rest=None, parts=1, memory=None):
        seen.append(None if memory.masses is None else memory.masses.clone())
        return value(self, masses, rest, parts, memory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClosedFormDivergence, "value", watched)
        trainer.train()
    assert [masses is None for masses in seen] == [True, True, False, False, False, False]
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[3], seen[4])
    images = trainer.objective.memory.masses[0].sum() / 32**2  # a pixel has a mass of 1
    assert images.item() == pytest.approx(2 * (0.5 + 0.25 + 0.125))


def test_an_abandoned_step_leaves_the_memory_as_it_was(tmp_path):
    labeled = TinyImages(8)
    trainer = tiny_trainer(tmp_path, labeled=labeled, max_steps=2)
    trainer.train()
    before = trainer.objective.memory.masses.clone()
    for sample in labeled.samples:
        sample["pixel_values"][:] = float("nan")
    trainer.args.max_steps = 3
    trainer.train()
    assert trainer.skipped_steps > 0
    assert torch.equal(trainer.objective.memory.masses, before)


def test_a_checkpoint_holds_the_memory(tmp_path):
    first = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    first.train()
    second = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(second.objective.memory.masses, first.objective.memory.masses)
    memory = MassMemory(0.5)
    memory.save(tmp_path)  # before the first step
    memory.load(tmp_path, torch.device("cpu"))
    assert memory.masses is None
    with pytest.raises(ValueError, match="divergence_memory=0"):
        memory.load(tmp_path / "checkpoint-2" / "teacher", torch.device("cpu"))
