"""Steps at half the resolution: what the batch becomes, when, and that a resumed run sees the same."""

import pytest
import torch

from dim_hf.trainer.resolution import at_half_resolution
from tests.test_trainer_step import Recording, weights_of
from tests.tiny import tiny_arguments, tiny_trainer


@pytest.mark.parametrize("shape", [(6, 4), (7, 5), (4, 6, 2)])
def test_pixels_are_means_of_their_blocks_and_labels_their_first(shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *shape, generator=generator)
    labels = torch.randint(4, (2, *shape), generator=generator)
    batch = {"labeled_pixel_values": images, "labels": labels, "unlabeled_pixel_values": images[:1] + 1}
    half = at_half_resolution(batch)
    sides = [side // 2 for side in shape]
    assert half["labels"].shape == (2, *sides)
    assert half["labeled_pixel_values"].shape == (2, 3, *sides)
    for place in torch.cartesian_prod(*(torch.arange(side) for side in sides)).tolist():
        block = tuple(slice(2 * at, 2 * at + 2) for at in place)
        torch.testing.assert_close(
            half["labeled_pixel_values"][(..., *place)], images[(..., *block)].flatten(2).mean(2)
        )
        assert torch.equal(half["labels"][(..., *place)], labels[(..., *block)].flatten(1)[:, 0])
    torch.testing.assert_close(half["unlabeled_pixel_values"], half["labeled_pixel_values"][:1] + 1)
    assert batch["labels"] is labels


def test_what_has_no_pixels_stays_and_streams_may_lack():
    batch = {"labeled_pixel_values": torch.zeros(1, 1, 4, 4), "labels": torch.zeros(1, 4, 4), "labeled_positions": 7}
    assert at_half_resolution(batch)["labeled_positions"] == 7
    assert "unlabeled_pixel_values" not in at_half_resolution(batch)


def test_an_image_of_one_row_has_no_half():
    batch = {"labeled_pixel_values": torch.zeros(1, 1, 1, 8), "labels": torch.zeros(1, 1, 8)}
    with pytest.raises(ValueError, match=r"\(1, 8\) pixels have no half: set half_resolution_ratio to 0"):
        at_half_resolution(batch)


@pytest.mark.parametrize(
    ("ratio", "sides"), [(0.0, [32] * 4), (0.5, [16, 16, 32, 32]), (0.7, [16, 16, 16, 32]), (0.99, [16, 16, 16, 32])]
)
def test_the_first_steps_see_half_the_sides(tmp_path, ratio, sides):
    trainer = tiny_trainer(tmp_path, trainer_class=Recording, half_resolution_ratio=ratio, max_steps=4, rho=0.1)
    trainer.train()
    assert [window[0].pixel_values.shape[-1] for window in trainer.windows] == sides
    assert [window[0].labels.shape[-1] for window in trainer.windows] == sides


def test_a_resumed_run_changes_the_resolution_at_the_same_step(tmp_path):
    settings = {"half_resolution_ratio": 0.75, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = tiny_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = tiny_trainer(tmp_path / "resumed", trainer_class=Recording, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert [window[0].pixel_values.shape[-1] for window in resumed.windows] == [16, 32]
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_ratios_that_leave_no_step_are_refused(tmp_path, ratio):
    with pytest.raises(ValueError, match="half_resolution_ratio must be"):
        tiny_arguments(tmp_path, half_resolution_ratio=ratio)
