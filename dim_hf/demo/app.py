"""The demo's page: its tabs, what guards it, and how it is started."""

import atexit
import html
import importlib
import logging
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Before Gradio is imported: nothing is reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from dim_hf.demo.context import PREDICTION_QUEUE, Demo
from dim_hf.demo.examples import LICENCE
from dim_hf.demo.guard import Guard
from dim_hf.demo.models import DemoModels, load_models
from dim_hf.demo.refusals import refuse_wrong_types
from dim_hf.demo.sessions import SessionStore
from dim_hf.demo.settings import DemoSettings
from dim_hf.demo.theme import HEAD, STYLE, make_theme

TITLE = "DiM segmentation demo"
_LOG = logging.getLogger(__name__)
_SWEEP_SECONDS = 30
_FOLDER = "dim-demo-"
_HELD = "held"  # file in it that is locked as long as its process lives
_FRESH_SECONDS = 60
_LONG = (PREDICTION_QUEUE, "batch")  # lines of events that take long
_TABS = (
    ("fundus_tab", "Fundus", "fundus"),
    ("volume_tab", "Volume", "volume"),
    ("compare_tab", "Compare", "compare"),
    ("batch_tab", "Batch", "batch"),
    ("method_tab", "Method", "method"),
)


def create_app(settings: DemoSettings, models: DemoModels | None = None) -> gr.Blocks:
    """Build the page.

    Everything that visitors upload or get lies below one new folder, which is removed when the process ends. Start
    the page with `serve`, which puts the guard before it.

    Args:
        settings: Limits and models.
        models: Loaded models; those of the settings when None.

    Returns:
        The page; its attribute `dim_demo` is the `Demo` that its tabs share.
    """
    files = _fresh_folder()
    store = SessionStore(settings, files / "sessions", uploads=files)
    demo = Demo(settings, models or load_models(settings), store, files / "samples")
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gr.HTML(_header(demo), elem_id="page-header")
        with gr.Tabs(elem_id="tabs"):
            for module, label, name in _TABS:
                with gr.Tab(label, id=name, elem_id=f"tab-{name}"):
                    importlib.import_module(f"dim_hf.demo.{module}").build(demo)
        gr.HTML(_footer(), elem_id="page-footer")

        def close(request: gr.Request) -> None:
            demo.store.close(str(request.session_hash))

        page.unload(close)
    refuse_wrong_types(page)
    page.queue(max_size=settings.queue_size, default_concurrency_limit=4, api_open=False)
    page.dim_demo, page.dim_files = demo, files  # type: ignore[attr-defined]
    return page


def serve(page: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Start the server of a page in the background.

    Args:
        page: From `create_app`.
        host: Address to listen on.
        port: Port; the first free one from 7860 on when None.

    Returns:
        The page's address.
    """
    demo: Demo = page.dim_demo  # type: ignore[attr-defined]
    _sweep_regularly(demo.store)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        show_error=True,
        quiet=True,
        max_file_size=demo.settings.max_file_bytes,
        allowed_paths=[],
        theme=make_theme(),
        css_paths=[STYLE],
        head=HEAD,
        footer_links=["api"],
        app_kwargs={"middleware": [_guard(page)], "docs_url": None, "redoc_url": None},
        **_NOT_WANTED,
    )
    return address


# Recording, installing, monitoring, tools for other programs: none of it is for visitors.
_NOT_WANTED: dict[str, Any] = {
    "run_history": False,
    "enable_monitoring": False,
    "pwa": False,
    "mcp_server": False,
    "ssr_mode": False,
}


def launch(settings: DemoSettings | None = None, *, host: str | None = None, port: int | None = None) -> None:
    """Load the models, and serve the page until the process is stopped.

    Args:
        settings: Limits and models; those of the environment when None.
        host: Address to listen on; `GRADIO_SERVER_NAME`, else this machine only, when None.
        port: Port; `GRADIO_SERVER_PORT`, else the first free one from 7860 on, when None.

    Raises:
        ValueError: If the port is taken, or a model that was asked for cannot be loaded.
    """
    from transformers.utils.logging import disable_progress_bar

    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    check_port(host, port or os.environ.get("GRADIO_SERVER_PORT") or None)
    for name in ("SIGTERM", "SIGHUP"):  # by default they would leave the visitors' files behind
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda *_: sys.exit(0))
    remove_left_folders(Path(tempfile.gettempdir()))
    disable_progress_bar()  # of loading weights
    page = create_app(settings or DemoSettings.from_environment())
    address = serve(page, host=host, port=port)
    print(f"The demo is at {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _fresh_folder() -> Path:
    """A new folder for uploads and results, which Gradio uses as well; removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER)).resolve()
    _hold(folder)
    for name in ("sessions", "samples"):
        (folder / name).mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _hold(folder: Path) -> None:
    """Lock a file of the folder as long as this process lives, whatever ends it; see `remove_left_folders`."""
    if fcntl is not None:
        file = (folder / _HELD).open("w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        atexit.register(file.close)


def remove_left_folders(place: Path) -> None:
    """Remove the folders of earlier demos that were killed: nobody holds them any more.

    Args:
        place: Folder for temporary files.
    """
    for mark in place.glob(f"{_FOLDER}*/{_HELD}") if fcntl is not None else ():
        try:
            found = mark.parent.lstat()
            fresh = time.time() - mark.stat().st_mtime < _FRESH_SECONDS  # made, and held in a moment
            if fresh or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            with mark.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
        except OSError:  # held, or gone meanwhile
            continue


def check_port(host: str, port: int | str | None) -> None:
    """See to it that the port is free, before models are loaded.

    Args:
        host: Address to listen on.
        port: Port; None is always free: one is looked for later.

    Raises:
        ValueError: If it is no port, or nobody can listen there.
    """
    if port is None:
        return
    if not str(port).isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"GRADIO_SERVER_PORT is {port!r}; give a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"the demo cannot listen at {host}, port {port} ({error.strerror or error}); choose another with --port, "
            "or leave it out and the first free one is taken"
        ) from error


def _guard(page: gr.Blocks) -> Any:
    from starlette.middleware import Middleware

    settings: DemoSettings = page.dim_demo.settings  # type: ignore[attr-defined]
    return Middleware(Guard, settings=settings, files=page.dim_files, may_join=_line_of(page, settings.session_events))  # type: ignore[attr-defined]


def _line_of(page: gr.Blocks, most: int) -> Callable[[dict[str, Any]], bool]:
    """Whether an event may join the line: no page may fill it alone with work that takes long."""

    def may_join(message: dict[str, Any]) -> bool:
        number, session = message.get("fn_index"), message.get("session_hash")
        function = page.fns.get(number) if isinstance(number, int) else None
        if session is None or (function is not None and function.concurrency_id not in _LONG):
            return True
        lines = page._queue.event_queue_per_concurrency_id
        waiting = [event for name in _LONG if name in lines for event in lines[name].queue]
        running = [event for job in page._queue.active_jobs if job for event in job if event.concurrency_id in _LONG]
        return sum(event.session_hash == session for event in (*waiting, *running)) < most

    return may_join


def _sweep_regularly(store: SessionStore) -> None:
    def sweep() -> None:
        while not stopped.wait(_SWEEP_SECONDS):
            try:
                store.sweep()
            except Exception:  # the next round must come: without it the disk fills up
                _LOG.exception("the files of visitors who have gone could not be removed")

    stopped = threading.Event()
    atexit.register(stopped.set)
    threading.Thread(target=sweep, name="dim-demo-sweeper", daemon=True).start()


def _header(demo: Demo) -> str:
    models = demo.models
    lines = "".join(f"<li>{html.escape(notice)}</li>" for notice in _model_lines(models))
    return (
        '<header class="page-head"><div><h1>DiM segmentation</h1>'
        "<p>Outlines structures in images of several hospitals, after training with few labels.</p></div>"
        '<p class="stamp" role="note"><b>Research software, not a medical device.</b> '
        "Do not base a diagnosis on it.</p></header>"
        f'<details class="models"><summary>{html.escape(_model_summary(models))}</summary><ul>{lines}</ul></details>'
    )


def _model_summary(models: DemoModels) -> str:
    shipped = [model for model in (models.fundus, models.volume) if model.origin == "shipped"]
    if len(shipped) == 2:
        return "Shown with small models that come with the demo, trained on computer-drawn phantoms"
    return f"Pictures: {models.fundus.title}. Volumes: {models.volume.title}"


def _model_lines(models: DemoModels) -> list[str]:
    return [*models.notices, models.fundus.notice, models.fundus_baseline.notice, models.volume.notice]


def _footer() -> str:
    return (
        '<footer class="page-foot"><p>Files and results are kept for this browser tab only, and removed when it is '
        f"closed. Nothing is reported to anybody. {html.escape(LICENCE)}</p></footer>"
    )
