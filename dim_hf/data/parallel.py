"""Runs a function over many files in threads or processes, with a progress bar; stops at once on Ctrl-C."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from tqdm.auto import tqdm

from dim_hf.data.limits import READING

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_CHUNK = 32
PROBED = 64
"""Items that are done in threads first, to see how long the others would take."""
MIN_SECONDS = 30.0
"""What threads would do in less time is not done in processes: these take ten seconds to start."""


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
        processes: Use processes if threads would take `MIN_SECONDS` or more. They import the main module anew, so this
            is for programs with a `__main__` guard only.

    Raises:
        Exception: The first one of the function; calls that have not begun are dropped then, and on Ctrl-C.
        ChildProcessError: If a process was killed, as systems do where memory ends.
    """
    cores = os.cpu_count() or 1
    results: list[_Result] = []
    with tqdm(total=len(items), desc=description, unit=unit, disable=not progress) as bar:

        def run(pool: Executor, call: Callable[[Sequence[_Item]], list[_Result]], end: int, size: int) -> None:
            starts = range(len(results), end, size)
            try:
                for future in [pool.submit(call, items[start : min(start + size, end)]) for start in starts]:
                    results.extend(future.result())
                    bar.update(len(results) - bar.n)
            finally:
                pool.shutdown(cancel_futures=True)

        if processes and (workers or cores) > 1:
            began = time.monotonic()
            run(_thread_pool(workers, cores), partial(_call, function), min(PROBED, len(items)), 1)
            left = len(items) - len(results)
            if left and (time.monotonic() - began) / len(results) * left >= MIN_SECONDS:
                _run_in_processes(run, function, len(items), workers or cores)
        run(_thread_pool(workers, cores), partial(_call, function), len(items), 1)
    return results


def _run_in_processes(run: Callable[..., None], function: Callable, end: int, workers: int) -> None:
    try:
        run(_process_pool(function, workers), _call_shared, end, _CHUNK)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {workers} processes ended before its work, most likely because the memory was full; let fewer of "
            "them work (--workers 1), or end other programs"
        ) from error


def _thread_pool(workers: int | None, cores: int) -> Executor:
    return ThreadPoolExecutor(workers or min(2 * cores, 16))


def _process_pool(function: Callable, workers: int) -> Executor:
    # Not forked from this process: its threads (of Arrow, of BLAS) would not be there, and their locks would.
    context = multiprocessing.get_context("spawn")
    shared = (function, READING.limit // workers, context.Lock())
    return ProcessPoolExecutor(workers, context, initializer=_share, initargs=shared)


_shared: Callable[[Any], Any] | None = None


def _share(function: Callable[[Any], Any], budget: int, lock: AbstractContextManager) -> None:
    """Keep the function in a worker: it may hold a table of all files."""
    global _shared
    _shared = function
    READING.limit, READING.lock = budget, lock


def _call_shared(chunk: Sequence[Any]) -> list[Any]:
    assert _shared is not None
    return _call(_shared, chunk)


def _call(function: Callable[[_Item], _Result], chunk: Sequence[_Item]) -> list[_Result]:
    results = []
    for item in chunk:
        with READING.task():
            results.append(function(item))
    return results
