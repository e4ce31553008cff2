"""Divergence between domains, teacher and student, and the command from model folder to figures."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.special import rel_entr
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from dim_hf.cli.diagnose import command
from dim_hf.data.sources import PhantomOptions, load_source
from dim_hf.diagnostics.agreement import (
    Agreement,
    agreement_of_counts,
    find_pairs,
    measure_agreement,
    read_log,
)
from dim_hf.diagnostics.diagnose import diagnose, write_diagnosis
from dim_hf.diagnostics.domains import divergences_between_domains, domain_mass
from dim_hf.diagnostics.records import QUICK, Effort, Options, to_json
from dim_hf.diagnostics.samples import choose_rows
from dim_hf.diagnostics.text import format_diagnosis
from dim_hf.models import DimImageProcessor
from tests.tiny import tiny_model

SMALLEST = Effort(1, 2, 2, 2, 3, 3, 1)


class Fixed(nn.Module):
    """Logits that are the images' own channels."""

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=pixel_values)


def logits_of(shares, count=2, size=4):
    return torch.tensor(shares).log().view(1, -1, 1, 1).expand(count, -1, size, size)


def save_model(folder, seed=0, channels=1, num_labels=2):
    tiny_model(seed, num_channels=channels, num_labels=num_labels).save_pretrained(folder)
    DimImageProcessor(num_channels=channels, size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def save_checkpoint(folder, step, student=0, teacher=1, log=()):
    save_model(folder, seed=student)
    save_model(folder / "teacher", seed=teacher)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": list(log)}))


@pytest.fixture(scope="module")
def prostate():
    source = load_source("phantom:prostate", phantom=PhantomOptions(images_per_domain=4, size=32))
    return replace(source, rows=source.rows.select(range(8)))  # two domains


# ---- domains


def test_marginal_kl_is_scipys():
    p, q = [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]
    masses = {
        name: domain_mass(Fixed(), [(logits_of(shares), [0, 1])], grid_size=2) for name, shares in (("a", p), ("b", q))
    }
    marginal, regional = divergences_between_domains(masses, ["kl"])
    assert marginal.domains == ("a", "b")
    for found in (marginal, regional):  # the same in each cell
        assert found.matrix[0][1] == pytest.approx(rel_entr(p, q).sum(), rel=1e-4)
        assert found.matrix[1][0] == pytest.approx(rel_entr(q, p).sum(), rel=1e-4)
        assert found.matrix[0][0] == found.matrix[1][1] == 0
        assert found.within == pytest.approx((0, 0), abs=1e-9)
        assert found.mean == pytest.approx((found.matrix[0][1] + found.matrix[1][0]) / 2)


def test_regions_see_what_the_whole_image_does_not():
    left = logits_of([0.9, 0.1], count=1).clone()
    left[..., 2:] = logits_of([0.1, 0.9], count=1)[..., 2:]
    masses = {"a": domain_mass(Fixed(), [(left, [0])], 2), "b": domain_mass(Fixed(), [(left.flip(3), [0])], 2)}
    marginal, regional = divergences_between_domains(masses, ["total_variation"])
    assert marginal.matrix[0][1] == pytest.approx(0, abs=1e-6)
    assert regional.matrix[0][1] == pytest.approx(0.8, abs=1e-4)
    assert marginal.within == (None, None)  # one image cannot be halved


def test_images_of_other_sizes_weigh_the_same_and_batches_do_not_matter():
    small, large = logits_of([0.9, 0.1], count=1), logits_of([0.1, 0.9], count=1, size=8)
    mass = domain_mass(Fixed(), [(small, [0]), (large, [0])], grid_size=1)
    assert mass.images == 2
    torch.testing.assert_close(mass.total, torch.tensor([[1.0, 1.0]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_domains_refuse():
    with pytest.raises(ValueError, match="no image"):
        domain_mass(Fixed(), [], 1)
    with pytest.raises(ValueError, match="unknown f_divergence"):
        divergences_between_domains({}, ["hellinger"])


def test_one_domain_has_no_mean():
    mass = domain_mass(Fixed(), [(logits_of([0.5, 0.5]), [0, 1])], 1)
    assert divergences_between_domains({"a": mass}, ["kl"])[0].mean is None


# ---- agreement


def test_agreement_on_paper():
    # Two maps of ten pixels: six are background in both, one is 1 in the first only, one in the second only, two in
    # both: eight of ten are equal, and Dice is 2 * 2 / (3 + 3).
    assert agreement_of_counts(torch.tensor([[6, 1], [1, 2]])) == Agreement(0.8, 2 / 3)
    assert agreement_of_counts(torch.tensor([[9, 0], [0, 0]])) == Agreement(1.0, None)
    with pytest.raises(ValueError, match="no pixels"):
        agreement_of_counts(torch.zeros(2, 2, dtype=torch.int64))


def test_agreement_of_models():
    class Opposite(Fixed):
        def forward(self, pixel_values):
            return SemanticSegmenterOutput(logits=-pixel_values)

    batches = [torch.randn(2, 2, 8, 8), torch.randn(1, 2, 4, 4)]
    assert measure_agreement(Fixed(), Fixed(), batches) == Agreement(1.0, 1.0)
    assert measure_agreement(Fixed(), Opposite(), batches) == Agreement(0.0, 0.0)


def test_pairs_and_log_of_a_run(tmp_path):
    assert find_pairs(tmp_path / "missing") == []
    assert read_log(tmp_path / "missing") == []
    for step in (100, 20):
        log = [{"step": step, "teacher_student_agreement": 0.5}]
        save_checkpoint(tmp_path / f"checkpoint-{step}", step, log=log)
    save_model(tmp_path / "checkpoint-7")  # no teacher
    (tmp_path / "checkpoint-other").mkdir()
    assert [pair.step for pair in find_pairs(tmp_path)] == [20, 100]
    assert read_log(tmp_path)[0]["step"] == 100
    (pair,) = find_pairs(tmp_path / "checkpoint-20")
    assert (pair.folder, pair.step) == (tmp_path / "checkpoint-20", 20)
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"trainer_state\.json cannot be read"):
        read_log(tmp_path)


# ---- images


def test_rows_are_drawn_by_the_seed_and_the_domain_alone(prostate):
    arguments = {"images": 2, "unlabeled_images": 3, "seed": 0}
    chosen = choose_rows(prostate.rows, **arguments)
    assert list(chosen) == sorted(set(prostate.rows["domain"]))
    turned = choose_rows(prostate.rows.select(range(len(prostate.rows) - 1, -1, -1)), **arguments)
    other = choose_rows(prostate.rows, **arguments | {"seed": 1})
    for domain, part in chosen.items():
        assert len(part.labeled) == 2
        assert len(part.unlabeled) == len(part.halves) == 3
        assert "label" not in part.unlabeled.column_names
        assert part.unlabeled["name"] == turned[domain].unlabeled["name"]
    assert any(part.unlabeled["name"] != other[domain].unlabeled["name"] for domain, part in chosen.items())


def test_no_patient_is_in_both_halves(prostate):
    patients = ["p", "p", "q", "r"] * (len(prostate.rows) // 4)
    rows = prostate.rows.remove_columns("patient").add_column("patient", patients)
    for part in choose_rows(rows, images=1, unlabeled_images=4, seed=0).values():
        halves = {}
        for patient, half in zip(part.unlabeled["patient"], part.halves, strict=True):
            halves.setdefault(patient, set()).add(half)
        assert all(len(own) == 1 for own in halves.values())
        assert set(part.halves) == {0, 1}


def test_rows_refuse(prostate):
    with pytest.raises(ValueError, match="no row is of the split 'validation'"):
        choose_rows(prostate.rows, images=1, unlabeled_images=1, seed=0, split="validation")
    with pytest.raises(ValueError, match="must be at least 1"):
        choose_rows(prostate.rows, images=0, unlabeled_images=1, seed=0)
    empty = prostate.rows.remove_columns("label")
    with pytest.raises(ValueError, match="no image has a mask"):
        choose_rows(empty, images=1, unlabeled_images=1, seed=0)


# ---- from end to end


def test_diagnosis_of_a_checkpoint_with_a_baseline(tmp_path, prostate):
    log = [{"step": step, "loss": 1.0, "teacher_student_agreement": step / 10} for step in (2, 4)]
    save_checkpoint(tmp_path / "checkpoint-4", 4, log=log)
    baseline = save_model(tmp_path / "baseline", seed=5)
    options = Options(images=2, unlabeled_images=3, f_divergences=("kl",), effort=SMALLEST)
    found = diagnose(
        str(tmp_path / "checkpoint-4"), prostate, baseline=baseline, options=options, progress=False, device="cpu"
    )
    domains = sorted(set(prostate.rows["domain"]))
    assert list(found.models) == ["model", "baseline"]
    assert list(found.models["model"].sharpness) == domains
    assert found.log == [(2, 0.2), (4, 0.4)]
    assert [(row.step, row.domain) for row in found.agreements] == [(4, domain) for domain in domains]
    assert all(0 <= row.agreement.pixels <= 1 for row in found.agreements)
    files = {path.name for path in write_diagnosis(found, tmp_path / "out")}
    figures = {"sharpness.png", "landscape.png", "divergence.png", "agreement.png"}
    assert files == figures | {"table.md", "diagnosis.json"}
    for name in figures:
        assert Image.open(tmp_path / "out" / name).size > (200, 200)
    record = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert record["options"]["rho"] == 0.05
    assert np.shape(record["models"]["baseline"]["landscape"]["plane"]) == (3, 3)
    table = format_diagnosis(found)
    for phrase in ("lower bound", "evaluation mode", "### Teacher and student", "| baseline |", "from all splits"):
        assert phrase in table
    of_test = replace(found, options=replace(options, split="test"), dataset="data/prostate")
    assert "images: drawn from the split 'test', of data/prostate\n" in format_diagnosis(of_test)


def test_a_diagnosis_is_a_function_of_its_arguments(tmp_path, prostate):
    options = Options(images=1, unlabeled_images=2, effort=SMALLEST, split=None)
    first, again = (
        diagnose(save_model(tmp_path), prostate, options=options, progress=False, device="cpu") for _ in range(2)
    )
    assert to_json(first) == to_json(again)


def test_command(tmp_path):
    save_model(tmp_path / "model", channels=3, num_labels=3)
    rows = ["domain,name,image,label"]
    generator = np.random.default_rng(0)
    for index in range(3):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:20, 6 + index : 22] = 1 + index % 2
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"i{index}.png")
        Image.fromarray(mask).save(tmp_path / f"m{index}.png")
        rows.append(f"only,s{index},i{index}.png,m{index}.png")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    words = [str(tmp_path / "model"), str(tmp_path / "manifest.csv"), "--output_dir", str(tmp_path / "out")]
    done = CliRunner().invoke(command, [*words, "--quick", "--no_progress", "--adaptive", "--rho", "0.2", "--json"])
    assert done.exit_code == 0, done.output
    assert "Worst found" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "diagnosis.json", "landscape.png", "sharpness.png", "table.md",
    ]  # fmt: skip
    record = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert record["models"]["model"]["sharpness"]["only"]["adaptive"] is True
    assert record["models"]["model"]["trace"] is None
    assert json.loads(done.stdout)["models"] == record["models"]
    refused = CliRunner().invoke(command, [*words, "--rho", "-1", "--no_progress"])
    assert refused.exit_code == 1
    assert "rho" in refused.output
    assert "Traceback" not in refused.output


def test_a_folder_that_takes_no_files_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr("dim_hf.diagnostics.diagnose.diagnose", lambda *_, **__: measured.append(1))
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / "model"), "phantom:prostate", "--output-dir", str(tmp_path / "file" / "out")]
    refused = CliRunner().invoke(command, [*words, "--quick", "--no-progress"])
    assert refused.exit_code == 1
    assert "cannot be written to" in refused.output
    assert not measured


def test_models_of_other_classes_are_refused(tmp_path, prostate):
    model = save_model(tmp_path / "model", num_labels=3)
    with pytest.raises(ValueError, match=r"number of classes: the model .* has 3, the data set has 2"):
        diagnose(model, prostate, progress=False)


def test_a_model_of_transformers_at_lower_resolution(tmp_path, prostate):
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=2,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    found = diagnose(
        str(tmp_path), prostate, options=Options(images=1, unlabeled_images=2, effort=QUICK), progress=False
    ).models["model"]
    assert found.eigenvalue is not None
    assert math.isfinite(found.eigenvalue.value)
