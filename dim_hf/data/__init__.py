"""Rows of images and masks, their splits, and the two endless streams that training draws from."""
