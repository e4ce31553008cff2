"""One visit through all five tabs, as a visitor makes it: both themes, a desk and a phone, nothing without a name."""

import PIL.Image
import pytest

from dim_hf.data.phantoms import render_phantom
from tests.browser import PHONE, WIDE, address, chromium, no_wider_than_screen, open_tab, screenshot, visit

__all__ = ["address", "chromium", "visit"]

UNNAMED = """() => [...document.querySelectorAll('button, input, select, textarea, [role=slider]')]
  .filter((item) => item.offsetParent !== null)
  .filter((item) => !(item.getAttribute('aria-label') || item.labels?.length || item.innerText.trim() || item.title
    || item.getAttribute('aria-labelledby') || item.querySelector('img[alt]:not([alt=""]), svg title')
    || item.closest('label')))
  .map((item) => item.outerHTML.slice(0, 200))"""
EXAMPLES = {
    "fundus": ["camera a", "camera b", "camera c", "camera d", "unseen look"],
    "volume": ["scanner a", "scanner c", "scanner e"],
    "compare": ["camera a", "camera b", "camera c", "camera d", "unseen look"],
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eyes")
    for number, camera in enumerate(("camera_a", "camera_c")):
        pixels, _ = render_phantom("fundus", domain=camera, index=960 + number, size=200, seed=3)
        PIL.Image.fromarray(pixels).save(folder / f"eye {number}.png")
    return sorted(map(str, folder.iterdir()))


def use(page, name, photographs):
    """Do what the tab is there for, and wait for its answer."""
    if name == "fundus":
        page.get_by_role("button", name="Example: camera b").click()
        page.wait_for_selector("#fundus-mask:not([disabled])")
    elif name == "volume":
        page.get_by_role("button", name="Example: scanner c").click()
        page.wait_for_selector("#volume-sagittal img.base")
    elif name == "compare":
        page.get_by_role("button", name="Example: camera d").click()
        page.wait_for_selector("#compare-tables table")
    elif name == "batch":
        page.set_input_files("#batch-upload input[type=file]", photographs)
        page.wait_for_function("document.querySelector('#batch-upload').innerText.includes('eye 1')")
        page.click("#batch-run")
        page.wait_for_selector("#batch-zip:not([disabled])")
    else:
        page.wait_for_selector("#method-notice")


def check(page, name, stage, folder):
    assert page.evaluate(UNNAMED) == [], (name, stage)
    assert no_wider_than_screen(page), (name, stage)
    screenshot(page, f"walk-{name}-{stage}-{folder.name}", folder)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_all_tabs(visit, tmp_path, photographs, theme, size):
    folder = tmp_path / f"{theme}-{size[0]}"
    with visit(theme=theme, size=size) as page:
        for name in ("fundus", "volume", "compare", "batch", "method"):
            open_tab(page, name)
            page.wait_for_selector(f"#tab-{name}", state="visible")
            if name in EXAMPLES:
                page.wait_for_selector(f"#{name}-examples button[aria-label]")
                labels = page.eval_on_selector_all(
                    f"#{name}-examples button", "all => all.map((one) => one.ariaLabel)"
                )
                assert labels == [f"Example: {example}" for example in EXAMPLES[name]]
            check(page, name, "before", folder)
            use(page, name, photographs)
            check(page, name, "after", folder)
