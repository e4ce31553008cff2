"""Jobs: configuration files, overrides, phantoms and folders, comparison of settings, the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from dim_hf.cli import main
from dim_hf.divergences import F_DIVERGENCES
from dim_hf.metrics.report import read_cases_csv
from dim_hf.trainer.ablations import ABLATIONS, ablation_overrides
from dim_hf.trainer.comparison import SETTINGS, format_summary, run_settings, setting_job, summarize
from dim_hf.trainer.finished_jobs import finish_job
from dim_hf.trainer.job import make_trainer, run_job
from dim_hf.trainer.job_arguments import config_words, describe_fields, parse_job

TINY = {
    "dataset": "phantom:prostate",
    "phantom_images_per_domain": 16,
    "num_labeled": 4,
    "num_validation": 2,
    "image_size": 32,
    "hidden_sizes": [8, 16],
    "max_steps": 2,
    "eval_steps": 1,
    "save_steps": 1,
    "labeled_batch_size": 2,
    "unlabeled_batch_size": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "auto_bf16": False,
}


TINY_SEGFORMER = SegformerConfig(
    hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, depths=[1] * 4, num_attention_heads=[1, 1, 2, 2]
)


def write_config(folder, **changes):
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def write_site(root, domain, count, size=32, value=1, shift=0):
    """A folder-a-domain site of grey images with a square in each."""
    generator = np.random.default_rng(len(domain))
    for folder in ("images", "masks"):
        (root / domain / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        mask = np.zeros((size, size), np.uint8)
        top, left = generator.integers(2, size // 2, 2)
        mask[top : top + 10, left : left + 10] = value
        image = generator.integers(20, 60, mask.shape) + 120 * (mask > 0) + shift
        Image.fromarray(image.astype(np.uint8)).save(root / domain / "images" / f"case{index:02d}.png")
        Image.fromarray(mask).save(root / domain / "masks" / f"case{index:02d}.png")


def test_configuration_is_overridden_by_the_command_line(tmp_path):
    job = parse_job(write_config(tmp_path), ["--max_steps", "7", "--rho", "0.5", "--hidden_sizes", "8", "8", "8"])
    assert (job.training.max_steps, job.training.rho, job.model.hidden_sizes) == (7, 0.5, [8, 8, 8])
    assert job.data.dataset == "phantom:prostate"


@pytest.mark.parametrize("name", ["demo", "nuclei", "fundus", "fundus-supervised", "fundus-dim", "prostate"])
def test_shipped_configurations_parse(name):
    job = parse_job(f"examples/configs/{name}.yaml", ["--use_cpu", "True"])
    assert job.training.max_steps >= 100


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("max_steps: 3\nmax_stepz: 4\n", [], "unknown field '--max_stepz'"),
        ("- a\n- b\n", [], "must hold `field: value` lines"),
        ("a: [\n", [], "cannot read the configuration"),
        ("max_steps: 3\n", ["--rho", "-1"], "rho must be at least 0"),
        ("max_steps: 3\n", ["--f_divergence", "cauchy"], "jensen_shannon"),
        ("max_steps: many\n", [], "max_steps"),
        ("divergence_estimator: kernel\n", [], "divergence_estimator"),
        ("num_train_epochs: 3\nmax_steps: 9\n", ["--num_train_epochs", "1"], None),
        ("num_train_epochs: 1\n", [], "num_train_epochs is 1, but max_steps=1500 counts instead: add --max_steps -1"),
        ("save_total_limit: null\n", [], "save_total_limit is null in .*, and would stay 2"),
        ("greater_is_better: null\n", [], None),
    ],
)
def test_bad_configurations_are_refused_by_name(tmp_path, text, words, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    if message is None:
        parse_job(path, words)
        return
    with pytest.raises(ValueError, match=message):
        parse_job(path, words)


def test_fields_are_listed_with_their_meaning():
    text = describe_fields()
    assert "--rho (default" in text
    assert "--num_labeled (default 20)" in text


def test_fields_are_listed_with_their_legal_values():
    lines = {line.split()[0]: line for line in describe_fields().splitlines() if line.startswith("  --")}
    assert "(default jensen_shannon; one of kl, reverse_kl, " in lines["--f_divergence"]
    assert all(name in lines["--f_divergence"] for name in F_DIVERGENCES)
    assert "(default total; one of total, supervised, divergence)" in lines["--ascent_objective"]
    for field, legal in (
        ("teacher_buffers", "averaged, copied"),
        ("scored_model", "teacher, student"),
        ("strong_view", "auto, color, mri, microscopy"),
        ("labeled_view", "weak, strong"),
        ("select", "validation, last, test-legacy"),
    ):
        assert f"; one of {legal})" in lines[f"--{field}"]


def test_job_leaves_model_scores_and_figures(tmp_path):
    result = run_job(parse_job(write_config(tmp_path), ["--output_dir", str(tmp_path / "run")]))
    folder = tmp_path / "run"
    assert list(map(str, read_cases_csv(folder / "cases.csv"))) == list(map(str, result.cases))  # NaN is not NaN
    results = json.loads((folder / "results.json").read_text())
    assert results["training"]["scored_model"] == "teacher"
    assert results["training"]["selected"] == "best mean_dice on validation"
    assert results["split"]["labeled"]["images"] == 4
    assert results["cost"]["seconds_per_step"] > 0
    assert results["validation"] == {"gland": pytest.approx(results["training"]["best_metric"])}
    assert results["cost"]["peak_memory_gib"] is None  # a CPU knows the process's only
    assert len(result.table.domains) == 6
    assert Image.open(folder / "curves.png").size[0] > 100
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model.config.structures == {"gland": [1]}
    assert AutoImageProcessor.from_pretrained(folder).num_channels == 1


def test_job_reads_folders_and_trains_on_all_labels(tmp_path):
    for domain in ("site_a", "site_b"):
        write_site(tmp_path / "data", domain, 10)
    changes = {"dataset": str(tmp_path / "data"), "num_channels": 1, "class_names": ["background", "square"]}
    words = ["--output_dir", str(tmp_path / "run"), "--num_labeled", "-1", "--consistency_weight", "0"]
    result = run_job(parse_job(write_config(tmp_path, **changes), [*words, "--divergence_weight", "0", "--rho", "0"]))
    assert result.table.domains == ["site_a", "site_b"]
    split = json.loads((tmp_path / "run" / "results.json").read_text())["split"]
    assert set(split["labeled"]["domains"]) == {"site_a", "site_b"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda site: (site / "images" / "case03.png").write_bytes(b"no image"), r"case03\.png"),
        (lambda site: Image.new("L", (40, 32)).save(site / "masks" / "case03.png"), "case03"),
        (lambda site: Image.new("L", (32, 32), 7).save(site / "masks" / "case03.png"), "7"),
        (lambda site: Image.new("F", (32, 32), float("nan")).save(site / "images" / "case03.tif"), "case03"),
    ],
    ids=["unreadable", "size", "label", "nan"],
)
def test_faulty_files_are_named_before_training(tmp_path, spoil, message):
    for domain in ("site_a", "site_b"):
        write_site(tmp_path / "data", domain, 10)
    spoil(tmp_path / "data" / "site_a")
    changes = {"dataset": str(tmp_path / "data"), "num_channels": 1}
    with pytest.raises(ValueError, match=message):
        run_job(parse_job(write_config(tmp_path, **changes), ["--output_dir", str(tmp_path / "run")]))
    assert not (tmp_path / "run" / "results.json").exists()


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_labeled"):
        run_job(parse_job(write_config(tmp_path, num_labeled=500), ["--output_dir", str(tmp_path / "run")]))
    with pytest.raises(ValueError, match="scanner_a"):
        run_job(parse_job(write_config(tmp_path, labeled_domain="scanner_z"), ["--output_dir", str(tmp_path)]))


def test_ablations_turn_parts_off():
    assert list(ABLATIONS) == [
        "supervised",
        "supervised-strong",
        "supervised-sam",
        "teacher-student",
        "teacher-student-divergence",
        "teacher-student-sam",
        "dim",
    ]
    off = {"consistency_weight": 0.0, "teacher_flips": False, "divergence_weight": 0.0, "rho": 0.0}
    assert ablation_overrides("supervised") == off
    assert ablation_overrides("supervised-strong") == off | {"weak_view_ratio": 0.0, "teacher_buffers": "averaged"}
    assert ablation_overrides("dim") == {}
    with pytest.raises(ValueError, match="unknown ablation"):
        ablation_overrides("fixmatch")


def test_settings_differ_in_the_method_only(tmp_path):
    words = config_words(write_config(tmp_path))
    jobs = {setting: setting_job(words, setting, 3, tmp_path / setting) for setting in SETTINGS}
    for setting, job in jobs.items():
        assert job.training.max_steps == 2
        assert job.training.seed == 3
        assert job.training.per_device_train_batch_size == 4  # as many images a step, whatever they are
        assert (job.data.num_labeled == -1) == (setting == "upper-bound")
    assert jobs["dim"].training.rho > 0
    assert jobs["supervised-sam"].training.rho > 0
    with pytest.raises(ValueError, match="unknown setting"):
        setting_job(words, "bcp", 0, tmp_path)


def test_finished_runs_are_read_back_and_other_jobs_refused(tmp_path):
    words = config_words(write_config(tmp_path))
    outcomes = run_settings(words, ["supervised", "dim"], [0, 1], tmp_path / "runs")
    stamp = (tmp_path / "runs" / "dim" / "seed1" / "cases.csv").stat().st_mtime_ns
    again = run_settings(words, ["supervised", "dim"], [0, 1], tmp_path / "runs")
    assert (tmp_path / "runs" / "dim" / "seed1" / "cases.csv").stat().st_mtime_ns == stamp
    assert [str(o.cases) for o in again] == [str(o.cases) for o in outcomes]
    means = [o.table.row().means["dice"] for o in outcomes if o.setting == "dim"]
    mean, sd = summarize(outcomes)["dim"]["mean of sites"]
    assert mean == pytest.approx(np.mean(means))
    assert sd == pytest.approx(np.std(means, ddof=1))
    assert "| supervised |" in format_summary(outcomes)
    for field, value in (("max_steps", "3"), ("f_divergence", "kl"), ("adam_beta1", "0.5"), ("optim", "sgd")):
        with pytest.raises(ValueError, match=f"was run with {field}="):
            run_settings([*words, f"--{field}", value], ["dim"], [0], tmp_path / "runs")
    (tmp_path / "runs" / "dim" / "seed0" / "results.json").unlink()  # as if it had been interrupted
    with pytest.raises(ValueError, match="was run with rho="):
        run_settings([*words, "--rho", "0.3"], ["dim"], [0], tmp_path / "runs")


def test_used_folder_is_not_mixed_with_another_run(tmp_path):
    words = ["--output_dir", str(tmp_path / "run")]
    run_job(parse_job(write_config(tmp_path), words))
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
        run_job(parse_job(write_config(tmp_path), [*words, "--seed", "7"]))
    with pytest.raises(ValueError, match="was run with seed=42, now it is 7"):
        run_job(parse_job(write_config(tmp_path), [*words, "--seed", "7", "--resume_from_checkpoint", "last"]))
    assert (tmp_path / "run" / "results.json").exists()  # the earlier run is untouched
    run_job(parse_job(write_config(tmp_path), [*words, "--resume_from_checkpoint", "last"]))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["cost"]["seconds_per_step"] is None


def test_a_finished_run_without_checkpoints_is_not_overwritten_by_another(tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--save_strategy", "no", "--select", "last"]
    run_job(parse_job(write_config(tmp_path), words))
    before = (tmp_path / "run" / "results.json").read_text()
    with pytest.raises(ValueError, match="was run with seed=42, now it is 7: choose another"):
        run_job(parse_job(write_config(tmp_path), [*words, "--seed", "7"]))
    assert (tmp_path / "run" / "results.json").read_text() == before
    run_job(parse_job(write_config(tmp_path), words))  # the same again is no loss


def test_structures_and_class_names_are_checked(tmp_path):
    write_site(tmp_path / "data", "site_a", 12)
    config = write_config(tmp_path, dataset=str(tmp_path / "data"), num_channels=1)
    for words, message in (
        (["--structures", '{"disc": 1}'], "lists of class ids"),
        (["--structures", '{"disc": [9]}'], r"classes \[1\], got \[9\]"),
        (["--structures", "{"], "no JSON"),
        (["--class_names", "a", "a"], "different"),
        (["--divergence_grid_size", "64"], "divergence_grid_size=64"),
        (["--test_fraction", "0"], "no test images"),
    ):
        with pytest.raises(ValueError, match=message):
            run_job(parse_job(config, [*words, "--output_dir", str(tmp_path / "run")]))


def test_float_images_out_of_range_are_named_before_training(tmp_path):
    for domain in ("site_a", "site_b"):
        write_site(tmp_path / "data", domain, 8)
    for path in (tmp_path / "data" / "site_b" / "images").iterdir():
        Image.fromarray(np.full((32, 32), 2000.0, np.float32)).save(path.with_suffix(".tif"))
        path.unlink()
    config = write_config(tmp_path, dataset=str(tmp_path / "data"), num_channels=1)
    with pytest.raises(ValueError, match="'case00' of domain 'site_b'"):
        run_job(parse_job(config, ["--output_dir", str(tmp_path / "run")]))


def test_one_float_image_out_of_range_is_named_before_training(tmp_path):
    for domain in ("site_a", "site_b"):
        write_site(tmp_path / "data", domain, 8)
    for path in (tmp_path / "data").glob("*/images/*"):
        peak = 2 if path.parts[-3:] == ("site_b", "images", "case05.png") else 1
        Image.fromarray(np.asarray(Image.open(path)).astype(np.float32) / 255 * peak).save(path.with_suffix(".tif"))
        path.unlink()
    config = write_config(tmp_path, dataset=str(tmp_path / "data"), num_channels=1)
    message = (
        r"(?s)found 1 fault.*site_b/images/case05\.tif: image 'case05' of domain 'site_b' is of float32 with values"
    )
    with pytest.raises(ValueError, match=f"{message}.*or train a new network with `--intensity"):
        make_trainer(parse_job(config, ["--output_dir", str(tmp_path / "run")]))
    make_trainer(parse_job(config, ["--output_dir", str(tmp_path / "run"), "--intensity", "percentile"]))


def test_run_without_validation_keeps_the_last_step(tmp_path):
    job = parse_job(write_config(tmp_path, num_validation=0), ["--output_dir", str(tmp_path / "run")])
    run_job(job)
    finish_job(parse_job(write_config(tmp_path, num_validation=0), ["--output_dir", str(tmp_path / "run")]))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["selected"] == "last step"
    assert results["validation"] is None


def test_a_second_stage_goes_on_with_network_and_processor_of_the_first(tmp_path):
    first = ["--output_dir", str(tmp_path / "first"), "--intensity", "local", "--select", "last"]
    run_job(parse_job(write_config(tmp_path), first))
    config = write_config(tmp_path, model_name_or_path=str(tmp_path / "first"))
    trainer, _, _ = make_trainer(parse_job(config, ["--output_dir", str(tmp_path / "second")]))
    assert trainer.processing_class.intensity == "local"
    saved = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "first").state_dict()
    for network in (trainer.model, trainer.teacher):
        assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"intensity is 'zscore', but .*first has 'local'"):
        make_trainer(parse_job(config, ["--intensity", "zscore", "--output_dir", str(tmp_path / "second")]))


@pytest.mark.parametrize(("first", "second"), [("fundus", "prostate"), ("prostate", "fundus")])
def test_a_second_stage_may_have_fewer_or_more_classes(tmp_path, first, second):
    words = ["--output_dir", str(tmp_path / "a"), "--num_channels", "1", "--strong_view", "mri"]
    start, _, _ = make_trainer(parse_job(write_config(tmp_path, dataset=f"phantom:{first}"), words))
    start.save_model(str(tmp_path / "network"))
    config = write_config(tmp_path, dataset=f"phantom:{second}", model_name_or_path=str(tmp_path / "network"))
    trainer, _, _ = make_trainer(parse_job(config, ["--output_dir", str(tmp_path / "b")]))
    plain, _, _ = make_trainer(parse_job(write_config(tmp_path, dataset=f"phantom:{second}"), words))
    for name in ("id2label", "label2id", "structures", "num_labels"):
        assert getattr(trainer.model.config, name) == getattr(plain.model.config, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_sizes": [16, 32, 64]}, r"hidden_sizes is \[16, 32, 64\], but .*network has \[8, 16\]"),
        ({"norm": "instance"}, "norm is instance, but .*network has batch"),
        ({"num_channels": 3}, "num_channels is 3, but .*network has 1"),
        ({"volume_size": [8, 8, 8]}, r"volume_size is \[8, 8, 8\], but the images are no volumes"),
    ],
)
def test_fields_that_the_network_to_start_from_contradicts_are_refused(tmp_path, changes, message):
    first, _, _ = make_trainer(parse_job(write_config(tmp_path), ["--output_dir", str(tmp_path / "a")]))
    first.save_model(str(tmp_path / "network"))
    config = write_config(tmp_path, **{"model_name_or_path": str(tmp_path / "network")} | changes)
    with pytest.raises(ValueError, match=message):
        make_trainer(parse_job(config, ["--output_dir", str(tmp_path / "b")]))


@pytest.mark.parametrize("name", ["/nowhere/to/be/found", "./nowhere", "runs/nowhere/start"])
def test_a_model_to_start_from_that_is_not_there_is_named(tmp_path, name):
    job = parse_job(write_config(tmp_path, model_name_or_path=name), ["--output_dir", str(tmp_path / "run")])
    with pytest.raises(
        ValueError, match=rf"^{name} is no folder that holds a model \(config\.json\); correct the name"
    ):
        make_trainer(job)


def write_sixteen_bits(root):
    for domain in ("site_a", "site_b"):
        write_site(root, domain, 8)
        for path in (root / domain / "images").iterdir():
            Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 250).save(path)


def test_a_second_stage_sees_all_bits_of_a_picture(tmp_path):
    write_sixteen_bits(tmp_path / "data")
    changes = {"dataset": str(tmp_path / "data"), "num_channels": 1, "intensity": "percentile"}
    first, test, _ = make_trainer(parse_job(write_config(tmp_path, **changes), ["--output_dir", str(tmp_path / "a")]))
    first.save_model(str(tmp_path / "network"))
    config = write_config(tmp_path, **changes, model_name_or_path=str(tmp_path / "network"))
    _, again, _ = make_trainer(parse_job(config, ["--output_dir", str(tmp_path / "b")]))
    for domain, samples in test.items():
        assert samples[0]["pixel_values"].std() > 0.1
        assert torch.equal(samples[0]["pixel_values"], again[domain][0]["pixel_values"])


def test_the_weights_to_start_from_are_read_as_float32(tmp_path):
    first, _, _ = make_trainer(parse_job(write_config(tmp_path), ["--output_dir", str(tmp_path / "a")]))
    first.save_model(str(tmp_path / "network"))
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "network", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "network")
    config = write_config(tmp_path, model_name_or_path=str(tmp_path / "network"))
    trainer, _, _ = make_trainer(parse_job(config, ["--output_dir", str(tmp_path / "b")]))
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_a_foreign_processor_gets_no_pictures_of_more_bits(tmp_path):
    write_sixteen_bits(tmp_path / "data")
    SegformerForSemanticSegmentation(TINY_SEGFORMER).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor().save_pretrained(tmp_path / "segformer")
    changes = {"dataset": str(tmp_path / "data"), "model_name_or_path": str(tmp_path / "segformer")}
    job = parse_job(write_config(tmp_path, **changes), ["--output_dir", str(tmp_path / "run")])
    with pytest.raises(ValueError, match=r"'case00' of domain 'site_a' has more than 8 bits a channel \(PIL mode I"):
        make_trainer(job)
    for number, path in enumerate(sorted((tmp_path / "data").glob("*/images/*"))):
        if number != 3:  # one alone, and not the first of its domain
            Image.fromarray((np.asarray(Image.open(path)) // 250).astype(np.uint8)).save(path)
    with pytest.raises(
        ValueError, match=r"(?s)found 1 fault.*/site_a/images/case03\.png: image 'case03' of domain .*8 bits"
    ):
        make_trainer(job)


def test_regions_are_checked_at_half_the_resolution(tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--divergence_grid_size", "20"]
    make_trainer(parse_job(write_config(tmp_path, divergence_estimator="regional"), words))
    with pytest.raises(ValueError, match=r"\(16, 16\) pixels at half the resolution, fewer than divergence_grid_size"):
        make_trainer(parse_job(write_config(tmp_path, half_resolution_ratio=0.1), words))


def test_foreign_processor_leaves_the_classes_alone(tmp_path):
    """ADE20k's processors take class 0 away; grey images become the three channels that such models want."""
    write_site(tmp_path / "data", "site_a", 12)
    SegformerForSemanticSegmentation(TINY_SEGFORMER).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor(do_reduce_labels=True).save_pretrained(tmp_path / "segformer")
    changes = {"dataset": str(tmp_path / "data"), "model_name_or_path": str(tmp_path / "segformer")}
    job = parse_job(write_config(tmp_path, **changes), ["--output_dir", str(tmp_path / "run")])
    _, test, _ = make_trainer(job)
    sample = test["site_a"][0]
    assert sample["pixel_values"].shape == (3, 32, 32)
    assert set(sample["labels"].unique().tolist()) == {0, 1}


def test_native_bf16_is_chosen_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("dim_hf.trainer.job_arguments._has_native_bf16", lambda use_cpu: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = parse_job(write_config(tmp_path, auto_bf16=True, use_cpu=False))
    assert job.training.bf16
    assert job.training.use_cpu


@pytest.mark.slow
def test_accelerate_launches_the_example(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--dynamo_backend", "no", "--mixed_precision", "no", "--cpu", "examples/train.py"]
    command += ["--config", str(write_config(tmp_path)), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["max_steps"] == 1


def test_command_line_reports_errors_without_a_traceback(tmp_path):
    result = CliRunner().invoke(main, ["train", "--config", str(write_config(tmp_path)), "--rho", "-1"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: rho must be at least 0")
