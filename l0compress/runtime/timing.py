"""Functions in turns, so that all of them meet the machine in the same moods."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

CALLS_A_ROUND = 3
FEWEST_ROUNDS = 3
MOST_ROUNDS = 40


def medians_ms(calls: Mapping[str, Callable[[], Any]], *, max_seconds: float) -> dict[str, float]:
    """Median milliseconds of each function.

    In each round every function is called once untimed, so that caches fill and the threads of the one before go to
    sleep, and then three times; the order rotates.

    Example:
        >>> sorted(medians_ms({"sum": lambda: sum(range(9)), "max": lambda: max(range(9))}, max_seconds=0.1))
        ['max', 'sum']
    """
    taken: dict[str, list[int]] = {name: [] for name in calls}
    names = list(calls)
    for call in calls.values():
        call()
    start = time.perf_counter()
    with _no_collection():
        for index in range(MOST_ROUNDS):
            if index >= FEWEST_ROUNDS and time.perf_counter() - start > max_seconds:
                break
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                calls[name]()
                taken[name] += [_nanoseconds(calls[name]) for _ in range(CALLS_A_ROUND)]
    return {name: float(np.median(nanoseconds)) / 1e6 for name, nanoseconds in taken.items()}


def _nanoseconds(call: Callable[[], Any]) -> int:
    begin = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - begin


@contextmanager
def _no_collection():
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
