import json
import re
import runpy

import pytest
from click.testing import CliRunner

from dim_hf.cli import main
from dim_hf.data.doctor.diagnosis import examine
from dim_hf.data.doctor.report import render_report, write_report
from dim_hf.data.doctor.text import format_text
from tests.doctor_samples import DESCRIPTION, clean_rows, diagnose, mask, picture, rows_of


@pytest.fixture
def good(tmp_path):
    return clean_rows(tmp_path)


def test_text_lists_five_files_and_counts_the_rest(good, tmp_path):
    gone = [(str(tmp_path / f"gone{n}.png"), None, "site", f"g{n}", f"g{n}", "") for n in range(7)]
    text = format_text(diagnose(good + gone), "data")
    assert text.splitlines()[0] == "data: 11 images of 1 domain"
    assert "Found 7 errors." in text
    assert "ERROR missing-file: The file does not exist (7)" in text
    assert text.count("gone") == 5
    assert "... and 2 more" in text
    assert "No fault was found." in format_text(diagnose(good), "data")


def test_report_needs_no_other_file_and_escapes_names(good, tmp_path):
    name = "<script>alert(1)</script>"
    good[0] = (picture(tmp_path / "a.png", 21), mask(tmp_path / "b.png", (0, 7)), f"site {name}", "p", name, "")
    rows = rows_of(good)
    path = write_report(examine(rows, DESCRIPTION, progress=False), rows, tmp_path / "new" / "report.html", name)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|url\(|@import|https?://""", page)
    assert "prefers-color-scheme: dark" in page
    # One faulty row and the samples of two domains: an image each, and a mask above it.
    assert page.count("<figure>") == 5
    assert page.count("data:image/jpeg") == page.count("data:image/png") == 5
    assert "mask-values" in page


def test_a_report_of_nothing_but_broken_files(tmp_path):
    rows = rows_of([(str(tmp_path / "gone.png"), None, "", "", "", "")])
    page = render_report(examine(rows, DESCRIPTION, progress=False), rows, "data")
    assert "<figure>" not in page
    assert "(no domain)" in page


def test_a_report_that_cannot_be_written(good, tmp_path):
    rows = rows_of(good)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/report\.html cannot be written .*choose another"):
        write_report(examine(rows, DESCRIPTION, progress=False), rows, tmp_path / "file" / "report.html", "data")


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        picture(tmp_path / "data" / "site" / "images" / f"{number}.png", number)
        mask(tmp_path / "data" / "site" / "masks" / f"{number}.png", (0, 1))
    return tmp_path / "data"


def run(*args):
    return CliRunner().invoke(main, ["doctor", *map(str, args)])


def test_exit_codes_of_the_command(folder):
    assert run(folder).exit_code == 0
    picture(folder / "site" / "images" / "b c.png", 7)
    assert run(folder).exit_code == 3
    (folder / "site" / "images" / "0.png").write_bytes(b"")
    result = run(folder)
    assert result.exit_code == 4
    assert "ERROR empty-file" in result.stdout
    missing = run(folder / "nowhere")
    assert missing.exit_code == 1
    assert "Traceback" not in missing.output
    assert run(folder, "--workers", "0").exit_code == 2


def test_json_is_all_that_goes_to_the_standard_output(folder, tmp_path):
    result = run(folder, "--json", "--html", tmp_path / "report.html")
    found = json.loads(result.stdout)
    assert found["dataset"] == str(folder)
    assert (found["rows"], found["exit_code"], found["findings"]) == (3, 0, [])
    assert found["counts"] == {"error": 0, "warning": 0, "note": 0}
    assert found["domains"][0]["class_images"] == {"background": 3, "foreground": 3}
    assert "examining files" in result.stderr
    assert (tmp_path / "report.html").is_file()
    assert run(folder, "--json", "--no-progress").stderr == ""


def test_class_names_are_taken_and_help_states_the_exit_codes(folder):
    names = run(folder, "--class-names", "background, rim, cup", "--json", "--no-progress")
    assert json.loads(names.stdout)["classes"]["2"] == "cup"
    assert names.exit_code == 3  # the cup is nowhere
    assert "4 errors" in run("--help").output


def test_files_are_shown_without_the_folder_that_the_title_names(tmp_path):
    rows = rows_of(clean_rows(tmp_path))
    (tmp_path / "i0.png").write_bytes(b"")
    diagnosis = examine(rows, DESCRIPTION, progress=False)
    for dataset in (tmp_path, tmp_path / "i1.png"):  # a folder, or a file such as a manifest in it
        for shown in (format_text(diagnosis, str(dataset)), render_report(diagnosis, rows, str(dataset))):
            assert str(tmp_path) not in shown.replace(str(dataset), "")
            assert "i0.png" in shown
    assert diagnosis.findings[0].file == str(tmp_path / "i0.png")


def test_the_demo_finds_what_it_spoiled(tmp_path):
    command = runpy.run_path("examples/doctor_demo.py")["main"]
    options = ["--output_dir", str(tmp_path / "demo"), "--images_per_domain", "12", "--size", "96"]
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 0, result.output
    for code in ("truncated-file", "mask-values", "duplicate-across-splits", "constant-image", "flip-suspected"):
        assert code in result.output
    assert (tmp_path / "demo" / "report.html").exists()
    assert "is there already" in CliRunner().invoke(command, options).output
