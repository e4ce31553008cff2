"""Running statistics estimated anew at the final weights: against plain averages, and what they leave alone."""

import copy

import pytest
import torch
from torch import nn

from dim_hf.batch_norm import estimate_running_statistics, has_running_statistics
from dim_hf.trainer.ablations import ablation_overrides
from dim_hf.trainer.streams import clean_batches
from tests.tiny import TinyImages, tiny_arguments, tiny_model, tiny_trainer


def statistics_of(network):
    return {name: buffer.clone() for name, buffer in network.named_buffers() if "running_" in name}


def test_means_and_variances_are_averaged_over_the_batches():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(3, 2, 4, 4, generator=generator) * 3 + index for index in range(4)]
    layer = nn.BatchNorm2d(2, momentum=0.3).eval()
    layer.running_mean.fill_(9.0)
    estimate_running_statistics(layer, batches, layer)
    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert (layer.training, layer.momentum) == (False, 0.3)


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
    estimate_running_statistics(network, [torch.rand(2, 1, 4, 4)], lambda x: seen.append(network[2].training))
    assert seen == [False]
    assert torch.equal(before["0.weight"], network[0].weight)
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


def trained(folder, **arguments):
    settings = {"final_statistics": "clean", "max_steps": 2, "learning_rate": 0.02}
    trainer = tiny_trainer(folder, tiny_model(norm="batch"), **settings | arguments)
    trainer.train()
    return trainer


def test_finished_networks_have_the_statistics_of_clean_images_and_no_other_weights(tmp_path):
    clean, running = trained(tmp_path / "clean"), trained(tmp_path / "running", final_statistics="running")
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
    again = tiny_trainer(tmp_path, tiny_model(norm="batch"), final_statistics="clean", max_steps=2, **saving)
    again.train(resume_from_checkpoint="last")
    for key, value in statistics_of(whole.teacher).items():
        torch.testing.assert_close(statistics_of(again.teacher)[key], value)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match='final_statistics="clean" needs batch normalisation, the model has none'):
        tiny_trainer(tmp_path, final_statistics="clean")
    with pytest.raises(ValueError, match="final_statistics must be one of running, clean, got 'pool'"):
        tiny_arguments(tmp_path, final_statistics="pool")


def test_supervised_baselines_take_nothing_from_unlabeled_images():
    assert ablation_overrides("supervised")["final_statistics"] == "running"
    assert ablation_overrides("supervised-sam")["final_statistics"] == "running"
    assert "final_statistics" not in ablation_overrides("supervised-statistics")
