"""What surface distances are worth where a mask is empty: stated policies instead of a silent constant."""

from dataclasses import dataclass

import numpy as np

from dim_hf.metrics.overlap import Spacing, as_spacing


@dataclass(frozen=True)
class EmptyPolicy:
    """What the distances are where exactly one of the two masks is empty, so that no distance exists.

    Two empty masks agree perfectly under every policy: all distances 0, NSD 1. Dice and Jaccard need no policy: they
    are 0 where one mask is empty.

    Attributes:
        name: key in `EMPTY_POLICIES`.
        distance: value of hd, hd95, asd and assd, in the unit of the distances; None is the image diagonal.
        nsd: value of the NSD, in [0, 1] or NaN.
        description: where it comes from, for captions of tables.
    """

    name: str
    distance: float | None
    nsd: float
    description: str


EMPTY_POLICIES = {
    policy.name: policy
    for policy in (
        EmptyPolicy("worst", None, 0.0, "a missed or spurious structure counts as the image diagonal"),
        EmptyPolicy("nan", float("nan"), float("nan"), "missed and spurious structures are left out of the distances"),
        EmptyPolicy("legacy-100", 100.0, 0.0, "a missed or spurious structure counts as 100, as in MiDSS"),
        EmptyPolicy("legacy-0", 0.0, 0.0, "a missed or spurious structure counts as 0 (perfect), as in SSL4MIS"),
    )
}


def get_empty_policy(name: str) -> EmptyPolicy:
    """The policy of that name.

    Args:
        name: a key of `EMPTY_POLICIES`.

    Returns:
        The record.

    Raises:
        ValueError: if there is none; the message lists the names.
    """
    if name not in EMPTY_POLICIES:
        raise ValueError(f"empty_policy is {name!r}; choose one of {', '.join(EMPTY_POLICIES)}")
    return EMPTY_POLICIES[name]


def image_diagonal(shape: tuple[int, ...], spacing_mm: Spacing | None = None) -> float:
    """Length of the image's diagonal, from outer corner to outer corner: larger than any distance in the image.

    Args:
        shape: (H, W) or (D, H, W).
        spacing_mm: size of a pixel in mm.

    Returns:
        The length in mm; in pixels without a spacing.

    Raises:
        ValueError: see `as_spacing`.

    >>> image_diagonal((3, 4))
    5.0
    """
    return float(np.linalg.norm(np.asarray(shape) * as_spacing(spacing_mm, len(shape))))
