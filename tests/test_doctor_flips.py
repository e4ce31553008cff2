import itertools

import numpy as np
import pytest

from dim_hf.data.doctor.flips import MIN_IMAGES, evidence, suspect, variants
from dim_hf.data.folders import read_folders
from tests.test_real_data import FIXTURES, needs_nuclei


def blobs(shape, seed):
    """A picture of a few bright rectangles, off the center, and their mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for _ in range(3):
        low = [random.integers(0, size // 2) for size in shape]
        mask[tuple(slice(start, start + size // 4) for start, size in zip(low, shape, strict=True))] = 1
    return 40 * mask + random.normal(100, 5, shape), mask


def domain(shape, count=12, flipped=()):
    pairs = [blobs(shape, seed) for seed in range(count)]
    masks = [np.flip(mask, axis=1) if index in flipped else mask for index, (_, mask) in enumerate(pairs)]
    return suspect([shape] * count, [evidence(image, mask) for (image, _), mask in zip(pairs, masks, strict=True)])


@pytest.mark.parametrize(("shape", "count"), [((6, 6), 8), ((5, 7), 4), ((4, 5, 6), 8)])
def test_variants_differ_and_keep_the_shape(shape, count):
    probe = np.arange(np.prod(shape)).reshape(shape)
    turned = [variant.apply(probe) for variant in variants(shape)]
    assert len(turned) == count
    assert np.array_equal(turned[0], probe)
    assert all(array.shape == shape for array in turned)
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(turned, 2))


def test_words_of_turns_are_those_of_numpy():
    words = {variant.words: variant for variant in variants((4, 4))}
    probe = np.arange(16).reshape(4, 4)
    assert np.array_equal(words["turned by 90° counterclockwise"].apply(probe), np.rot90(probe))
    assert np.array_equal(words["turned by 90° clockwise"].apply(probe), np.rot90(probe, -1))
    assert np.array_equal(words["flipped left to right"].apply(probe), np.fliplr(probe))
    assert np.array_equal(words["flipped upside down"].apply(probe), np.flipud(probe))


def test_evidence_by_hand():
    # Left half 0, right half 1: the classes explain all variance, and the border lies on the steepest pixels, columns
    # 1 and 2, of ranks 8..15 of 0..15, whose mean is 11.5 / 15.
    image = np.repeat([[0.0, 0.0, 1.0, 1.0]], 4, axis=0)
    scores = evidence(image, image.astype(np.uint8))
    assert scores[0] == pytest.approx(1 + 11.5 / 15)
    names = [variant.words for variant in variants((4, 4))]
    assert scores[names.index("flipped left to right")] == pytest.approx(scores[0])
    # Turned by 90°, the halves explain nothing, and the border crosses all ranks evenly.
    assert scores[names.index("turned by 90° clockwise")] == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(64, 64), (96, 60), (300, 300), (24, 20, 16)])
def test_the_evidence_of_a_flipped_mask_is_that_of_the_mask_in_another_order(shape):
    image, mask = blobs(shape, 3)
    scores = evidence(image, mask)
    assert int(np.argmax(scores)) == 0
    for number, variant in enumerate(variants(shape)):
        turned = evidence(image, np.ascontiguousarray(variant.apply(mask)))
        assert max(turned) == pytest.approx(max(scores), abs=0.05), number


def test_color_counts_all_channels():
    image, mask = blobs((64, 64), 1)
    assert evidence(np.stack([image] * 3, axis=-1), mask) == pytest.approx(evidence(image[..., None], mask))


@pytest.mark.parametrize("mask", [np.zeros((8, 8), np.uint8), np.full((8, 8), 3, np.uint8)])
def test_no_evidence_without_two_classes_or_intensities(mask):
    assert evidence(np.random.default_rng(0).normal(size=(8, 8)), mask) is None
    assert evidence(np.ones((8, 8)), np.eye(8, dtype=np.uint8)) is None
    assert evidence(np.ones((4, 4, 4, 4)), np.ones((4, 4, 4, 4), np.uint8)) is None


@pytest.mark.parametrize("shape", [(64, 64), (60, 80), (20, 24, 16)])
def test_single_flips_are_found_and_nothing_else(shape):
    assert domain(shape).images == {}
    found = domain(shape, flipped=(2, 7))
    assert found.can_tell
    assert found.most is None
    assert sorted(found.images) == [2, 7]
    assert {variant.axes for variant in found.images.values()} == {(1,)}


def test_a_domain_that_is_flipped_as_a_whole():
    found = domain((60, 80), flipped=range(11))
    assert found.most.words == "flipped left to right"
    assert found.images == {}


def test_nothing_is_said_of_few_images_or_where_the_masks_fit_in_any_way():
    assert not domain((64, 64), count=MIN_IMAGES - 1, flipped=(2,)).can_tell
    random = np.random.default_rng(0)
    noise = [evidence(random.normal(size=(64, 64)), blobs((64, 64), seed)[1]) for seed in range(20)]
    found = suspect([(64, 64)] * 20, noise)
    assert not found.can_tell
    assert found.images == {}
    assert suspect([], []).lead == 0


@needs_nuclei
def test_flipped_masks_of_real_images_are_found_without_a_false_alarm():
    rows = read_folders(FIXTURES)
    for domain_name in sorted(set(rows["domain"])):
        pairs = [(np.asarray(row["image"]), np.asarray(row["label"])) for row in rows if row["domain"] == domain_name]
        shapes = [label.shape for _, label in pairs]
        right = [evidence(image, label) for image, label in pairs]
        assert suspect(shapes, right).images == {}
        wrong = [
            evidence(image, label[:, ::-1]) if index % 8 == 0 else right[index]
            for index, (image, label) in enumerate(pairs)
        ]
        found = set(suspect(shapes, wrong).images)
        assert found <= set(range(0, 32, 8))
        assert len(found) >= 3
