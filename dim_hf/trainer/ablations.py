"""The ablations of the method: settings of one objective, not classes."""

from typing import Any

from dim_hf.trainer.dim_training_args import DimTrainingArguments

_OFF = {
    "consistency": {"consistency_weight": 0.0, "teacher_flips": False},  # no pseudo-labels, whatever made them
    "divergence": {"divergence_weight": 0.0},
    "sharpness": {"rho": 0.0},
    "weak views": {"weak_view_ratio": 0.0, "teacher_buffers": "averaged"},
}

# What each setting leaves out of the full method.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "supervised": ("consistency", "divergence", "sharpness"),
    # What the last steps by weak views, and statistics that follow them, are worth without unlabeled images.
    "supervised-strong": ("consistency", "divergence", "sharpness", "weak views"),
    "supervised-sam": ("consistency", "divergence"),
    "teacher-student": ("divergence", "sharpness"),
    "teacher-student-divergence": ("sharpness",),
    "teacher-student-sam": ("divergence",),
    "dim": (),
}


def ablation_overrides(name: str) -> dict[str, Any]:
    """Arguments that turn the full method into one of its ablations.

    Args:
        name: a key of `ABLATIONS`.

    Returns:
        Field names of `DimTrainingArguments` and their values; empty for `dim`.

    Raises:
        ValueError: for an unknown name, listing the known ones.

    >>> ablation_overrides("teacher-student")
    {'divergence_weight': 0.0, 'rho': 0.0}
    """
    if name not in ABLATIONS:
        raise ValueError(f"unknown ablation {name!r}: choose one of {', '.join(ABLATIONS)}")
    overrides: dict[str, Any] = {}
    for part in ABLATIONS[name]:
        overrides |= _OFF[part]
    assert all(hasattr(DimTrainingArguments, field) for field in overrides)
    return overrides
