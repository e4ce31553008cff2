"""The volume tab in a real browser, and its API: uploads, sliding, downloads, refusals."""

import io
import zipfile

import nibabel
import numpy as np
import pytest

from dim_hf.data.phantoms import render_phantom
from dim_hf.data.volumes.volume import Volume, read_volume, same_grid, write_nifti
from dim_hf.demo.models import SHIPPED
from dim_hf.demo.planes import PLANES
from dim_hf.inference.predictor import Predictor
from tests.browser import PHONE, WIDE, address, chromium, download, no_wider_than_screen, screenshot, visit
from tests.test_data_volume_dicom import write_series
from tests.test_demo_drawing import oblique

__all__ = ["address", "chromium", "visit"]


@pytest.fixture(scope="module")
def phantom():
    voxels, _ = render_phantom("prostate_3d", domain="scanner_b", index=950, size=48, seed=3)
    return np.ascontiguousarray((voxels.T * 1000).astype(np.int16))


@pytest.fixture(scope="module")
def shipped():
    return Predictor.from_pretrained(SHIPPED / "volume", device="cpu")


def expected(shipped, path):
    labels = shipped(path).labels
    assert labels.any()
    return labels


def upload(page, path):
    """Choose a file, wait until it is there, and press the button."""
    page.set_input_files("#volume-upload input[type=file]", path)
    page.wait_for_selector("#volume-upload .file-preview")
    page.click("#volume-run")


def wait_for_slices(page):
    for plane in PLANES:
        page.wait_for_selector(f"#volume-{plane} img.base")


def alt(page, plane):
    return page.get_attribute(f"#volume-{plane} img.base", "alt")


def loaded(content, path):
    path.write_bytes(content)
    return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "size"), [("light", WIDE), ("dark", WIDE), ("light", PHONE), ("dark", PHONE)])
def test_an_example_is_outlined_and_slid_through(visit, theme, size):
    name = f"volume-{theme}-{'phone' if size == PHONE else 'wide'}"
    with visit(tab="volume", theme=theme, size=size) as page:
        page.wait_for_selector("#volume-axial .empty")
        screenshot(page, f"{name}-empty")
        page.locator("#volume-examples button").first.click()
        wait_for_slices(page)
        assert no_wider_than_screen(page)
        assert "ml" in page.inner_text("#volume-numbers")
        for plane in PLANES:
            slider = page.locator(f"#volume-{plane}-slider input[type=range]")
            count = int(slider.get_attribute("max"))
            slider.focus()
            for key, shown in (("Home", 1), ("ArrowRight", 2), ("End", count)):
                page.keyboard.press(key)
                page.wait_for_selector(f"#volume-{plane} img.base[alt*='slice {shown} of {count}']")
        screenshot(page, name)


@pytest.mark.slow
def test_opacity_and_contours_ask_no_server(visit):
    with visit(tab="volume") as page:
        page.locator("#volume-examples button").first.click()
        page.wait_for_selector("#volume-axial img.fill")
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.fill("#volume-opacity input[type=number]", "80")
        page.keyboard.press("Enter")
        page.wait_for_function("getComputedStyle(document.querySelector('#volume-axial img.fill')).opacity == '0.8'")
        page.click("#volume-lines input[type=checkbox]")
        page.wait_for_function("getComputedStyle(document.querySelector('#volume-axial img.lines')).opacity == '0'")
        assert [url for url in asked if not url.startswith("data:")] == []


@pytest.mark.slow
def test_the_downloaded_mask_is_the_predictors_on_the_grid_of_the_upload(visit, tmp_path, phantom, shipped):
    affine = oblique((2, 0, 1), (1, -1, 1), (10, -20, 5))
    path = tmp_path / "case 1.nii.gz"
    write_nifti(Volume(np.ascontiguousarray(phantom.transpose(2, 0, 1)), affine), path)
    with visit(tab="volume") as page:
        upload(page, path)
        wait_for_slices(page)
        assert alt(page, "axial").startswith("case 1: axial slice")
        name, content = download(page, "#volume-mask")
        assert name.endswith("_mask.nii.gz")
        assert np.array_equal(loaded(content, tmp_path / name), expected(shipped, path))
        assert same_grid(read_volume(tmp_path / name), read_volume(path), 1e-4) is None
        name, content = download(page, "#volume-table")
        assert content.decode().splitlines()[0] == "image,structure,quantity,value,unit,pixels"


@pytest.mark.slow
def test_a_zip_of_dicom_slices_is_read(visit, tmp_path, phantom, shipped):
    files = write_series(tmp_path / "slices", phantom, turn=np.eye(3), spacing=(3.4, 3.4, 5.0))
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in files:
            archive.write(file, f"study/{file.name}")
    with visit(tab="volume") as page:
        upload(page, tmp_path / "series.zip")
        wait_for_slices(page)
        _, content = download(page, "#volume-mask")
        found = loaded(content, tmp_path / "mask.nii.gz")
        assert np.array_equal(found, expected(shipped, tmp_path / "slices"))


@pytest.mark.slow
def test_hostile_files_get_a_sentence_and_the_page_goes_on(visit, tmp_path, phantom):
    nan = phantom.astype(np.float32)
    nan[3, 4, 5] = np.nan
    write_nifti(Volume(nan, np.eye(4)), tmp_path / "nan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16, 8, 5), np.int16), np.eye(4)), tmp_path / "time.nii.gz")
    (tmp_path / "page.nii.gz").write_bytes(b"<!DOCTYPE html><script>window.hurt = 1</script>")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../evil.dcm", "x")
    (tmp_path / "slip.zip").write_bytes(buffer.getvalue())
    write_nifti(Volume(phantom, np.diag([-3.4, -3.4, 5.0, 1])), tmp_path / "fine.nii.gz")
    said = {
        "nan.nii.gz": "NaN",
        "time.nii.gz": "four axes",
        "page.nii.gz": "a web page or XML file",
        "slip.zip": "outside",
    }
    with visit(tab="volume") as page:
        for name, words in said.items():
            upload(page, tmp_path / name)
            page.wait_for_selector(f"#volume-notice [role=alert]:has-text('{words}')")
            assert str(tmp_path) not in page.inner_text("#volume-notice")
            assert page.locator("#volume-mask").is_disabled()
            if name == "nan.nii.gz":
                screenshot(page, "volume-refused")
            page.click("#volume-upload button[aria-label='Clear']")
            page.wait_for_selector("#volume-upload input[type=file]", state="attached")
        assert page.evaluate("window.hurt") is None
        upload(page, tmp_path / "fine.nii.gz")
        wait_for_slices(page)
        assert page.inner_text("#volume-notice").strip() == ""


@pytest.mark.slow
def test_programs_get_the_same_mask_and_the_same_sentences(address, tmp_path, phantom, shipped):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    path = tmp_path / "scan.nii.gz"
    write_nifti(Volume(phantom, np.diag([-3.4, -3.4, 5.0, 1])), path)
    client = Client(address, verbose=False, download_files=str(tmp_path / "got"))
    mask, measurements = client.predict(handle_file(path), api_name="/segment_volume")
    assert np.array_equal(np.asarray(nibabel.load(mask).dataobj), expected(shipped, path))
    assert measurements[0]["unit"] == "ml"
    (tmp_path / "bad.nii.gz").write_bytes(b"none")
    with pytest.raises(AppError, match=r"bad\.nii\.gz"):
        client.predict(handle_file(tmp_path / "bad.nii.gz"), api_name="/segment_volume")
    client.close()
