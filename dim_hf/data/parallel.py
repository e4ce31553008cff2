"""Runs a function over many files in threads or processes, with a progress bar; stops at once on Ctrl-C."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm.auto import tqdm

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_CHUNK = 32
MIN_FOR_PROCESSES = 2000
"""Fewer items are done in threads: processes take seconds to start."""


def parallel_map(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    description: str,
    unit: str,
    workers: int | None = None,
    progress: bool = True,
    processes: bool = False,
) -> list[_Result]:
    """`[function(item) for item in items]`, several at a time.

    Args:
        function: Called from threads; reading, decoding and writing of files leave Python's lock. For processes, it
            and its results must be picklable.
        items: What it is called with.
        description: Text before the progress bar.
        unit: What an item is called in the rate.
        workers: Threads (twice the number of cores, at most 16, when None) or processes (the number of cores).
        progress: Show the bar.
        processes: Use processes from `MIN_FOR_PROCESSES` items on. They import the main module anew, so this is for
            programs with a `__main__` guard only.

    Raises:
        Exception: The first one of the function; calls that have not begun are dropped then, and on Ctrl-C.
    """
    cores = os.cpu_count() or 1
    use_processes = processes and len(items) >= MIN_FOR_PROCESSES and (workers or cores) > 1
    size = _CHUNK if use_processes else 1
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    pool = _process_pool(function, workers or cores) if use_processes else _thread_pool(workers, cores)
    call = _call_shared if use_processes else lambda chunk: [function(item) for item in chunk]
    results: list[_Result] = []
    try:
        futures = [pool.submit(call, chunk) for chunk in chunks]
        with tqdm(total=len(items), desc=description, unit=unit, disable=not progress) as bar:
            for future in futures:
                results += future.result()
                bar.update(len(results) - bar.n)
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _thread_pool(workers: int | None, cores: int) -> Executor:
    return ThreadPoolExecutor(workers or min(2 * cores, 16))


def _process_pool(function: Callable, workers: int) -> Executor:
    # Not forked from this process: its threads (of Arrow, of BLAS) would not be there, and their locks would.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_share, initargs=(function,))


_shared: Callable[[Any], Any] | None = None


def _share(function: Callable[[Any], Any]) -> None:
    """Keep the function in a worker: it may hold a table of all files."""
    global _shared
    _shared = function


def _call_shared(chunk: Sequence[Any]) -> list[Any]:
    assert _shared is not None
    return [_shared(item) for item in chunk]
