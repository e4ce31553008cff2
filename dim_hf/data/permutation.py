"""Seeded permutations that are a pure function of their key."""

import hashlib

import numpy as np


def seeded_permutation(size: int, seed: int, *key: int | str) -> np.ndarray:
    """Permutation of `range(size)` that depends on nothing but the arguments.

    Only the raw words of the bit generator are used, sorted stably: numpy guarantees those across its releases,
    which it does not for `Generator.permutation`. A split drawn today is the split drawn by a later numpy.

    Args:
        size: Number of elements, at least 0.
        seed: Any non-negative integer.
        *key: What the permutation is for, e.g. `("test", domain)` or `(stream, pass_number)`; integers must be
            non-negative.

    Returns:
        Integer array of shape (size,).

    Raises:
        ValueError: If `seed` is negative.

    Example:
        >>> bool((seeded_permutation(5, 0, "a", 1) == seeded_permutation(5, 0, "a", 1)).all())
        True
        >>> sorted(seeded_permutation(4, 7, "a").tolist())
        [0, 1, 2, 3]
    """
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    words = [_word(part) for part in key]
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=words))
    return np.argsort(bits.random_raw(size), kind="stable")


def _word(part: int | str) -> int:
    """Non-negative integer of a key part; Python's own string hash differs from process to process."""
    if isinstance(part, str):
        return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
    return part
