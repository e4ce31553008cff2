"""Runs a function over many files in threads, with a progress bar, and stops at once when it is interrupted."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm.auto import tqdm

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def parallel_map(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    description: str,
    unit: str,
    workers: int | None = None,
    progress: bool = True,
) -> list[_Result]:
    """`[function(item) for item in items]`, several at a time.

    Args:
        function: Called from threads; reading, decoding and writing of files leave Python's lock.
        items: What it is called with.
        description: Text before the progress bar.
        unit: What an item is called in the rate.
        workers: Threads; twice the number of cores, at most 16, when None.
        progress: Show the bar.

    Raises:
        Exception: The first one of the function; calls that have not begun are dropped then, and on Ctrl-C.
    """
    pool = ThreadPoolExecutor(workers or min(2 * (os.cpu_count() or 1), 16))
    try:
        futures = [pool.submit(function, item) for item in items]
        return [future.result() for future in tqdm(futures, desc=description, unit=unit, disable=not progress)]
    finally:
        pool.shutdown(cancel_futures=True)
