import importlib.util
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import uniform_filter
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from dim_hf.models import DimImageProcessor, DimUNetConfig, DimUNetForSemanticSegmentation
from dim_hf.models.intensity_dim_unet import INTENSITIES
from tests.model_tester import tiny_config, tiny_model

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def pixels(image, **fields):
    """The pixel values of one image, (C, *S)."""
    return DimImageProcessor(**fields)(image, return_tensors="pt")["pixel_values"][0]


def png(image):
    """What a file of the image is read as."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return Image.open(io.BytesIO(buffer.getvalue()))


# --- what is taken as an image ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        GREY,
        GREY[None],
        GREY[..., None],
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[None],
        torch.from_numpy(GREY)[None, None],
        GREY[None, ..., None],
        [GREY],
        (Image.fromarray(GREY),),
        GREY.astype(np.float32) / 255,
        GREY.astype(np.float64) / 255,
        torch.from_numpy(GREY) / 255,
        (torch.from_numpy(GREY) / 255).requires_grad_(),
        Image.fromarray(GREY.astype(np.float32) / 255),
        Image.fromarray(np.stack([GREY, GREY[::-1]], axis=-1), mode="LA"),
        GREY.astype(np.uint16) * 257,
        (GREY.astype(np.uint16) * 257).astype(">u2"),
        png(Image.fromarray(GREY.astype(np.uint16) * 257)),
        Image.fromarray(GREY.astype(np.int32) * 257),
        GREY[:, ::-1][:, ::-1],
    ],
)
def test_every_form_of_a_grey_image_gives_the_same_pixel_values(image):
    expected = torch.from_numpy(GREY).float()[None] / 255
    torch.testing.assert_close(pixels(image, num_channels=1), expected)
    torch.testing.assert_close(pixels(image, num_channels=3), expected.expand(3, -1, -1))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOUR),
        COLOUR,
        np.moveaxis(COLOUR, -1, 0),
        torch.from_numpy(COLOUR),
        torch.from_numpy(COLOUR).permute(2, 0, 1),
        Image.fromarray(np.dstack([COLOUR, GREY]), mode="RGBA"),
        np.dstack([COLOUR, GREY]),
        COLOUR.astype(np.float32) / 255,
        COLOUR.astype(np.uint16) * 257,
    ],
)
def test_every_form_of_a_colour_image_gives_the_same_pixel_values(image):
    expected = torch.from_numpy(COLOUR).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(pixels(image), expected)
    luma = 0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2]
    torch.testing.assert_close(pixels(image, num_channels=1), luma[None])


def test_luma_is_that_of_pil_up_to_its_rounding():
    expected = np.asarray(Image.fromarray(COLOUR).convert("L"), dtype=np.float32) / 255
    assert np.abs(pixels(COLOUR, num_channels=1)[0].numpy() - expected).max() <= 1.01 / 255


def test_palettes_are_resolved():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0])
    expected = torch.tensor([[[10, 200], [0, 200]], [[20, 100], [255, 100]], [[30, 50], [0, 50]]]) / 255
    for form in (image, png(image)):
        torch.testing.assert_close(pixels(form), expected)


def test_black_and_white_images():
    image = Image.fromarray(GREY > 100)
    torch.testing.assert_close(pixels(image, num_channels=1)[0], torch.from_numpy(GREY > 100).float())
    torch.testing.assert_close(pixels(GREY > 100, num_channels=1)[0], torch.from_numpy(GREY > 100).float())


def test_half_precision_tensors():
    expected = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(pixels(expected.to(dtype), num_channels=1), expected.to(dtype).float())


def test_other_numbers_of_channels_pass_unchanged():
    image = np.random.default_rng(0).random((4, 6, 7), dtype=np.float32)
    torch.testing.assert_close(pixels(image, num_channels=4), torch.from_numpy(image))
    image = np.random.default_rng(0).random((6, 7, 5), dtype=np.float32)
    torch.testing.assert_close(pixels(image, num_channels=5), torch.from_numpy(image).permute(2, 0, 1))


def test_the_channel_axis_is_the_first_where_both_fit_unless_told():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    processor = DimImageProcessor()
    first = processor(image, return_tensors="pt")["pixel_values"][0]
    last = processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
    torch.testing.assert_close(first, torch.from_numpy(image) / 255)
    torch.testing.assert_close(last, torch.from_numpy(image).permute(2, 0, 1) / 255)


def test_lists_and_batches():
    images = np.stack([COLOUR, COLOUR[::-1]])
    processor = DimImageProcessor()
    expected = processor(images, return_tensors="pt")["pixel_values"]
    assert expected.shape == (2, 3, 6, 8)
    mixed = [Image.fromarray(COLOUR), torch.from_numpy(COLOUR[::-1].copy())]
    assert torch.equal(processor(mixed, return_tensors="pt")["pixel_values"], expected)
    as_arrays = processor(mixed)["pixel_values"]
    assert isinstance(as_arrays, list)
    assert all(array.dtype == np.float32 for array in as_arrays)
    sizes = [array.shape for array in processor([COLOUR, COLOUR[:5]])["pixel_values"]]
    assert sizes == [(3, 6, 8), (3, 5, 8)]


@pytest.mark.parametrize(
    ("image", "fields", "message"),
    [
        ([], {}, "empty"),
        (np.zeros((0, 4)), {}, "empty"),
        ("scan.png", {}, "str"),
        (np.array([["a", "b"]]), {}, "<U1"),
        (np.zeros((4, 4), dtype=complex), {}, "complex128"),
        (np.zeros((7, 6, 8)), {}, re.escape("(7, 6, 8)")),
        (np.zeros(5), {}, re.escape("(5,)")),
        (np.zeros((5, 6, 8), dtype=np.uint8), {"num_channels": 2}, re.escape("[1, 2, 3, 4]")),
        (np.zeros((3, 6, 8), dtype=np.uint8), {"num_channels": 2}, "num_channels=2"),
        (Image.fromarray(GREY), {"spatial_dims": 3}, "spatial_dims is 3"),
        (
            GREY.astype(np.int16),
            {},
            r"int16 with values in \[.*\[0, 255\] of uint8.*rescale the image.*intensity_range",
        ),
        (GREY.astype(np.int64), {}, "int64.*rescale the image.*intensity_range"),
        (GREY.astype(np.float32), {}, r"expects values in \[0, 1\]: rescale the image\. To train.*intensity_range"),
        ([GREY, GREY[:3]], {}, r"\(3, 8\), \(6, 8\)"),
    ],
)
def test_what_cannot_be_used_is_named(image, fields, message):
    with pytest.raises(ValueError, match=message):
        DimImageProcessor(**fields)(image, return_tensors="pt")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("intensity", INTENSITIES)
def test_pixels_that_are_not_finite_are_refused(value, intensity):
    image = GREY / 255
    image[2, 3] = value
    with pytest.raises(ValueError, match="image 1 holds NaN or infinite"):
        DimImageProcessor(intensity=intensity)([GREY, image])


# --- intensity -------------------------------------------------------------------------------------------------------


def test_sixteen_bits_keep_their_depth():
    image = np.array([[0, 1, 2], [30000, 30001, 65535]], dtype=np.uint16)
    for form in (image, png(Image.fromarray(image)), Image.fromarray(image.astype(np.int32))):
        found = pixels(form, num_channels=1)[0].double() * 65535
        torch.testing.assert_close(found, torch.from_numpy(image.astype(np.float64)), rtol=0, atol=0.01)
    # Neighbouring levels stay apart through a resize as well.
    step = np.repeat(np.array([[30000, 30003]], dtype=np.uint16), 4, axis=1).repeat(4, axis=0)
    found = pixels(step, num_channels=1, size={"height": 4, "width": 16})[0].double() * 65535
    assert len(found[0].round(decimals=2).unique()) > 2
    assert (found[0].diff() >= -0.01).all()


def test_a_fixed_range_is_mapped_to_the_unit_interval_and_clipped():
    image = np.array([[-2000, -1000, 0, 1000, 3000]], dtype=np.int16)
    found = pixels(image, num_channels=1, intensity_range=(-1000, 1000))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0, 0.5, 1, 1]]]))


@pytest.mark.parametrize("fields", [{}, {"size": 9}])
def test_zscore_gives_each_channel_mean_zero_and_deviation_one(fields):
    found = pixels(COLOUR, intensity="zscore", **fields)
    torch.testing.assert_close(found.mean((1, 2)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std((1, 2), correction=0), torch.ones(3))


def test_percentiles_are_mapped_to_the_unit_interval_and_clipped():
    image = np.arange(101, dtype=np.int32).reshape(1, 101) * 7 - 300
    found = pixels(image, num_channels=1, intensity="percentile", percentiles=(10, 60))[0, 0]
    torch.testing.assert_close(found, ((torch.arange(101) - 10) / 50).clamp(0, 1), rtol=0, atol=1e-6)


def local_contrast(image):
    """By scipy's box filter: (x - m) / (s + 0.1), m and s over a window half as long as each axis; (C, *S)."""
    image = np.asarray(image, dtype=np.float64)
    image = (image - image.mean()) / image.std()
    window = [2 * min(max(round(length / 4), 1), length - 1) + 1 for length in image.shape[1:]]
    centred = [channel - uniform_filter(channel, window, mode="mirror") for channel in image]
    return np.stack([c / (np.sqrt(uniform_filter(c**2, window, mode="mirror")) + 0.1) for c in centred])


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 17, 9), (3, 1, 5), (1, 3, 2), (1, 6, 8, 10), (3, 5, 1, 7)])
def test_local_contrast_against_scipy(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    fields = {"num_channels": shape[0], "spatial_dims": len(shape) - 1, "intensity": "local"}
    found = DimImageProcessor(**fields)(image[None], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, torch.from_numpy(local_contrast(image)).float(), rtol=1e-4, atol=1e-4)


def test_local_contrast_forgets_uneven_light():
    """A ramp of light across the image nearly vanishes away from the borders; the pattern on it stays."""
    rows, columns = np.mgrid[:64, :64]
    pattern = ((rows // 4 + columns // 4) % 2).astype(np.float64)
    plain, uneven = (pixels((pattern + 3 * ramp) / 4, num_channels=1, intensity="local") for ramp in (0, columns / 64))
    inner = slice(20, 44)
    agreement = np.corrcoef(plain[0, inner, inner].flatten(), uneven[0, inner, inner].flatten())[0, 1]
    assert agreement > 0.98


def test_a_channel_without_contrast_is_not_blown_up():
    image = np.stack([np.where(np.arange(64).reshape(8, 8) % 2, 250, 10), np.full((8, 8), 90)])
    image = np.concatenate([image, 90 + np.random.default_rng(0).integers(0, 2, (1, 8, 8))])
    found = pixels(image.astype(np.uint8), intensity="local")
    assert found[0].std() > 0.5
    assert found[1:].std((1, 2)).max() < 0.1


@given(scale=st.floats(0.1, 1000), shift=st.floats(-1000, 1000), intensity=st.sampled_from(INTENSITIES[1:]))
@settings(max_examples=20, deadline=None)
def test_normalised_intensities_forget_brightness_and_contrast(scale, shift, intensity):
    image = np.random.default_rng(0).random((12, 12))
    fields = {"num_channels": 1, "intensity": intensity}
    torch.testing.assert_close(pixels(image * scale + shift, **fields), pixels(image, **fields), rtol=0, atol=0.01)


@pytest.mark.parametrize("value", [0, 1, 77, 255])
@pytest.mark.parametrize("size", [None, 5, 23])
@pytest.mark.parametrize("intensity", INTENSITIES)
def test_constant_images_stay_finite_and_constant(value, size, intensity):
    for image in (np.full((8, 8), value, dtype=np.uint8), np.full((8, 8), value / 255, dtype=np.float32)):
        found = pixels(image, num_channels=1, size=size, intensity=intensity)
        expected = value / 255 if intensity == "range" else 0.0
        torch.testing.assert_close(found, torch.full_like(found, expected))


# --- resize ----------------------------------------------------------------------------------------------------------


def test_float_images_are_not_quantised_by_a_resize():
    image = np.linspace(0, 1e-3, 64, dtype=np.float32).reshape(8, 8)  # less than one 8-bit level in all
    found = pixels(image, num_channels=1, size={"height": 16, "width": 4})
    assert found.shape == (1, 16, 4)
    assert len(found.unique()) > 32
    assert 0 <= found.min() < found.max() <= 1e-3


@pytest.mark.parametrize("size", [{"height": 5, "width": 13}, {"height": 40, "width": 3}])
def test_images_are_resized_as_by_torch_with_antialiasing(size):
    image = np.random.default_rng(0).random((3, 17, 11), dtype=np.float32)
    expected = F.interpolate(
        torch.from_numpy(image)[None], size=tuple(size.values()), mode="bilinear", antialias=True, align_corners=False
    )[0]
    torch.testing.assert_close(pixels(image, size=size), expected, rtol=0, atol=1e-5)


def test_the_forms_of_a_size():
    for size in (4, (4, 4), [4, 4], {"height": 4, "width": 4}):
        assert DimImageProcessor(size=size).size == {"height": 4, "width": 4}
    processor = DimImageProcessor(size=4)
    assert processor(GREY, return_tensors="pt")["pixel_values"].shape == (1, 3, 4, 4)
    assert processor(GREY, do_resize=False, return_tensors="pt")["pixel_values"].shape == (1, 3, 6, 8)
    assert processor(GREY, size={"height": 2, "width": 5}, return_tensors="pt")["pixel_values"].shape == (1, 3, 2, 5)


def test_settings_of_one_call_do_not_stay():
    processor = DimImageProcessor()
    processor(GREY, size=4, intensity="zscore")
    assert processor.size is None
    assert processor.intensity == "range"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"intensity": "minmax"}, "'range', 'zscore', 'percentile', 'local'"),
        ({"spatial_dims": 1}, "2, 3"),
        ({"num_channels": 0}, "num_channels"),
        ({"size": {"shortest_edge": 4}}, "height"),
        ({"size": {"height": 4}}, "width"),
        ({"size": (4, 4, 4)}, "size"),
        ({"size": 0}, "positive"),
        ({"size": {"depth": 2, "height": 4, "width": 4}}, "size"),
        ({"intensity_range": (1.0, 1.0)}, "low < high"),
        ({"intensity_range": (0.0, float("inf"))}, "low < high"),
        ({"percentiles": (-1.0, 99.0)}, "0.0 <= low"),
        ({"percentiles": (99.0, 1.0)}, "low < high"),
        ({"do_resize": True}, "size"),
        ({"do_rescale": True}, "do_rescale"),
        ({"do_normalize": True}, "do_normalize"),
    ],
)
def test_illegal_settings_are_refused_at_construction_and_at_a_call(fields, message):
    with pytest.raises(ValueError, match=message):
        DimImageProcessor(**fields)
    if "size" not in fields:  # the base class checks the form of a call's size first, with an error of its own
        with pytest.raises(ValueError, match=message):
            DimImageProcessor()(GREY, **fields)


# --- label maps ------------------------------------------------------------------------------------------------------


def palette_image(array):
    image = Image.fromarray(array.astype(np.uint8), mode="P")
    image.putpalette([*range(255, -1, -1)] * 3)
    return image


LABELS = np.array([[0, 1, 2, 255], [2, 2, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS.astype(np.uint8),
        LABELS.astype(np.float64),
        LABELS[None],
        LABELS[..., None],
        [LABELS],
        torch.from_numpy(LABELS),
        Image.fromarray(LABELS.astype(np.uint8)),
        Image.fromarray(LABELS.astype(np.int32)),
        palette_image(LABELS),
        png(palette_image(LABELS)),
        png(Image.fromarray(LABELS.astype(np.uint16))),
    ],
)
def test_every_form_of_a_label_map(labels):
    batch = DimImageProcessor()(np.zeros((3, 4), dtype=np.uint8), segmentation_maps=labels, return_tensors="pt")
    assert batch["labels"].dtype == torch.int64
    assert torch.equal(batch["labels"], torch.from_numpy(LABELS)[None])


@pytest.mark.parametrize("size", [{"height": 5, "width": 3}, {"height": 16, "width": 21}, {"height": 7, "width": 11}])
def test_label_maps_are_resized_as_by_pil_nearest(size):
    labels = np.random.default_rng(0).integers(0, 256, (7, 11), dtype=np.uint8)
    batch = DimImageProcessor(size=size)(np.zeros_like(labels), labels, return_tensors="pt")
    expected = Image.fromarray(labels).resize((size["width"], size["height"]), Image.Resampling.NEAREST)
    assert np.array_equal(batch["labels"][0], np.asarray(expected))


def centre(mask):
    return np.argwhere(np.asarray(mask)).mean(0)


@pytest.mark.parametrize("size", [{"height": 48, "width": 20}, {"height": 13, "width": 71}])
def test_image_and_label_map_stay_in_register_through_a_resize(size):
    labels = np.zeros((32, 32), dtype=np.uint8)
    labels[9:21, 5:27] = 1
    batch = DimImageProcessor(num_channels=1, size=size)(labels * 255, labels, return_tensors="pt")
    expected = np.array([15.0, 16.0]) * np.array(list(size.values())) / 32  # pixel i covers i to i + 1
    shares = batch["pixel_values"][0, 0].double() / batch["pixel_values"].double().sum()
    found = [(shares.sum(1 - axis) * (torch.arange(shares.shape[axis]) + 0.5)).sum().item() for axis in (0, 1)]
    np.testing.assert_allclose(found, expected, atol=0.05)
    np.testing.assert_allclose(centre(batch["labels"][0]) + 0.5, expected, atol=0.51)


def test_batches_of_label_maps():
    images, labels = np.zeros((2, 1, 3, 4), dtype=np.uint8), np.stack([LABELS, LABELS[::-1]])
    for form in (labels, list(labels), torch.from_numpy(labels.copy())):
        batch = DimImageProcessor()(images, form, return_tensors="pt")
        assert np.array_equal(batch["labels"], labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:2], r"segmentation map 0 has shape \(2, 4\), its image \(3, 4\)"),
        (np.zeros((3, 4, 3), dtype=np.uint8), "segmentation map 0 has shape"),
        ([LABELS, LABELS], "1 images and 2 segmentation maps"),
        (LABELS + 0.5, "not integers"),
        (np.full((3, 4), np.nan), "not integers"),
        ("mask.png", "str"),
    ],
)
def test_label_maps_that_do_not_fit_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        DimImageProcessor()(np.zeros((3, 4), dtype=np.uint8), labels)


# --- volumes ---------------------------------------------------------------------------------------------------------

VOLUME = np.random.default_rng(0).random((5, 9, 8), dtype=np.float32)


def test_a_thin_volume_with_its_channel_last():
    volume = VOLUME[:3, ..., None]
    torch.testing.assert_close(pixels(volume, num_channels=1, spatial_dims=3), torch.from_numpy(VOLUME[None, :3]))


@pytest.mark.parametrize(
    "volume", [VOLUME, VOLUME[None], VOLUME[..., None], VOLUME[None, None], [VOLUME], torch.from_numpy(VOLUME)]
)
def test_every_form_of_a_volume(volume):
    found = pixels(volume, num_channels=1, spatial_dims=3)
    torch.testing.assert_close(found, torch.from_numpy(VOLUME)[None])


def test_volumes_are_resized_along_every_axis():
    fields = {"num_channels": 1, "spatial_dims": 3}
    assert pixels(VOLUME, size=4, **fields).shape == (1, 4, 4, 4)
    assert pixels(VOLUME, size={"height": 3, "width": 4}, **fields).shape == (1, 5, 3, 4)
    # Growing needs no antialiasing, so that torch's trilinear interpolation is a reference.
    size = (8, 13, 9)
    expected = F.interpolate(torch.from_numpy(VOLUME)[None, None], size=size, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(pixels(VOLUME, size=size, **fields), expected, rtol=0, atol=1e-5)


def test_the_axes_of_a_volume_are_resized_alike():
    size = {"depth": 3, "height": 4, "width": 6}
    turned = {"depth": 6, "height": 3, "width": 4}
    fields = {"num_channels": 1, "spatial_dims": 3}
    found = pixels(VOLUME.transpose(2, 0, 1).copy(), size=turned, **fields)[0]
    torch.testing.assert_close(found, pixels(VOLUME, size=size, **fields)[0].permute(2, 0, 1), rtol=0, atol=1e-5)


def test_label_volumes():
    labels = (VOLUME > 0.5).astype(np.int16)
    processor = DimImageProcessor(num_channels=1, spatial_dims=3)
    batch = processor([VOLUME, VOLUME], np.stack([labels, labels]), return_tensors="pt")
    assert np.array_equal(batch["labels"], [labels, labels])
    size = {"depth": 10, "height": 18, "width": 8}
    batch = processor(VOLUME, labels, size=list(size.values()), return_tensors="pt")
    assert np.array_equal(batch["labels"][0], labels.repeat(2, axis=0).repeat(2, axis=1))
    assert batch["pixel_values"].shape[2:] == tuple(size.values())


# --- back to label maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 8), (3, 6, 8)])
def test_label_maps_without_target_sizes_are_the_most_probable_classes(size):
    logits = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = DimImageProcessor().post_process_semantic_segmentation(SimpleNamespace(logits=logits))
    assert torch.equal(torch.stack(found), logits.argmax(1))
    assert found[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("size", "targets", "mode"),
    [((6, 8), [(11, 5), (6, 8)], "bilinear"), ((3, 6, 8), [(4, 11, 5), (3, 6, 8)], "trilinear")],
)
def test_logits_are_interpolated_before_the_class_is_taken(size, targets, mode):
    logits = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    processor = DimImageProcessor()
    found = processor.post_process_semantic_segmentation({"logits": logits}, targets, return_probabilities=True)
    plain = processor.post_process_semantic_segmentation({"logits": logits}, torch.tensor(targets))
    for index, target in enumerate(targets):
        expected = F.interpolate(logits[index : index + 1].float(), size=target, mode=mode).softmax(1)[0]
        torch.testing.assert_close(found[index]["probabilities"], expected)
        assert torch.equal(found[index]["segmentation"], expected.argmax(0))
        assert torch.equal(found[index]["segmentation"], plain[index])


def test_target_sizes_that_do_not_fit_are_refused():
    logits = torch.zeros(2, 3, 4, 4)
    for sizes in ([(4, 4)], [(4, 4), (4, 4, 4)]):
        with pytest.raises(ValueError, match="target_sizes must be 2 sizes"):
            DimImageProcessor().post_process_semantic_segmentation({"logits": logits}, sizes)


def test_a_mask_comes_back_in_the_original_size():
    image = np.zeros((40, 56), dtype=np.uint8)
    image[10:30, 20:44] = 255
    processor = DimImageProcessor(num_channels=1, size={"height": 20, "width": 28})
    small = processor(image, return_tensors="pt")["pixel_values"]
    logits = torch.cat([0.5 - small, small - 0.5], 1)
    (found,) = processor.post_process_semantic_segmentation({"logits": logits}, [image.shape])
    wrong = np.argwhere(found.numpy() != image // 255)
    corners = np.array([[10, 20], [10, 43], [29, 20], [29, 43]])  # interpolation rounds them
    assert all(np.abs(corners - place).max(1).min() <= 1 for place in wrong)
    np.testing.assert_allclose(centre(found), [19.5, 31.5], atol=1e-9)


# --- saving, transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intensity", ["percentile", "local"])
def test_round_trip(tmp_path, intensity):
    processor = DimImageProcessor(
        num_channels=1,
        spatial_dims=3,
        size=(4, 6, 5),
        resample=3,
        intensity=intensity,
        intensity_range=(-100, 300),
        percentiles=(2, 98.5),
    )
    processor.save_pretrained(tmp_path)
    again = DimImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert DimImageProcessor.from_pretrained(tmp_path, intensity="zscore").intensity == "zscore"
    inputs = [each(VOLUME, return_tensors="pt")["pixel_values"] for each in (processor, again)]
    assert torch.equal(*inputs)
    DimImageProcessor().save_pretrained(tmp_path)
    assert DimImageProcessor.from_pretrained(tmp_path).to_dict() == DimImageProcessor().to_dict()


def test_the_processor_does_without_torchvision():
    assert DimImageProcessor().backend == "pil"
    if importlib.util.find_spec("torchvision") is None:
        assert pixels(GREY, size=4).shape == (3, 4, 4)


@pytest.fixture
def registered():
    AutoConfig.register("dim_unet", DimUNetConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(DimUNetConfig, DimUNetForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(DimUNetConfig, image_processor_classes={"pil": DimImageProcessor}, exist_ok=True)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_image_segmentation_pipeline(registered, tmp_path, num_channels):
    names = {0: "background", 1: "rim", 2: "cup"}
    model = tiny_model(num_channels=num_channels, id2label=names).eval()
    model.save_pretrained(tmp_path)
    processor = DimImageProcessor(num_channels=num_channels, size=16)
    processor.save_pretrained(tmp_path)
    segment = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    assert isinstance(segment.image_processor, DimImageProcessor)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    found = segment([image, image])
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(outputs, [(20, 30)])
    for masks in found:
        assert {mask["label"] for mask in masks} == {names[int(index)] for index in expected.unique()}
        for mask in masks:
            assert np.array_equal(
                np.asarray(mask["mask"]) == 255, expected.numpy() == model.config.label2id[mask["label"]]
            )


def test_processor_and_model_fit_in_three_dimensions():
    config = tiny_config(spatial_dims=3)
    model = DimUNetForSemanticSegmentation(config).eval()
    processor = DimImageProcessor(num_channels=1, spatial_dims=3, intensity="zscore", size={"height": 6, "width": 6})
    with torch.no_grad():
        outputs = model(**processor(VOLUME, segmentation_maps=VOLUME > 0.5, return_tensors="pt"))
    assert outputs.loss.isfinite()
    (found,) = processor.post_process_semantic_segmentation(outputs, [VOLUME.shape])
    assert found.shape == VOLUME.shape


@pytest.mark.parametrize("bounds", [255, "ab", [1], [0, None], [2, 1], [0, float("inf")]])
def test_an_interval_is_two_numbers(bounds):
    with pytest.raises(ValueError, match=r"intensity_range must be \(low, high\)"):
        DimImageProcessor(num_channels=1, intensity_range=bounds)
