"""The demo's page: its tabs, what guards it, and how it is started."""

import atexit
import html
import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

# Before Gradio is imported: nothing is reported to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from dim_hf.demo.context import Demo
from dim_hf.demo.examples import LICENCE
from dim_hf.demo.guard import Guard
from dim_hf.demo.models import DemoModels, load_models
from dim_hf.demo.sessions import SessionStore
from dim_hf.demo.settings import DemoSettings
from dim_hf.demo.theme import HEAD, STYLE, make_theme

TITLE = "DiM segmentation demo"
_SWEEP_SECONDS = 30
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
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights
    page = create_app(settings or DemoSettings.from_environment())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by default it would leave the visitors' files behind
    address = serve(page, host=host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", port=port)
    print(f"The demo is at {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _fresh_folder() -> Path:
    """A new folder for uploads and results, which Gradio uses as well; removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="dim-demo-")).resolve()
    for name in ("sessions", "samples"):
        (folder / name).mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _guard(page: gr.Blocks) -> Any:
    from starlette.middleware import Middleware

    return Middleware(Guard, settings=page.dim_demo.settings, files=page.dim_files)  # type: ignore[attr-defined]


def _sweep_regularly(store: SessionStore) -> None:
    def sweep() -> None:
        while not stopped.wait(_SWEEP_SECONDS):
            store.sweep()

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
