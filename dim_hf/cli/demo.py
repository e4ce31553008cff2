"""`dim-hf demo`: the browser demo on this machine."""

import click

from dim_hf.cli.errors import user_errors
from dim_hf.cli.spelling import BOTH_SPELLINGS


@click.command(
    context_settings=BOTH_SPELLINGS,
    epilog="Exit codes: 0 closed, 1 the demo cannot start, 2 wrong options.\n\n"
    "Limits are variables such as DIM_DEMO_MAX_FILE_BYTES (see dim_hf/demo/settings.py).\n\n\b\nExamples:\n"
    "  dim-hf demo\n"
    "  dim-hf demo --model runs/fundus --compare-model runs/supervised --port 7861",
)
@click.option("--model", envvar="DIM_MODEL", help="Folder or Hub name; org/dim-prostate, else small shipped models.")
@click.option("--compare-model", envvar="DIM_COMPARE_MODEL", help="Second model of the tab Compare; a shipped one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for the network.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port.  [default: the first free one from 7860 on]")
def command(model: str | None, compare_model: str | None, host: str, port: int | None) -> None:
    """Show the models in a browser: pictures, volumes, a comparison, batches, and how the method works.

    Works offline. Uploads stay on this machine, and are removed when their browser tab is closed. Research software,
    not a medical device.
    """
    from dataclasses import replace

    with user_errors():
        _require_gradio()
        from dim_hf.demo.app import launch
        from dim_hf.demo.settings import DemoSettings

        settings = replace(DemoSettings.from_environment(), model=model, compare_model=compare_model)
        launch(settings, host=host, port=port)


def _require_gradio() -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ImportError("the demo needs gradio, which is not installed; run: pip install 'dim-hf[space]'")
