"""What strangers chose - names, values, sizes - must neither reach the terminal as it is nor end in a traceback."""

import json
import os
import tracemalloc

import click
import datasets
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

from dim_hf.cli import main
from dim_hf.cli.errors import user_errors
from dim_hf.data.description import DatasetDescription
from dim_hf.data.doctor.measures import FaultError, count_values
from dim_hf.data.doctor.text import format_text
from dim_hf.data.sources import load_source
from tests.doctor_samples import clean_rows, diagnose, mask, picture

VOLUMES = DatasetDescription({0: "background", 1: "gland"}, {"gland": [1]}, spatial_dims=3)
EVIL = "site\x1b]0;title\x07\x1b[2J\u202e"


def run(*arguments):
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_names_cannot_give_the_terminal_orders(tmp_path):
    rows = [(*row[:2], EVIL, *row[3:]) for row in clean_rows(tmp_path)]
    rows[0] = (str(tmp_path / "gone\x1b[2J.png"), *rows[0][1:4], "name\r\n\x1b[1m", rows[0][5])
    shown = format_text(diagnose(rows), "data\x1b[2J")
    assert "site\\x1b]0;title\\x07\\x1b[2J\\u202e" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_errors_cannot_give_the_terminal_orders(tmp_path):
    for part in ("images", "masks"):
        picture(tmp_path / "src" / EVIL / part / "a.png")
    result = run("import", "folders", str(tmp_path / "src"), str(tmp_path / "out"), "--no-progress")
    assert result.exit_code == 1
    assert "\\x1b[2J" in result.output
    assert all(letter.isprintable() or letter == "\n" for letter in result.output)


def test_lack_of_memory_is_a_sentence():
    with pytest.raises(click.ClickException, match=r"there is not enough memory .*fewer workers"), user_errors():
        raise MemoryError


def test_homes_of_nobody_are_a_sentence():
    with pytest.raises(ValueError, match="'~nosuchuser/data' lies in the home of a user who is not known"):
        load_source("~nosuchuser/data")
    assert "nosuchuser" in run("doctor", "~nosuchuser/data").output


@pytest.mark.parametrize("place", ["file", "folder"])
def test_names_that_are_no_text_are_a_sentence(tmp_path, place):
    odd = os.fsdecode(b"x\xff")
    root = tmp_path / (odd if place == "folder" else "root")
    stem = odd if place == "file" else "x"
    picture(root / "site" / "images" / f"{stem}.png")
    mask(root / "site" / "masks" / f"{stem}.png")
    commands = [("doctor", str(root)), ("import", "folders", str(root), str(tmp_path / f"out{odd}"))]
    for arguments in commands:
        result = run(*arguments, "--no-progress")
        assert result.exit_code == 1
        assert "is no text in UTF-8" in result.output or "has a name that is no text" in result.output
        assert "rename it" in result.output


def test_the_largest_numbers_are_shown_as_json(tmp_path):
    table = []
    for number, high in enumerate((1.7e308, 1e39, 5e-324)):
        values = np.random.default_rng(number).choice([-high, 0, high], size=(6, 7, 5))
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{number}.nii.gz")
        label = (np.indices((6, 7, 5)).sum(0) % 3 > 1).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), tmp_path / f"m{number}.nii.gz")
        files = str(tmp_path / f"{number}.nii.gz"), str(tmp_path / f"m{number}.nii.gz")
        table.append((*files, f"site{number}", f"p{number}", f"n{number}", ""))
    diagnosis = diagnose(table, VOLUMES, feature=datasets.Nifti())
    assert diagnosis.exit_code == 0, diagnosis.findings
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    for summary in diagnosis.domains:
        (shares,) = summary.histogram.shares
        assert sum(shares) == pytest.approx(1, abs=1e-4)


def test_a_folder_of_a_wrong_description_is_a_sentence(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,domain\na.png,site\n")
    wrong = {"id2label": {"0": "a", "1": "b"}, "structures": {"b": [1]}, "licence": 4}
    (tmp_path / "dim_dataset.json").write_text(json.dumps(wrong))
    assert "licence must be a text, got 4" in run("doctor", str(tmp_path)).output


class TestCounting:
    def test_takes_little_beside_the_mask(self):
        values = np.asfortranarray(np.resize(np.arange(3, dtype=np.uint8), (256, 256, 256)))
        tracemalloc.start()
        try:
            assert count_values(values, 3, None) == {value: int((values == value).sum()) for value in range(3)}
            tracemalloc.reset_peak()
            count_values(values, 3, None)
            assert tracemalloc.get_traced_memory()[1] < values.nbytes
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("dtype", ["?", "u1", "<u2", ">i4", "i8", "f4"])
    def test_over_chunks_equals_counting_at_once(self, monkeypatch, dtype):
        monkeypatch.setattr("dim_hf.data.doctor.measures._CHUNK", 7)
        values = np.random.default_rng(0).integers(0, 2, (5, 6)).astype(dtype)
        assert count_values(values[:, ::2], 2, None) == {n: int((values[:, ::2] == n).sum()) for n in (0, 1)}

    def test_stops_at_masks_of_millions_of_values(self, monkeypatch):
        monkeypatch.setattr("dim_hf.data.doctor.measures._CHUNK", 1000)
        monkeypatch.setattr("dim_hf.data.doctor.measures._MANY", 100)
        with pytest.raises(FaultError, match=r"values 2, 3, 4, 5, 6, \.\.\. outside"):
            count_values(np.arange(10**6, dtype=np.int32), 2, None)
        with pytest.raises(FaultError, match=r"no integers \(0\.5\)"):
            count_values(np.append(np.zeros(5000), 0.5), 2, None)
