"""Running statistics estimated anew at the final weights: against plain averages, and what they leave alone."""

import copy

import pytest
import torch
from torch import nn

from dim_hf.batch_norm import estimate_running_statistics, has_running_statistics
from dim_hf.hub.card import _method
from dim_hf.hub.run_folder import FinishedRun
from dim_hf.inference.loading import find_other_network
from dim_hf.trainer.ablations import ablation_overrides
from dim_hf.trainer.comparison import setting_job
from dim_hf.trainer.streams import clean_batches
from tests.tiny import TinyImages, tiny_arguments, tiny_model, tiny_trainer


def statistics_of(network):
    return {name: buffer.clone() for name, buffer in network.named_buffers() if "running_" in name}


@pytest.mark.parametrize("size", [1, 2, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_and_variances_are_those_of_all_images_however_they_are_cut(size, dtype):
    """Images of different brightness: most of the variance lies between them."""
    images = torch.rand(12, 2, 16, 16, generator=torch.Generator().manual_seed(0)) + torch.arange(12.0).view(
        -1, 1, 1, 1
    )
    layer = nn.BatchNorm2d(2, momentum=0.3, dtype=dtype).eval()
    layer.running_mean.fill_(9.0)
    assert estimate_running_statistics(layer, images.to(dtype).split(size), layer) == 0
    close = {"rtol": 5e-3, "atol": 0} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0}
    torch.testing.assert_close(layer.running_mean.float(), images.mean((0, 2, 3)), **close)
    torch.testing.assert_close(layer.running_var.float(), images.var((0, 2, 3)), **close)
    assert (layer.training, layer.momentum) == (False, 0.3)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_moves_them_so_far(share):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    layer = nn.BatchNorm2d(1).eval()
    estimate_running_statistics(layer, [images], layer, share)
    assert layer.running_mean.item() == pytest.approx(share * images.mean().item(), rel=1e-5)
    assert layer.running_var.item() == pytest.approx(1 - share + share * images.var().item(), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), 1e25])
def test_batches_that_are_not_finite_are_left_out(bad):
    good = [torch.rand(4, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    spoiled = good[0].clone()
    spoiled[1, 0, 2, 2] = bad
    layer, reference = nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2).eval()
    assert estimate_running_statistics(layer, [good[0], spoiled, *good[1:]], layer) == 1
    estimate_running_statistics(reference, good, reference)
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in layer.state_dict().items())
    assert estimate_running_statistics(layer, [spoiled], layer) == 1  # none is left: as before
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in layer.state_dict().items())


def test_layers_that_are_not_reached_and_all_of_them_after_an_error_keep_what_they_have():
    network = nn.ModuleList([nn.BatchNorm2d(1), nn.BatchNorm2d(1)]).train()
    for layer in network:
        layer.running_mean.fill_(5.0)
    estimate_running_statistics(network, [torch.ones(2, 1, 4, 4)], network[0])
    assert [layer.running_mean.item() for layer in network] == [1.0, 5.0]
    before = copy.deepcopy(network.state_dict())

    def fails(images):
        network[1](images)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        estimate_running_statistics(network, [torch.ones(2, 1, 4, 4)], fails)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [(layer.training, layer.momentum) for layer in network] == [(True, 0.1)] * 2


def test_deeper_layers_see_what_the_batch_normalised_ones_give():
    """By one batch, a network in evaluation mode then answers as it does in train mode, up to n / (n - 1)."""
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    images = torch.rand(8, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 + 1
    reference = copy.deepcopy(network).train()
    with torch.no_grad():
        assert not torch.allclose(network(images), reference(images), atol=0.1)
        estimate_running_statistics(network, [images], network)
        torch.testing.assert_close(network(images), reference(images), atol=1e-3, rtol=1e-3)


def test_without_batches_nothing_changes_and_weights_and_dropout_never_do():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    before = copy.deepcopy(network.state_dict())
    estimate_running_statistics(network, [], network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    seen = []
    network[2].register_forward_hook(lambda module, *_: seen.append(module.training))
    estimate_running_statistics(network, [torch.rand(2, 1, 4, 4)], network)
    assert seen == [False]
    changed = {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert not has_running_statistics(nn.InstanceNorm2d(2))


class OfDomains(TinyImages):
    def __init__(self, domains, **options):
        super().__init__(len(domains), **options)
        self.domains = domains


@pytest.mark.parametrize("balanced", [False, True])
def test_batches_are_the_images_as_they_are_of_all_sites(tmp_path, balanced):
    labeled, unlabeled = OfDomains(["a"] * 4), OfDomains(["b"] * 12, seed=1, labels=False)
    args = tiny_arguments(tmp_path, balance_domains=balanced, labeled_batch_size=4, unlabeled_batch_size=4)
    batches = list(clean_batches(args, labeled, unlabeled))
    assert [len(batch) for batch in batches] == [8, 8]
    pool = [sample["pixel_values"] for part in (labeled, unlabeled) for sample in part.samples]
    places = [next(i for i, own in enumerate(pool) if torch.equal(own, image)) for image in torch.cat(batches)]
    assert len(set(places)) == (12 if balanced else 16)  # four of a, each twice, and eight of b
    assert sum(place < 4 for place in places) == (8 if balanced else 4)
    assert [len(batch) for batch in clean_batches(args, labeled, None)] == [4]  # the only one, though incomplete
    assert [len(batch) for batch in clean_batches(args, labeled, unlabeled, limit=8)] == [8]
    assert [len(batch) for batch in clean_batches(args, labeled, TinyImages(0))] == [4]  # an empty pool is none


def trained(folder, **arguments):
    settings = {"clean_statistics": 1.0, "max_steps": 2, "learning_rate": 0.02}
    trainer = tiny_trainer(folder, tiny_model(norm="batch"), **settings | arguments)
    trainer.train()
    return trainer


def test_finished_networks_have_the_statistics_of_clean_images_and_no_other_weights(tmp_path):
    clean, running = trained(tmp_path / "clean"), trained(tmp_path / "running", clean_statistics=0.0)
    for name in ("model", "teacher"):
        network, plain = getattr(clean, name), getattr(running, name)
        weights = dict(network.named_parameters())
        assert all(torch.equal(value, weights[key]) for key, value in plain.named_parameters())
        by_hand = copy.deepcopy(plain)
        batches = clean_batches(clean.args, clean.train_dataset.labeled, clean.train_dataset.unlabeled)
        estimate_running_statistics(by_hand, batches, lambda images, net=by_hand: net(pixel_values=images))
        wanted, found = statistics_of(by_hand), statistics_of(network)
        assert any(not torch.allclose(found[key], value) for key, value in statistics_of(plain).items())
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-5)


def test_a_finished_run_that_is_resumed_has_them_again(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path, **saving)
    again = tiny_trainer(tmp_path, tiny_model(norm="batch"), clean_statistics=1.0, max_steps=2, **saving)
    again.train(resume_from_checkpoint="last")
    for key, value in statistics_of(whole.teacher).items():
        torch.testing.assert_close(statistics_of(again.teacher)[key], value)


def test_one_bad_image_does_not_spoil_the_finished_networks(tmp_path, caplog):
    unlabeled = TinyImages(8, seed=1, labels=False)
    unlabeled.samples[3]["pixel_values"][0, 12:20, 12:20] = float("nan")
    trainer = trained(tmp_path, unlabeled=unlabeled, max_steps=6)
    for network in (trainer.model, trainer.teacher):
        assert all(torch.isfinite(buffer).all() for buffer in network.buffers())
    assert "1 batches were left out" in caplog.text


@pytest.mark.parametrize(("size", "channels", "balanced", "said"), [
    (48, 1, False, "differ in shape"), (32, 3, False, "differ in shape"), (32, 1, True, "balance_domains needs")
])  # fmt: skip
def test_faults_of_unlabeled_images_are_found_before_the_training(tmp_path, size, channels, balanced, said):
    """Of a supervised run, too, whose steps never see them."""
    off = {"consistency_weight": 0.0, "divergence_weight": 0.0, "rho": 0.0, "balance_domains": balanced}
    unlabeled = TinyImages(4, size=size, channels=channels, labels=False)
    labeled = OfDomains(["a"] * 8)
    with pytest.raises(ValueError, match=said):
        tiny_trainer(tmp_path, tiny_model(norm="batch"), labeled, unlabeled, clean_statistics=1.0, **off)


def test_the_other_network_is_saved_with_clean_statistics_too(tmp_path):
    trainer = trained(tmp_path, save_strategy="steps", save_steps=2)
    trainer.save_model()
    pair = find_other_network(str(tmp_path))
    assert pair == tmp_path / "student"
    found = statistics_of(type(trainer.model).from_pretrained(pair))
    assert all(torch.equal(value, found[name]) for name, value in statistics_of(trainer.model).items())


def test_a_selection_by_running_statistics_says_so(tmp_path):
    selecting = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    selecting |= {"load_best_model_at_end": True, "select": "validation", "metric_for_best_model": "mean_dice"}
    trainer = trained(tmp_path, eval_dataset={"a": TinyImages(2)}, **selecting)
    assert trainer.training_summary()["selected"].endswith("on validation, by running statistics")


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"clean_statistics is 1\.0, but the model has no batch normalisation"):
        tiny_trainer(tmp_path, clean_statistics=1.0)
    with pytest.raises(ValueError, match="clean_statistics must be between 0 and 1"):
        tiny_arguments(tmp_path, clean_statistics=1.5)


def test_supervised_baselines_take_nothing_from_unlabeled_images():
    assert ablation_overrides("supervised")["clean_statistics"] == 0
    assert ablation_overrides("supervised-sam")["clean_statistics"] == 0
    assert "clean_statistics" not in ablation_overrides("supervised-statistics")


def test_the_upper_bound_keeps_clean_statistics(tmp_path):
    words = ["--dataset", "phantom:fundus", "--clean_statistics", "0.5"]
    found = {
        name: setting_job(words, name, 0, tmp_path).training.clean_statistics for name in ("upper-bound", "supervised")
    }
    assert found == {"upper-bound": 0.5, "supervised": 0}


@pytest.mark.parametrize(("unlabeled", "learned"), [(5, True), (0, False)])
def test_a_card_does_not_deny_the_images_that_were_normalised_by(tmp_path, unlabeled, learned):
    training = {"consistency_weight": 0.0, "divergence_weight": 0.0, "clean_statistics": 0.5}
    results = {"job": {"training": training}, "split": {"unlabeled": {"images": unlabeled}}}
    run = FinishedRun(tmp_path, results, {}, [])
    assert run.learned_unlabeled == learned
    assert "what it normalises by was estimated on images of the training" in _method(run)
    training["clean_statistics"] = 0.0
    assert not run.learned_unlabeled
