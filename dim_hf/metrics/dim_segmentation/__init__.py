"""The `evaluate` module: load it by the path of this folder; importing `dim_hf` does not import it."""
