"""Whole runs of the Trainer: evaluation, selection, saving, resuming, other models, bad input."""

import json

import pytest
import torch
from transformers import (
    AutoModelForSemanticSegmentation,
    EarlyStoppingCallback,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from dim_hf.trainer.dim_trainer import DimTrainer
from dim_hf.trainer.dim_training_args import DimTrainingArguments
from tests.tiny import TinyImages, tiny_arguments, tiny_model, tiny_trainer

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def test_logs_every_term_and_measurement(tmp_path):
    trainer = tiny_trainer(tmp_path, rho=0.05)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss_supervised" in line)
    for name in ("loss_consistency", "divergence", "perturbation_norm", "kept_share", "foreground_share"):
        assert name in line
    assert 0 <= line["teacher_student_agreement"] <= 1
    # Weights are 1 and 0.5 from the start, so the logged loss is the stated total.
    total = line["loss_supervised"] + line["loss_consistency"] + 0.5 * line["divergence"]
    assert line["loss"] == pytest.approx(total, rel=1e-3)


def test_evaluates_both_models_by_domain_and_keeps_the_best(tmp_path):
    sets = {"site_a": TinyImages(4, seed=5), "site_b": TinyImages(5, seed=6, shift=0.2)}
    trainer = tiny_trainer(
        tmp_path, eval_dataset=sets, load_best_model_at_end=True, metric_for_best_model="mean_dice", **EVALUATED
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_mean_dice" in line]
    assert [line["step"] for line in lines] == [2, 4]
    metrics = trainer.evaluate()
    for domain in sets:
        for model in ("", "_student"):
            for metric in ("dice", "jaccard", "hd95", "asd"):
                assert f"eval_{domain}{model}_LABEL_1_{metric}" in metrics
    dices = [metrics[f"eval_{domain}_dice"] for domain in sets]
    assert metrics["eval_mean_dice"] == pytest.approx(sum(dices) / 2)
    # The loaded models are those of the best step: the teacher scores again what was recorded for it.
    assert trainer.state.best_metric == pytest.approx(max(line["eval_mean_dice"] for line in lines))
    assert metrics["eval_mean_dice"] == pytest.approx(trainer.state.best_metric)


def test_saves_the_scored_model_at_the_root_and_says_which(tmp_path):
    for scored in ("teacher", "student"):
        trainer = tiny_trainer(tmp_path / scored, scored_model=scored)
        trainer.train()
        trainer.save_model()
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / scored)
        assert states_equal(loaded, trainer.teacher if scored == "teacher" else trainer.model)
        summary = json.loads((tmp_path / scored / "dim_training.json").read_text())
        assert summary["scored_model"] == scored
        assert summary["selected"] == "last step"
        assert not list((tmp_path / scored).glob("*.bin"))  # no pickle


def tiny_segformer():
    torch.manual_seed(0)
    config = SegformerConfig(
        num_channels=3,
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        num_labels=2,
    )
    return SegformerForSemanticSegmentation(config)


def test_segformer_resumes_and_keeps_the_best_exactly(tmp_path):
    """Its weights are saved under other names than the model's own."""
    images = {"labeled": TinyImages(4, channels=3), "unlabeled": TinyImages(4, channels=3, labels=False)}
    images["eval_dataset"] = TinyImages(3, channels=3)
    whole = tiny_trainer(tmp_path / "a", tiny_segformer(), **images, **EVALUATED, learning_rate=0.02)
    whole.train()
    again = tiny_trainer(tmp_path / "a", tiny_segformer(), **images, **EVALUATED, learning_rate=0.02)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert states_equal(whole.model, again.model)
    assert states_equal(whole.teacher, again.teacher)
    again.state.best_model_checkpoint = str(tmp_path / "a" / "checkpoint-2")
    again._load_best_model()
    second = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "a" / "checkpoint-2")
    assert states_equal(second, again.model)


def test_finished_run_takes_no_further_step(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    first = tiny_trainer(tmp_path, **settings)
    first.train()
    again = tiny_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 3
    assert states_equal(first.model, again.model)


def test_training_again_after_an_interruption_inside_a_step(tmp_path):
    trainer = tiny_trainer(tmp_path, gradient_accumulation_steps=2, rho=0.1)
    original = trainer._loss_terms

    def interrupt(batch, logits):
        raise KeyboardInterrupt

    trainer._loss_terms = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer._loss_terms = original
    trainer.train()
    fresh = tiny_trainer(tmp_path, gradient_accumulation_steps=2, rho=0.1)
    fresh.train()
    assert states_equal(trainer.model, fresh.model)


def test_early_stopping_sees_the_score(tmp_path):
    still = {
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        "load_best_model_at_end": True,
        "metric_for_best_model": "mean_dice",
    }
    trainer = tiny_trainer(tmp_path, eval_dataset=TinyImages(2), **(EVALUATED | {"max_steps": 20}), **still)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    trainer.train()
    assert trainer.state.global_step == 4


def test_pushed_root_holds_the_scored_model(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path), _internal_call=True)  # what push_to_hub of transformers calls
    assert states_equal(AutoModelForSemanticSegmentation.from_pretrained(tmp_path), trainer.teacher)


def test_skipped_steps_survive_a_resume(tmp_path):
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.skipped_steps = 2
    trainer.train()
    again = tiny_trainer(tmp_path, max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.training_summary()["skipped_steps"] == 2


def test_each_data_set_may_have_a_size_of_its_own(tmp_path):
    trainer = tiny_trainer(tmp_path)
    for size in (32, 24):
        assert trainer.predict(TinyImages(2, size=size)).predictions.shape == (2, size, size)


def test_images_of_several_sizes_are_refused_with_a_sentence(tmp_path):
    images = TinyImages(2)
    images.samples[1] = {key: value[..., :24] for key, value in images.samples[1].items()}
    with pytest.raises(ValueError, match="give the image processor a size"):
        tiny_trainer(tmp_path, per_device_eval_batch_size=1).evaluate(images)


@pytest.mark.parametrize("estimator", ["regional", "variational"])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, estimator):
    """Across an epoch's end, with dropout, momentum, teacher and critic."""
    arguments = {
        "divergence_estimator": estimator,
        "rho": 0.05,
        "labeled_batch_size": 3,
        "unlabeled_batch_size": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 7,
    }

    def run(folder, resume=None, stop_after=None):
        trainer = tiny_trainer(folder, tiny_model(norm="batch", dropout=0.3), **arguments)
        if stop_after:
            original = trainer.finish_optimizer_step

            def stop():
                original()
                if trainer.state.global_step + 1 == stop_after:
                    trainer.control.should_training_stop = True

            trainer.finish_optimizer_step = stop
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop_after=5)
    for checkpoint in ("checkpoint-4", "checkpoint-2"):
        resumed = run(tmp_path / "cut", resume=str(tmp_path / "cut" / checkpoint))
        assert states_equal(whole.model, resumed.model)
        assert states_equal(whole.teacher, resumed.teacher)
        if estimator == "variational":
            assert states_equal(whole.objective.critic.critic, resumed.objective.critic.critic)


def test_teacher_of_a_checkpoint_loads_by_itself(tmp_path):
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "checkpoint-3" / "teacher")
    assert states_equal(loaded, trainer.teacher)


def test_trains_a_segformer_that_predicts_at_a_quarter_of_the_resolution(tmp_path):
    images = {"labeled": TinyImages(4, channels=3), "unlabeled": TinyImages(4, channels=3, labels=False)}
    trainer = tiny_trainer(
        tmp_path,
        tiny_segformer(),
        **images,
        eval_dataset=TinyImages(3, channels=3),
        rho=0.05,
        max_steps=12,
        learning_rate=0.02,
    )
    before = trainer.evaluate()["eval_validation_student_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_validation_student_loss"] < before


def test_trains_volumes(tmp_path):
    class Volumes(TinyImages):
        def __getitem__(self, index):
            return {k: v.unsqueeze(-3).repeat_interleave(8, dim=-3) for k, v in self.samples[index].items()}

    trainer = tiny_trainer(
        tmp_path,
        tiny_model(spatial_dims=3),
        labeled=Volumes(4, size=16),
        unlabeled=Volumes(4, size=16, labels=False),
        eval_dataset=Volumes(2, size=16),
        divergence_grid_size=2,
        rho=0.05,
    )
    trainer.train()
    assert "eval_mean_dice" in trainer.evaluate()


def test_progress_bar_shows_the_numbers_that_matter(tmp_path, capfd):
    tiny_trainer(tmp_path, disable_tqdm=False, eval_dataset=TinyImages(3), **EVALUATED).train()
    shown = capfd.readouterr().err
    for name in ("4/4", "loss=", "div=", "kept=", "val dice="):
        assert name in shown
    assert "loss_supervised" not in shown


def test_predicts_images_without_labels(tmp_path):
    trainer = tiny_trainer(tmp_path)
    output = trainer.predict(TinyImages(3, labels=False))
    assert output.predictions.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, "rho must be at least 0"),
        ({"rho": float("nan")}, "rho must be at least 0"),
        ({"f_divergence": "wasserstein"}, "jensen_shannon"),
        ({"divergence_estimator": "kernel"}, "marginal, regional, conditional, variational"),
        ({"f_divergence": "jeffreys", "divergence_estimator": "variational"}, "no conjugate"),
        ({"ascent_objective": "divergence", "divergence_weight": 0.0, "rho": 0.1}, "needs divergence_weight"),
        ({"ascent_objective": "consistency"}, "total, supervised, divergence"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"confidence_threshold": 1.5}, "between 0 and 1"),
        ({"share_adaptation": 1.5}, "share_adaptation must be between 0 and 1"),
        ({"structure_warp_probability": -0.5}, "structure_warp_probability must be between 0 and 1"),
        ({"labeled_batch_size": 0}, "labeled_batch_size must be at least 1"),
        ({"unlabeled_batch_size": 0}, "unlabeled_batch_size must be at least 1"),
        ({"sam_every": 0}, "sam_every must be at least 1"),
        ({"labeled_batch_size": 2, "unlabeled_batch_size": 3}, "make one a multiple of the other"),
        ({"strong_view": "ct"}, "auto, color, mri, microscopy"),
        ({"scored_model": "ensemble"}, "teacher, student"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"fp16": True}, "fp16 needs a GPU"),
        ({"per_device_train_batch_size": 99}, "leave it out"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size has no effect: set labeled_batch_size"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps must be at least 1"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last would leave images out of validation and test"),
        ({"prediction_loss_only": True}, "prediction_loss_only would leave out the predictions"),
        ({"eval_do_concat_batches": False}, "eval_do_concat_batches would leave the predictions in pieces"),
        ({"bf16_full_eval": True}, "bf16_full_eval would leave the student in bf16.*: set bf16"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy has no effect"),
        ({"lr_scheduler_kwargs": "nope"}, "lr_scheduler_kwargs must be names and values as JSON.*got 'nope'"),
        ({"metric_for_best_model": "a_hd95", "greater_is_better": True}, "a smaller metric_for_best_model='a_hd95'"),
        ({"metric_for_best_model": "mean_dice", "greater_is_better": False}, "a larger metric_for_best_model"),
    ],
)
def test_bad_arguments_are_refused_by_name(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_arguments(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("metric", "larger"), [("mean_dice", True), ("a_cup_hd95", False), ("a_asd", False), ("eval_a_loss", False)]
)
def test_the_better_checkpoint_has_the_larger_dice_or_the_smaller_distance(tmp_path, metric, larger):
    assert tiny_arguments(tmp_path, metric_for_best_model=metric).greater_is_better is larger
    usual = tiny_arguments(tmp_path, load_best_model_at_end=True, **EVALUATED)
    assert (usual.metric_for_best_model, usual.greater_is_better) == ("mean_dice", True)


@pytest.mark.parametrize("metric", ["a_hd95", "eval_a_loss", "a_class 1_dice", "a_student_dice", "b_dice", "loss"])
def test_the_score_of_the_selection_is_known_before_training(tmp_path, metric):
    model = tiny_model(id2label={0: "background", 1: "class 1"})
    options = {"load_best_model_at_end": True, "metric_for_best_model": metric, **EVALUATED}
    if metric in ("b_dice", "loss"):
        with pytest.raises(ValueError, match=f"metric_for_best_model is {metric!r}, .* such as a_dice"):
            tiny_trainer(tmp_path, model, eval_dataset={"a": TinyImages(2)}, **options)
        return
    trainer = tiny_trainer(tmp_path, model, eval_dataset={"a": TinyImages(2)}, **options)
    trainer.train()
    assert trainer.state.best_metric is not None


def test_what_no_score_can_be_counted_from_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset 'a' has no images: leave it out"):
        tiny_trainer(tmp_path, eval_dataset={"a": TinyImages(0)})
    with pytest.raises(ValueError, match="the images of eval_a have no labels"):
        tiny_trainer(tmp_path, eval_dataset={"a": TinyImages(2, labels=False)}).evaluate()


def test_what_the_trainer_makes_itself_is_not_given(tmp_path):
    with pytest.raises(ValueError, match="compute_metrics is this trainer's own"):
        DimTrainer(
            tiny_model(),
            tiny_arguments(tmp_path),
            labeled_dataset=TinyImages(4),
            unlabeled_dataset=TinyImages(4, labels=False),
            compute_metrics=len,
        )


@pytest.mark.parametrize(("labeled", "unlabeled"), [(8, 4), (4, 8)])
@pytest.mark.parametrize("mixing", ["cutmix_probability", "amplitude_mixing_probability"])
def test_unequal_streams_are_mixed_with_the_same_images_however_a_step_is_cut(tmp_path, labeled, unlabeled, mixing):
    def views(cut):
        sizes = {"labeled_batch_size": labeled // cut, "unlabeled_batch_size": unlabeled // cut}
        options = {"cutmix_probability": 0.0, mixing: 1.0, "gradient_accumulation_steps": cut}
        trainer = tiny_trainer(tmp_path, **sizes, **options)
        batches = iter(trainer.get_train_dataloader())
        parts = [trainer._step_inputs(next(batches)).pixel_values.split(list(sizes.values())) for _ in range(cut)]
        return [torch.cat(stream) for stream in zip(*parts, strict=True)]

    for whole, cut in zip(views(1), views(4), strict=True):
        # Not bit for bit: a Fourier transform's last bit may depend on the batch.
        assert torch.allclose(whole, cut, atol=1e-6)


class NestedImages(TinyImages):
    """Tiny images whose square holds a smaller one of class 2 in its middle."""

    def __init__(self, count, **options):
        super().__init__(count, **options)
        for sample in self.samples:
            rows, columns = torch.nonzero(sample["labels"], as_tuple=True)
            top, left = rows.min() + 3, columns.min() + 3
            sample["labels"][top : top + 5, left : left + 5] = 2


def test_sizes_of_the_inner_structure_are_drawn_anew_in_labeled_images_alone(tmp_path):
    def step_inputs(probability):
        model = tiny_model(num_labels=3, structures={"outer": [1, 2], "inner": [2]})
        options = {"structure_warp_probability": probability, "cutmix_probability": 0.0}
        trainer = tiny_trainer(tmp_path, model, NestedImages(8), **options)
        return trainer._step_inputs(next(iter(trainer.get_train_dataloader())))

    plain, warped = step_inputs(0.0), step_inputs(1.0)
    assert torch.equal(plain.pixel_values[2:], warped.pixel_values[2:])
    assert torch.equal(plain.pseudo_labels, warped.pseudo_labels)
    for index in range(2):
        inner = [(inputs.labels[index] == 2).sum() for inputs in (plain, warped)]
        assert inner[0] != inner[1]
        assert not torch.equal(plain.pixel_values[index], warped.pixel_values[index])


def test_a_structure_warp_needs_nested_structures(tmp_path):
    with pytest.raises(ValueError, match=r"no structure of .* lies within another"):
        tiny_trainer(tmp_path, structure_warp_probability=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_too_short_for_a_teacher_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"are {dtype}: load the model with dtype=torch.float32"):
        tiny_trainer(tmp_path, tiny_model().to(dtype))


def test_bad_datasets_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="no labeled images"):
        tiny_trainer(tmp_path, labeled=TinyImages(0))
    with pytest.raises(ValueError, match="no unlabeled images"):
        tiny_trainer(tmp_path, unlabeled=TinyImages(0))
    with pytest.raises(ValueError, match="labeled_batch_size is 4, but there are only 3"):
        tiny_trainer(tmp_path, labeled=TinyImages(3), labeled_batch_size=4, unlabeled_batch_size=4)
    with pytest.raises(ValueError, match="deep_supervision"):
        tiny_trainer(tmp_path, tiny_model(deep_supervision=True))
    with pytest.raises(ValueError, match="3 channels"):
        tiny_trainer(tmp_path, strong_view="color")


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        (
            {"labeled": TinyImages(8, value=2)},
            r"labels hold 2, but the model has the classes 0\.\.1 \(255 is ignored\)",
        ),
        ({"labeled": TinyImages(8, channels=3)}, "the labeled images have 3 channels, but the model takes 1"),
        ({"unlabeled": TinyImages(8, channels=3)}, "the unlabeled images have 3 channels, but the model takes 1"),
        ({"unlabeled": TinyImages(8, size=48)}, r"shape \(1, 32, 32\) and unlabeled ones \(1, 48, 48\)"),
    ],
    ids=["classes", "labeled channels", "unlabeled channels", "sizes"],
)
def test_images_that_do_not_fit_the_model_are_refused_before_a_step(tmp_path, streams, message):
    trainer = tiny_trainer(tmp_path, **streams)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_every_knob_is_documented():
    own = set(DimTrainingArguments.__annotations__)
    fields = DimTrainingArguments.__dataclass_fields__
    assert len(own) > 20
    for name in own:
        assert len(fields[name].metadata.get("help", "")) > 15, name
