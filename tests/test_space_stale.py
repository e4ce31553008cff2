"""What a reader of images trips over: results of another patient, pages that jump, fields that say nothing."""

import numpy as np
import PIL.Image
import pytest

from dim_hf.data.phantoms import render_phantom
from dim_hf.data.volumes.volume import Volume, write_nifti
from tests.browser import PHONE, WIDE, address, chromium, screenshot, visit

__all__ = ["address", "chromium", "visit"]

CLEAR = "#{}-upload button[aria-label^='Remove'], #{}-upload button[aria-label^='Clear']"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("another patient")
    pixels, _ = render_phantom("fundus", domain="camera_b", index=970, size=200, seed=3)
    PIL.Image.fromarray(pixels).save(folder / "eye.png")
    voxels, _ = render_phantom("prostate_3d", domain="scanner_b", index=970, size=48, seed=3)
    scan = Volume(np.ascontiguousarray((voxels.T * 1000).astype(np.int16)), np.diag([-3.4, -3.4, 5.0, 1]))
    write_nifti(scan, folder / "scan.nii.gz")
    return {"fundus": folder / "eye.png", "compare": folder / "eye.png", "volume": folder / "scan.nii.gz"}


FILLED = {"fundus": "#fundus-numbers .tile", "volume": "#volume-numbers .tile", "compare": "#compare-tables table"}
PICTURES = {"fundus": "#fundus-view .layer", "volume": "#volume-view img", "compare": "#compare-view .layer"}


def assert_empty(page, tab):
    page.wait_for_selector(FILLED[tab], state="detached")
    assert page.locator(PICTURES[tab]).count() == 0
    for name in ("mask", "table"):
        if tab != "compare":
            assert page.locator(f"#{tab}-{name}").is_disabled()
    page.wait_for_function(f"document.querySelector('#{tab}-notice').innerText.trim() === ''")


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["fundus", "volume", "compare"])
def test_clearing_and_uploading_remove_the_old_result(visit, files, tab):
    with visit(tab=tab) as page:
        page.locator(f"#{tab}-examples button").first.click()
        page.wait_for_selector(FILLED[tab])
        page.click(CLEAR.format(tab, tab))
        assert_empty(page, tab)
        page.click(f"#{tab}-run")
        page.wait_for_selector(f"#{tab}-notice [role=alert]")
        page.set_input_files(f"#{tab}-upload input[type=file]", str(files[tab]))
        assert_empty(page, tab)
        page.click(f"#{tab}-run")
        page.wait_for_selector(FILLED[tab])
        page.click(CLEAR.format(tab, tab))
        page.set_input_files(f"#{tab}-upload input[type=file]", str(files[tab]))
        page.wait_for_timeout(500)
        assert_empty(page, tab)
        screenshot(page, f"stale-{tab}")


@pytest.mark.slow
def test_an_answer_on_its_way_does_not_appear_beside_another_picture(visit, files):
    with visit(tab="fundus") as page:
        page.locator("#fundus-examples button").first.click()
        page.wait_for_selector("#fundus-upload img")
        page.click(CLEAR.format("fundus", "fundus"))
        page.set_input_files("#fundus-upload input[type=file]", str(files["fundus"]))
        page.wait_for_selector("#fundus-upload img")
        page.wait_for_timeout(3000)
        assert_empty(page, "fundus")


@pytest.mark.slow
def test_of_two_examples_the_last_one_is_shown(visit):
    with visit(tab="fundus") as page:
        page.get_by_role("button", name="Example: camera a").click()
        page.wait_for_selector("#fundus-upload img")
        page.get_by_role("button", name="Example: camera d").click()
        page.wait_for_selector("#fundus-view .base[alt*='camera_d']")
        page.wait_for_selector("#fundus-upload img[src*='camera_d']")


@pytest.mark.slow
def test_a_batch_forgets_what_other_files_gave(visit, files):
    with visit(tab="batch") as page:
        page.set_input_files("#batch-upload input[type=file]", [str(files["fundus"])])
        page.wait_for_selector("#batch-upload .file-preview")
        page.click("#batch-run")
        page.wait_for_selector("#batch-zip:not([disabled])")
        page.click("#batch-upload button[aria-label='Clear']")
        page.wait_for_selector("#batch-table .batch-table.empty")
        assert page.locator("#batch-zip").is_disabled()


def choose(page, path):
    page.set_input_files("#fundus-upload input[type=file]", str(path))
    page.wait_for_selector("#fundus-upload img", state="attached")


def settled_length(page):
    """Height of the page once it no longer changes: thumbnails come in after the first paint."""
    length = before = None
    while length is None or length != before:
        before = length
        page.wait_for_timeout(700)
        length = page.evaluate("document.documentElement.scrollHeight")
    return length


@pytest.mark.slow
def test_a_stranger_s_picture_is_never_called_fine_and_the_page_keeps_its_length(visit, files, tmp_path):
    pixels = np.asarray(PIL.Image.open(files["fundus"]))
    PIL.Image.fromarray(pixels[:, 40:160]).save(tmp_path / "portrait.png")
    with visit() as page:
        assert page.input_value("#fundus-spacing input") == ""
        empty = settled_length(page)
        page.get_by_role("button", name="Example: camera a").click()
        page.wait_for_selector(FILLED["fundus"])
        assert "computer-drawn" not in page.inner_text("#fundus-numbers")
        assert settled_length(page) == empty
        page.click(CLEAR.format("fundus", "fundus"))
        choose(page, tmp_path / "portrait.png")
        page.click("#fundus-run")
        page.wait_for_selector(".flag.look:has-text('computer-drawn')")
        assert settled_length(page) == empty


@pytest.mark.slow
def test_tiff_has_no_broken_preview_and_svg_is_refused_with_a_sentence(visit, files, tmp_path):
    PIL.Image.open(files["fundus"]).save(tmp_path / "eye.tif")
    (tmp_path / "eye.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"></svg>')
    with visit() as page:
        choose(page, tmp_path / "eye.tif")
        page.wait_for_selector("#fundus-upload .no-preview")
        assert not page.locator("#fundus-upload img").is_visible()
        page.click(CLEAR.format("fundus", "fundus"))
        choose(page, tmp_path / "eye.svg")
        page.click("#fundus-run")
        page.wait_for_selector("#fundus-notice [role=alert]:has-text('eye.svg')")


@pytest.mark.slow
@pytest.mark.parametrize("size", [PHONE, WIDE])
def test_a_result_comes_into_view_on_a_phone_only(visit, size):
    with visit(size=size) as page:
        page.get_by_role("button", name="Example: camera a").click()
        page.wait_for_selector("#fundus-view .base")
        if size == PHONE:
            page.wait_for_function("Math.abs(document.querySelector('#fundus-view').getBoundingClientRect().top) < 20")
        else:
            page.wait_for_timeout(500)
            assert page.evaluate("scrollY") == 0
