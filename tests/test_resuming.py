"""The trainer's checkpoints: what it goes on from, what it refuses, and how it ends when it cannot write."""

import json
import logging
import os
import pickle
import resource

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from dim_hf.trainer.checkpoints import DamagedCheckpointError, aside_of, find_fault, publish, read_facts
from dim_hf.trainer.job import run_job
from dim_hf.trainer.job_arguments import parse_job
from dim_hf.trainer.resumable_trainer import ResumableTrainer
from tests.tiny import TinyImages, tiny_model, tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def trainer_in(folder, **changes):
    return tiny_trainer(folder, tiny_model(norm="batch", dropout=0.3), **(SAVING | {"rho": 0.05} | changes))


def weights(folder):
    return load_file(folder / "model.safetensors") | {
        f"teacher.{name}": value for name, value in load_file(folder / "teacher" / "model.safetensors").items()
    }


def same(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def checkpoints(run):
    return sorted(path.name for path in run.iterdir() if "checkpoint" in path.name)


def publish_again(checkpoint):
    """List the files as they are now, as whoever changed them might."""
    facts, aside = read_facts(checkpoint), aside_of(checkpoint)
    checkpoint.rename(aside)
    (aside / "checkpoint.json").unlink()
    publish(aside, checkpoint, facts)


def test_a_kill_between_the_last_checkpoint_and_the_removal_of_old_ones_leaves_no_more_than_the_limit(tmp_path):
    trainer_in(tmp_path, save_total_limit=None).train()
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    trainer_in(tmp_path, save_total_limit=2).train(resume_from_checkpoint=True)
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_a_truncated_checkpoint_is_passed_over_and_the_run_ends_as_if_uninterrupted(tmp_path, caplog):
    trainer_in(tmp_path / "whole").train()
    run = tmp_path / "run"
    trainer_in(run).train()
    for name in ("optimizer.pt", "model.safetensors"):
        os.truncate(run / "checkpoint-6" / name, 100)
    (run / "_checkpoint-8.writing").mkdir()
    with caplog.at_level(logging.WARNING):
        again = trainer_in(run)
        again.train(resume_from_checkpoint=True)
    assert "checkpoint-6 is damaged and passed over: model.safetensors has 100 bytes" in caplog.text
    assert checkpoints(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert find_fault(run / "checkpoint-6") is None
    assert same(run / "checkpoint-6", tmp_path / "whole" / "checkpoint-6")
    assert [line["step"] for line in again.state.log_history if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("steps", [6, 5], ids=["at an epoch's end", "inside an epoch"])
def test_going_on_from_the_last_step_draws_nothing(tmp_path, steps):
    """As after a kill between the last checkpoint and the files that follow it."""
    settings = {"max_steps": steps, "save_steps": steps, "labeled_batch_size": 3, "unlabeled_batch_size": 3}
    trainer_in(tmp_path, **settings).train()
    expected = torch.get_rng_state()
    trainer_in(tmp_path, **settings).train(resume_from_checkpoint="last")
    assert torch.equal(torch.get_rng_state(), expected)


def test_with_a_limit_of_one_the_newest_and_the_best_are_kept_to_the_end(tmp_path):
    settings = {"save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    still = {"learning_rate": 0.0, "lr_scheduler_type": "constant", "metric_for_best_model": "mean_dice"}
    trainer = tiny_trainer(
        tmp_path, tiny_model(), eval_dataset=TinyImages(2), **(SAVING | settings | still | {"ema_decay": 0.0})
    )
    trainer.train()
    assert trainer.state.best_global_step == 2  # nothing becomes better where nothing is learned
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-6"]


def test_a_best_checkpoint_of_another_folder_does_not_become_the_result(tmp_path, caplog):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "mean_dice"}
    images = TinyImages(2)
    tiny_trainer(tmp_path / "first", tiny_model(), eval_dataset=images, **(SAVING | settings)).train()
    second = tiny_trainer(tmp_path / "second", tiny_model(), eval_dataset=images, **(SAVING | settings))
    with caplog.at_level(logging.WARNING):
        second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-4"))
    assert "the best step is looked for anew" in caplog.text
    assert second.state.best_model_checkpoint == str(tmp_path / "second" / "checkpoint-6")


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path):
    words = ["--dataset", "phantom:fundus", "--phantom_images_per_domain", "10", "--num_labeled", "4"]
    words += ["--num_validation", "2", "--image_size", "32", "--hidden_sizes", "8", "16", "--labeled_batch_size", "2"]
    words += ["--unlabeled_batch_size", "2", "--max_steps", "2", "--save_steps", "1", "--eval_steps", "1"]
    words += ["--disable_tqdm", "true", "--auto_bf16", "false"]
    run_job(parse_job(None, [*words, "--output_dir", str(tmp_path / "a")]))
    resume = ["--resume_from_checkpoint", str(tmp_path / "a" / "checkpoint-2"), "--output_dir", str(tmp_path / "b")]
    with pytest.raises(ValueError, match=r"a was run with rho=0.05, now it is 0.0"):
        run_job(parse_job(None, [*words, *resume, "--rho", "0"]))
    with pytest.raises(ValueError, match=r"max_steps is 1, but .*checkpoint-2 is beyond it"):
        run_job(parse_job(None, [*words, *resume, "--max_steps", "1"]))


def test_a_damaged_checkpoint_that_is_named_is_refused(tmp_path):
    trainer_in(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "scheduler.pt").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-2 is damaged: scheduler.pt has 0 bytes"):
        trainer_in(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="no checkpoint in"):
        trainer_in(tmp_path).train(resume_from_checkpoint="last")
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        trainer_in(tmp_path / "new").train(resume_from_checkpoint=True)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "critic_optimizer.pt"])
def test_nothing_in_a_checkpoint_runs_code(tmp_path, name):
    """Also where the list was made to agree."""

    def trainer(steps):
        made = trainer_in(tmp_path, max_steps=steps, divergence_estimator="variational")
        made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        return made

    trainer(2).train()
    checkpoint = tmp_path / "checkpoint-2"
    torch.save({"state": Payload(tmp_path / "ran")}, checkpoint / name)
    publish_again(checkpoint)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trainer(4).train(resume_from_checkpoint="last")
    assert not (tmp_path / "ran").exists()


# ---- what does not fit


def test_the_number_of_images_a_step_may_be_cut_anew_but_not_changed(tmp_path):
    trainer_in(tmp_path, max_steps=2).train()
    with pytest.raises(ValueError, match=r"2 labeled images a step \(labeled_batch_size 2 × .*has 4.*set .* to 2"):
        trainer_in(tmp_path, labeled_batch_size=4, unlabeled_batch_size=4).train(resume_from_checkpoint="last")
    with pytest.raises(ValueError, match=r"2 unlabeled images a step"):
        trainer_in(tmp_path, unlabeled_batch_size=1, cutmix_probability=0.0).train(resume_from_checkpoint="last")
    with pytest.raises(ValueError, match=r"2 unlabeled images a step .*has 0"):
        trainer_in(tmp_path, consistency_weight=0.0, divergence_weight=0.0).train(resume_from_checkpoint="last")
    cut = trainer_in(tmp_path, labeled_batch_size=1, unlabeled_batch_size=1, gradient_accumulation_steps=2)
    cut.train(resume_from_checkpoint="last")
    assert cut.state.global_step == 6


def test_a_job_goes_on_with_its_steps_cut_anew_and_is_left_alone_where_they_are_others(tmp_path):
    words = ["--dataset", "phantom:prostate", "--phantom_images_per_domain", "16", "--num_labeled", "4"]
    words += ["--num_validation", "2", "--image_size", "32", "--hidden_sizes", "8", "16", "--eval_steps", "2"]
    words += ["--save_steps", "2", "--use_cpu", "--disable_tqdm", "--auto_bf16", "False"]
    words += ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "last"]

    def run(steps, *cut):
        return run_job(parse_job(None, [*words, "--max_steps", str(steps), *cut]))

    images = ("--labeled_batch_size", "4", "--unlabeled_batch_size", "4")
    run(2, *images)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    with pytest.raises(ValueError, match=r"written with 4 labeled images a step .* this run has 8"):
        run(4, *images, "--gradient_accumulation_steps", "2")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    halves = ("--labeled_batch_size", "2", "--unlabeled_batch_size", "2", "--gradient_accumulation_steps", "2")
    assert run(4, *halves).trainer.state.global_step == 4


def test_the_advice_names_a_number_of_processes_where_none_of_the_images_would_be_left(tmp_path, monkeypatch):
    trainer_in(tmp_path, max_steps=2).train()
    trainer = trainer_in(tmp_path)
    facts = trainer._facts() | {"processes": 3}
    monkeypatch.setattr(ResumableTrainer, "_facts", lambda self: facts)
    with pytest.raises(ValueError, match="start a number of processes that divides 2"):
        trainer.find_checkpoint("last")


def test_a_checkpoint_of_the_models_alone_is_refused(tmp_path):
    trainer_in(tmp_path, max_steps=2, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    with pytest.raises(ValueError, match="save_only_model: there is nothing to go on from"):
        trainer_in(tmp_path).train(resume_from_checkpoint="last")


@pytest.mark.parametrize(("saved", "message"), [(True, "is left out"), (False, "starts anew")])
def test_a_gradient_scaler_on_one_side_only_is_said_and_does_not_crash(tmp_path, caplog, saved, message):
    def trainer(scaled):
        made = trainer_in(tmp_path, max_grad_norm=0.0)
        made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0) if scaled else None
        return made

    trainer(saved).train()
    with caplog.at_level(logging.WARNING):
        trainer(not saved).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert message in caplog.text


def test_a_critic_that_the_checkpoint_lacks_is_named(tmp_path):
    trainer_in(tmp_path, max_steps=2).train()
    with pytest.raises(ValueError, match=r"has no critic.safetensors.*divergence_estimator"):
        trainer_in(tmp_path, divergence_estimator="variational").train(resume_from_checkpoint="last")


def test_checkpoints_of_transformers_on_sigterm_are_refused(tmp_path):
    with pytest.raises(ValueError, match="enable_jit_checkpoint"):
        trainer_in(tmp_path, enable_jit_checkpoint=True)


# ---- selection and rotation

SELECTING = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 2}


def trainer_with_scores(folder, scores, **changes):
    """Scored as it is told, step by step."""
    selecting = SELECTING | {"metric_for_best_model": "mean_dice", "greater_is_better": True}
    trainer = trainer_in(folder, eval_dataset=TinyImages(2), **(selecting | changes))

    def evaluate(*args, **kwargs):
        metrics = {"eval_mean_dice": scores[trainer.state.global_step]}
        trainer.log(dict(metrics))
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    trainer.evaluate = evaluate
    return trainer


def test_the_newest_and_the_best_are_kept_and_known_by_their_final_names(tmp_path):
    trainer = trainer_with_scores(tmp_path, {2: 0.5, 4: 0.9, 6: 0.8, 8: 0.7}, max_steps=8)
    trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-8"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    for step in (4, 8):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert (state["best_model_checkpoint"], state["best_global_step"]) == (str(tmp_path / "checkpoint-4"), 4)
        assert state["global_step"] == step
    trainer.save_model()
    assert same_network(trainer.teacher, tmp_path / "checkpoint-4" / "teacher")


def same_network(network, folder):
    saved = load_file(folder / "model.safetensors")
    return all(torch.equal(value, saved[name]) for name, value in network.state_dict().items() if name in saved)


def test_a_damaged_best_checkpoint_gives_way_to_the_best_of_the_complete_ones(tmp_path, caplog):
    trainer = trainer_with_scores(tmp_path, {2: 0.5, 4: 0.9, 6: 0.8}, save_total_limit=None)
    original = trainer._load_best_model

    def load_after_an_accident():
        os.truncate(tmp_path / "checkpoint-4" / "teacher" / "model.safetensors", 8)
        original()

    trainer._load_best_model = load_after_an_accident
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "checkpoint-4, the best checkpoint, is damaged and passed over: teacher/model" in caplog.text
    assert same_network(trainer.teacher, tmp_path / "checkpoint-6" / "teacher")
    summary = trainer.training_summary()
    assert (summary["step"], summary["best_metric"]) == (6, 0.8)


def test_without_any_complete_checkpoint_the_last_step_is_kept_and_said_so(tmp_path, caplog):
    trainer = trainer_with_scores(tmp_path, {2: 0.5, 4: 0.9, 6: 0.8})
    trainer.train()
    for name in checkpoints(tmp_path):
        (tmp_path / name / "checkpoint.json").unlink()
    with caplog.at_level(logging.WARNING):
        trainer._load_best_model()
    assert "the last step is kept" in caplog.text
    assert trainer.training_summary()["selected"] == "last step"


def test_a_run_that_was_moved_finds_its_best_checkpoint(tmp_path):
    scores = {2: 0.9, 4: 0.5, 6: 0.6}
    trainer_with_scores(tmp_path / "here", scores, max_steps=4).train()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = trainer_with_scores(tmp_path / "there", scores)
    moved.train(resume_from_checkpoint="last")
    assert moved.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-2")
    assert checkpoints(tmp_path / "there") == ["checkpoint-2", "checkpoint-6"]
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    finished = trainer_with_scores(tmp_path / "elsewhere", scores)
    finished.train(resume_from_checkpoint="last")
    assert finished.training_summary()["step"] == 2
    assert same_network(finished.teacher, tmp_path / "elsewhere" / "checkpoint-2" / "teacher")


def test_early_stopping_goes_on_counting_where_its_state_is_asked_for(tmp_path):
    scores = {2: 0.9, 4: 0.5, 6: 0.6, 8: 0.7, 10: 0.8}

    def trainer(steps):
        made = trainer_with_scores(tmp_path, scores, max_steps=steps, restore_callback_states_from_checkpoint=True)
        made.add_callback(EarlyStoppingCallback(early_stopping_patience=3))
        return made

    trainer(6).train()
    again = trainer(10)
    again.train(resume_from_checkpoint="last")
    assert again.state.global_step == 8


# ---- a disk that takes no more


@pytest.mark.parametrize(("optim", "largest"), [("sgd", 8_000), ("adamw_torch", 60_000)])
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_checkpoint_intact(tmp_path, optim, largest):
    """Files cannot grow beyond a limit: the weights (by safetensors), or only the optimizer's state (by torch)."""
    settings = {"optim": optim, "optim_args": None}
    trainer_in(tmp_path, **settings, max_steps=2).train()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "checkpoint-2").glob("*.*")}
    assert (sizes["model.safetensors"] > largest) == (optim == "sgd")
    assert optim == "sgd" or sizes["optimizer.pt"] > largest
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*checkpoint-4: .* are free, .*took .* intact.*last$"):
            trainer_in(tmp_path, **settings).train(resume_from_checkpoint="last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    trainer = trainer_in(tmp_path, **settings)
    trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("moment", ["save_to_json", "publish"])
def test_no_space_at_the_end_of_saving_leaves_nothing_either(tmp_path, monkeypatch, moment):
    trainer = trainer_in(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    if moment == "publish":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(type(trainer.state), "save_to_json", full)
    with pytest.raises(OSError, match=r"checkpoint-2: \[Errno 28\] No space left.* There is no earlier checkpoint"):
        trainer.train()
    assert checkpoints(tmp_path) == []


def test_an_interruption_inside_saving_leaves_nothing_half_written(tmp_path, monkeypatch):
    trainer = trainer_in(tmp_path)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoints(tmp_path) == []
