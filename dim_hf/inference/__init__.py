"""Masks for images and volumes that nobody labeled: on the grid, and in the format, of what was given."""
