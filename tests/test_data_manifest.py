"""The manifest and the description beside it."""

import datasets
import numpy as np
import pytest
from PIL import Image

from dim_hf.data.description import DatasetDescription, parse_description, read_description, write_description
from dim_hf.data.manifest import columns_of, find_manifest, read_manifest, relative_path, write_manifest
from dim_hf.data.split_file import read_split_file

TABLE = {
    "image": ["a/x.png", "a/y.png", "b/x.png"],
    "label": ["a/x_mask.png", None, None],
    "domain": ["a", "a", "b"],
    "patient": ["p1", "p2", "p1"],
    "name": ["x", "y", "x"],
    "split": ["train", "", "test"],
    "spacing_mm": [[0.5, 0.25], None, None],
    "slice_index": [3, None, None],
    "age": ["70", "8", None],
}


def write_text(tmp_path, text):
    path = tmp_path / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_written_is_read(tmp_path, suffix):
    path = write_manifest(TABLE, tmp_path / f"manifest{suffix}")

    rows = read_manifest(path)

    assert isinstance(rows.features["image"], datasets.Image)
    plain = rows.cast_column("image", datasets.Image(decode=False)).cast_column("label", datasets.Image(decode=False))
    paths = [row["image"]["path"] for row in plain]
    assert paths == [str(tmp_path / name) for name in TABLE["image"]]
    assert [row["label"] for row in plain][1:] == [None, None]
    for column in set(TABLE) - {"image", "label"}:
        assert rows[column] == TABLE[column], column
    assert sorted(path.parent.iterdir()) == [path]  # no temporary file is left


def test_no_image_is_opened(tmp_path):
    size = 100_000
    names = [f"image_{number:06d}" for number in range(size)]
    table = {"image": [f"{name}.png" for name in names], "domain": ["a"] * size}

    rows = read_manifest(write_manifest(table, tmp_path / "manifest.csv"))

    assert len(rows) == size
    assert rows.data.nbytes < 40e6


def test_only_image_and_domain_are_required(tmp_path):
    rows = read_manifest(write_text(tmp_path, "image,domain\ns/a.png,one\ns/b.tiff,one\n"))
    assert rows["name"] == rows["patient"] == ["a", "b"]
    assert rows["split"] == ["", ""]


def test_equal_stems_are_told_apart_by_their_folders(tmp_path):
    rows = read_manifest(write_text(tmp_path, "image,domain\np1/scan.png,one\np2/scan.png,one\n"))
    assert rows["name"] == ["p1/scan", "p2/scan"]


def test_volumes_are_typed_as_nifti(tmp_path):
    rows = read_manifest(write_text(tmp_path, "image,label,domain\na.nii.gz,b.nii.gz,one\nc.nii,,one\n"))
    assert isinstance(rows.features["image"], datasets.Nifti)
    assert rows["name"] == ["a", "c"]


def test_a_byte_order_mark_and_blank_lines_are_no_fault(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes("image,domain\r\na.png,one\r\n\r\n".encode("utf-8-sig"))
    assert len(read_manifest(path)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["lacks the columns", "image,label,domain"]),
        ("image,domain\n", ["no rows"]),
        ("image,label\na.png,\n", ["lacks the columns ['domain']"]),
        ("image,domain,domain\na,b,c\n", ["twice"]),
        ("image,domain\na.png\n", ["line 2", "1 fields"]),
        ("image,domain\n,one\n", ["row 1", "image is empty"]),
        ("image,domain,split\na.png,one,training\n", ["'training'", "train, validation, test"]),
        ("image,domain,slice_index\na.png,one,first\n", ["line 2", "slice_index", "'first'", "whole number"]),
        ("image,domain,spacing_mm\na.png,one,0.5\n", ["line 2", "spacing_mm", "list of numbers"]),
        ('image,domain,spacing_mm\na.png,one,"""12"""\n', ["line 2", "list of numbers"]),
        ('image,domain,spacing_mm\na.png,one,"[1, true]"\n', ["line 2", "list of numbers"]),
        ('image,domain,spacing_mm\na.png,one,"[NaN, 1]"\n', ["row 1", "spacing_mm is [nan, 1.0]", "above 0"]),
        ('image,domain,spacing_mm\na.png,one,"[1, -1]"\n', ["row 1", "spacing_mm is [1.0, -1.0]"]),
        ('image,domain,affine\na.png,one,"[1, 0, 0]"\n', ["row 1", "affine is [1.0, 0.0, 0.0]", "16 numbers"]),
        ("image,domain,name\na.png,one,x\nb.png,one,x\n", ["rows 1 and 2", "'x'", "'one'"]),
        ("image,domain\na.png,one\na.png,one\n", ["rows 1 and 2"]),
        ("image,domain\na.png,one\nb.nii.gz,one\n", ["mixes volumes and pictures", "b.nii.gz"]),
        ("image,domain\na.mha,one\n", ["a.mha", "dim-hf import folders"]),
        ('image,domain\n"a.png,one\n', ["cannot be read"]),
        ("image;domain\na.png;one\n", ["semicolons", "commas"]),
        ("image\tdomain\na.png\tone\n", ["tabs"]),
        ("image,mask,domain\na.png,b.png,one\n", ["'mask'", "'label'", "rename"]),
        ("image,domain,slice_index\na.png,one,1.5\n", ["'1.5'", "whole number"]),
    ],
)
def test_faults_are_named(tmp_path, text, words):
    path = write_text(tmp_path, text)
    with pytest.raises(ValueError, match=r"manifest\.csv") as caught:
        read_manifest(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("m.csv", b"\xff\xfe\x00"), ("m.parquet", b"no parquet"), ("m.xlsx", b"")]
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_manifest(tmp_path / name)
    with pytest.raises(ValueError, match=r"missing\.csv"):
        read_manifest(tmp_path / "missing.csv")


def test_a_folder_holds_one_manifest(tmp_path):
    assert find_manifest(tmp_path) is None
    written = write_manifest(TABLE, tmp_path / "manifest.csv")
    assert find_manifest(tmp_path) == find_manifest(written) == written
    write_manifest(TABLE, tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match=r"manifest\.csv and manifest\.parquet"):
        find_manifest(tmp_path)


def test_a_failed_write_leaves_the_earlier_manifest(tmp_path):
    path = write_manifest(TABLE, tmp_path / "manifest.csv")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="zip"):
        write_manifest({"image": ["a"], "domain": []}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_paths_are_relative_below_the_manifest_only(tmp_path):
    assert relative_path(tmp_path / "a" / "b.png", tmp_path) == "a/b.png"
    assert relative_path("/elsewhere/b.png", tmp_path) == "/elsewhere/b.png"
    assert columns_of([{"image": "a", "age": 3}, {"image": "b"}], ["age"])["age"] == [3, None]


def test_pictures_are_decoded_on_access(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rows = read_manifest(write_text(tmp_path, "image,domain\na.png,one\n"))
    np.testing.assert_array_equal(np.asarray(rows[0]["image"]), pixels)


DESCRIPTION = DatasetDescription(
    {0: "background", 1: "rim", 2: "cup"},
    {"disc": [1, 2], "cup": [2]},
    num_channels=3,
    label_values={"midss-fundus": {"0": 2, "128": 1, "255": 0}},
    notes=["cropped"],
)


def test_a_description_returns_from_its_file(tmp_path):
    assert read_description(write_description(DESCRIPTION, tmp_path)) == DESCRIPTION


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id2label": {"1": "a", "2": "b"}}, "0..K-1"),
        ({"id2label": {"0": "a"}}, "0..K-1"),
        ({"id2label": {"0": "a", "1": "a"}}, "different"),
        ({"id2label": ["a", "b"]}, "describes no data set"),
        ({"structures": {}}, "at least one structure"),
        ({"structures": {"disc": [3]}}, "'disc'"),
        ({"structures": {"disc": [0]}}, "'disc'"),
        ({"num_channels": 2}, "num_channels"),
        ({"intensity": "loud"}, "'loud'"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_descriptions_are_checked(changes, words):
    good = {"id2label": {"0": "background", "1": "rim", "2": "cup"}, "structures": {"cup": [2]}}
    assert parse_description(good, "here").num_labels == 3
    with pytest.raises(ValueError, match=words):
        parse_description({**good, **changes}, "here")


def test_a_description_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "dim_dataset.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"dim_dataset\.json"):
        read_description(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="lacks the field 'id2label'"):
        read_description(path)


SPLIT = (
    "domain,source_file,split,train_order\none,a.png,train,1\none,b.png,train,0\none,c.png,test,\ntwo,a.png,test,\n"
)


def test_a_split_file_knows_its_images_with_or_without_folders(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text(SPLIT)
    split = read_split_file(path)
    assert split.of("one", "a", "Training/Images/a.png") == ("train", 1)
    assert split.of("two", "a", "a.png") == ("test", None)
    split.require_all(("one", name, f"{name}.png") for name in "abc")
    with pytest.raises(ValueError, match=r"says nothing of 'd\.png'"):
        split.of("one", "d", "d.png")
    with pytest.raises(ValueError, match=r"2 images that were not found, such as 'b\.png'"):
        split.require_all([("one", "a", "a.png")])
    with pytest.raises(ValueError, match=r"two images fit the line of 'a\.png'"):
        split.require_all([("one", "a", "left/a.png"), ("one", "a2", "right/a.png")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must have the columns"),
        ("domain,split\n", "must have the columns"),
        ("domain,name,split\none,a,training\n", "line 2: split is 'training'"),
        ("domain,name,split\none,a,train\none,a,test\n", "line 3: 'a' of domain 'one' is named twice"),
        ("domain,name,split,train_order\none,a,train,first\n", "train_order is 'first'"),
    ],
)
def test_split_files_are_checked(tmp_path, text, words):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_split_file(path)


def test_what_spreadsheets_leave_is_read(tmp_path):
    rows = read_manifest(write_text(tmp_path, "Image,Domain,labeled_order\na.png,one,1.0\nb.png,one,\n,,\n , ,\n"))
    assert rows["labeled_order"] == [1, None]
    with pytest.raises(ValueError, match="write paths with /"):
        read_manifest(write_text(tmp_path, "image,domain\nscans\\a.png,one\n"))
