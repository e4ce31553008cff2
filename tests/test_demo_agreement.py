"""Agreement of masks: the numbers of the evaluation, references checked like every upload, empty masks in words."""

import numpy as np
import PIL.Image
import pytest

from dim_hf.demo import agreement
from dim_hf.demo.agreement import agreement_cells, check_spacing, read_reference, score_agreement
from dim_hf.demo.refusals import Refusal
from dim_hf.metrics.cases import score_case

CLASSES = {0: "background", 1: "rim", 2: "cup"}
STRUCTURES = {"disc": [1, 2], "cup": [2]}
LIMIT = 10_000


def disc(size=40, center=20, outer=12, inner=5):
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(y - center, x - center)
    return ((distance <= outer).astype(np.uint8) + (distance <= inner)).astype(np.uint8)


def saved(folder, array, name="mask.png", **settings):
    path = folder / name
    PIL.Image.fromarray(array).save(path, **settings)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_reference_is_read_as_it_was_saved(tmp_path, dtype):
    labels = disc()
    found = read_reference(saved(tmp_path, labels.astype(dtype)), (40, 40), CLASSES, LIMIT)
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.uint8


def test_a_mask_with_a_palette_is_read_by_its_indices(tmp_path):
    picture = PIL.Image.fromarray(disc()).convert("P")
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    picture.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_reference(tmp_path / "mask.png", (40, 40), CLASSES, LIMIT), disc())


def test_white_is_the_second_of_two_classes_only(tmp_path):
    path = saved(tmp_path, np.where(disc() > 0, 255, 0).astype(np.uint8))
    found = read_reference(path, (40, 40), {0: "background", 1: "gland"}, LIMIT)
    np.testing.assert_array_equal(found, disc() > 0)
    with pytest.raises(Refusal, match=r"values 255, .* Black, grey and white .* 0 = background, 1 = rim, 2 = cup"):
        read_reference(path, (40, 40), CLASSES, LIMIT)


def photograph(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: saved(folder, disc(size=41)), "41 × 41 pixels .* the picture 40 × 40"),
        (lambda folder: saved(folder, disc()[:, :20]), "20 × 40 pixels .* the picture 40 × 40"),
        (lambda folder: saved(folder, disc() * 100), "values 100, 200, which are no classes"),
        (lambda folder: saved(folder, disc() + np.uint8(1)), "values 3, which are no classes"),
        (lambda folder: saved(folder, photograph()), "values 3, 4, 5, 6, 7, 8, …, .* looks like a photograph"),
        (lambda folder: saved(folder, np.stack([photograph(i) for i in range(3)], 2)), "mask in color"),
        (lambda folder: saved(folder, np.zeros((200, 200), np.uint8)), "too large"),
    ],
)
def test_what_is_no_reference_is_refused_with_advice(tmp_path, make, said):
    path = make(tmp_path)
    with pytest.raises(Refusal, match=said) as caught:
        read_reference(path, (40, 40), CLASSES, LIMIT)
    assert str(tmp_path) not in str(caught.value)


def cells(row):
    return agreement_cells(row, "the model", "the reference")


@pytest.mark.parametrize("spacing", [None, (0.02, 0.02)])
def test_scores_are_those_of_the_evaluation(spacing):
    prediction, reference = disc(center=21), disc(outer=11, inner=6)
    expected = {row.structure: row for row in score_case(prediction, reference, STRUCTURES, spacing)}
    for row in score_agreement(prediction, reference, STRUCTURES, spacing):
        known = expected[row.structure]
        assert (row.dice, row.hd95, row.unit) == (known.dice, known.hd95, known.unit)
        assert cells(row)[1] == f"{known.dice:.3f}"
        assert ("mm" in cells(row)[2]) == (spacing is not None)


def test_two_pixels_apart_can_be_checked_on_paper():
    prediction, reference = np.zeros((2, 16, 16), np.uint8)
    prediction[5, 4], reference[5, 8] = 1, 1
    found = [cells(score_agreement(prediction, reference, {"dot": [1]}, spacing)[0]) for spacing in (None, (0.5, 0.5))]
    assert [cell[2] for cell in found] == ["4.0 px", "2.00 mm"]


def test_empty_masks_are_said_in_words():
    full = disc()
    no_cup = np.minimum(full, 1)
    (missed,) = [row for row in score_agreement(no_cup, full, STRUCTURES) if row.structure == "cup"]
    (spurious,) = [row for row in score_agreement(full, no_cup, STRUCTURES) if row.structure == "cup"]
    (neither,) = [row for row in score_agreement(no_cup, no_cup, STRUCTURES) if row.structure == "cup"]
    assert cells(missed) == ["cup", "0.000", "–", "only in the reference, not in the model: there is no distance"]
    assert cells(spurious) == ["cup", "0.000", "–", "only in the model, not in the reference: there is no distance"]
    assert cells(neither) == ["cup", "–", "–", "in neither of the two: they agree that there is none"]


def test_equal_masks_are_called_so():
    for row in score_agreement(disc(), disc(), STRUCTURES):
        assert cells(row)[1:] == ["1.000", "0.0 px", "the same pixels"]


def test_noise_gets_no_distance_since_that_would_take_minutes(monkeypatch):
    monkeypatch.setattr(agreement, "MOST_BORDER_PIXELS", 200)
    noise = (photograph() > 127).astype(np.uint8)
    (row,) = score_agreement(noise, noise, {"dot": [1]})
    assert cells(row) == ["dot", "1.000", "–", "the borders are too ragged for a distance"]
    assert not score_agreement(disc(), disc(), STRUCTURES)[0].ragged


@pytest.mark.parametrize("value", [None, 0, 0.0])
def test_an_unknown_pixel_size_is_no_error(value):
    assert check_spacing(value) is None


@pytest.mark.parametrize("value", [-1, 11, float("nan"), float("inf"), 1e-9])
def test_impossible_pixel_sizes_are_refused(value):
    with pytest.raises(Refusal, match="size of a pixel is"):
        check_spacing(value)


def test_a_pixel_size_holds_for_both_axes():
    assert check_spacing(0.012) == (0.012, 0.012)
