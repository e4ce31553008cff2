"""Metrics of segmentations: overlap and surface distances of one case, per-site reports and figures."""
