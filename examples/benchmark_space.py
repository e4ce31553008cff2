"""How the demo stands many visitors: who gets an answer, who is told that it is busy, and whose answer it is.

python examples/benchmark_space.py               # starts the demo on a free port, 50 users at once
python examples/benchmark_space.py --url http://127.0.0.1:7860 --users 80

Each user uploads a picture of its own, asks `/segment_fundus` through `gradio_client`, and compares the mask with what
`Predictor` says of that picture: any other mask would be somebody else's. First paint and first prediction are timed
in headless Chromium where Playwright is installed.
"""

import collections
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

CHROMIUM = "/usr/bin/chromium"
_START_SECONDS = 180
_PATIENCE_SECONDS = 180
_BUSY = ("busy", "queue is full", "many visitors")


@click.command()
@click.option("--url", help="Of a running demo; one is started when not given.")
@click.option("--users", default=50, show_default=True, type=click.IntRange(min=1), help="Visitors at once.")
@click.option("--size", default=256, show_default=True, type=click.IntRange(min=32), help="Pixels of their pictures.")
@click.option("--no-browser", is_flag=True, help="Leave out first paint and first prediction.")
def main(url: str | None, users: int, size: int, no_browser: bool) -> None:
    """Load the demo, and print what came of it; exit code 1 if anybody got a wrong answer or none."""
    with tempfile.TemporaryDirectory() as folder:
        paths, expected = _pictures(Path(folder), users, size)
        with _server(url) as address:
            if not no_browser:
                _time_browser(address)
            outcomes, seconds = _load(address, paths, expected)
    counts = collections.Counter(kind for kind, _, _ in outcomes)
    answered = sorted(took for kind, took, _ in outcomes if kind == "answered")
    click.echo(
        f"{users} users at once: {counts['answered']} answered, {counts['busy']} told busy, {counts['failed']} "
        f"failed, {counts['wrong']} got another result; {seconds:.1f} s in all"
    )
    if answered:
        click.echo(f"seconds to the answer: median {statistics.median(answered):.1f}, last {answered[-1]:.1f}")
    for said in sorted({said for kind, _, said in outcomes if kind in ("failed", "busy")}):
        click.echo(f"  said: {said}")
    if counts["failed"] or counts["wrong"]:
        raise click.ClickException("somebody got no answer, or another one's")


def _pictures(folder: Path, count: int, size: int) -> tuple[list[Path], list[np.ndarray]]:
    """A picture for each user, no two alike, and its mask by the model that the demo ships with."""
    import PIL.Image

    from dim_hf.data.phantoms import get_phantom, render_phantom
    from dim_hf.demo.models import SHIPPED
    from dim_hf.inference.predictor import Predictor

    predictor = Predictor.from_pretrained(os.environ.get("DIM_MODEL") or SHIPPED / "fundus", device="cpu")
    cameras = get_phantom("fundus").domains
    paths, masks = [], []
    for number in range(count):
        pixels, _ = render_phantom("fundus", domain=cameras[number % len(cameras)], index=number, size=size, seed=11)
        paths.append(folder / f"eye{number}.png")
        PIL.Image.fromarray(pixels).save(paths[-1])
        masks.append(predictor(pixels).labels)
    return paths, masks


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url:
        yield url.rstrip("/")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    command = [sys.executable, "-c", "from dim_hf.cli import main; main()", "demo", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _answers(address):
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise click.ClickException("the demo does not start; run `dim-hf demo` to see why")
            time.sleep(0.1)
        click.echo(f"server up after {time.monotonic() - began:.1f} s")
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/config", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _time_browser(address: str) -> None:
    """First paint of a fresh page, and the time from the first click on an example to its mask."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        click.echo("first paint and prediction: not timed, playwright is not installed")
        return
    if not Path(CHROMIUM).exists():
        click.echo(f"first paint and prediction: not timed, there is no {CHROMIUM}")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#fundus-run", timeout=60_000)
        entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        paint = page.evaluate(entry) / 1000
        began = time.monotonic()
        page.locator("#fundus-examples button").first.click()
        page.wait_for_selector("#fundus-view .layer.fill", timeout=60_000)
        click.echo(f"first paint {paint:.2f} s, first prediction {time.monotonic() - began:.2f} s")
        browser.close()


def _load(address: str, paths: list[Path], expected: list[np.ndarray]) -> tuple[list[tuple[str, float, str]], float]:
    """Let all users ask at once; gives what each got, how long it took, and what was said."""
    outcomes: list[tuple[str, float, str]] = [("failed", 0.0, "no answer")] * len(paths)
    ready = threading.Barrier(len(paths) + 1)

    def visit(number: int) -> None:
        from gradio_client import Client, handle_file

        from dim_hf.data.images import read_mask

        with tempfile.TemporaryDirectory() as folder:
            try:
                patient = {"timeout": _PATIENCE_SECONDS}  # as a browser is; httpx gives up after 5 s
                client = Client(address, download_files=folder, verbose=False, httpx_kwargs=patient)
                ready.wait()
                began = time.monotonic()
                mask, _ = client.predict(handle_file(str(paths[number])), None, api_name="/segment_fundus")
                own = np.array_equal(read_mask(mask), expected[number])
                outcomes[number] = ("answered" if own else "wrong", time.monotonic() - began, "")
            except threading.BrokenBarrierError:
                return
            except Exception as error:  # what a client raises is what its user sees
                said = str(error) or type(error).__name__
                kind = "busy" if any(word in said.lower() for word in _BUSY) else "failed"
                outcomes[number] = (kind, 0.0, said)
                if ready.n_waiting:
                    ready.abort()

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(len(paths))]
    for thread in threads:
        thread.start()
    try:
        ready.wait(timeout=300)
    except threading.BrokenBarrierError:
        click.echo("not all clients could connect")
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return outcomes, time.monotonic() - began


if __name__ == "__main__":
    main()
