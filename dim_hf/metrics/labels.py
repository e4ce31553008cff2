"""What tables and figures call the metrics, and the sentence that says how they were scored."""

import math

from dim_hf.metrics.empty_masks import EMPTY_POLICIES

LABELS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95": "HD95",
    "hd": "HD",
    "asd": "ASD",
    "assd": "ASSD",
    "nsd": "NSD",
    "volume_difference": "Volume difference",
}

# In [0, 1], and the higher the better; the others are lengths or volumes, and the smaller the better.
SHARES = ("dice", "jaccard", "nsd")


def metric_label(metric: str, unit: str = "", nsd_tolerance: float = math.nan) -> str:
    """A metric with its unit, and the NSD with its tolerance.

    Args:
        metric: a key of `LABELS`.
        unit: "mm", "px", or "" where it is not known.
        nsd_tolerance: in the unit; NaN where it is not known.

    Returns:
        The heading of a column or axis.

    >>> metric_label("hd95", "mm"), metric_label("nsd", "mm", 2.0), metric_label("dice", "px")
    ('HD95 (mm)', 'NSD at 2 mm', 'Dice')
    """
    if metric == "nsd" and not math.isnan(nsd_tolerance):
        return f"{LABELS[metric]} at {nsd_tolerance:g} {unit}".rstrip()
    if metric in SHARES or not unit:
        return LABELS[metric]
    return f"{LABELS[metric]} ({'mm² or mm³' if metric == 'volume_difference' and unit == 'mm' else unit})"


def scoring_sentence(unit: str, empty_policy: str, nsd_tolerance: float = math.nan) -> str:
    """What a caption must say of distances.

    Args:
        unit: "mm" or "px".
        empty_policy: a key of `EMPTY_POLICIES`.
        nsd_tolerance: in the unit; NaN where no NSD was scored.

    Returns:
        One sentence.

    >>> scoring_sentence("mm", "legacy-0", 2.0)
    'Distances in mm; NSD at 2 mm; empty masks: legacy-0 (a missed or spurious structure counts as 0 (perfect), as in SSL4MIS).'
    """  # noqa: E501  a doctest
    policy = EMPTY_POLICIES.get(empty_policy)
    parts = [
        f"Distances in {'mm' if unit == 'mm' else 'pixels'}",
        *([] if math.isnan(nsd_tolerance) else [metric_label("nsd", unit, nsd_tolerance)]),
        f"empty masks: {empty_policy} ({policy.description if policy else 'unknown'})",
    ]
    return "; ".join(parts) + "."
