"""The browser demo: a Gradio app around `Predictor`; each tab is a module, what they share lies beside them."""
