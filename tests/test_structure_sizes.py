"""examples/structure_sizes.py: sizes drawn, and the answer to a change of size."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dim_hf import DimImageProcessor
from tests.test_augmentations_structures import nested_balls
from tests.tiny import tiny_model

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "structure_sizes.py"))
NESTED = ((1, 2), (2,))


def sizes(inner, outer=100.0):
    return EXAMPLE["Sizes"](torch.tensor(inner, dtype=torch.float64), torch.full((len(inner),), outer))


def test_sizes_by_hand():
    """Of four labeled structures one is missed; a fifth image has none."""
    true, drawn = sizes([16.0, 25.0, 36.0, 49.0, 0.0]), sizes([25.0, 16.0, 64.0, 0.0, 5.0])
    labeled, found, radius, label, area, correlation = EXAMPLE["size_cells"](drawn, true, 2)
    assert (labeled, found) == (4, 3)
    assert radius == pytest.approx((0.5 + 0.4 + 0.8) / 3)
    assert label == pytest.approx((0.4 + 0.5 + 0.6) / 3)
    assert area == pytest.approx(105 / 77)
    assert correlation == pytest.approx(np.corrcoef([25, 16, 64], [16, 25, 36])[0, 1])
    assert math.isnan(EXAMPLE["size_cells"](sizes([4.0, 9.0]), sizes([5.0, 7.0]), 2)[-1])


class Painted(torch.nn.Module):
    """Sees the labels, which are painted into the image, as logits of a quarter of the resolution."""

    def forward(self, pixel_values):
        classes = torch.nn.functional.one_hot(pixel_values[:, 0].round().long(), 3).movedim(-1, 1).double()
        return SimpleNamespace(logits=torch.nn.functional.avg_pool2d(classes, 4) * 100)


def test_the_cells_of_a_network_of_lower_resolution():
    radii = (0.2, 0.3, 0.4, 0.5)
    masks = torch.cat([nested_balls((96, 96), radius)[0] for radius in radii])
    cells = EXAMPLE["domain_cells"](Painted(), masks[:, None].float(), masks, NESTED)
    assert cells[:2] == ["4", "4"]
    assert float(cells[2]) == pytest.approx(sum(radii) / 4 / 0.7, abs=0.03)
    assert [float(cell) for cell in cells[3:6]] == pytest.approx([sum(radii) / 4 / 0.7, 1, 1], abs=0.03)
    for cell, factor in zip(cells[6:], (0.8, 1.25), strict=True):
        seen, answered = cell.split(" (")[0].split(" → ")
        assert [float(seen), float(answered)] == pytest.approx([factor, factor], abs=0.04)
        assert cell.endswith("(4)")


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_network_that_sees_the_border_answers_in_full_and_one_of_fixed_habits_not_at_all(factor):
    masks, _ = nested_balls((96, 96), 0.3, count=3)
    images = masks[:, None].float()
    drawn = EXAMPLE["Sizes"].of(masks, NESTED)
    seen, answered, count = EXAMPLE["response"](lambda x: x[:, 0].round().long(), images, masks, drawn, factor, NESTED)
    assert (seen, answered) == pytest.approx((factor, factor), abs=0.02)
    assert count == 3
    seen, answered, _ = EXAMPLE["response"](lambda _: masks, images, masks, drawn, factor, NESTED)
    assert seen == pytest.approx(factor, abs=0.02)
    assert answered == 1


def test_structures_that_cannot_be_resized_or_are_not_drawn_do_not_count():
    """One fills the outer structure, one would outgrow it, one is lost in the answer to the change."""
    masks = torch.cat([nested_balls((96, 96), radius)[0] for radius in (0.67, 0.55, 0.3, 0.25)])
    images = masks[:, None].float()

    def loses_the_last(pixels):
        classes = pixels[:, 0].round().long()
        if not torch.equal(pixels, images):
            classes[3] = 0
        return classes

    drawn = EXAMPLE["Sizes"].of(masks, NESTED)
    for factor, count in ((1.25, 1), (0.8, 2)):
        assert EXAMPLE["response"](loses_the_last, images, masks, drawn, factor, NESTED)[2] == count


def test_the_table_of_a_run(tmp_path):
    names = {"id2label": {0: "background", 1: "rim", 2: "cup"}, "label2id": {"background": 0, "rim": 1, "cup": 2}}
    model = tiny_model(num_channels=3, num_labels=3, structures={"disc": [1, 2], "cup": [2]}, **names)
    model.save_pretrained(tmp_path)
    DimImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    answer = CliRunner().invoke(EXAMPLE["main"], [str(tmp_path), "phantom:fundus", "--images", "3"])
    assert answer.exit_code == 0, answer.output
    lines = [line for line in answer.output.splitlines() if line.startswith("| camera_")]
    assert len(lines) == 4
    assert all(line.split("|")[2].strip() == "3" for line in lines)

    def fault(*words):
        answer = CliRunner().invoke(EXAMPLE["main"], [str(tmp_path), *map(str, words)])
        assert answer.exit_code == 1
        return answer.output

    assert "choose one of" in fault("phantom:fundus", "--split", "none")
    assert "the model has the classes" in fault("phantom:prostate")
    pictures = tmp_path / "pictures" / "camera" / "images"
    pictures.mkdir(parents=True)
    for name, side in (("a", 32), ("b", 48)):
        Image.new("RGB", (side, side)).save(pictures / f"{name}.png")
    assert "--split all" in fault(tmp_path / "pictures")
    assert "none of the 2 images has a mask" in fault(tmp_path / "pictures", "--split", "all")
    (pictures.parent / "masks").mkdir()
    for name, side in (("a", 32), ("b", 48)):
        Image.new("L", (side, side)).save(pictures.parent / "masks" / f"{name}.png")
    DimImageProcessor(do_resize=False).save_pretrained(tmp_path)
    assert "give the processor a size" in fault(tmp_path / "pictures", "--split", "all")
    tiny_model(num_channels=3).save_pretrained(tmp_path)
    assert "no structure within another" in fault("phantom:fundus")
