"""The demo in a real browser: one server a test process, and pages that notice every error and foreign request."""

import atexit
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
WIDE, PHONE = (1280, 900), (390, 844)
START_SECONDS = 180
WAIT_MS = 60_000  # of a step in the page; machines of tests are slow and shared


def missing():
    """Why no browser test can run here; None where all is there."""
    if not Path(CHROMIUM).exists():
        return "chromium is not installed"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(command=None, *, cwd=None, environment=None):
    """Start `dim-hf demo` (or another command that obeys GRADIO_SERVER_PORT) and wait until it answers.

    Returns:
        The process, its address, and the file that its output goes to.
    """
    port = free_port()
    log = Path(tempfile.mkstemp(prefix="space-", suffix=".log")[1])
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GRADIO_SERVER_PORT": str(port)}
    command = command or [sys.executable, "-c", "from dim_hf.cli import main; main()", "demo", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **quiet, **(environment or {})},
        )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/config", timeout=5):
                return process, address, log
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    stop_server(process)
    raise AssertionError(f"the demo did not start:\n{log.read_text()[-4000:]}")


def stop_server(process):
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()


@functools.cache
def shared_server():
    """Address of the one server of this test process."""
    process, address, _ = start_server()
    atexit.register(stop_server, process)
    return address


@pytest.fixture
def address():
    """Address of the running demo."""
    return shared_server()


@pytest.fixture(scope="module")
def chromium():
    """A running browser; without one the test is skipped, but never in CI.

    Only as long as a module: Playwright keeps an event loop running, beside which no test may start another.
    """
    reason = missing()
    if reason:
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """`with visit(tab="fundus", theme="dark", size=PHONE) as page:` fails on any console error or foreign request."""

    @contextmanager
    def opened(tab=None, theme="light", size=WIDE, at=address):
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        faults = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request", lambda request: faults.append(f"asked {request.url}") if is_foreign(request.url, at) else None
        )
        page.goto(f"{at}/?__theme={theme}")
        page.wait_for_selector("#fundus-run")
        if tab:
            open_tab(page, tab)
        try:
            yield page
        finally:
            context.close()
        assert faults == []

    return opened


def is_foreign(url, at):
    return not url.startswith((at, "data:", "blob:"))


def open_tab(page, name):
    """Click a tab by its label; on a phone it may lie behind the menu of further tabs."""
    tab = page.get_by_role("tab", name=name.capitalize(), exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
        return
    page.locator(".overflow-menu > button").first.click()
    page.locator(".overflow-dropdown button", has_text=name.capitalize()).first.click()


def screenshot(page, name, folder=None):
    """Save what the page shows where SPACE_SCREENSHOTS says, else in the folder; nothing without both."""
    folder = os.environ.get("SPACE_SCREENSHOTS") or folder
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def download(page, selector):
    """Press a download button; gives the name that the browser would save it under, and its bytes."""
    with page.expect_download() as waiting:
        page.click(selector)
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def no_wider_than_screen(page):
    """Whether nothing makes the page scroll sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
