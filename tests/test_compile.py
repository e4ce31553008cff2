"""`torch_compile` under the two passes: the same training, saved and resumed under the names of the network."""

import pytest
import torch
from torch._dynamo.utils import counters

from dim_hf.models import DimUNetForSemanticSegmentation
from tests.tiny import TinyImages, tiny_model, tiny_trainer


def train(folder, *, compiled, checkpoint=None, dropout=0.0, **arguments):
    # This backend captures both passes as any other would, and compiles nothing.
    asked = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
    settings = {"max_steps": 6, "rho": 0.1, "save_strategy": "steps", "save_steps": 3, "sam_every": 2}
    evaluated = {"a": TinyImages(4)}
    # transformers hands the backend on by an environment variable, which would compile all later trainings, too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
        model = tiny_model(norm="batch", dropout=dropout)
        trainer = tiny_trainer(folder, model, eval_dataset=evaluated, **settings | asked | arguments)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer


def farthest(one, other):
    assert list(one) == list(other)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A compiled training, and how many graphs were captured for it."""
    torch._dynamo.reset()
    counters.clear()
    trainer = train(tmp_path_factory.mktemp("compiled"), compiled=True)
    return trainer, counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_the_training_is_that_of_the_network_as_it_is(compiled, tmp_path):
    """Student and teacher with all running statistics, which move in the first pass alone."""
    trainer, _ = compiled
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    plain = train(tmp_path, compiled=False)
    assert type(plain.model_wrapped) is type(plain.model)
    assert farthest(trainer.model.state_dict(), plain.model.state_dict()) <= 1e-5
    assert farthest(trainer.teacher.state_dict(), plain.teacher.state_dict()) <= 1e-5
    assert int(trainer.model.state_dict()["encoder.0.norm1.num_batches_tracked"]) == 6


def test_each_pass_is_captured_once(compiled):
    """With moving and with frozen statistics, whatever the number of steps."""
    _, graphs = compiled
    assert 1 <= graphs <= 2


def test_it_scores_predicts_and_saves_under_the_names_of_the_network(compiled, tmp_path):
    trainer, _ = compiled
    assert 0 <= trainer.evaluate()["eval_mean_dice"] <= 1
    assert trainer.predict(TinyImages(2)).predictions.shape == (2, 32, 32)
    trainer.save_model(tmp_path)
    assert (
        farthest(DimUNetForSemanticSegmentation.from_pretrained(tmp_path).state_dict(), trainer.teacher.state_dict())
        == 0
    )


@pytest.mark.slow
def test_it_resumes_to_the_same_bits(compiled, tmp_path):
    trainer, _ = compiled
    again = train(tmp_path, compiled=True, checkpoint=f"{trainer.args.output_dir}/checkpoint-3")
    assert farthest(again.model.state_dict(), trainer.model.state_dict()) == 0
    assert farthest(again.teacher.state_dict(), trainer.teacher.state_dict()) == 0


@pytest.mark.slow
def test_both_passes_draw_the_same_dropout(tmp_path):
    """With ρ → 0 the second pass repeats the first."""
    weights = []
    for rho in (0.0, 1e-12):
        trainer = train(
            tmp_path / str(rho), compiled=True, rho=rho, max_steps=2, save_strategy="no", sam_every=1, dropout=0.5
        )
        weights.append(trainer.model.state_dict())
    assert farthest(*weights) <= 1e-6
