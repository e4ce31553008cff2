"""Which steps of a training are unlike the others: the first ones at half the resolution, the last ones weak views."""


def is_half_resolution(step: int, max_steps: int, ratio: float) -> bool:
    """Whether a step belongs to the first `ratio` of the training, rounded to whole steps; the last one never does.

    >>> [step for step in range(10) if is_half_resolution(step, 10, 0.3)]
    [0, 1, 2]
    """
    return step < min(round(ratio * max_steps), max_steps - 1)


def is_weak_view_step(step: int, max_steps: int, ratio: float) -> bool:
    """Whether a step belongs to the last `ratio` of the training, rounded to whole steps; outside of one, none does.

    >>> [step for step in range(12) if is_weak_view_step(step, 10, 0.3)]
    [7, 8, 9]
    """
    return 0 < max_steps - step <= round(ratio * max_steps)
