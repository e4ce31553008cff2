"""Jobs on what was imported: slices, volumes, named caches, balanced domains."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dim_hf.data.description import DatasetDescription
from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.importers.writer import WriteOptions
from dim_hf.data.volumes.volume import Volume, write_nifti
from dim_hf.trainer.job import make_trainer, run_job
from dim_hf.trainer.job_arguments import ModelArguments, parse_job
from dim_hf.trainer.job_model import make_model
from tests.test_job import write_config, write_site


def write_hospital(root, domain, count, shape=(16, 18, 5), axcodes_flip=False):
    """A site of volumes of 3 mm slices with a bright box each, perhaps stored from left to right."""
    generator = np.random.default_rng(len(domain))
    affine = np.diag([-0.5 if axcodes_flip else 0.5, 0.5, 3.0, 1.0])
    for folder in ("images", "masks"):
        (root / domain / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        mask = np.zeros(shape, np.uint8)
        mask[4:11, 5:13, 1:4] = 1
        image = (generator.integers(100, 300, shape) + 500 * mask.astype(int)).astype(np.int16)
        write_nifti(Volume(image, affine), root / domain / "images" / f"case{index}.nii.gz")
        write_nifti(Volume(mask, affine), root / domain / "masks" / f"case{index}.nii.gz")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    root = tmp_path_factory.mktemp("hospitals")
    write_hospital(root, "one", 5)
    write_hospital(root, "other", 4, axcodes_flip=True)
    return root


def test_slices_train_in_2d_and_are_split_by_patient(hospitals, tmp_path):
    job = ImportJob("folders", hospitals, tmp_path / "data", write=WriteOptions(plane="auto"))
    manifest = import_dataset(job, progress=False)
    config = write_config(tmp_path, dataset=str(manifest), num_labeled=3, num_validation=5, hidden_sizes=[4, 8])

    result = run_job(parse_job(config, ["--output_dir", str(tmp_path / "run")]))

    model = result.trainer.model.config
    assert (model.num_channels, model.spatial_dims) == (1, 2)
    assert result.trainer.processing_class.intensity == "zscore"
    assert {case.name[-6:-3] for case in result.cases} == {"_s0"}
    assert len(result.cases) == 5 * len({(case.domain, case.patient) for case in result.cases})


def test_volumes_of_a_manifest_train_in_3d_whatever_their_orientation(hospitals, tmp_path):
    manifest = import_dataset(ImportJob("folders", hospitals, tmp_path / "data"), progress=False)
    changes = {"num_labeled": 2, "num_validation": 1, "hidden_sizes": [4, 8], "volume_size": [4, 16, 16]}
    config = write_config(tmp_path, dataset=str(manifest.parent), divergence_grid_size=2, **changes)
    job = parse_job(config, ["--output_dir", str(tmp_path / "run"), "--norm", "instance"])

    trainer, test, _ = make_trainer(job)

    assert trainer.model.config.spatial_dims == 3
    samples = {domain: dataset[0] for domain, dataset in test.items()}
    assert all(sample["pixel_values"].shape == (1, 4, 16, 16) for sample in samples.values())
    assert samples["one"]["labels"].any()
    # The same array, stored from right to left at one site: mirrored in the body, and so in the sample.
    assert torch.equal(samples["one"]["labels"], samples["other"]["labels"].flip(-1))
    trainer.train()
    trainer.save_model(str(tmp_path / "network"))
    second = parse_job(
        config, ["--output_dir", str(tmp_path / "b"), "--model_name_or_path", str(tmp_path / "network")]
    )
    sample = make_trainer(second)[1]["one"][0]
    assert torch.equal(sample["pixel_values"], samples["one"]["pixel_values"])  # the same size in a second stage
    with pytest.raises(ValueError, match="volume_size must be depth, height and width"):
        make_trainer(parse_job(config, ["--volume_size", "4", "16"]))


def test_a_cache_folder_changes_no_result(tmp_path, monkeypatch):
    write_site(tmp_path / "data", "one", 10)
    write_site(tmp_path / "data", "other", 10, shift=40)
    config = write_config(tmp_path, dataset=str(tmp_path / "data"), hidden_sizes=[4, 8])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def weights(name, *words):
        result = run_job(parse_job(config, ["--output_dir", str(tmp_path / name), *words]))
        return result.trainer.model.state_dict()

    plain = weights("memory")
    assert list(temporary.iterdir()) == []
    kept = tmp_path / "kept"
    named = weights("named", "--cache_gigabytes", "0", "--cache_dir", str(kept))
    files = sorted(kept.rglob("*.safetensors"))
    assert len(files) > 8
    again = weights("again", "--cache_gigabytes", "0", "--cache_dir", str(kept))
    assert sorted(kept.rglob("*.safetensors")) == files
    none = weights("none", "--cache_gigabytes", "0", "--cache_disk_gigabytes", "0")
    default = weights("default", "--cache_gigabytes", "0")
    assert list(temporary.iterdir()) == []
    for other in (named, again, none, default):
        assert all(torch.equal(plain[key], other[key]) for key in plain)


def test_balanced_domains_have_equal_shares(tmp_path):
    write_site(tmp_path / "data", "large", 24)
    write_site(tmp_path / "data", "small", 6, shift=40)
    config = write_config(tmp_path, dataset=str(tmp_path / "data"), labeled_domain="large")
    shares = {}
    for balance in ("True", "False"):
        trainer, _, _ = make_trainer(parse_job(config, ["--balance_domains", balance]))
        domains = trainer.train_dataset.unlabeled.domains
        keys = [key for number in range(40) for key in trainer.batch_sampler.batch_at(number)]
        shares[balance] = Counter(domains[key.index] for key in keys if key.stream == "unlabeled")
    assert shares["True"]["large"] == shares["True"]["small"] == 40
    assert shares["False"]["large"] > 2 * shares["False"]["small"]


def test_a_dataset_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(ValueError, match="neither a manifest"):
        make_trainer(parse_job(write_config(tmp_path), ["--dataset", str(Path("no") / "such" / "folder")]))


def test_a_folder_that_is_not_there_is_named_before_the_hub(tmp_path, monkeypatch):
    def unreachable(name, revision):
        raise ConnectionError(f"{name} could not be loaded: the Hub cannot be reached")

    monkeypatch.setattr("dim_hf.data.sources.load_hub_dataset", unreachable)
    with pytest.raises(ConnectionError, match="no folder data/mine here, and data/mine could not be loaded: the Hub"):
        make_trainer(parse_job(write_config(tmp_path), ["--dataset", "data/mine"]))
    with pytest.raises(ValueError, match=r"'./data/mine' is neither a manifest"):
        make_trainer(parse_job(write_config(tmp_path), ["--dataset", "./data/mine"]))


def test_a_model_knows_the_plane_of_the_slices_that_it_learns_from(tmp_path):
    about = DatasetDescription({0: "background", 1: "gland"}, {"gland": [1]}, num_channels=1)
    cut = replace(about, notes=["saml: volumes cut into slices, plane: sagittal"])
    mixed = replace(about, notes=[*cut.notes, "msd: volumes cut into slices, plane: axial"])
    new = ModelArguments(hidden_sizes=[4, 8])
    planes = [make_model(SimpleNamespace(description=one), new).config.plane for one in (about, cut, mixed)]
    assert planes == [None, "sagittal", None]
    make_model(SimpleNamespace(description=about), new).save_pretrained(tmp_path)
    going_on = ModelArguments(model_name_or_path=str(tmp_path))
    assert make_model(SimpleNamespace(description=cut), going_on).config.plane == "sagittal"
