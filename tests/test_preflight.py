"""The dry run: what it measures, what it leaves alone, and what it says when memory is short."""

import pytest
import torch
from transformers import TrainerCallback

from dim_hf.trainer.preflight import TIMED_STEPS, WARM_UP_STEPS, checkpoint_bytes, run_dry
from dim_hf.trainer.preflight_report import PreflightReport
from tests.test_trainer_step import Recording
from tests.test_weak_view_steps import steps_with_strong_views
from tests.tiny import TinyImages, tiny_trainer


class Forbidden(TrainerCallback):
    """A tracker or a callback of the user's: a dry run is none of its business."""

    def on_train_begin(self, args, state, control, **kwargs):
        raise AssertionError("called")

    on_log = on_evaluate = on_save = on_train_begin


def dry_trainer(folder, **arguments):
    settings = {
        "max_steps": 1000,
        "save_strategy": "steps",
        "save_steps": 250,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 250,
        "load_best_model_at_end": True,
        "metric_for_best_model": "mean_dice",
        "logging_steps": 1,
    }
    trainer = tiny_trainer(folder, eval_dataset={"a": TinyImages(6), "b": TinyImages(2)}, **settings | arguments)
    trainer.add_callback(Forbidden())
    return trainer


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = dry_trainer(folder, divergence_estimator="variational", optim="adamw_torch", optim_args=None)
    return trainer, run_dry(trainer), folder


def test_it_takes_real_steps_and_writes_nothing(reported):
    trainer, report, folder = reported
    assert trainer.state.global_step == 5
    assert trainer.skipped_steps == 0
    assert list(folder.iterdir()) == []
    assert report.fits
    assert report.advice == ()
    assert (trainer.args.max_steps, trainer.args.output_dir, trainer.args.rho) == (1000, str(folder), 0.05)


def test_what_it_reports(reported):
    trainer, report, _ = reported
    weights = sum(p.numel() for p in trainer.model.parameters())
    assert report.parameters == weights
    assert (report.steps, report.validations, report.images_per_step, report.processes) == (1000, 4, 4, 1)
    assert 0 < report.seconds_per_step < 60
    assert report.images_per_second == pytest.approx(4 / report.seconds_per_step)
    seconds = 1000 * (report.seconds_per_step + report.seconds_waiting) + 4 * report.seconds_per_validation
    assert report.hours == pytest.approx(seconds / 3600)
    assert 50e6 < report.peak_memory < report.memory
    assert report.checkpoints == 3  # two are kept, and a third is written before one goes
    # Student, teacher, and AdamW's two moments of each weight, in float32; the critic is the rest.
    assert 4 * 4 * weights < report.checkpoint < 4 * 4 * weights + 200_000


def test_a_checkpoint_takes_what_was_said(reported, tmp_path):
    trainer, report, _ = reported
    trainer.save_model(tmp_path, _internal_call=True)
    trainer._save_optimizer_and_scheduler(tmp_path)
    tensors = [*tmp_path.rglob("*.safetensors"), *tmp_path.glob("*optimizer.pt")]
    assert report.checkpoint == checkpoint_bytes(trainer)
    # The files hold names and shapes as well, which are much of so small a network.
    assert report.checkpoint < sum(path.stat().st_size for path in tensors) < 1.3 * report.checkpoint + 50_000


def test_the_text_says_it_all(reported):
    _, report, _ = reported
    text = str(report)
    for words in ("CPU, float32, 1 process", "million", "GiB", ": 1000 steps, 4 validations", "3 checkpoints"):
        assert words in text
    assert "FIT" not in text


def test_steps_of_two_kinds_are_averaged(tmp_path, monkeypatch):
    """Every 4th step takes both passes: (both + 3 plain) / 4."""
    from dim_hf.trainer import preflight

    seconds = {1: 8.0, 4: 4.0}  # by sam_every while they are timed: each step is sharpness-aware, none is
    monkeypatch.setattr(preflight._Clock, "seconds", lambda clock: seconds[trainer.args.sam_every])
    trainer = dry_trainer(tmp_path, sam_every=4)
    assert run_dry(trainer).seconds_per_step == (8 + 3 * 4) / 4
    assert (trainer.args.sam_every, trainer.args.rho) == (4, 0.05)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_without_memory_it_says_what_to_change(tmp_path, monkeypatch, error):
    trainer = dry_trainer(tmp_path, labeled_batch_size=4, unlabeled_batch_size=2, cutmix_probability=0.0)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(trainer, "training_step", fail)
    report = run_dry(trainer)
    assert not report.fits
    assert report.hours is None
    text = str(report)
    assert "DOES NOT FIT: " + (str(error).splitlines() or ["MemoryError"])[0] in text
    assert "labeled_batch_size=2 unlabeled_batch_size=1 gradient_accumulation_steps=2" in text
    for words in ("bf16=true", "image_size", "rho=0", "ascent_fraction=0.5 saves time, not memory"):
        assert words in text
    assert list(tmp_path.iterdir()) == []


def test_batches_that_have_no_divisor_in_common(tmp_path, monkeypatch):
    trainer = dry_trainer(tmp_path, labeled_batch_size=3, unlabeled_batch_size=2, cutmix_probability=0.0)
    monkeypatch.setattr(trainer, "training_step", lambda *args: (_ for _ in ()).throw(MemoryError()))
    assert "a smaller labeled_batch_size (3) or unlabeled_batch_size (2)" in str(run_dry(trainer))


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    trainer = dry_trainer(tmp_path)
    monkeypatch.setattr(trainer, "training_step", lambda *args: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        run_dry(trainer)


def test_a_disk_that_is_too_small(reported, monkeypatch, tmp_path):
    from dim_hf.trainer import preflight

    monkeypatch.setattr(preflight, "_free_disk", lambda folder: 1000)
    report = run_dry(dry_trainer(tmp_path))
    assert not report.fits
    assert "save_total_limit=1" in str(report)


def test_without_validation_images(tmp_path):
    report = run_dry(tiny_trainer(tmp_path, rho=0.0, max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2))
    assert (report.steps, report.validations, report.seconds_per_validation) == (6, 0, None)
    assert report.checkpoints == 0
    assert report.images_per_step == 8


@pytest.mark.parametrize(("seconds", "said"), [(0.6, "10.0 minutes: 1000 steps"), (9.0, "2.5 hours: 1000 steps")])
def test_time_is_said_in_minutes_or_hours(seconds, said):
    unknown = dict.fromkeys(PreflightReport.__dataclass_fields__, 0)
    known = {"device": "CPU", "steps": 1000, "seconds_per_step": seconds, "failure": None, "advice": ()}
    assert f"to finish    {said}" in str(PreflightReport(**unknown | known))


@pytest.mark.parametrize(
    ("limit", "best", "count"), [(None, False, 4), (0, False, 4), (1, False, 2), (1, True, 3), (3, True, 4)]
)
def test_checkpoints_that_lie_on_the_disk_together(tmp_path, limit, best, count):
    """Those kept, the best one among them, and one that is written before another goes."""
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": limit, "max_steps": 8}
    choosing = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2} if best else {}
    trainer = tiny_trainer(tmp_path / "run", eval_dataset={"a": TinyImages(2)}, **saving, **choosing)
    assert run_dry(trainer).checkpoints == count


@pytest.mark.parametrize("ratio", [0.5, 0.05])
def test_it_takes_one_step_at_half_the_resolution_where_the_run_would(tmp_path, ratio):
    """What cannot be done there is found; what is timed is at the full resolution."""
    trainer = tiny_trainer(tmp_path / "run", trainer_class=Recording, half_resolution_ratio=ratio, max_steps=8)
    run_dry(trainer)
    sides = [window[0].pixel_values.shape[-1] for window in trainer.windows]
    assert sides == [16] + [32] * (len(sides) - 1)


def test_it_times_steps_with_strong_views(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path / "run", weak_view_ratio=0.9, max_steps=8)
    seen = steps_with_strong_views(trainer, monkeypatch)
    run_dry(trainer)
    assert sorted(set(seen)) == list(range(WARM_UP_STEPS + TIMED_STEPS))
