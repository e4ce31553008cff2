"""Imports from end to end: what is written, what is refused, and that an interrupted one leaves nothing."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import datasets
import nibabel
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from dim_hf.cli import main
from dim_hf.data.checks import find_faults
from dim_hf.data.description import read_description
from dim_hf.data.importers.cases import ImportOptions
from dim_hf.data.importers.importing import ImportJob, import_dataset
from dim_hf.data.importers.writer import WriteOptions, safe_name
from dim_hf.data.manifest import find_manifest, read_manifest
from dim_hf.data.sources import load_source
from dim_hf.data.volumes.slices import stack_slices
from dim_hf.data.volumes.volume import Volume, read_volume, write_nifti

OBLIQUE = np.array([[0.6, 0.1, 0, -20], [-0.1, 0.6, 0.3, 30], [0, -0.2, 3.0, 5], [0, 0, 0, 1]])


def write_picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(array).save(path)


def write_site(root, site, count=4, values=(0, 255), labeled=True):
    rng = np.random.default_rng(len(site))
    for number in range(count):
        write_picture(
            root / site / "images" / f"p{number // 2}_{number}.png", rng.integers(0, 255, (8, 9, 3), "uint8")
        )
        if labeled:
            write_picture(
                root / site / "masks" / f"p{number // 2}_{number}.png", rng.choice(values, (8, 9)).astype("uint8")
            )
    return root


def write_volumes(root, site="hospital", count=2, spoil=False):
    rng = np.random.default_rng(0)
    (root / site / "images").mkdir(parents=True)
    (root / site / "masks").mkdir()
    for number in range(count):
        array = rng.integers(0, 900, (6, 5, 4)).astype(np.int16)
        write_nifti(Volume(array, OBLIQUE), root / site / "images" / f"c{number}.nii.gz")
        affine = OBLIQUE + 0.5 * spoil * np.eye(4, k=3)
        write_nifti(Volume((array > 450).astype(np.uint8), affine), root / site / "masks" / f"c{number}.nii.gz")
    return root


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(Path(folder).rglob("*"))}


def test_pictures_become_a_manifest_with_classes(tmp_path):
    source = write_site(write_site(tmp_path / "src", "b_site"), "a_site", labeled=False)
    before = snapshot(source)

    manifest = import_dataset(
        ImportJob("folders", source, tmp_path / "out", find=ImportOptions(patient_pattern=r"^(p\d+)_")), progress=False
    )

    rows, description = read_manifest(manifest), read_description(tmp_path / "out" / "dim_dataset.json")
    assert rows["domain"] == ["a_site"] * 4 + ["b_site"] * 4
    assert rows["patient"][4:] == ["p0", "p0", "p1", "p1"]
    assert [row["label"] is None for row in rows] == [True] * 4 + [False] * 4
    for row in rows.select(range(4, 8)):
        original = source / "b_site" / "masks" / f"{row['name']}.png"
        np.testing.assert_array_equal(np.asarray(row["label"]), np.asarray(PIL.Image.open(original)) // 255)
    assert description.label_values == {"folders": {"0": 0, "255": 1}}
    assert snapshot(source) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_site", "b_site", "dim_dataset.json", "manifest.csv",
    ]  # fmt: skip


def test_volumes_stay_volumes_or_become_slices_that_become_volumes_again(tmp_path):
    source = write_volumes(tmp_path / "src")
    whole = import_dataset(ImportJob("folders", source, tmp_path / "whole"), progress=False)
    rows = read_manifest(whole)
    assert isinstance(rows.features["image"], datasets.Nifti)
    np.testing.assert_allclose(rows[0]["image"].affine, OBLIQUE, atol=1e-5)

    job = ImportJob("folders", source, tmp_path / "cut", write=WriteOptions(plane="auto"))
    cut = load_source(str(import_dataset(job, progress=False)))
    assert (cut.description.spatial_dims, cut.description.intensity) == (2, "zscore")
    for column, file in (("image", "images"), ("label", "masks")):
        for case in ("c0", "c1"):
            slices = [row for row in cut.rows if row["volume"] == case]
            assert len(slices) == slices[0]["num_slices"] == 4
            volume = stack_slices(
                {row["slice_index"]: np.asarray(row[column]) for row in slices},
                slice_axis=slices[0]["slice_axis"],
                affine=np.reshape(slices[0]["affine"], (4, 4)),
                num_slices=slices[0]["num_slices"],
            )
            original = read_volume(source / "hospital" / file / f"{case}.nii.gz")
            np.testing.assert_array_equal(volume.array, original.array)
            np.testing.assert_allclose(volume.affine, original.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ({"plane": "axial"}, {"plane": "sagittal"}, "with --slices axial, and this import is with --slices sagittal"),
        ({"plane": "axial"}, {"plane": "auto"}, "say --slices axial, or import into another folder"),
        ({"spacing_mm": (1, 1, 2)}, {"spacing_mm": (1, 1, 3)}, "with --spacing-mm 1 1 2, .* with --spacing-mm 1 1 3"),
        ({"spacing_mm": (1, 1, 2)}, {}, "is without --spacing-mm; .*: say --spacing-mm 1 1 2"),
        ({}, {"spacing_mm": (1, 1, 2)}, "was imported without --spacing-mm, .*: leave --spacing-mm out"),
        ({"plane": "axial"}, {"plane": "axial", "spacing_mm": (1, 1, 2)}, "leave --spacing-mm out"),
        ({"plane": "axial"}, {}, "has spatial_dims = 2"),
    ],
)
def test_volumes_of_one_data_set_are_cut_and_resampled_alike(tmp_path, first, second, match):
    jobs = [
        ImportJob("folders", write_volumes(tmp_path / site, site, 1), tmp_path / "out", write=WriteOptions(**how))
        for site, how in (("a", first), ("b", second), ("c", first))
    ]
    import_dataset(jobs[0], progress=False)
    with pytest.raises(ValueError, match=match):
        import_dataset(replace(jobs[1], append=True), progress=False)
    import_dataset(replace(jobs[2], append=True), progress=False)
    assert read_manifest(find_manifest(tmp_path / "out")).unique("domain") == ["a", "c"]


def test_resampling_brings_image_and_label_to_one_spacing(tmp_path):
    source = write_volumes(tmp_path / "src", count=1)
    job = ImportJob("folders", source, tmp_path / "out", write=WriteOptions(spacing_mm=(1.0, 1.0, 2.0)))
    row = read_manifest(import_dataset(job, progress=False))[0]
    assert row["spacing_mm"] == pytest.approx([1, 1, 2])
    assert row["image"].shape == row["label"].shape
    assert set(np.unique(np.asarray(row["label"].dataobj))) <= {0, 1}


def test_labels_on_another_grid_are_refused_or_trusted(tmp_path):
    source = write_volumes(tmp_path / "src", spoil=True)
    with pytest.raises(ValueError, match=r"2 of 2 cases.*\n.*c0\.nii\.gz.*different grids.*trust-image-geometry"):
        import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()
    job = ImportJob("folders", source, tmp_path / "out", write=WriteOptions(trust_image_geometry=True))
    row = read_manifest(import_dataset(job, progress=False))[0]
    np.testing.assert_allclose(row["label"].affine, OBLIQUE, atol=1e-5)


def test_images_may_stay_where_they_are(tmp_path):
    source = write_site(tmp_path / "src", "a")
    job = ImportJob("folders", source, tmp_path / "out", write=WriteOptions(in_place=True))
    rows = read_manifest(import_dataset(job, progress=False))
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    assert undecoded[0]["image"]["path"] == str(source / "a" / "images" / "p0_0.png")
    assert not (tmp_path / "out" / "a" / "images").exists()


def test_a_second_import_adds_its_domains(tmp_path):
    out = tmp_path / "out"
    first = import_dataset(ImportJob("folders", write_site(tmp_path / "one", "a"), out), progress=False)
    with pytest.raises(ValueError, match="--append"):
        import_dataset(ImportJob("folders", tmp_path / "one", out), progress=False)
    with pytest.raises(ValueError, match=r"has the domains \['a'\] already"):
        import_dataset(ImportJob("folders", tmp_path / "one", out, append=True), progress=False)
    other = write_site(tmp_path / "two", "b")
    (out / "b").mkdir()  # as a kill between publishing folders and manifest leaves it
    import_dataset(ImportJob("folders", other, out, append=True, test_fraction=0.5), progress=False)
    rows = read_manifest(first)
    assert rows["domain"] == ["a"] * 4 + ["b"] * 4
    assert rows["split"][:4] == [""] * 4
    assert sorted(rows["split"][4:]) == ["test"] * 2 + ["train"] * 2
    assert len([row["image"].size for row in rows]) == 8
    third = write_site(tmp_path / "three", "c", values=(0, 1, 2))
    with pytest.raises(ValueError, match="id2label"):
        import_dataset(ImportJob("folders", third, out, append=True), progress=False)
    assert len(read_manifest(first)) == 8


def test_an_archive_is_unpacked_aside(tmp_path):
    write_site(tmp_path / "src", "a")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted((tmp_path / "src").rglob("*.png")):
            archive.write(path, Path("data_v2") / path.relative_to(tmp_path / "src"))
    manifest = import_dataset(ImportJob("folders", tmp_path / "data.zip", tmp_path / "out"), progress=False)
    assert len(read_manifest(manifest)) == 4
    assert not (tmp_path / "out" / ".importing").exists()


def test_an_archive_cannot_write_elsewhere(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a/images/x.png", b"")
        archive.writestr("../escaped.png", b"")
    with pytest.raises(ValueError, match=r"escaped\.png"):
        import_dataset(ImportJob("folders", tmp_path / "data.zip", tmp_path / "out"), progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zip"]


def test_broken_cases_are_all_named_or_left_out(tmp_path, caplog):
    source = write_site(tmp_path / "src", "a")
    for name in ("p0_0", "p1_3"):
        (source / "a" / "images" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"(?s)2 of 4.*p0_0\.png.*p1_3\.png"):
        import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()
    manifest = import_dataset(ImportJob("folders", source, tmp_path / "out", skip_broken=True), progress=False)
    assert read_manifest(manifest)["name"] == ["p0_1", "p1_2"]
    notes = read_description(tmp_path / "out" / "dim_dataset.json").notes
    assert notes == ["folders: 2 cases that could not be read were left out"]
    assert "p1_3.png" in caplog.text


def test_a_fixed_split_travels_along(tmp_path):
    source = write_site(tmp_path / "src", "a")
    lines = ["domain,name,split,train_order"]
    lines += [
        f"a,p{number // 2}_{number},{split}" for number, split in enumerate(["train,1", "train,0", "test,", "test,"])
    ]
    (tmp_path / "split.csv").write_text("\n".join(lines))
    job = ImportJob("folders", source, tmp_path / "out", split_file=tmp_path / "split.csv", manifest_format="parquet")
    rows = read_manifest(import_dataset(job, progress=False))
    assert rows["split"] == ["train", "train", "test", "test"]
    assert rows["labeled_order"] == [1, 0, None, None]


@pytest.mark.parametrize(
    ("target", "words"),
    [("src/out", "lies inside"), ("src", "lies inside"), ("file", "no folder"), ("full", "not empty")],
)
def test_targets_that_would_be_harmed_are_refused(tmp_path, target, words):
    source = write_site(tmp_path / "src", "a")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=words):
        import_dataset(ImportJob("folders", source, tmp_path / target), progress=False)
    assert snapshot(tmp_path) == before


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    source = write_site(tmp_path / "src", "a")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dim_hf.data.importers.importing.publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_import_left_is_removed(tmp_path):
    source = write_site(tmp_path / "src", "a")
    left = tmp_path / "out" / ".importing" / "a"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False)
    assert not list((tmp_path / "out").rglob("half.png"))


@pytest.mark.parametrize("job", [{"layout": "unheard"}, {"source": "nowhere"}])
def test_unknown_layouts_and_sources_are_named(tmp_path, job):
    source = write_site(tmp_path / "src", "a")
    settings = {"layout": "folders", "source": source, "target": tmp_path / "out"} | job
    with pytest.raises(ValueError, match=next(iter(job.values()))):
        import_dataset(ImportJob(**{**settings, "source": Path(settings["source"])}), progress=False)


def test_slicing_needs_volumes(tmp_path):
    source = write_site(tmp_path / "src", "a")
    for options, flag in (
        (WriteOptions(plane="axial"), "--slices"),
        (WriteOptions(spacing_mm=(1, 1, 1)), "--spacing-mm"),
    ):
        with pytest.raises(ValueError, match=flag):
            import_dataset(ImportJob("folders", source, tmp_path / "out", write=options), progress=False)


def test_file_names_are_safe():
    assert safe_name("case_01.a-b") == "case_01.a-b"
    assert re.fullmatch(r"_a_b_\.nii_[0-9a-f]{8}", safe_name("../a b/ü.nii"))
    assert safe_name("医院一") != safe_name("医院二")
    assert not safe_name("...").startswith(".")


def test_the_command_imports_and_says_what_is_there(tmp_path):
    source = write_site(tmp_path / "src", "a", values=(0, 7))
    arguments = ["import", "folders", str(source), str(tmp_path / "out"), "--no-progress", "--test-fraction", "0.25"]
    arguments += ["--label-map", '{"0": 0, "7": 1}', "--class-names", "background,cell", "--licence", "CC0-1.0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "a: 3 train, 1 test; 4 with a label map" in result.output
    description = read_description(tmp_path / "out" / "dim_dataset.json")
    assert description.id2label == {0: "background", 1: "cell"}
    assert description.licence == "CC0-1.0"
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--append" in again.output
    assert "Traceback" not in again.output


@pytest.mark.parametrize("words", [["--label-map", "x"], ["--label-map", '{"a": 1}'], ["--structures", "[1]"]])
def test_the_command_names_options_that_are_no_json(tmp_path, words):
    result = CliRunner().invoke(main, ["import", "folders", str(tmp_path), str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert words[0] in result.output


def test_the_help_lists_every_layout():
    from dim_hf.data.importers.registry import LAYOUTS

    result = CliRunner().invoke(main, ["import", "--help"])
    assert result.exit_code == 0
    for name in LAYOUTS:
        assert name in result.output


def test_two_hospitals_that_code_their_masks_differently_are_not_mixed(tmp_path):
    source = write_site(write_site(tmp_path / "src", "wide", values=(0, 255)), "narrow", values=(0, 1))
    message = r"wide/masks/p0_0.png holds \[0, 255\], narrow/masks/p0_0.png \[0, 1\].*--label-map"
    with pytest.raises(ValueError, match=message):
        import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False)
    options = ImportOptions(label_map={0: 0, 1: 1, 255: 1})
    rows = read_manifest(import_dataset(ImportJob("folders", source, tmp_path / "out", find=options), progress=False))
    assert {tuple(np.unique(np.asarray(row["label"]))) for row in rows} == {(0, 1)}


def test_the_spacing_is_that_of_the_patient_however_the_volume_is_stored(tmp_path):
    array = np.random.default_rng(0).integers(0, 9, (8, 10, 12)).astype(np.int16)
    stored = {"ras": np.eye(4), "pir": np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])}
    (tmp_path / "src" / "site" / "images").mkdir(parents=True)
    for name, affine in stored.items():
        write_nifti(Volume(array, affine), tmp_path / "src" / "site" / "images" / f"{name}.nii.gz")
    job = ImportJob("folders", tmp_path / "src", tmp_path / "out", write=WriteOptions(spacing_mm=(1.0, 2.0, 4.0)))
    for row in read_manifest(import_dataset(job, progress=False)):
        stored_as = nibabel.Nifti1Image(np.asarray(row["image"].dataobj), row["image"].affine)
        closest = nibabel.as_closest_canonical(stored_as)
        np.testing.assert_allclose(closest.header.get_zooms(), (1, 2, 4))


def test_a_mask_stored_along_other_axes_is_turned_not_mirrored(tmp_path):
    source = write_volumes(tmp_path / "src", count=1)
    mask_file = source / "hospital" / "masks" / "c0.nii.gz"
    truth = read_volume(mask_file)
    turned = nibabel.Nifti1Image(truth.array, truth.affine).as_reoriented([[1, -1], [0, 1], [2, -1]])
    turned.to_filename(mask_file)
    row = read_manifest(import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False))[0]
    np.testing.assert_array_equal(np.asarray(row["label"].dataobj), truth.array)
    np.testing.assert_allclose(row["label"].affine, truth.affine, atol=1e-5)
    moved = np.asarray(turned.affine) + 5 * np.eye(4, k=3)
    nibabel.Nifti1Image(np.asarray(turned.dataobj), moved).to_filename(mask_file)
    job = ImportJob("folders", source, tmp_path / "no", write=WriteOptions(trust_image_geometry=True))
    with pytest.raises(ValueError, match="different grids") as caught:
        import_dataset(job, progress=False)
    assert "--trust-image-geometry" not in str(caught.value)


def test_a_split_file_of_other_names_is_refused_with_a_sentence(tmp_path):
    source = write_site(tmp_path / "src", "a")
    (tmp_path / "split.csv").write_text("domain,name,split\nA,p0_0,train\n")
    job = ImportJob("folders", source, tmp_path / "out", split_file=tmp_path / "split.csv")
    with pytest.raises(ValueError, match="says nothing of 'p0_0' in domain 'a'"):
        import_dataset(job, progress=False)


def test_errors_of_an_archive_name_it_and_what_is_in_it(tmp_path):
    write_site(tmp_path / "src", "a")
    (tmp_path / "src" / "a" / "images" / "notes.txt").write_text("")
    (tmp_path / "src" / "a" / "images" / "p0_0.png").write_bytes(b"x")
    for stray, message in ((True, r"notes\.txt is not an image"), (False, r"data\.zip: wrapped/a/images/p0_0\.png")):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for path in sorted((tmp_path / "src").rglob("*.*")):
                if stray or path.suffix != ".txt":
                    archive.write(path, Path("wrapped") / path.relative_to(tmp_path / "src"))
        with pytest.raises(ValueError, match=message) as caught:
            import_dataset(ImportJob("folders", tmp_path / "data.zip", tmp_path / "out"), progress=False)
        assert ".unpacked" not in str(caught.value)


@pytest.mark.parametrize("name", ["maks", "gt"])
def test_a_mask_folder_of_another_name_makes_no_hospital_unlabeled(tmp_path, name):
    source = write_site(tmp_path / "src", "a")
    (source / "a" / "masks").rename(source / "a" / name)
    with pytest.raises(ValueError, match=f"also holds the folder '{name}'"):
        import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False)
    (source / "a" / name).rename(source / "a" / "labels")
    rows = read_manifest(import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False))
    assert None not in [row["label"] for row in rows]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"domain": "x"}, "does not use --domain"),
        ({"disc_crop": 2.0}, "does not use --disc-crop"),
        ({"structures": {"disc": 1}}, "structure 'disc'"),
        ({"structures": {"disc": [5]}}, "structure 'disc'"),
    ],
)
def test_options_are_checked_before_the_work(tmp_path, monkeypatch, options, words):
    source = write_site(tmp_path / "src", "a")
    monkeypatch.setattr("dim_hf.data.importers.importing.write_case", None)
    with pytest.raises(ValueError, match=words):
        import_dataset(ImportJob("folders", source, tmp_path / "out", find=ImportOptions(**options)), progress=False)


def test_appending_needs_and_keeps_the_description(tmp_path):
    out = tmp_path / "out"
    first = write_site(tmp_path / "one", "a", values=(0, 255))
    import_dataset(ImportJob("folders", first, out), progress=False)
    second = write_site(tmp_path / "two", "b", values=(0, 1))
    import_dataset(ImportJob("folders", second, out, append=True), progress=False)
    kept = read_description(out / "dim_dataset.json").label_values
    assert kept == {"folders": {"0": 0, "255": 1}, "folders #2": {"0": 0, "1": 1}}
    (out / "dim_dataset.json").unlink()
    third = write_site(tmp_path / "three", "c")
    with pytest.raises(ValueError, match=r"has no dim_dataset\.json beside it"):
        import_dataset(ImportJob("folders", third, out, append=True), progress=False)


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    out = tmp_path / "out"
    import_dataset(ImportJob("folders", write_site(tmp_path / "one", "a"), out), progress=False)
    own = out / "scans" / "0.png"
    write_picture(own, np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="scans is there already"):
        import_dataset(ImportJob("folders", write_site(tmp_path / "two", "scans"), out, append=True), progress=False)
    assert own.exists()
    (out / "scans" / ".unfinished").touch()  # as a kill between publishing and the manifest leaves it
    import_dataset(ImportJob("folders", tmp_path / "two", out, append=True), progress=False)
    assert not list(out.rglob(".unfinished"))


@pytest.mark.parametrize("odd", ["meters", "unpacked", "five axes"])
def test_nifti_files_that_mean_more_than_their_bytes_are_rewritten(tmp_path, odd):
    source = write_volumes(tmp_path / "src", count=1)
    file = source / "hospital" / "images" / "c0.nii.gz"
    volume = read_volume(file)
    image = nibabel.Nifti1Image(volume.array.reshape(volume.array.shape + (1,) * 2 * (odd == "five axes")), OBLIQUE)
    if odd == "meters":
        image = nibabel.Nifti1Image(volume.array, np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE)
        image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "x.nii" if odd == "unpacked" else file)
    if odd == "unpacked":
        (tmp_path / "x.nii").replace(file)
    rows = read_manifest(import_dataset(ImportJob("folders", source, tmp_path / "out"), progress=False))
    np.testing.assert_allclose(rows[0]["image"].affine, OBLIQUE, atol=1e-4)
    assert find_faults(rows, 2, progress=False) == []
