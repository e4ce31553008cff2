"""The teacher's pseudo-labels beside what they should be, written out."""

import pytest
import torch

from dim_hf.losses import adapt_to_image_shares, class_shares
from tests.tiny import TinyImages, tiny_model, tiny_trainer


def test_pseudo_labels_are_corrected_to_each_images_shares(tmp_path):
    """By the shares of the labeled set, read once: in tiny images class 1 is a ninth, class 2 does not occur."""
    labeled, views = TinyImages(8), torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def pseudo_labels(strength):
        trainer = tiny_trainer(tmp_path, tiny_model(num_labels=3), labeled, share_adaptation=strength)
        found = trainer.pseudo_labeler(views)
        with torch.no_grad():
            return found, trainer.teacher(pixel_values=views).logits

    (plain, _), logits = pseudo_labels(0.0)
    assert torch.equal(plain, logits.argmax(1))
    (adapted, adapted_kept), _ = pseudo_labels(1.0)
    shares = class_shares((sample["labels"] for sample in labeled.samples), 3)
    expected = adapt_to_image_shares(logits.softmax(1), shares, 1.0)
    assert torch.equal(adapted, expected.argmax(1))
    assert torch.equal(adapted_kept, expected.amax(1) >= 0.5)
    assert not torch.equal(adapted, plain)
    # Each image by itself, however the step is cut.
    trainer = tiny_trainer(tmp_path, tiny_model(num_labels=3), labeled, share_adaptation=1.0)
    for index in range(3):
        assert torch.equal(trainer.pseudo_labeler(views[index : index + 1])[0][0], adapted[index])


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_teacher_may_answer_for_all_mirror_images(tmp_path, statistics):
    """Mean of the probabilities, each turned back: a mirrored view gets the mirrored labels."""
    views = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"teacher_statistics": statistics, "confidence_threshold": 0.6}
    trainer = tiny_trainer(tmp_path, tiny_model(num_labels=3), TinyImages(8), teacher_flips=True, **options)
    labels, kept = trainer.pseudo_labeler(views)
    plain = tiny_trainer(tmp_path, tiny_model(num_labels=3), TinyImages(8), **options)
    plain.teacher.load_state_dict(trainer.teacher.state_dict())
    probabilities = torch.zeros(3, 3, 32, 32)
    trainer.teacher.train(statistics == "batch")
    for axes in ([], [2], [3], [2, 3]):
        with torch.no_grad():
            probabilities += trainer.teacher(pixel_values=views.flip(axes)).logits.flip(axes).softmax(1) / 4
    confidence, expected = probabilities.max(1)
    assert torch.equal(labels, expected)
    sure = (confidence - 0.6).abs() > 1e-5  # which rounding does not move over the threshold
    assert torch.equal(kept[sure], (confidence >= 0.6)[sure])
    assert not torch.equal(labels, plain.pseudo_labeler(views)[0])
    assert torch.equal(trainer.pseudo_labeler(views.flip(3))[0], labels.flip(2))
