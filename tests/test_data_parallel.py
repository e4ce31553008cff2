"""Running a function over many items."""

import os

import pytest

from dim_hf.data import parallel
from dim_hf.data.parallel import parallel_map


class Square:
    """Picklable, with something to carry along."""

    def __init__(self, add):
        self.add = add

    def __call__(self, number):
        if number == 77:
            raise ValueError("77 is not liked")
        return number**2 + self.add


@pytest.mark.parametrize("processes", [False, True])
def test_results_are_in_the_order_of_the_items(monkeypatch, processes):
    monkeypatch.setattr(parallel, "MIN_SECONDS", 0)
    monkeypatch.setattr(parallel, "PROBED", 5)
    options = {"description": "squaring", "unit": "number", "workers": 2, "progress": False, "processes": processes}
    assert parallel_map(Square(1), range(70), **options) == [number**2 + 1 for number in range(70)]
    with pytest.raises(ValueError, match="77 is not liked"):
        parallel_map(Square(1), range(100), **options)
    assert parallel_map(Square(1), [], **options) == []


def test_the_bar_counts_items(capsys):
    parallel_map(Square(0), range(5), description="squaring", unit="number")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "squaring" in shown.err
    assert "5/5" in shown.err


class Killed:
    """Ends its process as a system does that has no memory left."""

    def __call__(self, number):
        if number == 20:
            os._exit(9)
        return os.getpid()


def test_a_killed_process_is_a_sentence(monkeypatch):
    monkeypatch.setattr(parallel, "MIN_SECONDS", 0)
    monkeypatch.setattr(parallel, "PROBED", 5)
    with pytest.raises(OSError, match=r"one of 2 processes ended before its work.*--workers 1"):
        parallel_map(Killed(), range(30), description="", unit="", workers=2, progress=False, processes=True)


def test_processes_start_only_where_threads_would_take_long(monkeypatch):
    monkeypatch.setattr(parallel, "PROBED", 5)
    pids = parallel_map(Killed(), range(20), description="", unit="", workers=2, progress=False, processes=True)
    assert set(pids) == {os.getpid()}
