"""The batch tab: every picture gets a line and a mask, whatever the others are."""

import csv
import io
import re
import zipfile

import numpy as np
import PIL.Image
import pytest

from dim_hf.data.phantoms import render_phantom
from dim_hf.demo import batch_tab
from dim_hf.demo.context import Demo
from dim_hf.demo.models import SHIPPED, DemoModel, DemoModels
from dim_hf.demo.refusals import Refusal
from dim_hf.demo.sessions import SessionStore
from dim_hf.demo.settings import DemoSettings
from dim_hf.inference.predictor import Predictor
from tests.browser import PHONE, address, chromium, download, no_wider_than_screen, screenshot, visit  # noqa: F401


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eyes")
    for number, camera in enumerate(("camera_a", "camera_c")):
        pixels, _ = render_phantom("fundus", domain=camera, index=960 + number, size=96, seed=3)
        PIL.Image.fromarray(pixels).save(folder / f"eye {number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(SHIPPED / "fundus", device="cpu")


@pytest.fixture
def demo(predictor, tmp_path):
    model = DemoModel("fundus", "Fundus", predictor, "fundus", "shipped", "")
    settings = DemoSettings(max_batch_files=3)
    return Demo(settings, DemoModels(model, model, model), SessionStore(settings, tmp_path / "kept"), tmp_path)


def unpacked(path_or_bytes):
    with zipfile.ZipFile(path_or_bytes) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_every_picture_gets_its_own_mask_and_line(demo, photographs, predictor):
    steps = list(batch_tab._run(demo, "a", [str(path) for path in photographs]))
    assert [re.search(r"(\d) of 2 done", table).group(1) for _, table, _ in steps] == ["0", "1", "2", "2"]
    content = unpacked(steps[-1][2]["value"])
    for number, path in enumerate(photographs, start=1):
        (name,) = [name for name in content if name.startswith(f"masks/{number:02d}_")]
        mask = np.asarray(PIL.Image.open(io.BytesIO(content[name])))
        assert np.array_equal(mask, predictor(path).labels)
    rows = list(csv.DictReader(io.StringIO(content["measurements.csv"].decode())))
    assert {row["image"] for row in rows} == {path.name for path in photographs}
    assert "labels.json" in content
    assert "not_done.txt" not in content


def test_a_broken_picture_stops_nothing_and_is_named(demo, photographs, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    *_, last = batch_tab._run(demo, "a", [str(broken), str(photographs[0])])
    content = unpacked(last[2]["value"])
    assert content["not_done.txt"].decode().startswith("broken.png: ")
    assert [name for name in content if name.startswith("masks/")] == [name for name in content if "02_eye" in name]
    assert 'class="refused"' in last[1]


def test_pictures_of_one_name_do_not_replace_one_another(demo, photographs, tmp_path):
    paths = []
    for folder, source in zip("ab", photographs, strict=True):
        paths.append(tmp_path / folder / "eye.png")
        paths[-1].parent.mkdir()
        paths[-1].write_bytes(source.read_bytes())
    *_, last = batch_tab._run(demo, "a", list(map(str, paths)))
    assert len([name for name in unpacked(last[2]["value"]) if name.startswith("masks/")]) == 2


def test_wild_names_are_plain_text_everywhere(demo, photographs, tmp_path):
    wild = tmp_path / '=HYPERLINK("x")<img src=x onerror=alert(1)>.png'
    wild.write_bytes(photographs[0].read_bytes())
    *_, last = batch_tab._run(demo, "a", [str(wild)])
    assert "<img" not in last[1]
    content = unpacked(last[2]["value"])
    assert all(re.fullmatch(r"(masks/)?[\w.-]+", name) for name in content)
    first = list(csv.reader(io.StringIO(content["measurements.csv"].decode())))[1]
    assert first[0].startswith("'=HYPERLINK")


@pytest.mark.parametrize(("count", "said"), [(0, "No pictures"), (4, "at most; choose fewer")])
def test_too_few_and_too_many_are_refused_before_anything_is_read(demo, count, said):
    with pytest.raises(Refusal, match=said):
        list(batch_tab._run(demo, "a", ["missing.png"] * count))


def test_a_batch_of_nothing_usable_says_why(demo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    *_, (notice, table, archive) = batch_tab._run(demo, "a", [str(broken)] * 2)
    assert "None of the pictures could be used" in notice
    assert table.count("broken.png") >= 2
    assert "refused" in table
    assert archive == batch_tab.NO_FILE
    assert not list(demo.store.root.rglob("*.zip"))


def test_closing_the_session_removes_the_archive(demo, photographs):
    *_, last = batch_tab._run(demo, "a", [str(photographs[0])])
    demo.store.close("a")
    assert list(demo.store.root.iterdir()) == []
    assert last[2]["value"].startswith(str(demo.store.root))


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_batch_in_the_browser(visit, photographs, predictor, tmp_path, theme):  # noqa: F811
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture at all")
    with visit(tab="batch", theme=theme) as page:
        screenshot(page, f"batch-start-{theme}")
        page.set_input_files("#batch-upload input[type=file]", [*map(str, photographs), str(wrong)])
        page.wait_for_function("document.querySelector('#batch-upload').innerText.includes('notes')")
        page.click("#batch-run")
        page.wait_for_selector("#batch-zip:not([disabled])")
        assert page.inner_text("#batch-table .progress-text") == "3 of 3 done"
        screenshot(page, f"batch-{theme}")
        name, content = download(page, "#batch-zip")
        assert name == "masks.zip"
        masks = {key: value for key, value in unpacked(io.BytesIO(content)).items() if key.startswith("masks/")}
        found = [np.asarray(PIL.Image.open(io.BytesIO(value))) for _, value in sorted(masks.items())]
        for mask, path in zip(found, photographs, strict=True):
            assert np.array_equal(mask, predictor(path).labels)


@pytest.mark.slow
def test_an_empty_batch_on_a_phone_gets_advice(visit):  # noqa: F811
    with visit(tab="batch", size=PHONE) as page:
        page.click("#batch-run")
        page.wait_for_selector("#batch-notice [role=alert]")
        assert no_wider_than_screen(page)
        screenshot(page, "batch-phone")
