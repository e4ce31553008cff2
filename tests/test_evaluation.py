"""From a model and a data set to scores: grids, volumes, protocols, faults of files."""

from dataclasses import replace

import datasets
import nibabel
import numpy as np
import pytest
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from dim_hf.data.description import NO_SPACING_NOTE, DatasetDescription
from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.importers.writer import WriteOptions
from dim_hf.data.sources import PhantomOptions, load_source
from dim_hf.data.splits import semi_supervised_split
from dim_hf.data.volumes.volume import Volume, write_nifti
from dim_hf.evaluation.evaluate import EvaluationOptions, evaluate_model
from dim_hf.evaluation.files import format_result
from dim_hf.evaluation.prediction import PredictedCase, predict_rows, shares_of
from dim_hf.evaluation.protocols import PROTOCOLS
from dim_hf.evaluation.result import Provenance
from dim_hf.evaluation.runs import RunFacts, reading_of, rows_to_score
from dim_hf.evaluation.scoring import score_predictions
from dim_hf.losses import resize_logits
from dim_hf.metrics.cases import score_case
from dim_hf.models import DimImageProcessor
from tests.test_job import write_site

DESCRIPTION = DatasetDescription({0: "background", 1: "square"}, {"square": [1]})
PROVENANCE = Provenance("a model", "a data set", "image")
QUIET = {"progress": False}


class Threshold(torch.nn.Module):
    """Foreground where the first channel is above a half, whatever the number of axes."""

    def __init__(self, threshold=0.5):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.threshold = threshold
        self.config = type("Config", (), {"id2label": {0: "background", 1: "square"}})()

    def forward(self, pixel_values):
        score = 20 * (pixel_values[:, :1] - self.threshold)
        return SemanticSegmenterOutput(logits=torch.cat([-score, score], dim=1))


@pytest.fixture
def pictures(tmp_path):
    for domain, size in (("one", 32), ("other", 48)):
        write_site(tmp_path / "data", domain, 7, size=size)
    return load_source(str(tmp_path / "data")).rows


def evaluate(rows, size=None, model=None, **options):
    processor = DimImageProcessor(size=size, num_channels=1)
    settings = EvaluationOptions(**{**QUIET, **options})
    return evaluate_model(model or Threshold(), processor, rows, DESCRIPTION, PROVENANCE, settings)


def test_images_are_scored_once_each_on_their_own_grid(pictures):
    result = evaluate(pictures, size=64, batch_size=3)
    assert len(result.cases) == 14
    assert {case.unit for case in result.cases} == {"px"}
    assert all(case.dice > 0.9 for case in result.cases)
    for case in result.cases:
        row = next(r for r in pictures if (r["domain"], r["name"]) == (case.domain, case.name))
        assert case.reference_volume == (np.asarray(row["label"]) == 1).sum()


def test_without_resizing_scores_are_those_of_the_stated_rule(pictures):
    result = evaluate(pictures, batch_size=5)
    expected = []
    for row in pictures:
        prediction = (np.asarray(row["image"]) / 255 > 0.5).astype(np.uint8)
        expected += score_case(
            prediction,
            np.asarray(row["label"]),
            DESCRIPTION.structures,
            domain=row["domain"],
            patient=row["patient"],
            name=row["name"],
        )
    assert list(map(str, result.cases)) == list(map(str, expected))


def test_the_benchmark_protocol_scores_at_the_networks_size_in_pixels(pictures):
    result = evaluate(pictures, size=16, protocol="midss-2d", model=Threshold(2.0))
    assert {case.hd95 for case in result.cases} == {100.0}
    assert max(case.reference_volume for case in result.cases) < 16 * 16
    assert result.summary.protocol == "midss-2d"
    assert result.provenance.protocol == "midss-2d"


def test_a_stated_spacing_gives_millimeters(pictures):
    spaced = pictures.add_column("spacing_mm", [[0.5, 0.25]] * len(pictures))
    result = evaluate(spaced)
    plain = evaluate(pictures)
    assert {case.unit for case in result.cases} == {"mm"}
    assert result.cases[0].reference_volume == pytest.approx(plain.cases[0].reference_volume * 0.125)
    partly = pictures.add_column("spacing_mm", [[0.5, 0.25]] * (len(pictures) - 1) + [None])
    assert {case.unit for case in evaluate(partly).cases} == {"px"}
    empty = pictures.add_column("spacing_mm", [[0.5, 0.25]] * (len(pictures) - 1) + [[]])
    assert {case.unit for case in evaluate(empty).cases} == {"px"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    root = tmp_path_factory.mktemp("hospital")
    affine = np.diag([-0.5, 0.5, 3.0, 1.0])
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / "src" / "site" / folder).mkdir(parents=True)
    for index in range(3):
        mask = np.zeros((16, 18, 5), np.uint8)
        mask[4 + index : 11, 5:13, 1:4] = 1
        image = (generator.integers(0, 30, mask.shape) + 200 * mask.astype(int)).astype(np.uint8)
        write_nifti(Volume(image, affine), root / "src" / "site" / "images" / f"c{index}.nii.gz")
        write_nifti(Volume(mask, affine), root / "src" / "site" / "masks" / f"c{index}.nii.gz")
    return root


def imported(hospital, tmp_path, plane):
    job = ImportJob("folders", hospital / "src", tmp_path / (plane or "whole"), write=WriteOptions(plane=plane))
    return load_source(str(import_dataset(job, progress=False))).rows


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_slices_put_together_score_as_the_volume(hospital, tmp_path, plane):
    together = evaluate(imported(hospital, tmp_path, plane), protocol="volume-mm", batch_size=4)
    volumes = imported(hospital, tmp_path, None)
    processor = DimImageProcessor(num_channels=1, spatial_dims=3)
    whole = evaluate_model(Threshold(), processor, volumes, DESCRIPTION, PROVENANCE, EvaluationOptions(**QUIET))
    assert [case.name for case in together.cases] == ["c0", "c1", "c2"]
    for mine, theirs in zip(together.cases, whole.cases, strict=True):
        assert mine.unit == theirs.unit == "mm"
        for metric in ("dice", "hd95", "asd", "assd", "reference_volume"):
            assert getattr(mine, metric) == pytest.approx(getattr(theirs, metric)), metric


def test_volumes_take_their_spacing_from_the_affine(hospital, tmp_path):
    rows = imported(hospital, tmp_path, "axial")
    spacing = rows["spacing_mm"]
    partly = rows.remove_columns("spacing_mm").add_column("spacing_mm", [None, *spacing[1:]])
    found, expected = (evaluate(one, protocol="volume-mm").cases for one in (partly, rows))
    assert list(map(str, found)) == list(map(str, expected))
    assert {case.unit for case in found} == {"mm"}
    without = rows.remove_columns("affine").add_column("affine", [None, *rows["affine"][1:]])
    with pytest.raises(ValueError, match="in mm, but rows have no affine; cut volumes"):
        evaluate(without, protocol="volume-mm")


def evaluate_volumes(rows, description=DESCRIPTION, **options):
    processor = DimImageProcessor(num_channels=1, spatial_dims=3)
    return evaluate_model(Threshold(), processor, rows, description, PROVENANCE, EvaluationOptions(**QUIET | options))


def test_volumes_whose_affine_is_made_up_are_scored_in_voxels(hospital, tmp_path):
    rows = imported(hospital, tmp_path, None)
    unknown = replace(DESCRIPTION, notes=[f"ssl4mis-h5: {NO_SPACING_NOTE}"])
    assert {case.unit for case in evaluate_volumes(rows).cases} == {"mm"}
    assert {case.unit for case in evaluate_volumes(rows, unknown).cases} == {"px"}
    slices = imported(hospital, tmp_path, "axial")
    for some in (rows, slices, slices.remove_columns("spacing_mm")):
        with pytest.raises(ValueError, match=r"did not state their spacing.*--protocol image"):
            evaluate_volumes(some, unknown, protocol="volume-mm")


@pytest.mark.parametrize("stored", ["float", "one channel"])
def test_masks_that_training_takes_are_scored(hospital, tmp_path, stored):
    """Whole floats, as some tools write them, and an axis of one channel."""
    rows = imported(hospital, tmp_path, None)
    expected = evaluate_volumes(rows)
    files = rows.cast_column("label", datasets.Nifti(decode=False))["label"]
    for file in files:
        mask = nibabel.load(file["path"])
        array = np.asarray(mask.dataobj)
        array = array.astype(np.float32) if stored == "float" else array[..., None]
        nibabel.save(nibabel.Nifti1Image(array, mask.affine), file["path"])
    assert [case.dice for case in evaluate_volumes(rows).cases] == [case.dice for case in expected.cases]


def test_a_mask_of_another_shape_is_named(hospital, tmp_path):
    rows = imported(hospital, tmp_path, None)
    path = rows.cast_column("label", datasets.Nifti(decode=False))["label"][1]["path"]
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"site/c1 .* has shape \(4, 4, 4\), its image"):
        evaluate_volumes(rows)


def scored(reference, prediction, structures):
    """Scores of one image of zeros, as `score_predictions` makes them."""
    rows = datasets.Dataset.from_dict({"domain": ["a"], "patient": [""], "name": ["x"]})
    probabilities = np.stack([prediction == number for number in range(3)]).astype(np.float32)
    case = PredictedCase(0, np.zeros(reference.shape, np.uint8), reference, prediction, probabilities, None, None)
    return score_predictions([case], [[0]], rows, PROTOCOLS["image"], structures)


def test_the_picture_of_a_volume_is_the_slice_with_most_of_the_structures():
    reference = np.zeros((4, 8, 8), np.uint8)
    reference[1, 2:5, 2:5] = 1
    reference[2, 2:7, 2:7] = 2  # in no structure
    reference[3] = 255
    scores = scored(reference, np.where(reference == 1, 1, 0).astype(np.uint8), {"square": [1]})
    assert (scores.worst["a"][0].reference == reference[1]).all()


def test_the_ratio_of_a_disc_that_is_partly_ignored_means_nothing():
    structures = {"disc": [1, 2], "cup": [2]}
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30], truth[15:25, 15:25] = 1, 2
    far, near = truth.copy(), truth.copy()
    far[:5], near[:18] = 255, 255
    assert scored(far, truth, structures).ratios == {"a": [(0.5, 0.5)]}
    assert scored(near, truth, structures).ratios == {}


def test_a_volume_that_lacks_a_slice_is_named(hospital, tmp_path):
    rows = imported(hospital, tmp_path, "axial")
    with pytest.raises(ValueError, match="'c0' of domain 'site'"):
        evaluate(rows.select(range(1, len(rows))), protocol="volume-mm")


def test_volumes_need_slices(pictures):
    with pytest.raises(ValueError, match="--slices"):
        evaluate(pictures, protocol="volume-mm")


def test_images_without_masks_are_left_out(pictures):
    masks = pictures.cast_column("label", datasets.Image(decode=False))["label"]
    some = pictures.remove_columns("label").add_column("label", [None, *masks[1:]], feature=datasets.Image())
    result = evaluate(some)
    assert len(result.cases) == 13
    assert result.provenance.without_mask == {pictures["domain"][0]: 1}
    text = format_result(result)
    assert f"Left out: 1 image without a mask (1 of {pictures['domain'][0]})." in text
    assert text.startswith("# a model on a data set\n")
    none = pictures.remove_columns("label")
    with pytest.raises(ValueError, match="no image has a mask"):
        evaluate(none)


def test_pictures_and_bins_are_kept_by_domain(pictures):
    result = evaluate(pictures)
    for domain in ("one", "other"):
        worst, best = result.worst[domain], result.best[domain]
        assert len(worst) == len(best) == 5
        assert [item.dice for item in worst] == sorted(item.dice for item in worst)
        assert [item.dice for item in best] == sorted((item.dice for item in best), reverse=True)
        assert worst[0].image.dtype == np.uint8
        pixels = sum(np.asarray(row["label"]).size for row in pictures if row["domain"] == domain)
        assert result.reliability[domain].counts.sum() == pixels


def test_processes_share_the_work_and_no_image_twice():
    for total in (0, 5, 7):
        for size in (1, 2, 3):
            shares = [index for rank in range(size) for index in shares_of(total, rank, size)]
            assert sorted(shares) == list(range(total))


@pytest.mark.parametrize("column", ["images", "masks"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, column):
    write_site(tmp_path / "data", "one", 2)
    rows = load_source(str(tmp_path / "data")).rows
    path = tmp_path / "data" / "one" / column / "case01.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"one/case01 \(.*{column}/case01\.png.* cannot be read: "):
        evaluate(rows)
    path.unlink()
    with pytest.raises(ValueError, match=rf"one/case01 \(.*{column}/case01\.png.* cannot be read: "):
        evaluate(rows)


def test_a_mask_of_unknown_classes_is_named(tmp_path):
    write_site(tmp_path / "data", "one", 2)
    rows = load_source(str(tmp_path / "data")).rows
    write_site(tmp_path / "data", "one", 2, value=6)
    with pytest.raises(ValueError, match=r"one/case00 \(.*masks/case00\.png\): labels hold the class 6"):
        evaluate(rows)


def test_predictions_follow_the_asked_order(pictures):
    processor = DimImageProcessor(num_channels=1)
    wanted = [3, 8, 1]
    found = predict_rows(Threshold(), processor, pictures, native=True, indices=wanted, batch_size=1, progress=False)
    assert [part.index for part in found] == wanted


class Sided(Threshold):
    """Sees the left half brighter than it is."""

    def forward(self, pixel_values):
        tilt = torch.linspace(0.4, 0, pixel_values.shape[-1])
        return super().forward(pixel_values + tilt)


@pytest.mark.parametrize("native", [True, False])
def test_flips_average_the_probabilities_of_mirror_images(pictures, native):
    processor = DimImageProcessor(size=40, num_channels=1)
    options = {"native": native, "progress": False, "batch_size": 3}
    found = list(predict_rows(Sided(), processor, pictures, flips=True, **options))
    plain = list(predict_rows(Sided(), processor, pictures, **options))
    for one, other in zip(found, plain, strict=True):
        image = processor(images=[np.asarray(pictures[one.index]["image"])])["pixel_values"]
        with torch.no_grad():
            answers = []
            for axes in ([], [2], [3], [2, 3]):
                logits = Sided()(torch.as_tensor(np.asarray(image)).flip(axes)).logits.flip(axes)
                answers.append(resize_logits(logits, one.prediction.shape).softmax(1)[0].numpy())
        np.testing.assert_allclose(one.probabilities, np.mean(answers, axis=0), atol=1e-6)
        np.testing.assert_allclose(other.probabilities, answers[0], atol=1e-6)
    assert any((one.prediction != other.prediction).any() for one, other in zip(found, plain, strict=True))


def test_flips_are_stated_with_the_scores(pictures):
    result = evaluate(pictures, model=Sided(), flips=True)
    assert result.provenance.flips
    assert "mean of the probabilities over mirror images" in format_result(result)
    assert "mirror images" not in format_result(evaluate(pictures, model=Sided()))


def test_a_model_of_other_classes_is_refused(pictures):
    model = Threshold()
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    with pytest.raises(ValueError, match="3 classes"):
        evaluate(pictures, model=model)


def facts(split=None, **data):
    return RunFacts(split or {}, {"split_seed": 0, "test_fraction": 0.3} | data, {}, {}, {})


def test_the_runs_own_data_set_is_read_as_the_run_read_it(tmp_path):
    phantom = facts(dataset="phantom:fundus", phantom_images_per_domain=5, image_size=32, phantom_seed=1)
    assert reading_of("phantom:fundus", phantom) == {"phantom": PhantomOptions(5, 32, 1)}
    assert reading_of("phantom:prostate", phantom) == {}
    folder = facts(
        dataset=str(tmp_path / "x" / ".."), patient_pattern="^(.)", structures='{"a": [1]}', class_names=None
    )
    assert reading_of(str(tmp_path), folder) == {"patient_pattern": "^(.)", "structures": {"a": [1]}}
    assert reading_of(str(tmp_path), RunFacts({}, {}, {}, {}, {})) == {}


@pytest.mark.parametrize("shared", [False, True])
def test_test_images_are_those_of_the_runs_split(pictures, shared):
    """Marked ones where there are any, and those that the run drew in the other domains."""
    rows = pictures.remove_columns(["split", "patient"])
    rows = rows.add_column(
        "split", ["test" if row["domain"] == "one" and "00" in row["name"] else None for row in rows]
    )
    rows = rows.add_column("patient", [f"p{int(name[-2:]) // 2}" for name in rows["name"]])
    if not shared:
        rows = rows.filter(lambda row: row["domain"] == "other" or row["name"] != "case01")
    options = {"labeled_domain": "other", "num_labeled": 1, "num_validation": 0, "seed": 0, "test_fraction": 0.3}
    split = semi_supervised_split(rows, **options, allow_shared_patients=shared)
    run = facts(split.summary(), allow_shared_patients=shared)
    found = rows_to_score(rows, "test", run)
    expected = {(domain, name) for domain, part in split.test.items() for name in part["name"]}
    assert set(zip(found["domain"], found["name"], strict=True)) == expected
    assert {domain for domain, _ in expected} == {"one", "other"}
    assert set(found["patient"]) <= set(rows["patient"])
