"""The page on the method: what each part does, two figures to play with, results by site, and the fine print."""

import html
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from dim_hf.demo.context import Demo
from dim_hf.demo.divergence_figure import ALPHA_RANGE, WORDINGS, class_shares, draw_divergence, read_divergence
from dim_hf.demo.examples import LICENCE
from dim_hf.demo.landscape_figure import NARROW_RANGE, RHO_RANGE, START_RANGE, draw_landscape
from dim_hf.demo.refusals import Refusal, shown_on_page
from dim_hf.demo.site_results import results_section

TEXTS = Path(__file__).parent / "assets"
_LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]
_FIRST_DIVERGENCE = ("jensen_shannon", 0.5, 20, 25, 30, 60)
_FIRST_LANDSCAPE = (0.3, -0.9, 20)
# Sliding asks the server for a picture of a few kB; only the newest position counts.
_SLIDING = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}


def build(demo: Demo) -> None:
    """Lay out the tab.

    Args:
        demo: What the tabs share.
    """
    gr.HTML(_text("method.html"), elem_id="method-text")
    with gr.Accordion("For engineers: the formulas", open=False, elem_id="method-formulas"):
        gr.Markdown(_text("formulas.md"), latex_delimiters=_LATEX)
    _build_divergence()
    _build_landscape()
    gr.HTML("<h2>Results by site</h2>" + _results(demo), elem_id="method-results")
    gr.HTML(_text("notice.html").replace("{{ licence }}", LICENCE), elem_id="method-notice")


def _text(name: str) -> str:
    return (TEXTS / name).read_text(encoding="utf-8")


def _results(demo: Demo) -> str:
    """What can be unfolded for each model; those of one name are shown once."""
    models = {model.title: model for model in (demo.models.fundus, demo.models.fundus_baseline, demo.models.volume)}
    sections = []
    for title, model in models.items():
        state = "" if sections else " open"
        summary = f"<summary>{html.escape(title)}</summary>"
        sections.append(f'<details class="results"{state}>{summary}{results_section(model)}</details>')
    return "".join(sections)


def _build_divergence() -> None:
    name, alpha, *shares = _FIRST_DIVERGENCE
    gr.HTML(_text("divergence.html"), elem_id="method-divergence-text")
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=4, min_width=280):
            choices = [(wording.title, key) for key, wording in WORDINGS.items()]
            chosen = gr.Dropdown(choices, value=name, label="f-divergence", filterable=False, elem_id="method-f")
            order = gr.Slider(
                *ALPHA_RANGE,
                alpha,
                step=0.1,
                label="α, of the α-divergence only",
                interactive=False,
                elem_id="method-alpha",
            )
            sliders = [
                gr.Slider(0, 100, value, step=1, label=label, elem_id=f"method-share-{number}", buttons=[])
                for number, (label, value) in enumerate(zip(_SHARES, shares, strict=True))
            ]
        with gr.Column(scale=8, min_width=300):
            notice = gr.HTML("", elem_classes="notices")
            figure = gr.HTML(_divergence(*_FIRST_DIVERGENCE), elem_id="method-divergence")
    inputs = [chosen, order, *sliders]
    chosen.input(lambda key: gr.Slider(interactive=key == "alpha"), chosen, order, **_SLIDING)
    gr.on([field.input for field in inputs], _on_page(_divergence), inputs, [notice, figure], **_SLIDING)


def _build_landscape() -> None:
    rho, start, narrow = _FIRST_LANDSCAPE
    gr.HTML(_text("landscape.html"), elem_id="method-landscape-text")
    with gr.Row(elem_classes="workplace"):
        with gr.Column(scale=4, min_width=280):
            inputs = [
                gr.Slider(*RHO_RANGE, rho, step=0.01, label="ρ, how far SAM looks around", elem_id="method-rho"),
                gr.Slider(*START_RANGE, start, step=0.1, label="Start, along the valley", elem_id="method-start"),
                gr.Slider(
                    *NARROW_RANGE, narrow, step=1, label="Curvature of the narrow part", elem_id="method-narrow"
                ),
            ]
        with gr.Column(scale=8, min_width=300):
            notice = gr.HTML("", elem_classes="notices")
            figure = gr.HTML(draw_landscape(*_FIRST_LANDSCAPE), elem_id="method-landscape")
    gr.on([field.input for field in inputs], _on_page(draw_landscape), inputs, [notice, figure], **_SLIDING)


_SHARES = (
    "P, outlined: disc, % of image",
    "P, outlined: cup, % of disc",
    "Q, others: disc, % of image",
    "Q, others: cup, % of disc",
)


def _divergence(name: str, alpha: float, *shares: float) -> str:
    """The figure of a divergence.

    Args:
        name: Key in `WORDINGS`.
        alpha: Order of the α-divergence.
        shares: Of the disc and of the cup in it, in percent: labeled, then unlabeled.
    """
    return draw_divergence(read_divergence(name, class_shares(*shares[:2]), class_shares(*shares[2:]), alpha))


def _on_page(draw: Callable[..., str]) -> Callable[..., tuple[str, str]]:
    """An event's function: values that no slider gives are refused with the sentence of the figure."""

    @shown_on_page((gr.skip(),))
    def drawn(*values: float) -> str:
        try:
            return draw(*values)
        except ValueError as error:
            raise Refusal(str(error)) from error

    return drawn
