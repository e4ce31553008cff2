"""What sharpness, divergence and teacher of a trained model look like: measured, tabulated, drawn."""
