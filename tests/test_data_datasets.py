import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dim_hf.data.collator import TwoStreamCollator, collate
from dim_hf.data.datasets import SegmentationDataset, TwoStreamDataset
from dim_hf.data.rows import COLUMNS, row_features
from dim_hf.data.sampler import SampleKey, TwoStreamBatchSampler


class FakeProcessor:
    """Gives back what it is given, as float images with channels first, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images, segmentation_maps=None, return_tensors=None):
        assert return_tensors == "pt"
        self.calls += 1
        channels_last = isinstance(images, Image.Image)
        pixels = torch.from_numpy(np.array(images, dtype=np.float64))
        if channels_last and pixels.ndim == 3:
            pixels = pixels.movedim(-1, 0)
        elif pixels.ndim == (2 if channels_last else 3):
            pixels = pixels[None]
        processed = {"pixel_values": pixels[None]}
        if segmentation_maps is not None:
            processed["labels"] = torch.from_numpy(np.array(segmentation_maps, dtype=np.int64))[None]
        return processed


def rows_of(pairs, feature=None):
    values = [(image, label, "d", f"n{i}", f"n{i}", "") for i, (image, label) in enumerate(pairs)]
    table = dict(zip(COLUMNS, map(list, zip(*values, strict=True)), strict=True))
    return datasets.Dataset.from_dict(table, features=row_features(feature or datasets.Image()))


def image_pairs(count, size=8, labeled=True):
    return [
        (
            Image.fromarray(np.full((size, size, 3), i, np.uint8)),
            Image.fromarray(np.full((size, size), i % 3, np.uint8)) if labeled else None,
        )
        for i in range(count)
    ]


SAMPLE_BYTES = 8 * 8 * (3 * 4 + 1)


def test_images_and_masks_become_tensors():
    pairs = [*image_pairs(2), (image_pairs(3)[2][0], None)]
    dataset = SegmentationDataset(rows_of(pairs), FakeProcessor())
    assert len(dataset) == 3
    sample = dataset[1]
    assert torch.equal(sample["pixel_values"], torch.full((3, 8, 8), 1.0))
    assert torch.equal(sample["labels"], torch.full((8, 8), 1, dtype=torch.uint8))
    assert sample["labels"].dtype == torch.uint8
    assert set(dataset[2]) == {"pixel_values"}
    assert torch.equal(dataset[-1]["pixel_values"], dataset[2]["pixel_values"])
    assert len(list(dataset)) == 3


def test_rows_without_a_label_column():
    rows = rows_of(image_pairs(2)).remove_columns("label")
    assert set(SegmentationDataset(rows, FakeProcessor())[0]) == {"pixel_values"}


def test_labels_beyond_a_byte_stay_integers():
    label = Image.fromarray(np.full((8, 8), 300, np.uint16))
    sample = SegmentationDataset(rows_of([(image_pairs(1)[0][0], label)]), FakeProcessor())[0]
    assert torch.equal(sample["labels"], torch.full((8, 8), 300))


def test_volumes_as_arrays():
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    feature = datasets.Array3D((None, 3, 4), "float32")
    rows = rows_of([(volume, volume % 2), (volume[:1], None)], feature)
    dataset = SegmentationDataset(rows, FakeProcessor())
    assert torch.equal(dataset[0]["pixel_values"], torch.from_numpy(volume)[None])
    assert torch.equal(dataset[0]["labels"], torch.from_numpy(volume % 2).to(torch.uint8))
    assert dataset[1]["pixel_values"].shape == (1, 1, 3, 4)
    assert "labels" not in dataset[1]


def test_nifti_volumes_come_with_depth_first(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = str(tmp_path / "v.nii.gz")
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    sample = SegmentationDataset(rows_of([(path, path)], datasets.Nifti()), FakeProcessor())[0]
    assert torch.equal(sample["pixel_values"][0], torch.from_numpy(array.transpose(2, 1, 0).copy()))
    assert torch.equal(sample["labels"], sample["pixel_values"][0].to(torch.uint8))


@pytest.mark.parametrize(("cache_bytes", "calls"), [(2**20, 4), (2 * SAMPLE_BYTES, 6), (SAMPLE_BYTES - 1, 8), (0, 8)])
def test_samples_are_processed_once_up_to_the_limit(cache_bytes, calls):
    processor = FakeProcessor()
    dataset = SegmentationDataset(rows_of(image_pairs(4)), processor, cache_bytes=cache_bytes)
    passes = [[dataset[i] for i in range(4)] for _ in range(2)]
    assert processor.calls == calls
    for first, second in zip(*passes, strict=True):
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"])


def test_a_pickled_data_set_starts_with_an_empty_cache():
    dataset = SegmentationDataset(rows_of(image_pairs(3)), FakeProcessor())
    full = [dataset[i] for i in range(3)]
    copy = pickle.loads(pickle.dumps(dataset))
    calls = copy.processor.calls
    assert torch.equal(copy[2]["pixel_values"], full[2]["pixel_values"])
    assert copy.processor.calls == calls + 1


def two_streams():
    labeled = SegmentationDataset(rows_of(image_pairs(4)), FakeProcessor())
    unlabeled = SegmentationDataset(rows_of(image_pairs(7)), FakeProcessor())
    return TwoStreamDataset(labeled, unlabeled)


def test_two_streams_by_key():
    dataset = two_streams()
    assert len(dataset) == 11
    sample = dataset[SampleKey("labeled", 2, 40)]
    assert (sample["stream"], sample["position"]) == ("labeled", 40)
    assert torch.equal(sample["labels"], torch.full((8, 8), 2, dtype=torch.uint8))
    sample = dataset[SampleKey("unlabeled", 6, 5)]
    assert float(sample["pixel_values"].mean()) == 6
    assert "labels" not in sample


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_sampler_for_any_number_of_workers(workers):
    sampler = TwoStreamBatchSampler(4, 7, 2, 3, seed=0)
    loader = DataLoader(two_streams(), batch_sampler=sampler, collate_fn=TwoStreamCollator(), num_workers=workers)
    for batch, keys in zip(loader, sampler, strict=True):
        labeled, unlabeled = keys[:2], keys[2:]
        assert batch["labeled_pixel_values"].shape == (2, 3, 8, 8)
        assert batch["labeled_pixel_values"].dtype == torch.float32
        assert batch["labeled_pixel_values"][:, 0, 0, 0].tolist() == [key.index for key in labeled]
        assert batch["labels"].dtype == torch.int64
        assert batch["labels"][:, 0, 0].tolist() == [key.index % 3 for key in labeled]
        assert batch["labeled_positions"].tolist() == [key.position for key in labeled]
        assert batch["unlabeled_pixel_values"][:, 0, 0, 0].tolist() == [key.index for key in unlabeled]
        assert batch["unlabeled_positions"].tolist() == [key.position for key in unlabeled]
        assert batch["unlabeled_positions"].dtype == torch.int64


def test_supervised_batches_have_no_unlabeled_keys():
    dataset = TwoStreamDataset(two_streams().labeled)
    assert len(dataset) == 4
    sampler = TwoStreamBatchSampler(4, 0, 2, 0, seed=0)
    batch = next(iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=TwoStreamCollator())))
    assert set(batch) == {"labeled_pixel_values", "labels", "labeled_positions"}


def test_labeled_rows_without_masks_are_refused():
    rows = rows_of([*image_pairs(1), *image_pairs(1, labeled=False)])
    with pytest.raises(ValueError, match=r"1 of 2 labeled images have no mask \(the first is row 1\)"):
        TwoStreamDataset(SegmentationDataset(rows, FakeProcessor()))


def test_images_of_different_size_are_refused_with_the_fix():
    dataset = SegmentationDataset(rows_of(image_pairs(1, 8) + image_pairs(1, 6)), FakeProcessor())
    samples = [dataset[0], dataset[1]]
    with pytest.raises(ValueError, match=r"\(3, 6, 6\), \(3, 8, 8\); set a size in the image processor"):
        collate(samples)
    keyed = [{**sample, "stream": "labeled", "position": 0} for sample in samples]
    with pytest.raises(ValueError, match="set a size"):
        TwoStreamCollator()(keyed)


def test_a_batch_without_labeled_images_is_refused():
    with pytest.raises(ValueError, match="split_batches=False"):
        TwoStreamCollator()([two_streams()[SampleKey("unlabeled", 0, 0)]])


def test_collate_for_evaluation():
    dataset = SegmentationDataset(rows_of(image_pairs(2) + image_pairs(1, labeled=False)), FakeProcessor())
    batch = collate([dataset[0], dataset[1]])
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].shape == (2, 8, 8)
    assert set(collate([dataset[2]])) == {"pixel_values"}
    with pytest.raises(ValueError, match="only 2 of the 3 images of a batch have a mask"):
        collate([dataset[i] for i in range(3)])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="cache_bytes must be at least 0"):
        SegmentationDataset(rows_of(image_pairs(1)), FakeProcessor(), cache_bytes=-1)
    with pytest.raises(ValueError, match=r"lack the columns \['image'\]"):
        SegmentationDataset(rows_of(image_pairs(1)).remove_columns("image"), FakeProcessor())


def test_with_the_image_processor():
    processing = pytest.importorskip("dim_hf.models.image_processing_dim_unet")
    processor = processing.DimImageProcessor(size={"height": 16, "width": 16})
    dataset = SegmentationDataset(rows_of(image_pairs(2)), processor)
    batch = collate([dataset[0], dataset[1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert torch.equal(batch["labels"][1], torch.full((16, 16), 1))
