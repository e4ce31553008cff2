"""The report of an evaluation: one page, whatever the names, with what stands behind its numbers."""

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon
from PIL import Image

from dim_hf.evaluation import html_report
from dim_hf.evaluation.html_report import render_html_report, standing_of, write_html_report
from dim_hf.evaluation.overlays import contour_path, cut_window, shot_of
from dim_hf.evaluation.protocols import PROTOCOLS
from dim_hf.evaluation.result import Overlay, Provenance
from dim_hf.metrics.paired_cases import compare_cases
from dim_hf.metrics.summary import summarize
from tests import report_samples as samples

CLASSES = {0: "background", 1: "rim", 2: "cup"}
VOID = {"meta", "img", "path", "image"}


class Page(HTMLParser):
    """Text of a page, its tags with their attributes, and whether all of them are closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def evaluation(domains=("one", "other"), cases=3, **provenance):
    items, rows = samples.fundus_cases(cases, domains=dict(zip(domains, (0.03, 0.12), strict=False)), size=48)
    return samples.evaluation(items, rows, samples.FUNDUS, CLASSES, labeled_domain=domains[0], **provenance)


@pytest.fixture(scope="module")
def full():
    return evaluation(cases=7, labeled_images=20, labeled_patients=1, seeds=[3], selection="last step")


@pytest.fixture(scope="module")
def page(full):
    return render_html_report(full)


@pytest.fixture
def fast(monkeypatch):
    """Figures have their own tests."""
    monkeypatch.setattr(html_report, "_embed", lambda *_, **__: "data:image/png;base64,")


def check_alone(page):
    assert not re.search(r"""(src|href|srcset|action)\s*=\s*["']?(?!["']?data:)""", page)
    assert not re.search(r"url\(|@import|https?:|//[a-z]|<script|<link|<iframe|\son[a-z]+=", page)
    assert "default-src 'none'" in page


def test_the_page_needs_nothing_else_and_follows_light_and_dark(page):
    check_alone(page)
    Page(page)
    assert "prefers-color-scheme: dark" in page
    figures = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(figures) == 8  # Dice, HD95 and area of two structures, calibration, ratio
    for figure in figures:
        assert len(figure) < 150_000
        assert b"prefers-color-scheme:dark" in base64.b64decode(figure)
        assert b"var(--ink)" in base64.b64decode(figure)


def test_every_table_and_figure_states_protocol_unit_and_empty_policy(page, full):
    standing = standing_of(full.summary)
    assert standing == (
        f"Protocol image: {PROTOCOLS['image'].description}. "
        "Distances in pixels. NSD at 2 px. "
        "Empty masks: worst (a missed or spurious structure counts as the image diagonal)."
    )
    captions = re.findall(r'<p class="caption">(.*?)</p>', page, re.S)
    assert all(standing in caption for caption in captions)
    assert '<th scope="col">NSD at 2 px</th>' in page
    # Two tables of scores, two of agreement, the figures, and the cases of two domains.
    assert len(captions) == page.count("<table>") + page.count("<img ") + 2 == 14


def test_the_numbers_are_those_of_the_summary(page, full):
    text = Page(page).text
    for row in full.summary.rows:
        dice = row.intervals["dice"]
        assert f"{dice.mean:.3f} ± {dice.sd:.3f}[{dice.low:.3f}, {dice.high:.3f}]" in text
    assert f"{full.summary.gap:+.3f}gap: labeled site minus worst other site" in text
    assert "one labeled" in text
    assert "other worst" in text


def test_worst_and_best_cases_have_contours_and_dice(page, full):
    parsed = Page(page)
    shots = [attributes["aria-label"] for attributes in parsed.all("svg")]
    half = full.summary.row("one").cases // 2  # no case is among the worst and the best
    expected = [
        f"{case.name}, Dice {case.dice:.3f}"
        for domain in ("one", "other")
        for case in full.worst[domain][:half] + full.best[domain][:half]
    ]
    assert shots == expected
    assert len(shots) == 4 * half == len(set(shots[: 2 * half])) + len(set(shots[2 * half :]))
    # The missed case has the two contours of the reference only.
    missed = page[page.index('aria-label="case 03, Dice 0.000"') :].split("</svg>")[0]
    assert missed.count("<path") == missed.count('class="reference"') == 2


def test_a_domain_of_few_cases_shows_each_once(fast):
    text = Page(render_html_report(evaluation(cases=2))).text
    assert text.count("All cases, worst first") == 2
    assert "Best" not in text


# ---- what stands behind the numbers


def facts(result):
    page = render_html_report(result)
    found = re.findall(r"<dt>(.*?)</dt><dd(?: class=\"(\w+)\")?>(.*?)</dd>", page, re.S)
    return {name: (kind, text) for name, kind, text in found}


def test_provenance(fast):
    source = {"labeled_images": 20, "labeled_patients": 1, "seeds": [3, 4], "selection": "last step"}
    found = facts(evaluation(transductive=False, scored_model="teacher", split_hashes={"test": "abc"}, **source))
    assert found["Labels for training"] == ("", "20 images of 1 patient, 1 domain (one)")
    assert found["Seeds"] == ("", "2 (3, 4)")
    assert found["Checkpoint"] == ("", "last step")
    assert found["Test images in training"] == ("", "no (inductive)")
    assert found["Scored on"] == ("", "6 cases of 4 patients, 2 domains")
    assert found["Structures"] == ("", "disc (rim + cup), cup")
    assert found["Model"] == ("", "runs/model, its teacher")
    assert found["test"] == ("", "<code>abc</code>")


def test_what_is_not_known_is_said(fast):
    result = evaluation()
    found = facts(replace(result, provenance=Provenance("m", "d", "image")))
    for name in ("Labels for training", "Seeds", "Checkpoint", "Test images in training"):
        assert found[name] == ("warning", "unknown")
    found = facts(replace(result, provenance=Provenance("m", "d", "image", transductive=True)))
    assert found["Test images in training"] == ("warning", "yes, without their labels (transductive)")
    found = facts(replace(result, provenance=Provenance("m", "d", "image", split="test", split_hashes={"test": "x"})))
    unknown = "unknown: another data set, or its parts are not the run&#39;s"
    assert found["Test images in training"] == ("warning", unknown)


def test_other_images_than_test_images_are_said_to_be_so(fast):
    parts = {"labeled": 4, "unlabeled": 9, "validation": 1, "test": 0}
    result = evaluation(split="train", scored_parts=parts, split_hashes={"labeled": "x"}, without_mask={"other": 2})
    found = facts(result)
    assert "Test images in training" not in found
    text = "includes 4 labeled and 1 validation image, and 9 without their labels (transductive)"
    assert found["Scored images in training"] == ("error", text)
    assert found["Images scored"] == ("error", "training images: no test of the model")
    assert found["Left out"] == ("warning", "2 images without a mask (2 of other)")
    page = render_html_report(result)
    for tag in ("title", "h1"):
        assert f"<{tag}>runs/model on the training images of data/set" in page


def test_a_remark_stands_under_its_comparison(fast):
    result = evaluation()
    found = {name: compare_cases(result.cases, result.cases) for name in ("this", "that")}
    page = render_html_report(result, comparisons=found, remarks={"that": "chosen on test"})
    assert page.count("chosen on test") == 1
    assert "chosen on test" in page[page.index("<h3>Compared with that</h3>") :].split("</section>")[0]


def test_selection_on_test_is_stamped(fast):
    page = render_html_report(evaluation(selection="best step (test-legacy)", selected_on_test=True))
    assert 'class="stamp" role="alert"><b>Selected on test</b>' in page
    assert '<dd class="error">best step (test-legacy) (test images had a part in it)</dd>' in page
    assert "Selected on test" not in render_html_report(evaluation(selection="last step"))


# ---- odd results


def test_names_of_strangers_are_escaped(fast, tmp_path):
    name = "<script>alert(1)</script>\"'$x$"
    items, rows = samples.fundus_cases(1, domains={name: 0.1}, size=48)
    items = [(domain, patient, name, *arrays) for domain, patient, _, *arrays in items]
    rows = [replace(row, name=name, structure=name + row.structure) for row in rows]
    structures = {name + key: classes for key, classes in samples.FUNDUS.items()}
    result = samples.evaluation(items, rows, structures, {0: "b", 1: name, 2: name})
    source = Provenance(
        name, name + "\udc80", "image", selection=name, split_hashes={name: name}, environment={name: name}
    )
    comparisons = {name: compare_cases(rows, rows)}
    path = write_html_report(replace(result, provenance=source), tmp_path / "new" / "r.html", comparisons=comparisons)
    page = path.read_text(encoding="utf-8")
    check_alone(page)
    Page(page)
    assert page.count("&lt;script&gt;") > 20


def test_nothing_and_undefined_numbers(fast):
    empty = replace(evaluation(), cases=[], summary=summarize([], protocol="image"), worst={}, best={}, ratios={})
    text = Page(render_html_report(replace(empty, reliability={}))).text
    assert "No case was scored." in text
    assert "Scored onno case" in text
    one = evaluation(domains=("one",), cases=1)
    text = Page(render_html_report(one)).text
    assert "nan" not in text.lower().replace("resonance", "")
    undefined = [replace(row, dice=math.nan, hd95=math.nan, hd=math.nan, empty_policy="nan") for row in one.cases]
    one = replace(one, cases=undefined, summary=summarize(undefined, protocol="image"))
    text = Page(render_html_report(one)).text
    assert "nan" not in text.replace("Empty masks: nan", "").replace("nan: missed", "").replace("masksnan", "")
    assert "HD (px)" not in text
    assert "Undefined" in text


def test_volumes_are_in_milliliters(fast):
    items, rows = samples.prostate_cases(2, domains={"one": 0.05})
    result = samples.evaluation(items, rows, samples.PROSTATE, {0: "b", 1: "prostate"}, protocol="volume-mm")
    text = Page(render_html_report(result)).text
    assert "Agreement of volumes" in text
    assert "Prediction minus reference (mL)" in text
    assert "HD95 (mm)" in text


def test_comparison_with_another_model(fast):
    result = evaluation()
    others = [replace(row, dice=row.dice - 0.01) for row in result.cases]
    page = render_html_report(result, comparisons={"that": compare_cases(result.cases, others)})
    table = page[page.index("<h3>Compared with that</h3>") :].split("</section>")[0]
    # One patient of two cases, and one of one: equal differences, an interval of no width.
    assert '<td class="good">+0.010<small>[+0.010, +0.010]</small></td>' in table
    assert "Dice of this model minus that of “that”" in table
    assert standing_of(result.summary) in table


def test_large_figures_are_pixels(tmp_path):
    def draw(data, path):
        path.write_text(f"<svg>{data}</svg>")
        return path

    assert html_report._embed(draw, "x").startswith("data:image/svg+xml")
    assert html_report._embed(draw, "x" * 150_000).startswith("data:image/png")


def test_a_report_that_cannot_be_written(fast, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/report\.html cannot be written .*choose another file"):
        write_html_report(evaluation(), tmp_path / "file" / "report.html")


# ---- pictures of cases


@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
@settings(deadline=None)
def test_contours_hold_exactly_the_pixels_of_the_mask(mask):
    inside = np.zeros(mask.shape, bool)
    centers = 2 * np.argwhere(np.ones_like(mask))[:, ::-1] + 1
    for loop in re.findall(r"M([^z]+)z", contour_path(mask)):
        steps = np.array(re.findall(r"-?\d+", loop), int).reshape(-1, 2)
        # Holes turn what they hold off again.
        inside ^= Polygon(np.cumsum(steps, axis=0)).contains_points(centers).reshape(mask.shape)
    assert (inside == mask).all()


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.sampled_from([False] * 9 + [True])))
@settings(deadline=None, max_examples=50)
def test_the_window_holds_the_mask_and_stays_in_the_image(mask):
    window = cut_window(mask)
    assert mask[window].sum() == mask.sum()
    for cut, size in zip(window, mask.shape, strict=True):
        assert 0 <= cut.start < cut.stop <= size


@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_picture_is_cut_around_its_structures(channels):
    image = np.full((60, 90, *channels), 128, np.uint8)
    reference = np.zeros((60, 90), np.int64)
    reference[20:30, 40:50] = 1
    reference[0, 0] = 255  # ignored, no structure
    shot = shot_of(Overlay("d", "n", math.nan, image, reference, np.zeros_like(reference)), {"disc": [1, 2]})
    assert (shot.width, shot.height, shot.dice) == (20, 20, "–")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot.image.split(",")[1]))))
    assert decoded.shape == (20, 20, *channels)
    assert abs(decoded.astype(int) - 128).max() < 3
    assert shot.predictions[0][1] == ""
    assert shot.references[0].startswith("M")
