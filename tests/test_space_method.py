"""The method's page: its figures follow the sliders with the formulas' numbers, its tables are those of the models."""

import csv
import re
from types import SimpleNamespace

import pytest

from dim_hf.demo.divergence_figure import class_shares, number, read_divergence
from dim_hf.demo.landscape_figure import compare_descents
from dim_hf.demo.models import SHIPPED
from dim_hf.demo.site_results import find_results, read_results, results_section
from dim_hf.demo.tables import table
from dim_hf.metrics.cases import score_case
from dim_hf.metrics.summary import summarize
from dim_hf.metrics.summary_text import write_summary_csv
from tests.browser import PHONE, WIDE, address, chromium, no_wider_than_screen, screenshot, visit  # noqa: F401


def model_at(folder, origin="folder", title="a model"):
    return SimpleNamespace(folder=folder, origin=origin, title=title)


# -- results by site, without a browser


@pytest.fixture
def cases():
    reference = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    missed, found = [[0] * 4] * 4, [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    rows = []
    for domain, predictions in {"site|a": [reference, found], "=cmd<b>": [found, missed]}.items():
        for index, labels in enumerate(predictions):
            about = {"domain": domain, "patient": f"p{index}", "name": f"case{index}"}
            rows += score_case(labels, reference, {"gland": [1]}, (1.0, 1.0), **about)
    return rows


def test_the_table_is_that_of_the_run(cases, tmp_path):
    summary = summarize(cases, protocol="network", labeled_domain="site|a")
    write_summary_csv(summary, tmp_path / "summary.csv", about={"selected": "last step"})
    found = read_results(tmp_path / "summary.csv")
    assert (found.unit, found.labeled_domain, found.worst_domain) == ("mm", "site|a", "=cmd<b>")
    for row, expected in zip(found.rows, summary.rows, strict=True):
        assert (row.domain, row.structure) == (expected.domain, expected.structure)
        assert [int(value) for value in (row.cases, row.missed)] == [expected.cases, expected.missed]
        assert row.means["dice"].startswith(f"{expected.intervals['dice'].mean:.3f}")
        assert row.means["hd95"].startswith(f"{expected.intervals['hd95'].mean:.1f}")
    shown = results_section(model_at(tmp_path))
    assert "site|a (labeled)" in shown
    assert "=cmd&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "HD95, mm" in shown
    assert "image diagonal" in shown, "what a missed structure counts is said"


def test_a_choice_on_test_images_is_stamped(cases, tmp_path):
    write_summary_csv(
        summarize(cases, protocol="network"), tmp_path / "summary.csv", about={"selected": "test-legacy"}
    )
    assert "Test images had a part in choosing" in results_section(model_at(tmp_path))


def test_a_model_without_results_says_so(tmp_path):
    assert find_results(model_at(tmp_path)) is None
    assert "nothing can be said here of how well it works" in results_section(model_at(tmp_path))
    assert "nothing can be said" in results_section(model_at(None, "hub", "nobody/nothing-that-is-there"))


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "domain,structure,metric\nx,y,dice\n", "\x00\xff", "domain"])
def test_a_damaged_table_is_no_error_of_the_page(tmp_path, content):
    (tmp_path / "summary.csv").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"summary\.csv"):
        read_results(tmp_path / "summary.csv")
    assert "cannot be read" in results_section(model_at(tmp_path))


@pytest.mark.parametrize("name", ["fundus", "fundus-baseline", "volume"])
def test_the_shipped_models_have_results(name):
    with (SHIPPED / name / "summary.csv").open(encoding="utf-8", newline="") as file:
        sites = {line["domain"] for line in csv.DictReader(file)}
    shown = results_section(model_at(SHIPPED / name))
    assert all(site in shown for site in sites)


def test_cells_of_numbers_stand_right_and_long_words_break():
    shown = table(["Name", "Dice", "Words"], [["a", "0.9 [0.8, 1.0]", "w" * 41], ["b", "–", "short"]], "A caption")
    assert re.findall(r'<td class="number">(.*?)</td>', shown) == ["0.9 [0.8, 1.0]", "–"]
    assert re.findall(r'<td class="long">(.*?)</td>', shown) == ["w" * 41]


# -- in a browser


def wait_for_number(page, selector, value):
    page.wait_for_function(
        "([selector, value]) => document.querySelector(selector)?.innerText.includes(value)", arg=[selector, value]
    )


def set_slider(page, name, value):
    page.locator(f"#{name} input[type=range]").fill(str(value))


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "size"), [("light", WIDE), ("dark", WIDE), ("light", PHONE)])
def test_the_page_in_both_themes_and_on_a_phone(visit, theme, size):  # noqa: F811
    with visit("method", theme, size) as page:
        page.wait_for_selector("#method-notice")
        assert "not a medical device" in page.inner_text("#method-notice")
        assert "no patient's data" in page.inner_text("#method-notice")
        assert page.locator("#method-results table").count() == 3
        assert page.locator("#tab-method svg.figure").count() == 4
        page.locator("#method-formulas button").first.click()
        page.wait_for_selector("#method-formulas .katex")
        assert no_wider_than_screen(page)
        screenshot(page, f"method-{theme}-{size[0]}")


@pytest.mark.slow
def test_the_divergence_follows_its_sliders(visit):  # noqa: F811
    with visit("method") as page:
        p, q = class_shares(20, 25), class_shares(30, 60)
        wait_for_number(page, "#method-divergence", f"= {number(read_divergence('jensen_shannon', p, q).value)} ")
        set_slider(page, "method-share-2", 55)
        q = class_shares(55, 60)
        wait_for_number(page, "#method-divergence", f"= {number(read_divergence('jensen_shannon', p, q).value)} ")
        assert page.locator("#method-alpha input[type=range]").is_disabled()
        page.locator("#method-f input").click()
        page.get_by_role("option", name="α-divergence").click()
        wait_for_number(page, "#method-divergence", f"= {number(read_divergence('alpha', p, q, 0.5).value)} ")
        page.wait_for_selector("#method-alpha input[type=range]:enabled")
        set_slider(page, "method-alpha", 1)
        wait_for_number(page, "#method-divergence", f"= {number(read_divergence('kl', p, q).value)} ")
        for index in range(4):
            set_slider(page, f"method-share-{index}", 40)
        wait_for_number(page, "#method-divergence", "= 0.000 ")
        screenshot(page, "method-divergence")


@pytest.mark.slow
def test_the_landscape_follows_its_sliders(visit):  # noqa: F811
    with visit("method") as page:
        assert "SAM in the broad part" in page.inner_text("#method-landscape")
        set_slider(page, "method-rho", 0.1)
        wait_for_number(page, "#method-landscape", "Both ended in the narrow part")
        assert number(compare_descents(0.1, -0.9, 20)[1].worst) in page.inner_text("#method-landscape")
        page.locator("#method-rho input[type=range]").focus()
        page.keyboard.press("Home")
        wait_for_number(page, "#method-landscape", "With ρ = 0 SAM is plain gradient descent")
        screenshot(page, "method-landscape")


@pytest.mark.slow
def test_the_answer_to_a_slider_is_quick_enough_to_be_followed(visit):  # noqa: F811
    with visit("method") as page:
        set_slider(page, "method-rho", 0.2)
        wait_for_number(page, "#method-landscape", "ρ = 0.2")
        before = page.evaluate("document.querySelector('#method-results').getBoundingClientRect().top")
        set_slider(page, "method-rho", 0.4)
        wait_for_number(page, "#method-landscape", "ρ = 0.4")
        after = page.evaluate("document.querySelector('#method-results').getBoundingClientRect().top")
        assert abs(after - before) < 30, "the page below the figure stays where it is"
