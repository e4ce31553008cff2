import itertools
import os
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dim_hf.data.cache import SampleCache
from dim_hf.data.collator import TwoStreamCollator, collate
from dim_hf.data.datasets import SegmentationDataset, TwoStreamDataset
from dim_hf.data.rows import COLUMNS, row_features
from dim_hf.data.sampler import SampleKey, TwoStreamBatchSampler
from dim_hf.models.image_processing_dim_unet import DimImageProcessor


class FakeProcessor:
    """Gives back what it is given, plus an offset, as float images with channels first, and counts its calls."""

    def __init__(self, offset=0.0):
        self.calls = 0
        self.offset = offset

    def to_dict(self):
        return {"offset": self.offset}

    def __call__(self, images, segmentation_maps=None, return_tensors=None):
        assert return_tensors == "pt"
        self.calls += 1
        channels_last = isinstance(images, Image.Image)
        pixels = torch.from_numpy(np.array(images, dtype=np.float64)) + self.offset
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


def save_nifti(path, array, affine):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


def nifti_sample(image, label):
    return SegmentationDataset(rows_of([(image, label)], datasets.Nifti()), FakeProcessor())[0]


def test_nifti_volumes_come_with_depth_first(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = save_nifti(tmp_path / "v.nii.gz", array, np.eye(4))
    sample = nifti_sample(path, path)
    assert torch.equal(sample["pixel_values"][0], torch.from_numpy(array.transpose(2, 1, 0).copy()))
    assert torch.equal(sample["labels"], sample["pixel_values"][0].to(torch.uint8))


def stored_otherwise(array, affine, axes, flipped):
    """The same voxels at the same places, with the array's axes permuted and some of them reversed."""
    stored = np.flip(array.transpose(*axes), flipped) if flipped else array.transpose(*axes)
    to_original = np.zeros((4, 4))
    to_original[3, 3] = 1
    for new, old in enumerate(axes):
        to_original[old, new] = -1 if new in flipped else 1
        to_original[old, 3] = array.shape[old] - 1 if new in flipped else 0
    return np.ascontiguousarray(stored), affine @ to_original


def test_volumes_give_the_same_sample_however_their_axes_are_stored(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    # Anisotropic and slightly oblique, as scanners write it.
    affine = np.array([[0.7, 0.05, 0, 3], [-0.04, 0.8, 0.1, -5], [0, -0.06, 2.5, 40], [0, 0, 0, 1]])
    wanted = torch.from_numpy(array.T.astype(np.float32))
    orders = list(itertools.product(itertools.permutations(range(3)), [(), (0,), (1, 2), (0, 1, 2)]))
    paths = [
        save_nifti(tmp_path / f"{i}.nii", *stored_otherwise(array, affine, *order)) for i, order in enumerate(orders)
    ]
    # Image and mask need not be stored alike.
    for image, label in zip(paths, reversed(paths), strict=True):
        sample = nifti_sample(image, label)
        assert torch.equal(sample["pixel_values"][0], wanted)
        assert torch.equal(sample["labels"], wanted.to(torch.uint8))


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)])
def test_the_spacing_of_a_volume_is_in_mm_whatever_the_unit_of_its_file(tmp_path, unit, factor):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.diag([1.5 / factor, 2 / factor, 3 / factor, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "v.nii.gz")
    rows = rows_of([(str(tmp_path / "v.nii.gz"), None)], datasets.Nifti())
    assert SegmentationDataset(rows, FakeProcessor()).raw(0).spacing_mm == pytest.approx((3, 2, 1.5))


def test_a_left_handed_volume_by_hand(tmp_path):
    array = np.zeros((3, 4, 5), np.float32)
    array[0, 3, 1] = 1  # x = 10 mm (right), y = 6 mm (front), z = 3 mm
    affine = np.array([[-2.0, 0, 0, 10], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    sample = nifti_sample(save_nifti(tmp_path / "v.nii", array, affine), None)
    assert sample["pixel_values"][0].nonzero().tolist() == [[1, 3, 2]]


def test_further_axes_of_a_volume_are_channels(tmp_path):
    array = np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2)
    pixels = nifti_sample(save_nifti(tmp_path / "v.nii", array, np.diag([-1, 1, 1, 1])), None)["pixel_values"]
    assert torch.equal(pixels.squeeze(0), torch.from_numpy(array[::-1].T.copy()))


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 0, 1]), np.zeros((4, 4))])
def test_a_volume_without_directions_is_refused(tmp_path, affine):
    path = tmp_path / "v.nii"
    save_nifti(path, np.zeros((2, 3, 4), np.float32), np.eye(4))
    content = bytearray(path.read_bytes())
    content[280:328] = affine[:3].astype("<f4").tobytes()  # where the format has the affine
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.nii has the affine .* write it with its voxel spacing"):
        nifti_sample(str(path), None)


def test_a_row_that_cannot_be_processed_is_named_with_its_files(tmp_path):
    pairs = []
    for number, peak in enumerate((1.0, 2.0)):
        files = tmp_path / f"image{number}.tif", tmp_path / f"mask{number}.png"
        Image.fromarray(np.full((8, 8), peak, np.float32)).save(files[0])
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(files[1])
        pairs.append(tuple(map(str, files)))
    samples = SegmentationDataset(rows_of(pairs), DimImageProcessor(num_channels=1), cache_bytes=0)
    assert samples[0]["pixel_values"].max() == 1
    with pytest.raises(
        ValueError, match=r"^d/n1 \(image .*image1\.tif, label .*mask1\.png\) cannot be brought to .*2\.0\]"
    ):
        samples[1]
    nameless = SegmentationDataset(rows_of(pairs).select_columns(["image"]), samples.processor, cache_bytes=0)
    with pytest.raises(ValueError, match=r"^row 1 \(image .*image1\.tif\) cannot be brought to"):
        nameless[1]
    (tmp_path / "image1.tif").write_bytes(b"no picture")
    for read in (samples.__getitem__, samples.raw):
        with pytest.raises(ValueError, match=r"^d/n1 \(.*image1\.tif.*\) cannot be read: .*; replace the file"):
            read(1)


@pytest.mark.parametrize(("cache_bytes", "calls"), [(2**20, 4), (2 * SAMPLE_BYTES, 6), (SAMPLE_BYTES - 1, 8), (0, 8)])
def test_samples_are_processed_once_up_to_the_limit(cache_bytes, calls):
    processor = FakeProcessor(offset=0.5)
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


def png_rows(folder, count=6, size=8, labeled=True):
    paths = []
    for i, (image, label) in enumerate(image_pairs(count, size)):
        image.save(folder / f"image{i}.png")
        label.save(folder / f"mask{i}.png")
        paths.append((str(folder / f"image{i}.png"), str(folder / f"mask{i}.png") if labeled else None))
    return rows_of(paths)


def noise_rows(folder, count=5):
    rng = np.random.default_rng(0)
    paths = [(str(folder / f"n{i}.png"), str(folder / f"m{i}.png") if i % 2 else None) for i in range(count)]
    for image, mask in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(image)
        if mask:
            Image.fromarray(rng.integers(0, 3, (20, 24), dtype=np.uint8)).save(mask)
    return rows_of(paths)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("intensity", ["range", "zscore"])
@pytest.mark.parametrize("size", [None, {"height": 16, "width": 12}])
def test_samples_are_the_same_with_and_without_a_cache(tmp_path, size, intensity):
    rows = noise_rows(tmp_path)
    processor = DimImageProcessor(size=size, intensity=intensity)
    plain = SegmentationDataset(rows, processor, cache_bytes=0)
    caches = [
        SampleCache(2**20),
        SampleCache(4000),
        SampleCache(0, tmp_path / "disk", reserve_bytes=0),
        SampleCache(4000, tmp_path / "both", reserve_bytes=0),
        SampleCache(0, tmp_path / "disk", reserve_bytes=0),  # of a later run
    ]
    for cache in caches:
        dataset = SegmentationDataset(rows, processor, cache=cache)
        for i in [*range(5), *range(5)]:
            assert_same(dataset[i], plain[i])
        assert cache.memory_used <= cache.memory_bytes


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_samples_are_the_same_for_any_number_of_workers(tmp_path, workers, on_disk):
    rows = png_rows(tmp_path)
    unlabeled = SegmentationDataset(rows.remove_columns("label"), FakeProcessor(), cache_bytes=0)
    plain = TwoStreamDataset(SegmentationDataset(rows, FakeProcessor(), cache_bytes=0), unlabeled)
    cache = SampleCache(4 * SAMPLE_BYTES, tmp_path / "cache" if on_disk else None, reserve_bytes=0)
    cached = TwoStreamDataset(
        *(SegmentationDataset(part.rows, FakeProcessor(), cache=cache) for part in (plain.labeled, plain.unlabeled))
    )
    sampler = TwoStreamBatchSampler(6, 6, 2, 1, seed=0)
    arguments = {"batch_sampler": sampler, "collate_fn": TwoStreamCollator()}
    loader = DataLoader(cached, num_workers=workers, persistent_workers=True, **arguments)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        wanted = list(DataLoader(plain, **arguments))
        for batch, expected in zip(loader, wanted, strict=True):
            assert_same(batch, expected)


class MemoryUsed(Dataset):
    """Loads samples, and tells how much its cache holds after each."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.dataset[index]
        return get_worker_info().id, self.dataset.cache.memory_used


def test_the_workers_together_keep_the_limit_of_memory():
    limit = 5 * SAMPLE_BYTES
    dataset = SegmentationDataset(rows_of(image_pairs(12)), FakeProcessor(offset=0.5), cache_bytes=limit)
    loader = DataLoader(MemoryUsed(dataset), num_workers=2, batch_size=None)
    used = dict(loader)
    assert used == {0: 2 * SAMPLE_BYTES, 1: 2 * SAMPLE_BYTES}
    assert dataset.cache.memory_used == 0


def test_data_sets_that_share_a_cache_share_its_limit():
    cache = SampleCache(3 * SAMPLE_BYTES)
    pools = [SegmentationDataset(rows_of(image_pairs(2)), FakeProcessor(o), cache=cache) for o in (0.5, 1.5)]
    for dataset in pools:
        for i in range(2):
            assert float(dataset[i]["pixel_values"].mean()) == i + dataset.processor.offset
    for dataset in pools:
        for i in range(2):
            assert float(dataset[i]["pixel_values"].mean()) == i + dataset.processor.offset
    assert cache.memory_used == 3 * SAMPLE_BYTES
    copies = pickle.loads(pickle.dumps(TwoStreamDataset(*pools)))
    assert copies.labeled.cache is copies.unlabeled.cache


def kept_in(folder, rows, offset=0.0):
    """A data set whose samples all go to disk."""
    return SegmentationDataset(rows, FakeProcessor(offset), cache=SampleCache(0, folder / "cache", reserve_bytes=0))


def test_a_later_run_reads_what_is_on_disk_whatever_its_rows_are(tmp_path):
    rows = png_rows(tmp_path)
    first = kept_in(tmp_path, rows)
    samples = [first[i] for i in range(6)]
    later = kept_in(tmp_path, rows.select([4, 1]))
    assert_same(later[0], samples[4])
    assert_same(later[1], samples[1])
    assert later.processor.calls == 0
    embedded = rows_of(image_pairs(3))
    assert kept_in(tmp_path, embedded)[2].keys() == samples[2].keys()
    again = kept_in(tmp_path, embedded)
    assert_same(again[2], samples[2])
    assert again.processor.calls == 0


def touch(path, image):
    """Write another image of the same number of bytes; a clock may be too coarse to tell."""
    size = path.stat().st_size
    image.save(path)
    assert path.stat().st_size == size
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_a_folder_is_never_stale(tmp_path):
    rows = png_rows(tmp_path)
    unchanged = kept_in(tmp_path, rows)[1]
    assert float(kept_in(tmp_path, rows, offset=2.0)[1]["pixel_values"].mean()) == 3
    assert kept_in(tmp_path, rows.cast_column("image", datasets.Image(mode="L")))[1]["pixel_values"].shape[0] == 1
    assert set(kept_in(tmp_path, rows.remove_columns("label"))[1]) == {"pixel_values"}
    touch(tmp_path / "mask1.png", image_pairs(3)[2][1])
    assert torch.equal(kept_in(tmp_path, rows)[1]["labels"], torch.full((8, 8), 2, dtype=torch.uint8))
    touch(tmp_path / "image1.png", image_pairs(6)[5][0])
    assert float(kept_in(tmp_path, rows)[1]["pixel_values"].mean()) == 5
    assert float(unchanged["pixel_values"].mean()) == 1


def test_arrays_are_kept_by_what_they_hold(tmp_path):
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    feature = datasets.Array3D((2, 3, 4), "float32")
    rows = rows_of([(volume, volume % 2), (volume + 1, None)], feature)
    samples = list(kept_in(tmp_path, rows))
    later = kept_in(tmp_path, rows)
    assert_same(later[0], samples[0])
    assert_same(later[1], samples[1])
    assert later.processor.calls == 0
    assert float(kept_in(tmp_path, rows_of([(volume + 2, None)], feature))[0]["pixel_values"][0, 0, 0, 0]) == 2


def test_a_processor_that_tells_no_settings_is_for_memory_only(tmp_path):
    def processor(image, segmentation_maps=None, return_tensors=None):
        return FakeProcessor()(image, segmentation_maps, return_tensors)

    rows = png_rows(tmp_path, 1)
    assert "labels" in SegmentationDataset(rows, processor)[0]
    with pytest.raises(ValueError, match=r"no to_dict\(\)"):
        SegmentationDataset(rows, processor, cache=SampleCache(0, tmp_path / "cache"))


def test_many_images_need_no_memory_for_their_pixels(tmp_path):
    png_rows(tmp_path, 1)
    count = 100_000
    texts = {column: [""] * count for column in COLUMNS[2:]}
    table = {"image": [str(tmp_path / "image0.png")] * count, "label": [None] * count, **texts}
    rows = datasets.Dataset.from_dict(table, features=row_features(datasets.Image()))
    dataset = SegmentationDataset(rows, FakeProcessor(offset=0.5), cache_bytes=5 * SAMPLE_BYTES)
    sampler = TwoStreamBatchSampler(1, count, 1, 50, seed=0)
    for key in sampler.batch_at(7)[1:]:
        assert "labels" not in dataset[key.index]
    assert 0 < dataset.cache.memory_used <= 5 * SAMPLE_BYTES


def test_domains_of_the_rows():
    rows = rows_of(image_pairs(2))
    assert SegmentationDataset(rows, FakeProcessor()).domains == ["d", "d"]
    assert SegmentationDataset(rows.remove_columns("domain"), FakeProcessor()).domains is None


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
    with pytest.raises(ValueError, match="either a cache or cache_bytes"):
        SegmentationDataset(rows_of(image_pairs(1)), FakeProcessor(), cache_bytes=1, cache=SampleCache(1))
    with pytest.raises(ValueError, match=r"lack the columns \['image'\]"):
        SegmentationDataset(rows_of(image_pairs(1)).remove_columns("image"), FakeProcessor())


def test_with_the_image_processor():
    processor = DimImageProcessor(size={"height": 16, "width": 16})
    dataset = SegmentationDataset(rows_of(image_pairs(2)), processor)
    batch = collate([dataset[0], dataset[1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert torch.equal(batch["labels"][1], torch.full((16, 16), 1))
