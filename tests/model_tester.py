"""What every segmentation model of this package must do; a test of a new variant is one configuration."""

import copy

import torch

from dim_hf.models import DimUNetConfig, DimUNetForSemanticSegmentation


def tiny_config(**fields):
    return DimUNetConfig(**{"hidden_sizes": [4, 8, 8], "num_channels": 1, "num_labels": 3, **fields})


def tiny_model(seed=0, **fields):
    torch.manual_seed(seed)
    return DimUNetForSemanticSegmentation(tiny_config(**fields))


def batch(config, size, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(count, config.num_channels, *size, generator=generator)
    labels = torch.randint(0, config.num_labels, (count, *size), generator=generator)
    return pixel_values, labels


def gradients(model, pixel_values, labels):
    model.zero_grad(set_to_none=True)
    loss = model(pixel_values, labels).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def checkpoint(model, **options):
    """Turn gradient checkpointing on, under the name that this release of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options or None)


class ModelTester:
    """Runs the whole list on one configuration."""

    def __init__(self, size, **fields):
        self.model = tiny_model(**fields)
        self.size = size
        self.pixel_values, self.labels = batch(self.model.config, size)

    def check_all(self, directory):
        self.check_shapes_and_loss()
        self.check_every_parameter_learns()
        self.check_checkpointing()
        self.check_round_trip(directory)

    def check_shapes_and_loss(self):
        output = self.model(self.pixel_values, self.labels)
        assert output.logits.shape == (len(self.labels), self.model.config.num_labels, *self.size)
        assert output.loss.ndim == 0
        assert output.loss.isfinite()
        assert self.model(self.pixel_values).loss is None

    def check_every_parameter_learns(self):
        _, found = gradients(self.model, self.pixel_values, self.labels)
        for name, gradient in found.items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
        assert all(gradient.abs().sum() > 0 for name, gradient in found.items() if "conv" in name or "head" in name)

    def check_checkpointing(self):
        for reentrant in (False, True):
            plain, checkpointed = copy.deepcopy(self.model).train(), copy.deepcopy(self.model).train()
            checkpoint(checkpointed, use_reentrant=reentrant)
            loss, expected = gradients(plain, self.pixel_values, self.labels)
            again, found = gradients(checkpointed, self.pixel_values, self.labels)
            assert torch.equal(loss, again)
            for name in expected:
                assert torch.equal(expected[name], found[name]), name
            # The recomputation must not move the running statistics a second time.
            for (name, before), after in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
                assert torch.equal(before, after), name
            assert all(
                m.track_running_stats
                for m in checkpointed.modules()
                if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
            )

    def check_round_trip(self, directory):
        self.model.save_pretrained(directory)
        assert [path.name for path in directory.glob("*") if path.suffix in (".bin", ".pt", ".safetensors")] == [
            "model.safetensors"
        ]
        again = DimUNetForSemanticSegmentation.from_pretrained(directory)
        states = self.model.state_dict(), again.state_dict()
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            assert value.dtype == states[1][name].dtype, name
            assert torch.equal(value, states[1][name]), name
        with torch.no_grad():
            assert torch.equal(self.model.eval()(self.pixel_values).logits, again(self.pixel_values).logits)
