import json
import os
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from dim_hf.models import (
    DimImageProcessor,
    DimUNetConfig,
    DimUNetForSemanticSegmentation,
    configuration_dim_unet,
    modeling_dim_unet,
)
from dim_hf.models.loss_dim_unet import cross_entropy_and_dice, pixel_cross_entropy, soft_dice_loss
from tests.model_tester import ModelTester, batch, checkpoint, gradients, tiny_config, tiny_model

PACKAGE_ROOT = Path(modeling_dim_unet.__file__).parents[2]


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "legal"),
    [
        ({"norm": "layer"}, "norm", "'batch', 'instance', 'group'"),
        ({"activation": "tanh"}, "activation", "'relu'"),
        ({"upsample": "nearest"}, "upsample", "'transpose', 'interpolate'"),
        ({"spatial_dims": 4}, "spatial_dims", "2, 3"),
        ({"num_channels": 0}, "num_channels", "positive"),
        ({"hidden_sizes": [8]}, "hidden_sizes", "at least two"),
        ({"hidden_sizes": [8, -1]}, "hidden_sizes", "positive"),
        ({"dropout": 1.0}, "dropout", "[0, 1)"),
        ({"deep_supervision": "yes"}, "deep_supervision", "True or False"),
        ({"num_labels": 1}, "num_labels", "at least 2"),
        ({"num_labels": -3}, "num_labels", "at least 2"),
        ({"id2label": {0: "background", 2: "cup"}}, "id2label", "0..1"),
        ({"loss_ignore_index": 1}, "loss_ignore_index", "0..1"),
        ({"plane": "oblique"}, "plane", "'axial', 'coronal', 'sagittal', 'auto'"),
        ({"structures": {"cup": [2]}}, "structures['cup']", "0..1"),
        ({"structures": {"cup": []}}, "structures['cup']", "0..1"),
        ({"structures": {}}, "structures", "None"),
        ({"structures": {"cup": 1}}, "structures['cup']", "0..1"),
        ({"id2label": ["background", "cup"]}, "id2label", "0..K-1"),
        ({"id2label": {0: "a", 1: "b", 2: "b"}}, "id2label", "a name of its own"),
    ],
)
def test_an_illegal_value_is_named_with_the_legal_ones(fields, field, legal):
    with pytest.raises(ValueError, match=re.escape(field)) as error:
        DimUNetConfig(**fields)
    assert legal in str(error.value)


def test_a_field_set_after_construction_is_checked_by_the_model():
    config = tiny_config()
    config.norm = "layer"
    with pytest.raises(ValueError, match="layer"):
        DimUNetForSemanticSegmentation(config)


def test_the_tables_of_the_model_have_a_row_for_each_legal_value():
    assert set(modeling_dim_unet._SPATIAL) == set(configuration_dim_unet.SPATIAL_DIMS)
    assert set(modeling_dim_unet._NORMS) == set(configuration_dim_unet.NORMS)
    assert set(modeling_dim_unet._ACTIVATIONS) == set(configuration_dim_unet.ACTIVATIONS)


def test_configuration_round_trip(tmp_path):
    config = DimUNetConfig(
        num_channels=1,
        spatial_dims=3,
        hidden_sizes=(8, 16),
        norm="group",
        dropout=0.25,
        deep_supervision=True,
        id2label={0: "background", 1: "rim", 2: "cup"},
        structures={"disc": (1, 2), "cup": [2]},
    )
    config.save_pretrained(tmp_path)
    again = DimUNetConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.structures == {"disc": [1, 2], "cup": [2]}
    assert again.label2id == {"background": 0, "rim": 1, "cup": 2}
    assert again.num_labels == 3
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "dim_unet"


# --- architecture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "count"), [(3, 31_037_698), (1, 31_036_546)])
def test_the_benchmark_network_has_the_benchmark_number_of_parameters(channels, count):
    with torch.device("meta"):
        model = DimUNetForSemanticSegmentation(DimUNetConfig(num_channels=channels))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def plain_unet(state, x, levels):
    """The default network in evaluation mode, written out with functions: an independent reference."""

    def block(prefix, x):
        for index in (1, 2):
            x = F.conv2d(x, state[f"{prefix}.conv{index}.weight"], padding=1)
            names = (f"{prefix}.norm{index}.{name}" for name in ("running_mean", "running_var", "weight", "bias"))
            x = F.relu(F.batch_norm(x, *(state[name] for name in names)))
        return x

    skips = []
    for level in range(levels):
        x = block(f"encoder.{level}", F.max_pool2d(x, 2) if level else x)
        skips.append(x)
    for step, skip in enumerate(reversed(skips[:-1])):
        x = F.conv_transpose2d(
            x, state[f"decoder.{step}.project.weight"], state[f"decoder.{step}.project.bias"], stride=2
        )
        x = block(f"decoder.{step}.block", torch.cat([skip, x], 1))
    return F.conv2d(x, state["head.weight"], state["head.bias"])


def test_the_default_network_is_a_plain_unet():
    model = tiny_model()
    pixel_values, labels = batch(model.config, (16, 24))
    gradients(model, pixel_values, labels)  # moves the running statistics off their start
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, plain_unet(model.state_dict(), pixel_values, 3))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("upsample", ["transpose", "interpolate"])
def test_every_variant_does_what_a_model_must(spatial_dims, norm, upsample, tmp_path):
    ModelTester(
        (9, 14) if spatial_dims == 2 else (3, 9, 10),
        spatial_dims=spatial_dims,
        norm=norm,
        upsample=upsample,
        num_channels=3 if norm == "group" else 1,
        deep_supervision=upsample == "interpolate",
        dropout=0.0,
    ).check_all(tmp_path)


@pytest.mark.parametrize("activation", configuration_dim_unet.ACTIVATIONS)
def test_every_activation_trains(activation):
    ModelTester((8, 8), activation=activation).check_every_parameter_learns()


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (2, 3), (4, 4), (5, 8), (8, 8), (1, 1, 1), (1, 7, 5), (2, 4, 4), (3, 1, 9), (4, 8, 4)]
)
def test_any_size_goes_through_training_and_evaluation_even_a_single_image(norm, size):
    model = tiny_model(norm=norm, spatial_dims=len(size))
    pixel_values, labels = batch(model.config, size, count=1)
    loss, _ = gradients(model.train(), pixel_values, labels)
    assert loss.isfinite()
    with torch.no_grad():
        logits = model.eval()(pixel_values).logits
    assert logits.shape == (1, 3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(9, 14), (3, 9, 10)])
def test_padding_repeats_the_border_and_is_cropped_away(size):
    model = tiny_model(spatial_dims=len(size)).eval()
    pixel_values, _ = batch(model.config, size)
    padded = pixel_values
    for axis, length in enumerate(size, start=2):
        border = padded.narrow(axis, length - 1, 1)
        padded = torch.cat([padded, border.repeat_interleave(-length % 4, dim=axis)], dim=axis)
    with torch.no_grad():
        expected = model(padded).logits[(..., *(slice(length) for length in size))]
        torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=0)


def test_hidden_states_when_asked():
    model = tiny_model()
    pixel_values, _ = batch(model.config, (9, 14))
    assert model(pixel_values).hidden_states is None
    shapes = [tuple(state.shape) for state in model(pixel_values, output_hidden_states=True).hidden_states]
    assert shapes == [(2, 4, 12, 16), (2, 8, 6, 8), (2, 8, 3, 4), (2, 8, 6, 8), (2, 4, 12, 16)]
    model.config.output_hidden_states = True
    assert len(model(pixel_values).hidden_states) == 5


def test_a_tuple_when_asked():
    model = tiny_model().eval()
    pixel_values, labels = batch(model.config, (8, 8))
    loss, logits = model(pixel_values, labels, return_dict=False)
    output = model(pixel_values, labels)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_dropout_drops_whole_channels_of_the_deepest_features_in_training_only():
    model = tiny_model(dropout=0.5)
    pixel_values, _ = batch(model.config, (16, 16))
    seen = []
    model.decoder[0].project.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    torch.manual_seed(3)
    model(pixel_values)
    dropped = (seen[0] == 0).flatten(2).all(2)
    assert dropped.any()
    assert not dropped.all()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)


@contextmanager
def frozen_statistics(model, is_on):
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)] if is_on else []
    before = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
        norm._buffers.update(dict.fromkeys(norm._buffers))
    yield
    for norm, buffers in zip(norms, before, strict=True):
        norm.track_running_stats = True
        norm._buffers.update(buffers)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("in_forward", "in_backward"), [(True, False), (False, True), (True, True)])
def test_checkpointing_agrees_with_statistics_frozen_by_a_two_pass_step(reentrant, in_forward, in_backward):
    plain, model = tiny_model(), tiny_model()
    pixel_values, labels = batch(model.config, (16, 16))
    _, expected = gradients(plain, pixel_values, labels)
    start = tiny_model() if in_forward else plain
    checkpoint(model, use_reentrant=reentrant)
    with frozen_statistics(model, in_forward):
        loss = model(pixel_values, labels).loss
    with frozen_statistics(model, in_backward):
        loss.backward()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, start.get_buffer(name)), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


def test_checkpointing_replays_the_dropout_mask():
    plain = tiny_model(dropout=0.5)
    pixel_values, labels = batch(plain.config, (16, 16))
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(gradients(plain, pixel_values, labels)[1])
        checkpoint(plain)
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


@pytest.mark.parametrize("size", [(9, 14), (3, 9, 10)])
def test_loss_with_deep_supervision_is_the_weighted_mean_over_levels(size):
    model = tiny_model(deep_supervision=True, hidden_sizes=[4, 4, 4, 4], spatial_dims=len(size)).eval()
    pixel_values, labels = batch(model.config, size)
    coarse = []
    for head in model.auxiliary_heads:
        head.register_forward_hook(lambda _, __, output: coarse.append(output))
    with torch.no_grad():
        output = model(pixel_values, labels)
    assert [tuple(logits.shape[2:]) for logits in coarse] == [
        tuple(-(-length // 8) * 8 // stride for length in size) for stride in (2, 4)
    ]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    expected = cross_entropy_and_dice(output.logits, labels)
    for weight, stride, logits in zip((0.5, 0.25), (2, 4), coarse, strict=True):
        large = F.interpolate(logits, scale_factor=stride, mode=mode)[(..., *(slice(length) for length in size))]
        expected = expected + weight * cross_entropy_and_dice(large, labels)
    torch.testing.assert_close(output.loss, expected / 1.75)


@pytest.mark.parametrize(
    ("shape", "spatial_dims", "message"),
    [
        ((2, 3, 8, 8), 2, r"C = 1.*\(2, 3, 8, 8\)"),
        ((1, 8, 8), 2, r"\(N, C, H, W\)"),
        ((2, 1, 8, 8), 3, r"\(N, C, D, H, W\)"),
        ((2, 1, 0, 8), 2, r"\(2, 1, 0, 8\)"),
    ],
)
def test_pixel_values_of_a_wrong_shape_are_refused(shape, spatial_dims, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(spatial_dims=spatial_dims)(torch.zeros(shape))


def test_wrong_types_and_labels_are_refused():
    model = tiny_model()
    pixel_values, labels = batch(model.config, (8, 8))
    with pytest.raises(ValueError, match="floating"):
        model(pixel_values.to(torch.uint8))
    with pytest.raises(ValueError, match=r"labels.*\(2, 8, 8\)"):
        model(pixel_values, labels[:, :4])
    with pytest.raises(ValueError, match="integers"):
        model(pixel_values, labels.float())


# --- numeric types, layouts, loading ---------------------------------------------------------------------------------


def trained_on_disk(directory, **fields):
    """A model whose running statistics are not the initial ones."""
    model = tiny_model(seed=1, **fields)
    for _ in range(3):
        gradients(model, *batch(model.config, (16, 16)))
    model.save_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_loads_in_every_floating_type_with_normalisation_in_float32(dtype, norm, tmp_path):
    reference = trained_on_disk(tmp_path, norm=norm)
    model = DimUNetForSemanticSegmentation.from_pretrained(tmp_path, dtype=dtype)
    assert model.head.weight.dtype == dtype
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, reference.get_buffer(name)), name
    assert model.encoder[0].norm1.weight.dtype == torch.float32
    pixel_values, labels = batch(model.config, (9, 14))
    with torch.no_grad():
        output, expected = model(pixel_values, labels), reference(pixel_values, labels)
    assert output.logits.dtype == dtype
    assert output.loss.dtype == torch.float32
    tolerance = {torch.float32: 0, torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]
    assert (output.logits.float() - expected.logits).abs().max() <= tolerance * expected.logits.abs().max()
    model.train()(pixel_values, labels).loss.backward()


def test_cast_as_a_whole_it_still_runs(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    pixel_values, labels = batch(model.config, (8, 8))
    assert model(pixel_values, labels).loss.isfinite()


def test_built_on_the_meta_device_it_takes_a_state(tmp_path):
    reference = trained_on_disk(tmp_path)
    with torch.device("meta"):
        model = DimUNetForSemanticSegmentation(reference.config)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    pixel_values, _ = batch(model.config, (8, 8))
    with torch.no_grad():
        assert torch.equal(model.eval()(pixel_values).logits, reference(pixel_values).logits)


@pytest.mark.parametrize(
    ("missing", "fill"),
    [
        ("encoder.1.norm1.running_var", 1.0),
        ("encoder.1.norm1.running_mean", 0.0),
        ("encoder.0.norm2.bias", 0.0),
        ("encoder.1.conv1.weight", None),
        ("decoder.0.project.bias", None),
        ("head.weight", None),
    ],
)
def test_a_missing_key_leaves_its_siblings_alone(missing, fill, tmp_path):
    trained_on_disk(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for value in state.values():  # values that no initialisation draws
        value.copy_(torch.full_like(value, 7))
    del state[missing]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = DimUNetForSemanticSegmentation.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        if name != missing:
            assert (value == 7).all(), name
        elif fill is not None:
            assert (value == fill).all()
        else:
            fan_in = model.get_submodule(name.rpartition(".")[0]).weight[0].numel()
            assert 0 < value.abs().max() <= fan_in**-0.5


def test_initial_weights_have_the_scale_of_the_fan_in_and_follow_the_seed():
    model, again, other = tiny_model(4), tiny_model(4), tiny_model(5)
    weight = model.encoder[2].conv2.weight
    bound = (8 * 9) ** -0.5
    assert 0.95 * bound < weight.abs().max() <= bound
    torch.testing.assert_close(weight.std().item(), bound / 3**0.5, rtol=0.1, atol=0)
    assert torch.equal(weight, again.encoder[2].conv2.weight)
    assert not torch.equal(weight, other.encoder[2].conv2.weight)


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_channels_last_changes_nothing_but_the_layout(size):
    model = tiny_model(num_channels=3)
    pixel_values, labels = batch(model.config, size)
    loss, expected = gradients(model, pixel_values, labels)
    model = tiny_model(num_channels=3).to(memory_format=torch.channels_last)
    last, found = gradients(model, pixel_values.contiguous(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(last, loss)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_bf16_autocast_with_channels_last_trains_close_to_float32(norm):
    model = tiny_model(norm=norm).to(memory_format=torch.channels_last)
    pixel_values, labels = batch(model.config, (9, 14))
    expected = model(pixel_values, labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixel_values.contiguous(memory_format=torch.channels_last), labels)
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.05, atol=0)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- losses ----------------------------------------------------------------------------------------------------------


def random_case(count=4, classes=3, size=(5, 6), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, *size, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (count, *size), generator=generator)
    labels[torch.rand(count, *size, generator=generator) < 0.2] = 255
    return logits, labels


def test_cross_entropy_of_a_case_on_paper():
    # Image 0: two equal logits on both pixels, one ignored: log 2. Image 1: both count, log 2 and about 0.
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 40.0], [0.0, 0.0]]], dtype=torch.float64)
    labels = torch.tensor([[1, 255], [0, 0]])
    log2 = torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), (log2 + log2 / 2) / 2)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, divide_by="pixels"), (log2 / 2 + log2 / 2) / 2)
    weight = torch.tensor([[1.0, 9.0], [3.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels, weight=weight), (log2 + 3 * log2 / 4) / 2)


def test_dice_of_a_case_on_paper():
    # Four pixels, class 1 predicted on two, true on two, one in common: (2·1 + 1)/(2 + 2 + 1) for both classes.
    probabilities = torch.tensor([[[0.0, 0, 1, 1], [1.0, 1, 0, 0]]])
    labels = torch.tensor([[0, 1, 1, 0]])
    torch.testing.assert_close(soft_dice_loss(probabilities, labels), torch.tensor(1 - 3 / 5))
    # Without the two wrong pixels it is perfect, whether ignored by label or by mask.
    assert soft_dice_loss(probabilities, torch.tensor([[255, 1, 255, 0]])) == 0
    ignored = torch.tensor([[255, 1, 1, 0]])
    mask = torch.tensor([[True, True, False, True]])
    torch.testing.assert_close(
        soft_dice_loss(probabilities, ignored),
        soft_dice_loss(probabilities, labels, labels.new_tensor([[0, 1, 1, 1]])),
    )
    torch.testing.assert_close(soft_dice_loss(probabilities, ignored, mask), torch.tensor(1 - (3 / 3 + 2 / 2 + 0) / 2))


def test_losses_agree_with_a_loop_over_images_and_classes():
    logits, labels = random_case()
    total = 0.0
    for image, label in zip(logits, labels, strict=True):
        valid = label != 255
        probabilities = image.softmax(0)[:, valid]
        truth = F.one_hot(label[valid], 3).T
        picked = probabilities.gather(0, label[valid][None])
        dice = [
            (2 * (p * t).sum() + 1) / (p.square().sum() + t.sum() + 1)
            for p, t in zip(probabilities, truth, strict=True)
        ]
        total += -picked.log().mean() + 1 - sum(dice) / 3
    torch.testing.assert_close(cross_entropy_and_dice(logits, labels), total / len(logits))


def test_unweighted_cross_entropy_of_one_image_is_that_of_torch():
    logits, labels = random_case(count=1)
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), F.cross_entropy(logits, labels, ignore_index=255))


@pytest.mark.parametrize("form", ["sum", "cross_entropy", "pixels", "dice"])
@pytest.mark.parametrize("size", [(5, 6), (2, 3, 4)])
def test_the_mean_over_equal_micro_batches_is_the_loss_of_the_batch(form, size):
    logits, labels = random_case(count=8, size=size)
    labels[3] = 255  # an image without labels counts as an image in either case
    weight = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    compute = {
        "sum": lambda x, y, _: cross_entropy_and_dice(x, y),
        "cross_entropy": lambda x, y, w: pixel_cross_entropy(x, y, weight=w),
        "pixels": lambda x, y, w: pixel_cross_entropy(x, y, weight=w, divide_by="pixels"),
        "dice": lambda x, y, w: soft_dice_loss(x.softmax(1), y, w),
    }[form]
    whole = compute(logits, labels, weight)
    for parts in (2, 4, 8):
        chunks = zip(logits.chunk(parts), labels.chunk(parts), weight.chunk(parts), strict=True)
        torch.testing.assert_close(sum(compute(*chunk) for chunk in chunks) / parts, whole, rtol=1e-12, atol=0)


def test_ignored_pixels_get_no_gradient_and_do_not_count():
    logits, labels = random_case()
    logits.requires_grad_()
    loss = cross_entropy_and_dice(logits, labels)
    loss.backward()
    ignored = (labels == 255).unsqueeze(1).expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    changed = torch.where(ignored, torch.randn_like(logits), logits.detach())
    torch.testing.assert_close(cross_entropy_and_dice(changed, labels), loss.detach())


def test_a_mask_acts_as_ignoring_does():
    logits, labels = random_case()
    mask = labels != 255
    clean = torch.where(mask, labels, torch.zeros_like(labels))
    torch.testing.assert_close(pixel_cross_entropy(logits, clean, weight=mask), pixel_cross_entropy(logits, labels))
    torch.testing.assert_close(
        soft_dice_loss(logits.softmax(1), clean, mask), soft_dice_loss(logits.softmax(1), labels)
    )


def test_a_batch_of_ignored_pixels_only_has_a_loss_of_zero_and_no_gradient():
    logits, labels = random_case()
    logits.requires_grad_()
    loss = cross_entropy_and_dice(logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_dice_takes_probabilities_as_targets():
    logits, labels = random_case()
    labels = labels.clamp(max=2)
    hard = F.one_hot(labels, 3).movedim(-1, 1).double()
    torch.testing.assert_close(
        soft_dice_loss(logits.softmax(1), hard), soft_dice_loss(logits.softmax(1), labels), rtol=1e-12, atol=0
    )


def test_an_absent_class_that_is_predicted_has_a_gradient():
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    soft_dice_loss(logits.softmax(1), torch.zeros(1, 8, 8, dtype=torch.long)).backward()
    assert (logits.grad[:, 1] > 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_computed_in_float32_at_least_also_under_autocast(dtype):
    logits, labels = random_case(dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = cross_entropy_and_dice(logits.to(wide), labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropy_and_dice(logits, labels.to(torch.uint8))
    assert found.dtype == wide
    torch.testing.assert_close(found, expected)


def test_shapes_that_do_not_fit_are_refused():
    logits, labels = random_case()
    with pytest.raises(ValueError, match="interpolate the logits"):
        cross_entropy_and_dice(logits, labels[:, :2])
    with pytest.raises(ValueError, match="weight"):
        pixel_cross_entropy(logits, labels, weight=torch.ones(2))
    with pytest.raises(ValueError, match="'weight' or 'pixels'"):
        pixel_cross_entropy(logits, labels, divide_by="images")


def test_losses_have_right_gradients():
    logits, labels = random_case(count=2, size=(2, 3))
    weight = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy_and_dice(x, labels), logits)
    assert torch.autograd.gradcheck(lambda x: soft_dice_loss(x.softmax(1), labels, weight), logits)


def test_a_few_steps_learn_a_square():
    model = tiny_model(norm="batch", num_labels=2)
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[:, 4:12, 4:12] = 1
    pixel_values = labels[:, None].float() + 0.1 * batch(model.config, (16, 16))[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        model(pixel_values, labels).loss.backward()
        optimizer.step()
    assert model(pixel_values, labels).loss < 0.2


# --- imports and remote code -----------------------------------------------------------------------------------------


def run_clean(code, cwd, **environment):
    """Run code in a new interpreter, offline, from a folder that is not the project's."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_losses_and_the_package_import_without_transformers(tmp_path):
    code = """
        import sys
        import dim_hf.models
        from dim_hf.models.loss_dim_unet import cross_entropy_and_dice
        assert "transformers" not in sys.modules
        assert "DimUNetConfig" in dir(dim_hf.models)
        try:
            dim_hf.models.DimVNet
        except AttributeError as error:
            assert "DimUNetConfig" in str(error)
        else:
            raise AssertionError
    """
    run_clean(code, tmp_path, PYTHONPATH=str(PACKAGE_ROOT))


def test_the_model_files_import_siblings_and_declared_packages_only():
    declared = {"torch", "transformers", "numpy", "PIL"} | set(sys.stdlib_module_names)
    for path in Path(modeling_dim_unet.__file__).parent.glob("*_dim_unet.py"):
        for name in re.findall(r"^\s*(?:from|import)\s+(\S+)", path.read_text(), flags=re.MULTILINE):
            assert re.fullmatch(r"\.[a-z_]+_dim_unet", name) or name.split(".")[0] in declared, (path.name, name)


@pytest.mark.slow
def test_code_travels_with_the_model_and_loads_where_the_package_is_unknown(tmp_path):
    folder = tmp_path / "model"
    save = f"""
        import torch
        from dim_hf.models import DimImageProcessor, DimUNetConfig, DimUNetForSemanticSegmentation
        DimUNetConfig.register_for_auto_class()
        DimUNetForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
        DimImageProcessor.register_for_auto_class()
        torch.manual_seed(0)
        model = DimUNetForSemanticSegmentation(DimUNetConfig(hidden_sizes=[4, 8], num_channels=1)).eval()
        model.save_pretrained({str(folder)!r})
        DimImageProcessor(num_channels=1, size=16, intensity="zscore").save_pretrained({str(folder)!r})
        image = torch.arange(64, dtype=torch.uint8).view(8, 8)
        inputs = DimImageProcessor.from_pretrained({str(folder)!r})(image, return_tensors="pt")
        torch.save(model(**inputs).logits.detach(), {str(tmp_path / "logits.pt")!r})
    """
    run_clean(save, tmp_path, PYTHONPATH=str(PACKAGE_ROOT))
    names = {path.name for path in folder.glob("*.py")}
    stems = ("configuration", "modeling", "image_processing", "intensity", "loss")
    assert names == {f"{stem}_dim_unet.py" for stem in stems}

    load = f"""
        import sys
        sys.path = [path for path in sys.path if path != {str(PACKAGE_ROOT)!r}]
        # An editable install adds a finder of its own, and the package must not be there by any road.
        sys.modules["dim_hf"] = None
        import torch
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
        folder = {str(folder)!r}
        assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "dim_unet"
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        assert processor.intensity == "zscore" and processor.size == {{"height": 16, "width": 16}}
        inputs = processor(torch.arange(64, dtype=torch.uint8).view(8, 8), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        assert torch.equal(logits, torch.load({str(tmp_path / "logits.pt")!r}))
        masks = processor.post_process_semantic_segmentation({{"logits": logits}}, target_sizes=[(8, 8)])
        assert masks[0].shape == (8, 8)
        print("loaded")
    """
    assert "loaded" in run_clean(load, tmp_path, HF_HOME=str(tmp_path / "home"))


def test_auto_classes_find_the_model_and_the_processor_once_registered(tmp_path):
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

    AutoConfig.register("dim_unet", DimUNetConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(DimUNetConfig, DimUNetForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(DimUNetConfig, image_processor_classes={"pil": DimImageProcessor}, exist_ok=True)
    tiny_model().save_pretrained(tmp_path)
    DimImageProcessor(num_channels=1).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DimUNetConfig)
    assert isinstance(AutoModelForSemanticSegmentation.from_pretrained(tmp_path), DimUNetForSemanticSegmentation)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), DimImageProcessor)


def test_layers_are_those_of_the_configured_norm():
    kinds = {"batch": nn.BatchNorm3d, "instance": nn.InstanceNorm3d, "group": nn.GroupNorm}
    for norm, kind in kinds.items():
        model = tiny_model(norm=norm, spatial_dims=3)
        assert isinstance(model.encoder[0].norm1, kind)
        assert not isinstance(model.encoder[0].norm1, tuple(set(kinds.values()) - {kind}))
