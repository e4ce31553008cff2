"""Rows of cases, tables by site, their texts and files, and the figures drawn from them."""

import csv
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dim_hf.metrics import figures, overlap, report, surface
from dim_hf.metrics.cases import CaseResult, score_case
from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES, format_table, site_table

FUNDUS = {"disc": [1, 2], "cup": [2]}
REFERENCE = np.array([[0, 1, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]])


def result(domain="A", name="1", structure="disc", dice=0.5, hd95=1.0, **others):
    base = CaseResult(
        domain=domain, patient="p", name=name, structure=structure, dice=dice, jaccard=dice / (2 - dice), hd95=hd95,
        hd=hd95, asd=hd95 / 2, assd=hd95 / 2, nsd=math.nan, volume_difference=0.0, prediction_volume=4.0,
        reference_volume=4.0, missed=False, spurious=False, unit="mm", empty_policy="worst",
    )  # fmt: skip
    return replace(base, **others)


def rows_of(table):
    return [(row.domain, row.structure) for row in table.rows]


# ---- one case


def test_nested_structures_are_unions_of_exclusive_classes():
    prediction = np.array([[0, 1, 1, 0], [0, 2, 2, 0], [0, 0, 0, 0]])
    disc, cup = score_case(prediction, REFERENCE, FUNDUS, domain="A", patient="p", name="n")
    assert (disc.structure, disc.dice, disc.hd95) == ("disc", 1.0, 0.0)
    assert (cup.structure, cup.dice, cup.jaccard) == ("cup", 2 / 3, 0.5)
    assert (cup.prediction_volume, cup.reference_volume, cup.volume_difference) == (2.0, 1.0, 1.0)
    assert (cup.domain, cup.patient, cup.name, cup.unit, cup.empty_policy) == ("A", "p", "n", "px", "worst")
    rim = score_case(prediction, REFERENCE, {"rim": [1]})[0]
    assert rim.dice == 0.8


@given(*[arrays(np.uint8, (5, 6), elements=st.integers(0, 3))] * 2, st.sampled_from([None, 0.5, (2.0, 0.3)]))
@settings(deadline=None, max_examples=40)
def test_each_row_is_the_metric_of_its_masks(prediction, reference, spacing):
    structures = {"a": [1], "b": [1, 3], "c": [0, 2]}
    for row in score_case(prediction, reference, structures, spacing, tolerance_mm=1.0):
        masks = [np.isin(labels, structures[row.structure]) for labels in (prediction, reference)]
        assert row.dice == overlap.dice(*masks)
        assert row.hd95 == surface.hd95(*masks, spacing)
        assert row.asd == surface.asd(*masks, spacing)
        assert row.nsd == surface.nsd(*masks, spacing, tolerance_mm=1.0)
        assert row.volume_difference == overlap.volume_difference(*masks, spacing)
        assert (row.missed, row.spurious) == (overlap.missed(*masks), overlap.spurious(*masks))
        assert row.unit == ("px" if spacing is None else "mm")


def test_volumes_are_scored_in_mm():
    reference = np.zeros((3, 4, 5), np.uint8)
    prediction = reference.copy()
    reference[0, 0, 0] = prediction[2, 0, 0] = 1
    (row,) = score_case(prediction, reference, {"prostate": [1]}, spacing_mm=(3.0, 0.5, 0.5))
    assert (row.hd95, row.asd, row.reference_volume, row.unit) == (6.0, 6.0, 0.75, "mm")


def test_ignored_pixels_count_in_neither_mask():
    reference = REFERENCE.copy()
    reference[0, 1] = 255
    prediction = REFERENCE.copy()
    assert [row.dice for row in score_case(prediction, reference, FUNDUS)] == [1.0, 1.0]
    prediction[0, 1] = 0
    assert [row.dice for row in score_case(prediction, reference, FUNDUS)] == [1.0, 1.0]
    disc = score_case(REFERENCE, reference, FUNDUS, ignore_index=None)[0]
    assert (disc.dice, disc.volume_difference) == (6 / 7, 1.0)


def test_missed_and_spurious_structures_are_told_apart():
    nothing = np.zeros_like(REFERENCE)
    missed = score_case(nothing, REFERENCE, FUNDUS)[0]
    spurious = score_case(REFERENCE, nothing, FUNDUS)[0]
    assert (missed.missed, missed.spurious, missed.hd95, missed.dice) == (True, False, 5.0, 0.0)
    assert (spurious.missed, spurious.spurious, spurious.asd) == (False, True, 5.0)
    assert score_case(nothing, REFERENCE, FUNDUS, empty_policy="legacy-100")[0].asd == 100.0
    assert math.isnan(score_case(nothing, REFERENCE, FUNDUS, empty_policy="nan")[0].hd95)
    assert score_case(nothing, nothing, FUNDUS)[0].dice == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction": REFERENCE.T}, r"case 'n' of domain 'A': prediction has shape \(4, 3\) and reference \(3, 4\)"),
        ({"prediction": REFERENCE / 2}, "case 'n' of domain 'A': prediction has type float64"),
        ({"reference": REFERENCE[None, None]}, "reference has shape"),
        ({"structures": {}}, "structures is empty"),
        ({"structures": {"disc": []}}, "structure 'disc'"),
        ({"structures": {"disc": 1}}, "list of at least one class id"),
        ({"structures": {"disc": ["rim"]}}, "class 'rim'"),
        ({"structures": {"disc": [-1]}}, "class -1"),
        ({"structures": {"disc": [255]}}, "label of ignored pixels"),
        ({"spacing_mm": (1.0, 0.0)}, "spacing_mm"),
        ({"empty_policy": "zero"}, "choose one of"),
        ({"tolerance_mm": -1.0}, "tolerance_mm"),
    ],
)
def test_bad_cases_are_named(change, words):
    arguments = {"prediction": REFERENCE, "reference": REFERENCE, "structures": FUNDUS, "domain": "A", "name": "n"}
    with pytest.raises(ValueError, match=words):
        score_case(**(arguments | change))


# ---- tables


def test_means_are_over_cases_then_structures_then_domains():
    table = site_table(
        [
            result("A", "1", "disc", 0.8, 2.0), result("A", "1", "cup", 0.6, 4.0),
            result("A", "2", "disc", 0.4, 4.0), result("A", "2", "cup", 0.2, 8.0),
            result("B", "1", "disc", 1.0, 0.0), result("B", "1", "cup", 0.0, 9.0, missed=True),
        ]
    )  # fmt: skip
    sites = ["A", "B", MEAN_OF_SITES]
    assert rows_of(table) == [(site, structure) for site in sites for structure in ("disc", "cup", ALL_STRUCTURES)]
    means = {(row.domain, row.structure): row.means["dice"] for row in table.rows}
    expected = [0.6, 0.4, 0.5, 1.0, 0.0, 0.5, 0.8, 0.2, 0.5]
    assert list(means.values()) == pytest.approx(expected)
    assert table.row("A").means["hd95"] == pytest.approx((3.0 + 6.0) / 2)
    assert [table.row(site).cases for site in sites] == [2, 1, 3]
    assert [table.row(site).missed for site in sites] == [0, 1, 1]
    assert table.row("B", "disc").missed == 0
    assert (table.unit, table.empty_policy, table.domains) == ("mm", "worst", ["A", "B"])


def test_a_large_domain_weighs_no_more_than_a_small_one():
    cases = [result("A", str(i), dice=1.0) for i in range(99)] + [result("B", dice=0.0)]
    assert site_table(cases).row().means["dice"] == 0.5


def test_one_structure_has_no_mean_of_structures():
    assert rows_of(site_table([result("A"), result("B")])) == [("A", "disc"), ("B", "disc"), (MEAN_OF_SITES, "disc")]


def test_a_domain_without_a_structure_still_counts_in_the_mean_of_sites():
    table = site_table([result("A", dice=0.8), result("A", structure="cup", dice=0.4), result("B", dice=0.2)])
    assert table.row().structure == ALL_STRUCTURES
    assert table.row().means["dice"] == pytest.approx((0.6 + 0.2) / 2)
    assert table.row(structure="cup").means["dice"] == 0.4


@given(st.permutations(range(6)))
@settings(deadline=None, max_examples=20)
def test_the_order_of_cases_changes_no_mean(order):
    cases = [result("AB"[i % 2], str(i), dice=0.1 * i, hd95=i / 7) for i in range(6)]
    plain, mixed = site_table(cases), site_table([cases[i] for i in order])
    for row in plain.rows:
        other = mixed.row(row.domain, row.structure).means
        assert math.isnan(other.pop("nsd"))  # no tolerance
        assert other == pytest.approx({name: row.means[name] for name in other}, rel=1e-12)


def test_undefined_distances_are_left_out_and_counted():
    cases = [result(name="1", hd95=2.0), result(name="2", hd95=math.nan, missed=True), result("B", hd95=math.nan)]
    table = site_table([replace(case, empty_policy="nan") for case in cases])
    assert (table.row("A").means["hd95"], table.row("A").undefined) == (2.0, 1)
    assert math.isnan(table.row("B").means["hd95"])
    assert (table.row().means["hd95"], table.row().undefined) == (2.0, 2)
    text = format_table(table)
    assert "Undefined" in text
    assert re.search(r"\| B .*–", text)


def test_no_cases_give_an_empty_table():
    table = site_table([])
    assert table.rows == ()
    assert "No cases" in format_table(table)
    assert "No cases" in format_table(table, "text")
    with pytest.raises(ValueError, match="there are: none"):
        table.row()
    assert math.isnan(report.mean_of_defined([]))


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([result("A"), result("B", unit="px")], "different units: mm, px"),
        ([result("A"), result("B", empty_policy="nan")], "different empty policies: nan, worst"),
        (
            [result("A", nsd_tolerance=1.0), result("B", nsd_tolerance=2.0)],
            "different tolerances of the NSD .*: 1.0, 2.0",
        ),
        ([result("A", nsd_tolerance=1.0), result("B")], "different tolerances of the NSD .*: 1.0, nan"),
        ([result("A"), result("A")], "case '1', structure 'disc' comes twice"),
        ([result(MEAN_OF_SITES)], "name of a mean"),
        ([result(structure=ALL_STRUCTURES)], "name of a mean"),
    ],
)
def test_tables_of_what_does_not_belong_together(cases, words):
    with pytest.raises(ValueError, match=words):
        site_table(cases)


# ---- texts and files


def test_the_markdown_table_states_unit_policy_and_counts():
    lines = format_table(site_table([result("A|B", dice=0.25, missed=True), result("C", unit="mm")])).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[:5]]
    assert cells[0] == [
        "Site", "Structure", "Cases", "Dice", "Jaccard", "HD95 (mm)", "ASD (mm)", "Missed", "Spurious"
    ]  # fmt: skip
    assert all(re.fullmatch("-+:?", cell) for cell in cells[1])
    assert cells[2][:4] == [r"A\|B", "disc", "1", "0.2500"]
    assert cells[2][7:] == ["1", "0"]
    assert {len(row) for row in cells} == {9}
    assert "in mm; empty masks: worst" in lines[-1]
    assert "HD95 (px)" in format_table(site_table([result(unit="px")]), "text")
    with pytest.raises(ValueError, match="markdown or text"):
        format_table(site_table([result()]), "html")


def test_settings_stand_side_by_side():
    tables = {"one": site_table([result("A", dice=0.5)]), "two": site_table([result("A"), result("B", dice=0.25)])}
    text = report.format_comparison(tables, style="text")
    cells = [re.split(r"\s{2,}", line) for line in text.splitlines() if not line.startswith("---")]
    assert cells == [
        ["Site", "one", "two"], ["A", "0.5000", "0.5000"], ["B", "–", "0.2500"], [MEAN_OF_SITES, "0.5000", "0.3750"]
    ]  # fmt: skip
    distances = report.format_comparison(tables, metric="hd95")
    assert distances.endswith("counts as the image diagonal).")
    assert "\n\nHD95 (mm). Distances in mm; empty masks: worst" in distances
    with pytest.raises(ValueError, match="different units"):
        report.format_comparison({"one": tables["one"], "two": site_table([result(unit="px")])})
    with pytest.raises(ValueError, match="choose one of dice"):
        report.format_comparison(tables, metric="dise")
    with pytest.raises(ValueError, match="at least one"):
        report.format_comparison({})


def test_an_nsd_is_never_shown_without_its_tolerance(tmp_path):
    scored = site_table(score_case(REFERENCE, REFERENCE, FUNDUS, (0.5, 0.5), domain="A", name="1", tolerance_mm=1.5))
    assert scored.nsd_tolerance == 1.5
    assert "NSD at 1.5 mm" in report.format_comparison({"one": scored, "other": scored}, metric="nsd")
    other = site_table([result(nsd=0.5, nsd_tolerance=2.0)])
    report.check_comparable({"one": scored, "other": other}, "dice")
    with pytest.raises(ValueError, match="different tolerances of the NSD"):
        report.format_comparison({"one": scored, "other": other}, metric="nsd")
    report.write_table_csv(scored, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert {line["nsd_tolerance"] for line in csv.DictReader(file)} == {"1.5"}
    figure = figures.site_bars(scored, tmp_path / "bars.svg", metric="nsd")
    assert ">NSD at 1.5 mm<" in figure.read_text()


def test_cases_survive_the_csv(tmp_path):
    cases = [result('Ä, "B"', hd95=1 / 3), result("B", "x\ny", missed=True)]
    cases = [replace(case, nsd=0.5, nsd_tolerance=1 / 3) for case in cases]
    report.write_cases_csv(cases, tmp_path / "cases.csv")
    assert report.read_cases_csv(tmp_path / "cases.csv") == cases
    assert site_table(report.read_cases_csv(tmp_path / "cases.csv")).nsd_tolerance == 1 / 3
    report.write_cases_csv([], tmp_path / "none.csv")
    assert report.read_cases_csv(tmp_path / "none.csv") == []


def test_files_from_before_the_tolerance_was_recorded_can_be_read(tmp_path):
    path = tmp_path / "cases.csv"
    report.write_cases_csv([result(nsd=0.5)], path)
    head, line = path.read_text().splitlines()
    path.write_text(head.removesuffix(",nsd_tolerance") + "\n" + line.removesuffix(",nan") + "\n")
    (case,) = report.read_cases_csv(path)
    assert math.isnan(case.nsd_tolerance)
    assert case == replace(result(nsd=0.5), nsd_tolerance=case.nsd_tolerance)


def test_bad_csvs_are_named(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("domain,dice\nA,0.5\n")
    with pytest.raises(ValueError, match=r"cases\.csv: the columns .*asd"):
        report.read_cases_csv(path)
    report.write_cases_csv([result(dice=0.5)], path)
    path.write_text(path.read_text().replace("False", "maybe"))
    with pytest.raises(ValueError, match=r"cases\.csv, line 2: .*maybe"):
        report.read_cases_csv(path)


def test_the_table_as_csv_has_every_row_and_mean(tmp_path):
    table = site_table([result("A", dice=0.25), result("B", dice=0.5)])
    report.write_table_csv(table, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["domain"], float(line["dice"]), line["unit"]) for line in lines] == [
        ("A", 0.25, "mm"), ("B", 0.5, "mm"), (MEAN_OF_SITES, 0.375, "mm")
    ]  # fmt: skip


# ---- figures


def pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def has_color(path, color):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels(path) - wanted).max(axis=-1) <= 3).any())


@pytest.mark.parametrize("layout", ["grey", "rgb", "channels first", "volume"])
def test_the_sheet_draws_each_structure_of_each_layout(tmp_path, layout):
    labels = np.zeros((20, 24), np.uint8)
    labels[4:16, 4:18] = 1
    labels[8:12, 8:14] = 2
    image = {"grey": labels * 100.0, "rgb": np.stack([labels * 90] * 3, -1), "channels first": labels[None] * 0.4}
    if layout == "volume":
        labels = np.stack([labels * 0, labels, labels * 0])
    path = figures.overlay_sheet(
        [image.get(layout, labels * 7.0)], [labels], {"model": [labels]}, ["site"], FUNDUS, tmp_path / "new" / "a.png"
    )
    assert all(has_color(path, color) for color in figures.CONTOUR_COLORS[:2])


def test_sheets_of_lists_that_do_not_match(tmp_path):
    good = {"images": [REFERENCE], "references": [REFERENCE], "predictions": {"m": [REFERENCE]}, "titles": ["A"]}
    bad = {
        "2 references": {"references": [REFERENCE] * 2},
        "0 predictions of 'm'": {"predictions": {"m": []}},
        "row 'A': 'm' has shape": {"predictions": {"m": [REFERENCE.T]}},
        "the image has shape": {"images": [np.zeros((9, 9))]},
        "images is empty": {"images": []},
        "structures is empty": {"structures": {}},
    }
    for words, change in bad.items():
        with pytest.raises(ValueError, match=words):
            figures.overlay_sheet(**({"structures": FUNDUS} | good | change), path=tmp_path / "a.png")


def test_series_of_a_log_skip_what_is_not_there():
    log = [
        {"step": 10, "loss": 1.0, "loss_supervised": 0.7, "divergence": 0.1, "learning_rate": 0.03},
        {"step": 10, "eval_A_dice": 0.5, "eval_A_cup_dice": 0.4, "eval_A_student_dice": 0.3, "eval_loss": 2.0},
        {"step": 20, "loss": math.nan, "loss_supervised": 0.6, "pseudo_label_kept": 0.9, "divergence_weight": 1.0},
        {"step": 20, "eval_mean_dice": 0.6, "eval_A_dice": 0.6, "train_loss": 0.8},
    ]
    found = [figures._series(log, panel) for panel in figures.PANELS]
    assert found == [
        {"loss": ([10.0], [1.0]), "supervised": ([10.0, 20.0], [0.7, 0.6])},
        {"divergence": ([10.0], [0.1])},
        {},
        {"pseudo_label_kept": ([20.0], [0.9])},
        {"A": ([10.0, 20.0], [0.5, 0.6]), "mean": ([20.0], [0.6])},
    ]


def test_curves_are_drawn_or_refused(tmp_path):
    path = figures.curves([{"step": i, "loss": 1.0, "loss_supervised": 1 / i} for i in (1, 2)], tmp_path / "c.png")
    assert has_color(path, figures.COLORS[0])
    for log in ([], [{"step": 1, "learning_rate": 1.0}]):
        with pytest.raises(ValueError, match="no values to draw"):
            figures.curves(log, tmp_path / "c.png")


def test_scores_of_a_class_named_foreground_are_no_share_of_pseudo_labels():
    log = [{"step": 1, "eval_A_foreground_hd95": 9.0, "eval_A_student_foreground_dice": 0.5, "eval_A_dice": 0.5}]
    found = [figures._series(log, panel) for panel in figures.PANELS]
    assert found == [{}, {}, {}, {}, {"A": ([1.0], [0.5])}]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sites", [1, 5, 6, 15])
def test_names_of_sites_leave_room_for_the_curves(tmp_path, sites):
    names = [f"the hospital of a very long name, building {site}" for site in range(sites)]
    log = [{"step": step, "loss": 1.0} | {f"eval_{name}_dice": 0.5 for name in names} for step in (1, 2)]
    drawn = pixels(figures.curves(log, tmp_path / "curves.png"))
    # The lower edges of both panels are in one row.
    dark = (drawn.max(axis=-1) < 0x80).sum(axis=1)
    assert dark.max() > 0.8 * drawn.shape[1]


def test_bars_have_a_colour_for_each_setting(tmp_path):
    tables = {"one": site_table([result("A")]), "two": site_table([result("A"), result("B", dice=0.9)])}
    path = figures.site_bars(tables, tmp_path / "b.png", metric="hd95")
    assert has_color(path, figures.COLORS[0])
    assert has_color(path, figures.COLORS[1])
    assert not has_color(figures.site_bars(tables["one"], tmp_path / "b.png"), figures.COLORS[1])
    with pytest.raises(ValueError, match="no cases to draw"):
        figures.site_bars(site_table([]), tmp_path / "b.png")
    with pytest.raises(ValueError, match="no cases to draw"):
        figures.site_bars({"a": site_table([])}, tmp_path / "b.png")


def test_matplotlib_is_imported_late_and_pyplot_never():
    code = (
        "import sys; import dim_hf.metrics.figures as f; assert 'matplotlib' not in sys.modules; import tempfile; "
        "f.curves([{'step': 1, 'loss': 1.0}], tempfile.mkdtemp() + '/c.png'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
