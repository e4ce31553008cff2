"""Summaries of cases with intervals, their texts and files, and two methods on the same cases."""

import csv
import math
import re
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.paired_cases import compare_cases
from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES, MEANS, site_table
from dim_hf.metrics.statistics import bootstrap_mean, bootstrap_mean_of_groups
from dim_hf.metrics.summary import summarize
from dim_hf.metrics.summary_text import format_comparison_of_cases, format_summary, write_summary_csv

NAN = math.nan


def result(domain="A", name="1", structure="disc", dice=0.5, hd95=1.0, patient=None, **others):
    base = CaseResult(
        domain=domain, patient=f"p{name}" if patient is None else patient, name=name, structure=structure, dice=dice,
        jaccard=dice / (2 - dice), hd95=hd95, hd=hd95, asd=hd95 / 2, assd=hd95 / 2, nsd=NAN, volume_difference=0.0,
        prediction_volume=4.0, reference_volume=4.0, missed=False, spurious=False, unit="mm", empty_policy="worst",
    )  # fmt: skip
    return replace(base, **others)


def study(means=(0.9, 0.8, 0.6), cases=12, structures=("disc", "cup"), shift=0.0, seed=0):
    """Domains A, B, C with two cases a patient."""
    generator = np.random.default_rng(seed)
    return [
        result(
            domain, f"{i:02d}", structure, float(np.clip(generator.normal(mean + shift, 0.03), 0, 1)),
            float(generator.gamma(2, 2)), f"p{i // 2}",
        )
        for domain, mean in zip("ABC", means, strict=False)
        for i in range(cases)
        for structure in structures
    ]  # fmt: skip


def by_key(summary):
    return {(row.domain, row.structure): row for row in summary.rows}


def cells(text):
    """Cells of the first table, Markdown or text."""
    lines = text.split("\n\n")[0].splitlines()
    if lines[0].startswith("|"):
        return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[:1] + lines[2:]]
    return [re.split(r"\s{2,}", line) for line in lines[:1] + lines[2:]]


# ---- means and counts


@pytest.mark.parametrize("structures", [("disc", "cup"), ("disc",)])
def test_rows_means_and_counts_are_those_of_the_site_table(structures):
    cases = study(structures=structures)
    cases[0] = replace(cases[0], missed=True, hd95=NAN, hd=NAN, asd=NAN, assd=NAN)
    cases[-1] = replace(cases[-1], spurious=True)
    summary, table = summarize(cases, protocol="image"), site_table(cases)
    assert [(row.domain, row.structure) for row in summary.rows] == [(row.domain, row.structure) for row in table.rows]
    for row, reference in zip(summary.rows, table.rows, strict=True):
        for name in ("cases", "missed", "spurious", "undefined"):
            assert getattr(row, name) == getattr(reference, name)
        found = {name: interval.mean for name, interval in row.intervals.items()}
        assert found == pytest.approx(reference.means, nan_ok=True)
        assert tuple(found) == MEANS
    assert [summary.row(domain).patients for domain in "ABC"] == [6, 6, 6]
    assert summary.row().patients == 18
    assert summary.row("A", "disc").intervals["hd95"].cases == 11
    assert (summary.unit, summary.empty_policy, summary.protocol) == ("mm", "worst", "image")
    assert summary.domains == ["A", "B", "C"]


def test_intervals_are_those_of_the_cluster_bootstrap():
    cases = study(cases=40, structures=("disc",))
    summary = summarize(cases, protocol="image")
    groups = {d: [(c.dice, c.patient) for c in cases if c.domain == d] for d in "ABC"}
    groups = {domain: list(zip(*pairs, strict=True)) for domain, pairs in groups.items()}
    pairs = [(summary.row(d).intervals["dice"], bootstrap_mean(*groups[d])) for d in "ABC"]
    pairs.append((summary.row().intervals["dice"], bootstrap_mean_of_groups(list(groups.values()))))
    for mine, reference in pairs:
        # Other resamples of the same cases: the same numbers but for the noise of 2000 draws.
        close = pytest.approx(astuple(reference)[2:4], abs=0.12 * (reference.high - reference.low))
        assert (mine.low, mine.high) == close
        assert (mine.mean, mine.sd) == pytest.approx((reference.mean, reference.sd))
        assert (mine.cases, mine.clusters) == (reference.cases, reference.clusters)


def test_spreads_are_over_cases_and_over_sites_in_the_mean_of_sites():
    cases = [
        result("A", "1", "disc", 0.9), result("A", "1", "cup", 0.5),
        result("A", "2", "disc", 0.7), result("A", "2", "cup", 0.7),
        result("B", "1", "disc", 0.2), result("B", "1", "cup", 0.4),
    ]  # fmt: skip
    rows = by_key(summarize(cases, protocol="image"))
    assert rows["A", "disc"].intervals["dice"].sd == pytest.approx(math.sqrt(0.02))
    assert rows["A", ALL_STRUCTURES].intervals["dice"].sd == pytest.approx(0.0)
    assert rows[MEAN_OF_SITES, ALL_STRUCTURES].intervals["dice"].sd == pytest.approx(np.std([0.7, 0.3], ddof=1))
    assert math.isnan(rows["B", "disc"].intervals["dice"].sd)
    # Both patients of A have the same mean of structures: resampling them together leaves no doubt, apart it would.
    both = rows["A", ALL_STRUCTURES].intervals["dice"]
    assert (both.low, both.high) == pytest.approx((0.7, 0.7))
    assert (both.cases, both.clusters) == (2, 2)
    # B has a single patient, hence neither it nor the mean with it has an interval.
    assert math.isnan(rows["B", ALL_STRUCTURES].intervals["dice"].low)
    assert math.isnan(rows[MEAN_OF_SITES, ALL_STRUCTURES].intervals["dice"].low)


@given(st.permutations(range(24)))
@settings(deadline=None, max_examples=10)
def test_the_order_of_cases_changes_the_order_of_rows_only(order):
    cases = study(cases=4)
    cases[3] = replace(cases[3], hd95=NAN, patient="")
    cases[2] = replace(cases[2], patient="")
    plain = summarize(cases, protocol="image", labeled_domain="A")
    mixed = summarize([cases[i] for i in order], protocol="image", labeled_domain="A")
    rows, others = by_key(plain), by_key(mixed)
    assert rows.keys() == others.keys()
    for key, row in rows.items():
        assert astuple(row)[:7] == astuple(others[key])[:7]
        for metric in MEANS:
            np.testing.assert_array_equal(astuple(row.intervals[metric]), astuple(others[key].intervals[metric]))
    assert (plain.worst_domain, plain.gap) == (mixed.worst_domain, mixed.gap)


def test_a_domain_does_not_depend_on_the_others():
    cases = study()
    alone = summarize([case for case in cases if case.domain == "B"], protocol="image")
    whole = summarize(cases, protocol="image")
    for metric in ("dice", "hd95"):
        assert alone.row("B").intervals[metric] == whole.row("B").intervals[metric]
    other = summarize(cases, protocol="image", seed=1)
    assert other.row("B").intervals["dice"] != whole.row("B").intervals["dice"]


def test_a_large_domain_weighs_no_more_than_a_small_one():
    cases = [result("A", str(i), dice=1.0) for i in range(99)] + [result("B", str(i), dice=0.0) for i in range(2)]
    interval = summarize(cases, protocol="image").row().intervals["dice"]
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_a_domain_without_a_structure_still_counts_in_the_mean_of_sites():
    cases = [result("A", dice=0.8), result("A", structure="cup", dice=0.4), result("B", dice=0.2)]
    summary = summarize(cases, protocol="image")
    assert summary.row().intervals["dice"].mean == pytest.approx(0.4)
    assert summary.row(structure="cup").intervals["dice"].mean == 0.4
    assert (summary.row(structure="cup").patients, summary.row().patients) == (1, 2)


def test_cases_without_a_patient_stand_alone_and_are_counted():
    cases = [result(name=str(i), dice=i / 10, patient="" if i < 3 else "p") for i in range(5)]
    summary = summarize(cases, protocol="image")
    assert (summary.cases_without_patient, summary.row("A").patients) == (3, 4)
    assert "3 cases name no patient" in format_summary(summary)
    assert "no patient" not in format_summary(summarize(study(), protocol="image"))


# ---- the worst domain and the gap


@pytest.mark.parametrize(
    ("labeled", "gap", "words"),
    [
        ("A", 0.9 - 0.6, r"Worst domain by Dice: C \(0.600\). Labeled domain: A \(0.900\); .*: \+0.300"),
        ("C", 0.6 - 0.8, r"Worst domain by Dice: C \(0.600\). Labeled domain: C \(0.600\); .*: -0.200"),
        ("Z", None, "Labeled domain: Z; no gap, since it was not scored"),
        (None, None, r"Worst domain by Dice: C \(0.600\).$"),
    ],
)
def test_the_gap_is_to_the_worst_other_domain(labeled, gap, words):
    cases = [result(domain, dice=dice) for domain, dice in (("A", 0.9), ("B", 0.8), ("C", 0.6))]
    summary = summarize(cases, protocol="image", labeled_domain=labeled)
    assert summary.worst_domain == "C"
    assert summary.gap == (None if gap is None else pytest.approx(gap))
    assert re.search(words, format_summary(summary))


def test_a_single_domain_has_no_gap():
    summary = summarize([result()], protocol="image", labeled_domain="A")
    assert (summary.worst_domain, summary.gap) == ("A", None)
    assert "no gap, since no other domain was scored" in format_summary(summary)


def test_the_worst_domain_is_by_the_mean_of_structures():
    cases = [
        result("A", dice=0.5), result("A", structure="cup", dice=0.9),
        result("B", dice=0.6), result("B", structure="cup", dice=0.6),
    ]  # fmt: skip
    assert summarize(cases, protocol="image").worst_domain == "B"


# ---- texts and files


@pytest.mark.parametrize("style", ["markdown", "text"])
def test_no_cases_give_an_empty_summary_that_says_so(style):
    summary = summarize([], protocol="volume-mm", labeled_domain="A")
    assert (summary.rows, summary.worst_domain, summary.gap, summary.unit) == ((), "", None, "")
    assert "No cases were scored (protocol volume-mm)." in format_summary(summary, style)
    with pytest.raises(ValueError, match="there are: none"):
        summary.row()


def test_the_table_states_mean_spread_interval_and_counts():
    cases = [result("A|B", "1", dice=0.25, missed=True), result("A|B", "2", dice=0.75), result("C", "1", hd95=2.0)]
    text = format_summary(summarize(cases, protocol="image"))
    table = cells(text)
    assert table[0] == [
        "Site", "Structure", "Cases", "Patients", "Missed", "Spurious", "Dice", "Jaccard", "HD95 (mm)", "ASD (mm)"
    ]  # fmt: skip
    assert table[1][:7] == [r"A\|B", "disc", "2", "2", "1", "0", "0.500 ± 0.354 [0.250, 0.750]"]
    assert table[2][2:7] == ["1", "1", "0", "0", "0.500"]
    assert table[3][:7] == [MEAN_OF_SITES, "disc", "3", "3", "1", "0", "0.500 ± 0.000"]
    assert "Protocol image; distances in mm; empty masks: worst (a missed" in text
    assert "fewer than 20 patients" in text
    assert "fewer than" not in format_summary(summarize(study(cases=40), protocol="image"))


def test_text_has_a_narrow_table_for_each_metric_and_one_caption():
    text = format_summary(summarize(study(), protocol="midss-2d"), "text")
    *tables, caption = text.split("\n\n")
    assert [table.splitlines()[0].split()[6] for table in tables] == ["Dice", "Jaccard", "HD95", "ASD"]
    assert max(len(line) for table in tables for line in table.splitlines()) <= 100
    assert caption.startswith("Protocol midss-2d")
    assert cells(text)[1][:2] == ["A", "disc"]


def test_undefined_distances_have_a_column():
    cases = [replace(result(name=str(i), hd95=NAN if i else 1.0), empty_policy="nan", nsd=0.5) for i in range(3)]
    cases = [replace(case, nsd_tolerance=2.0) for case in cases]
    text = format_summary(summarize(cases, protocol="image"), metrics=("dice", "hd95", "nsd", "volume_difference"))
    assert cells(text)[0][6:] == ["Undefined", "Dice", "HD95 (mm)", "NSD at 2 mm", "Volume difference (mm² or mm³)"]
    assert cells(text)[1][6:9] == ["2", "0.500 ± 0.000 [0.500, 0.500]", "1.00"]
    assert "distances in mm; NSD at 2 mm; empty masks: nan" in text
    assert "left out" in text


def test_bad_styles_and_metrics_are_named():
    summary = summarize([result()], protocol="image")
    with pytest.raises(ValueError, match="markdown or text"):
        format_summary(summary, "html")
    with pytest.raises(ValueError, match="metric is 'dise'"):
        format_summary(summary, metrics=["dise"])
    with pytest.raises(ValueError, match="there are: A / disc, mean of sites / disc"):
        summary.row("B")


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([result("A"), result("B", unit="px")], "different units: mm, px"),
        ([result("A"), result("A")], "case '1', structure 'disc' comes twice"),
        ([result(MEAN_OF_SITES)], "name of a mean"),
        ([result(patient="p"), result(structure="cup", patient="q")], "case '1' has the patients 'p', 'q'"),
    ],
)
def test_cases_that_do_not_belong_together(cases, words):
    with pytest.raises(ValueError, match=words):
        summarize(cases, protocol="image")


def test_the_csv_has_a_line_for_each_number(tmp_path):
    summary = summarize(study(), protocol="image", labeled_domain="A")
    write_summary_csv(summary, tmp_path / "summary.csv")
    with open(tmp_path / "summary.csv", newline="", encoding="utf-8") as file:
        lines = {(line["domain"], line["structure"], line["metric"]): line for line in csv.DictReader(file)}
    assert len(lines) == len(summary.rows) * len(MEANS)
    for (domain, structure, metric), line in lines.items():
        row = by_key(summary)[domain, structure]
        numbers = [float(line[name] or NAN) for name in ("mean", "sd", "low", "high")]
        np.testing.assert_array_equal(numbers, astuple(row.intervals[metric])[:4])
        assert (int(line["patients"]), line["protocol"], line["worst_domain"]) == (row.patients, "image", "C")
        assert float(line["gap"]) == summary.gap
    assert (lines["A", "disc", "nsd"]["mean"], lines["A", "disc", "nsd"]["nsd_tolerance"]) == ("", "")


# ---- two methods


def test_comparisons_have_the_rows_and_the_differences_of_the_summaries():
    a, b = study(), study(shift=-0.05, seed=1)
    comparisons = compare_cases(a, list(reversed(b)))
    summaries = [by_key(summarize(cases, protocol="image")) for cases in (a, b)]
    assert list(comparisons) == list(summaries[0])
    for key, item in comparisons.items():
        means = [summary[key].intervals["dice"].mean for summary in summaries]
        assert item.difference.mean == pytest.approx(means[0] - means[1])
        assert item.pairs == item.difference.clusters == summaries[0][key].patients
        assert item.difference.low <= item.difference.mean <= item.difference.high
    assert comparisons[MEAN_OF_SITES, ALL_STRUCTURES].p_value < 0.001


@pytest.mark.parametrize("metric", ["dice", "hd95", "volume_difference"])
def test_exchanging_the_methods_changes_signs_only(metric):
    generator = np.random.default_rng(0)
    a, b = (
        [replace(case, volume_difference=float(generator.normal())) for case in study(seed=seed)] for seed in (0, 1)
    )
    forth, back = compare_cases(a, b, metric), compare_cases(b, a, metric)
    for key, item in forth.items():
        other = back[key]
        assert (item.difference.low, item.difference.high) == (-other.difference.high, -other.difference.low)
        assert (item.better, item.worse, item.p_value) == (other.worse, other.better, other.p_value)
    lower = [replace(case, **{metric: 0.0}) for case in a]
    whole = compare_cases(lower, a, metric)[MEAN_OF_SITES, ALL_STRUCTURES]
    assert (whole.better, whole.worse) == ((0, 18) if metric == "dice" else (18, 0))


def test_a_case_whose_reference_is_ignored_does_not_forbid_the_comparison():
    cases = [result(name="1"), result(name="2", dice=NAN, reference_volume=NAN)]
    assert compare_cases(cases, cases)["A", "disc"].undefined == 1
    with pytest.raises(ValueError, match="the reference has the volume nan in A and 1 in B"):
        compare_cases(cases, [cases[0], result(name="2", reference_volume=1.0)])


def test_a_method_does_not_differ_from_itself():
    for item in compare_cases(study(), study()).values():
        assert astuple(item.difference)[:4] == (0, 0, 0, 0)
        assert (item.p_value, item.better, item.worse) == (1.0, 0, 0)


def test_cases_that_are_undefined_in_either_are_left_out_and_counted():
    a, b = study(), study(seed=1)
    a[0] = replace(a[0], hd95=NAN)
    a[2], b[3] = replace(a[2], hd95=NAN), replace(b[3], hd95=NAN)
    comparisons = compare_cases(a, b, "hd95")
    assert [comparisons["A", name].undefined for name in ("disc", "cup", ALL_STRUCTURES)] == [2, 1, 1]
    expected = np.mean([x.hd95 - y.hd95 for x, y in zip(a[4:24:2], b[4:24:2], strict=True)])
    assert comparisons["A", "disc"].difference.mean == pytest.approx(expected)
    assert cells(format_comparison_of_cases(comparisons, metric="hd95"))[0][-1] == "Undefined"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"name": "00"},
            "no case in common: A has domain 'A', case '1', structure 'disc', B has domain 'A', case '00'",
        ),
        ({"unit": "px"}, "unit is 'mm' in A and 'px' in B"),
        ({"empty_policy": "nan"}, "empty_policy is 'worst' in A and 'nan' in B"),
        ({"patient": "q"}, "patient is 'p1' in A and 'q' in B"),
        ({"reference_volume": 5.0}, "reference has the volume 4 in A and 5 in B"),
    ],
)
def test_methods_that_cannot_be_compared(change, words):
    with pytest.raises(ValueError, match=words):
        compare_cases([result()], [result(**change)])


def test_the_nsd_is_compared_at_one_tolerance():
    a, b = [result(nsd=0.5, nsd_tolerance=1.0)], [result(nsd=0.25, nsd_tolerance=2.0)]
    assert compare_cases(a, b)["A", "disc"].difference.mean == 0
    with pytest.raises(ValueError, match=r"nsd_tolerance is 1\.0 in A and 2\.0 in B"):
        compare_cases(a, b, "nsd")
    alike = [replace(case, nsd_tolerance=1.0) for case in b]
    text = format_comparison_of_cases(compare_cases(a, alike, "nsd"), metric="nsd", table=site_table(a))
    assert "NSD at 1 mm of A minus B" in text


def test_missing_and_unknown_things_are_named():
    with pytest.raises(ValueError, match="case '2', structure 'disc' is in B and not in A"):
        compare_cases([result()], [result(), result(name="3"), result(name="2")])
    with pytest.raises(ValueError, match="comes twice"):
        compare_cases([result()], [result(), result()])
    for call in (lambda: compare_cases([], [], "dise"), lambda: format_comparison_of_cases({}, metric="dise")):
        with pytest.raises(ValueError, match="metric is 'dise'"):
            call()
    assert compare_cases([], []) == {}
    assert "No cases were compared" in format_comparison_of_cases({})


def test_the_comparison_can_be_read():
    a, b = study(), study(shift=-0.05, seed=1)
    summary = summarize(a, protocol="volume-mm")
    text = format_comparison_of_cases(compare_cases(a, b), ("ours", "base"), table=summary)
    table = cells(text)
    assert table[0] == [
        "Site", "Structure", "Cases", "Patients", "ours − base", "p", "ours better", "base better", "Equal"
    ]  # fmt: skip
    assert table[-1][:4] == [MEAN_OF_SITES, ALL_STRUCTURES, "36", "18"]
    assert re.fullmatch(r"\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]", table[-1][4])
    assert table[-1][5:] == ["<0.001", "18", "0", "0"]
    for words in ("Dice of ours minus base", "Wilcoxon", "not adjusted", "Protocol volume-mm; distances in mm"):
        assert words in text
    few = format_comparison_of_cases(compare_cases([result()], [result(dice=0.25)]), style="text")
    assert cells(few)[1] == ["A", "disc", "1", "1", "+0.250", "–", "1", "0", "0"]
    volumes = format_comparison_of_cases(
        compare_cases(a, b, "volume_difference"), metric="volume_difference", table=summary
    )
    assert "\n\nAbsolute volume difference (mm² or mm³) of A minus B" in volumes
