"""examples/structure_sizes.py: sizes drawn, and the answer to a change of size."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dim_hf import DimImageProcessor
from tests.test_augmentations_structures import nested_balls
from tests.tiny import tiny_model

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "structure_sizes.py"))
NESTED = ((1, 2), (2,))


def test_sizes_by_hand():
    """Twice the pixels in both images: a radius larger by √2, and a perfect correlation."""
    sizes = EXAMPLE["Sizes"]
    true = sizes(torch.tensor([10.0, 30.0, 0.0]), torch.tensor([100.0, 100.0, 100.0]))
    drawn = sizes(torch.tensor([20.0, 60.0, 5.0]), torch.tensor([100.0, 100.0, 100.0]))
    row = EXAMPLE["size_row"](drawn, true, 2)
    assert row["area"] == pytest.approx(2)
    assert row["radius"] / row["label"] == pytest.approx(math.sqrt(2))
    assert row["correlation"] == pytest.approx(1)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_network_that_sees_the_border_answers_in_full_and_one_of_fixed_habits_not_at_all(factor):
    masks, _ = nested_balls((96, 96), 0.3, count=3)
    images = masks[:, None].float()
    seen, answered = EXAMPLE["response"](lambda x: x[:, 0].round().long(), images, masks, factor, NESTED)
    assert seen == pytest.approx(factor, abs=0.02)
    assert answered == pytest.approx(seen, abs=0.02)
    seen, answered = EXAMPLE["response"](lambda _: masks, images, masks, factor, NESTED)
    assert seen == pytest.approx(factor, abs=0.02)
    assert answered == 1


def test_the_table_of_a_run(tmp_path):
    model = tiny_model(num_channels=3, num_labels=3, structures={"disc": [1, 2], "cup": [2]})
    model.save_pretrained(tmp_path)
    DimImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    answer = CliRunner().invoke(EXAMPLE["main"], [str(tmp_path), "phantom:fundus", "--images", "3"])
    assert answer.exit_code == 0, answer.output
    lines = [line for line in answer.output.splitlines() if line.startswith("| camera_")]
    assert len(lines) == 4
    assert all(line.split("|")[2].strip() == "3" for line in lines)

    lacking = CliRunner().invoke(EXAMPLE["main"], [str(tmp_path), "phantom:fundus", "--split", "none"])
    assert lacking.exit_code == 1
    assert "no row of split 'none'" in lacking.output
    tiny_model(num_channels=3).save_pretrained(tmp_path)
    plain = CliRunner().invoke(EXAMPLE["main"], [str(tmp_path), "phantom:fundus"])
    assert "no structure within another" in plain.output
