"""Files of evaluations: what they say beside the scores, how they are read back, and what is not paired."""

import csv
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_hf.evaluation.files import check_writable, compare_files, read_evaluation
from dim_hf.metrics.case_files import cell_value, read_about, read_cases_csv, safe_cell, write_cases_csv
from dim_hf.metrics.report import MEAN_OF_SITES, site_table, write_table_csv
from dim_hf.metrics.summary import summarize
from dim_hf.metrics.summary_text import write_summary_csv
from tests.test_summary import result, study

LEGACY = "best mean_dice on TEST images (test-legacy)"
ANY_TEXT = st.text(st.sampled_from("'=+-@\t\r\n a1"), max_size=6)


@given(ANY_TEXT)
def test_no_cell_is_a_formula_and_each_is_read_back(text):
    cell = safe_cell(text)
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    assert not cell.startswith(("\t", "\r"))
    assert cell_value(cell) == text


def test_names_of_strangers_survive_the_file_and_numbers_stay_numbers(tmp_path):
    path = tmp_path / "cases.csv"
    names = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "'=x", "plain"]
    cases = [result(domain=name, name=name, patient=name, structure=name, nsd=0.5, volume_difference=-1.5,
                    nsd_tolerance=1.0) for name in names]  # fmt: skip
    write_cases_csv(cases, path, about={"selected": "=1"})
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["volume_difference"] for line in lines} == {"-1.5"}
    assert [line["name"] for line in lines] == ["'=HYPERLINK(1)", "'+1", "'-1", "'@x", "'\tx", "''=x", "plain"]
    assert read_cases_csv(path) == cases
    assert read_about(path) == {"selected": "=1"}


def test_no_cell_of_a_summary_is_a_formula(tmp_path):
    cases = [replace(case, domain="=1+1", structure="@cup", volume_difference=-2.5) for case in study((0.5,), 1)[:1]]
    write_summary_csv(summarize(cases, protocol="image"), tmp_path / "summary.csv", about={"selected": "+last"})
    with open(tmp_path / "summary.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["domain"] for line in lines} == {"'=1+1", MEAN_OF_SITES}
    assert {line["worst_domain"] for line in lines} == {"'=1+1"}
    assert {(line["structure"], line["selected"]) for line in lines} == {("'@cup", "'+last")}
    assert {float(line["mean"]) for line in lines if line["metric"] == "volume_difference"} == {-2.5}


def test_no_cell_of_a_table_by_site_is_a_formula(tmp_path):
    cases = [replace(case, domain="=1+1", structure="@cup", volume_difference=-2.5) for case in study((0.5,), 1)[:1]]
    write_table_csv(site_table(cases), tmp_path / "sites.csv")
    with open(tmp_path / "sites.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["domain"] for line in lines} == {"'=1+1", MEAN_OF_SITES}
    assert {line["structure"] for line in lines} == {"'@cup"}
    assert {float(line["dice"]) for line in lines} == {cases[0].dice}


def write(folder, cases=None, **about):
    folder.mkdir(parents=True, exist_ok=True)
    write_cases_csv(study() if cases is None else cases, folder / "cases.csv", about=about)
    return str(folder)


def test_a_comparison_states_the_protocol_and_pairs_no_two(tmp_path):
    a, b = (write(tmp_path / name, protocol="image") for name in "ab")
    other, old = write(tmp_path / "other", protocol="network"), write(tmp_path / "old")
    assert "Protocol: image." in compare_files(a, b)
    assert "Protocol: image in A, unknown in B." in compare_files(a, old)
    assert "Protocol: unknown" in compare_files(old, old)
    with pytest.raises(ValueError, match=f"{a} was scored by the protocol image, {other} by network"):
        compare_files(a, other)
    lines = (tmp_path / "a" / "cases.csv").read_text().splitlines()
    mixed = [*lines, lines[-1].replace(",image", ",network")]
    (tmp_path / "mixed.csv").write_text("\n".join(mixed))
    with pytest.raises(ValueError, match="protocol is 'image' and 'network'"):
        read_evaluation(tmp_path / "mixed.csv")


def test_a_run_without_the_columns_is_described_by_its_results(tmp_path):
    run = write(tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text('{"training": {"selected": "last step"}}')
    found = read_evaluation(run)
    assert (found.protocol, found.selection) == ("network", "last step")
    (tmp_path / "run" / "evaluation.json").write_text('{"protocol": "image", "selection": "best"}')
    found = read_evaluation(run)
    assert (found.protocol, found.selection) == ("image", "best")
    (tmp_path / "run" / "evaluation.json").write_text("[]")
    with pytest.raises(ValueError, match=r"evaluation\.json cannot be read"):
        read_evaluation(run)


@pytest.mark.parametrize("stamped", ["A", "B"])
def test_selection_on_test_is_stamped_in_a_comparison(tmp_path, stamped):
    found = [write(tmp_path / name, selected=LEGACY if name == stamped else "last step") for name in "AB"]
    text = compare_files(*found)
    assert f"{stamped}: Test images had a part in choosing this checkpoint." in text
    assert text.count("Test images had a part") == 1
    assert text.count("cannot be compared") == 1


def test_nothing_cannot_be_compared(tmp_path):
    empty, full = write(tmp_path / "empty", []), write(tmp_path / "full")
    for pair in ((empty, empty), (full, empty)):
        with pytest.raises(ValueError, match="empty holds no case"):
            compare_files(*pair)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(ValueError, match=r"file/x cannot be written to .*--output_dir"):
        check_writable(tmp_path / "file" / "x")
