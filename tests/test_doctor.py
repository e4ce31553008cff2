import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dim_hf.data.checks import find_faults
from dim_hf.data.description import DatasetDescription
from dim_hf.data.doctor.comparison import by_domain
from dim_hf.data.doctor.diagnosis import examine
from dim_hf.data.doctor.findings import CODES, SEVERITIES
from dim_hf.data.doctor.report import render_report
from dim_hf.data.phantoms import PHANTOMS, make_phantom
from tests.doctor_samples import DESCRIPTION, clean_rows, diagnose, mask, picture, rows_of

VOLUMES = DatasetDescription({0: "background", 1: "gland"}, {"gland": [1]}, spatial_dims=3)


@pytest.fixture
def good(tmp_path):
    return clean_rows(tmp_path)


def codes(diagnosis):
    return [item.code for item in diagnosis.findings]


def only(diagnosis, code):
    (item,) = [item for item in diagnosis.findings if item.code == code]
    assert item.severity == CODES[code].severity
    assert item.fix == CODES[code].fix
    return item


def test_clean_rows_have_no_finding(good):
    diagnosis = diagnose(good)
    assert diagnosis.findings == []
    assert (diagnosis.worst, diagnosis.exit_code) == (None, 0)


def test_every_code_is_legal_and_has_a_fix():
    for code, kind in CODES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
        assert kind.severity in SEVERITIES
        assert kind.fix
        assert not kind.fix.endswith(".")
        assert not kind.blocks or kind.severity == "error"


def broken_file(kind):
    def write(path):
        picture(path, 9, (64, 64))
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": content[:2000], "text": b"<html>not found</html>"}[kind])
        return str(path)

    return write


@pytest.mark.parametrize(
    ("write", "code", "words"),
    [
        (lambda path: str(path), "missing-file", "the file does not exist"),
        (broken_file("empty"), "empty-file", "0 bytes"),
        (broken_file("truncated"), "truncated-file", "cannot be read"),
        (broken_file("text"), "unreadable-file", "is not an image of the formats PNG"),
    ],
)
@pytest.mark.parametrize("column", [0, 1])
def test_broken_files_are_findings_for_images_and_masks(good, tmp_path, write, code, words, column):
    path = write(tmp_path / "broken.png")
    good[1] = tuple(path if i == column else value for i, value in enumerate(good[1]))
    item = only(diagnose(good), code)
    assert item.file == path
    assert words in item.problem
    assert (item.domain, item.row) == ("site", 1)


def nan_image(path):
    Image.fromarray(np.full((8, 10), np.nan, np.float32)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("file", "column", "code", "words"),
    [
        (lambda path: mask(path, shape=(8, 12)), 1, "mask-size", r"\(8, 12\), but its image \(8, 10, 3\)"),
        (lambda path: mask(path, shape=(8, 10, 3)), 1, "mask-channels", "3 channels"),
        (lambda path: mask(path, (0, 7)), 1, "mask-values", r"values 7 outside 0\.\.2"),
        (lambda path: mask(path, (0, 0.5), dtype=np.float32), 1, "mask-not-integer", r"0\.5"),
        (nan_image, 0, "not-finite", "80 of 80"),
        (lambda path: picture(path, 0, (8, 10, 4)), 0, "alpha-channel", "RGBA"),
        (lambda path: mask(path, (1, 2), dtype=np.uint16), 1, "wide-mask", "16 bits"),
        (lambda path: mask(path, (7,), (8, 10, 3)), 0, "constant-image", "every pixel is 7"),
        (lambda path: mask(path, (0,)), 1, "empty-mask", "no pixel"),
        (lambda path: mask(path, (0, 255)), 1, "ignored-mask", "only 255"),
    ],
)
def test_faults_of_single_files(good, tmp_path, file, column, code, words):
    path = file(tmp_path / "odd.tif")
    good[1] = tuple(path if i == column else value for i, value in enumerate(good[1]))
    item = only(diagnose(good), code)
    assert item.file == path
    assert re.search(words, item.problem)


def test_the_gate_refuses_what_blocks_and_the_doctor_shows_it_too(good, tmp_path):
    good[0] = (str(tmp_path / "gone.png"), *good[0][1:])
    good[1] = (good[1][0], mask(tmp_path / "wide.png", (0, 9), dtype=np.uint16), *good[1][2:])
    faults = find_faults(rows_of(good), 3, progress=False)
    found = [item for item in diagnose(good).findings if CODES[item.code].blocks]
    assert [(fault.file, fault.problem, fault.fix) for fault in faults] == [
        (item.file, item.problem, item.fix) for item in found
    ]
    assert len(faults) == 2


def test_copies_are_found_by_their_pixels_in_another_format(good, tmp_path):
    pixels = Image.open(good[0][0])
    pixels.save(tmp_path / "copy.tif")
    copy = str(tmp_path / "copy.tif")
    for row, code in [
        ((copy, None, "site", "p9", "n9", ""), "duplicate-image"),
        ((copy, None, "site", "p9", "n9", "test"), "duplicate-across-splits"),
        ((copy, good[0][1], "other", "p9", "n9", "train"), "duplicate-across-domains"),
        ((copy, good[0][1], "other", "p9", "n9", "validation"), "duplicate-across-splits"),
    ]:
        item = only(diagnose([*good, row]), code)
        assert item.file == good[0][0]
        assert copy in item.problem
    Image.fromarray(np.asarray(pixels)[::-1]).save(copy)
    assert codes(diagnose([*good, (copy, None, "site", "p9", "n9", "test")])) == []


def test_grey_stored_as_color_is_a_copy_and_constant_images_are_none(good, tmp_path):
    grey = np.asarray(Image.open(picture(tmp_path / "grey.png", 5, (8, 10))))
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "color.png")
    pair = [(str(tmp_path / f"{name}.png"), None, "site", name, name, "") for name in ("grey", "color")]
    assert "duplicate-image" in codes(diagnose(good + pair))
    black = [(mask(tmp_path / f"b{n}.png", (0,)), None, "site", f"b{n}", f"b{n}", "") for n in range(2)]
    assert codes(diagnose(good + black)).count("constant-image") == 2
    assert "duplicate-image" not in codes(diagnose(good + black))


def test_a_patient_in_two_splits_and_an_empty_split_is_train(good):
    good[2] = (*good[2][:3], "p0", "n2", "")
    assert codes(diagnose(good)) == []
    good[3] = (*good[3][:3], "p0", "n3", "test")
    item = only(diagnose(good), "patient-across-splits")
    assert item.problem == "patient 'p0' is in test (n3), train (n0)"
    good[3] = (good[3][0], good[3][1], "other", "p0", "n3", "test")
    assert "patient-across-splits" not in codes(diagnose(good))


@pytest.mark.parametrize(
    ("domain", "name", "words"),
    [
        ("site", "bild 1", "the name 'bild 1' holds a blank"),
        ("site", "größe", "holds the characters 'ß', 'ö'"),
        ("my site", "a", "the domain's name 'my site' holds a blank"),
    ],
)
def test_odd_names(good, domain, name, words):
    table = [(*row[:2], domain, *row[3:]) for row in good]
    table[0] = (*table[0][:4], name, table[0][5])
    assert words in only(diagnose(table), "odd-name").problem


def test_odd_file_names_are_found_but_not_those_of_folders_above(good, tmp_path):
    good[0] = (picture(tmp_path / "my folder" / "a.png", 11), *good[0][1:])
    assert codes(diagnose(good)) == []
    good[0] = (picture(tmp_path / "a b.png", 11), *good[0][1:])
    assert "file name 'a b.png'" in only(diagnose(good), "odd-name").problem


def test_findings_of_domains(good, tmp_path):
    table = [
        (picture(tmp_path / "grey.png", 7, (8, 10)), mask(tmp_path / "two.png", (0, 1)), "b", "p", "n", ""),
        (picture(tmp_path / "large.png", 8, (8, 21, 3)), None, "b", "q", "m", ""),
        (picture(tmp_path / "c.png", 9), None, "c", "r", "l", ""),
    ]
    diagnosis = diagnose(good + table)
    assert codes(diagnosis) == ["absent-class", "mixed-channels", "no-domain-masks", "mixed-sizes"]
    assert only(diagnosis, "absent-class").problem == "class 2 (cup) is in none of its 1 masks"
    assert "axis 1 has 10 to 21 pixels" in only(diagnosis, "mixed-sizes").problem
    assert only(diagnosis, "no-domain-masks").file == "c"


def test_words_of_rows_that_no_split_would_accept(good):
    good[1] = (*good[1][:4], "n0", "tset")
    diagnosis = diagnose(good)
    assert only(diagnosis, "unknown-split").problem == "the split is 'tset'"
    assert "rows 0, 1" in only(diagnosis, "duplicate-name").problem
    assert diagnosis.exit_code == 4


def test_no_masks_at_all_and_masks_of_0_and_255(good, tmp_path):
    assert "no-masks" in codes(diagnose([(row[0], None, *row[2:]) for row in good]))
    binary = mask(tmp_path / "binary.png", (0, 255))
    found = diagnose([(row[0], binary, *row[2:]) for row in good])
    assert codes(found)[0] == "foreground-ignored"


def test_flipped_masks_of_a_domain_are_suspected(tmp_path):
    table = []
    for number in range(10):
        random = np.random.default_rng(number)
        label = np.zeros((40, 56), np.uint8)
        label[4 + number : 14 + number, 3 : 12 + number] = 1
        image = (60 + 120 * label + random.normal(0, 6, label.shape)).astype(np.uint8)
        label = label[:, ::-1] if number == 4 else label
        Image.fromarray(image).save(tmp_path / f"i{number}.png")
        Image.fromarray(label).save(tmp_path / f"m{number}.png")
        files = str(tmp_path / f"i{number}.png"), str(tmp_path / f"m{number}.png")
        table.append((*files, "site", f"p{number}", f"n{number}", ""))
    two = DatasetDescription({0: "background", 1: "cup"}, {"cup": [1]})
    diagnosis = diagnose(table, two)
    item = only(diagnosis, "flip-suspected")
    assert item.file.endswith("m4.png")
    assert "flipped left to right" in item.problem
    assert diagnosis.domains[0].flips_checked
    assert diagnosis.exit_code == 3


def test_volumes(tmp_path):
    nibabel = pytest.importorskip("nibabel")

    def volume(name, array, affine=None):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 3, 1]) if affine is None else affine), tmp_path / name)
        return str(tmp_path / name)

    random = np.random.default_rng(0)
    image = volume("image.nii.gz", random.normal(size=(6, 7, 5)).astype(np.float32))
    label = volume("label.nii.gz", (random.random((6, 7, 5)) > 0.5).astype(np.uint8))
    moved = np.diag([1.0, 1, 3, 1])
    moved[0, 3] = 0.5
    shifted = volume("shifted.nii.gz", np.ones((6, 7, 5), np.uint8), moved)
    turned = volume("turned.nii.gz", random.normal(size=(6, 7, 5)).astype(np.float32), np.diag([-1, 1, 6, 1]))
    series = volume("series.nii.gz", random.normal(size=(6, 7, 5, 9)).astype(np.float32))
    cut = tmp_path / "cut.nii.gz"
    large = volume("large.nii.gz", random.normal(size=(40, 40, 40)).astype(np.float32))
    cut.write_bytes(Path(large).read_bytes()[:100_000])
    files = [(image, label), (turned, None), (image, shifted), (series, None), (str(cut), None)]
    table = [(*pair, "site", f"p{n}", f"n{n}", "") for n, pair in enumerate(files)]
    diagnosis = diagnose(table, VOLUMES, feature=datasets.Nifti())
    assert codes(diagnosis) == [
        "truncated-file",
        "mask-affine",
        "wrong-dimensions",
        "duplicate-image",
        "mixed-spacings",
        "mixed-orientations",
    ]
    assert "0.5 mm apart" in only(diagnosis, "mask-affine").problem
    assert "axis 2 has 3 to 6 mm" in only(diagnosis, "mixed-spacings").problem
    (summary,) = diagnosis.domains
    assert summary.spacings_mm == {"1 x 1 x 3": 2, "1 x 1 x 6": 1}
    assert summary.orientations == {"RAS": 2, "LAS": 1}
    assert summary.readable == 3


def test_embedded_volumes_are_refused_by_their_header(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    import gzip

    good = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), np.eye(4))
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((30_000, 30_000, 30_000))
    contents = [good.to_bytes(), gzip.compress(good.to_bytes()), gzip.compress(huge.binaryblock + bytes(4))]
    files = [{"bytes": content, "path": None} for content in contents]
    table = [(file, None, "site", f"p{n}", f"n{n}", "") for n, file in enumerate(files)]
    diagnosis = diagnose(table, VOLUMES, feature=datasets.Nifti())
    assert codes(diagnosis) == ["too-large", "no-masks", "duplicate-image", "no-domain-masks"]


def test_slices_take_spacing_and_orientation_from_their_columns(good):
    affine = np.diag([-1.0, -1, 4, 1]).ravel().tolist()
    diagnosis = diagnose(good, spacing_mm=[[0.5, 0.75]] * 4, affine=[affine] * 3 + [None])
    (summary,) = diagnosis.domains
    assert summary.spacings_mm == {"0.5 x 0.75": 4}
    assert summary.orientations == {"LPS": 3}


def test_the_summary_of_a_domain_by_hand(tmp_path):
    dark, bright = np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8)
    dark[0, 0] = 7
    bright[:] = 255
    bright[0, 0] = 248
    table = []
    for number, (pixels, values) in enumerate([(dark, (0, 0, 1, 2)), (bright, (0, 0, 255, 2))]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        label = mask(tmp_path / f"m{number}.png", values, (4, 8))
        table.append((str(tmp_path / f"{number}.png"), label, "site", "p", f"n{number}", "train"))
    (summary,) = diagnose(table).domains
    assert (summary.images, summary.labeled, summary.patients, summary.splits) == (2, 2, 1, {"train": 2})
    assert summary.sizes == {"4 x 8": 2}
    assert summary.class_shares == {"background": 32 / 56, "rim": 8 / 56, "cup": 16 / 56}
    assert summary.class_images == {"background": 2, "rim": 1, "cup": 2}
    assert summary.ignored_share == 8 / 64
    (shares,) = summary.histogram.shares
    assert (summary.histogram.low, summary.histogram.high) == (0, 256)
    assert (shares[0], shares[-1], sum(shares)) == (0.5, 0.5, 1)


def test_histograms_of_other_types_share_the_range_of_their_domain(tmp_path):
    table = []
    for number, high in enumerate((1000.0, 2000.0)):
        Image.fromarray(np.linspace(0, high, 3200, dtype=np.float32).reshape(40, 80)).save(tmp_path / f"{number}.tif")
        table.append((str(tmp_path / f"{number}.tif"), None, "site", f"p{number}", f"n{number}", ""))
    (summary,) = diagnose(table).domains
    assert summary.histogram.low == 0
    assert 1900 < summary.histogram.high < 2000
    (shares,) = summary.histogram.shares
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    # Half of the range holds one image wholly and half of the other: three quarters of the weight.
    assert sum(shares[:16]) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("kind", ["fundus", "prostate", "prostate_3d"])
def test_phantoms_are_clean(kind):
    phantom = PHANTOMS[kind]
    rows = make_phantom(kind, images_per_domain=8, size=32, seed=0, domains=phantom.domains[:2])
    description = DatasetDescription(
        phantom.id2label, phantom.structures, phantom.num_channels, spatial_dims=phantom.spatial_dims
    )
    diagnosis = examine(rows, description, progress=False)
    assert diagnosis.exit_code == 0, diagnosis.findings
    assert [summary.domain for summary in diagnosis.domains] == sorted(phantom.domains[:2])
    assert render_report(diagnosis, rows, kind).count("<figure>") == 16


def test_order_and_number_of_threads_do_not_matter(good, tmp_path):
    good[0] = (str(tmp_path / "gone.png"), *good[0][1:])
    rows = rows_of(good)
    one, many = (examine(rows, DESCRIPTION, num_workers=number, progress=False) for number in (1, 8))
    assert one.to_dict() == many.to_dict()
    assert by_domain([]) == {}


def test_wrong_arguments_are_refused(good):
    with pytest.raises(ValueError, match=r"lack the columns \['image'\]"):
        examine(datasets.Dataset.from_dict({"picture": [1]}), DESCRIPTION)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        examine(rows_of(good), DESCRIPTION, num_workers=0)


def test_processes_find_what_threads_find(good, monkeypatch):
    monkeypatch.setattr("dim_hf.data.parallel.MIN_SECONDS", 0)
    monkeypatch.setattr("dim_hf.data.parallel.PROBED", 1)
    Path(good[0][0]).write_bytes(b"")
    here, there = (
        examine(rows_of(good), DESCRIPTION, progress=False, num_workers=2, processes=processes).to_dict()
        for processes in (False, True)
    )
    assert here == there
    assert here["counts"]["error"] == 1


def test_a_picture_of_another_format_is_not_opened_whatever_its_name(good, tmp_path):
    """Some decoders run programs: a PostScript file named .png would start Ghostscript."""
    Path(good[0][0]).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / "x.gif")
    Path(good[1][0]).write_bytes((tmp_path / "x.gif").read_bytes())
    assert codes(diagnose(good)) == ["unreadable-file", "unreadable-file"]
