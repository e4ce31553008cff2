"""How the page looks: a quiet clinical theme, light and dark, with the fonts of the visitor's own system."""

from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).parent / "assets"
STYLE = ASSETS / "style.css"
HEAD = (
    '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
    f"<script>{(ASSETS / 'names.js').read_text(encoding='utf-8')}</script>"
    f"<script>{(ASSETS / 'results.js').read_text(encoding='utf-8')}</script>"
)
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


def make_theme() -> gr.themes.Base:
    """The theme; its colors follow the evaluation report's."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.sky,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in _SANS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    )
    return theme.set(
        body_background_fill="#f4f6f8",
        body_background_fill_dark="#10151b",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#192028",
        background_fill_secondary="#f4f6f8",
        background_fill_secondary_dark="#141a21",
        block_background_fill="#ffffff",
        block_background_fill_dark="#192028",
        border_color_primary="#dde3e9",
        border_color_primary_dark="#2c3641",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="#ffffffe0",
        block_label_background_fill_dark="#192028e0",
        block_label_border_width="0px",
        block_label_text_color="#526070",
        block_label_text_color_dark="#a4b1bf",
        block_title_text_color="#2a3642",
        block_title_text_color_dark="#d6dee6",
        body_text_color="#17212b",
        body_text_color_dark="#e6ebf0",
        body_text_color_subdued="#526070",
        body_text_color_subdued_dark="#a4b1bf",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#0d9488",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#222b35",
        button_secondary_border_color="#cbd4dd",
        button_secondary_border_color_dark="#3a4653",
        input_background_fill_dark="#222b35",
        table_even_background_fill_dark="#192028",
        table_odd_background_fill_dark="#141a21",
        slider_color="#0f766e",
        slider_color_dark="#2dd4bf",
    )
