"""One pool of threads for all kernels of a process; the caller's own thread does its share."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Parts that a thread gets where they cost nothing to make: the last of them evens out what others lagged behind.
PARTS_A_THREAD = 2

# Nanoseconds of work that are worth handing to another thread, which takes some ten thousand.
WORTH_A_THREAD = 30_000

_pool: list[ThreadPoolExecutor] = []


def run_parts(parts: Sequence[Callable[[], None]], *, threads: int) -> None:
    """Run every part, in any order, in so many threads at most, this one among them; return when none runs any more.

    Who is done takes the next: a thread that the machine is slow to wake then costs little. Raises what a part raises.
    """
    if threads < 2 or len(parts) < 2:
        for part in parts:
            part()
        return
    if not _pool:
        _pool.append(ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="l0compress"))
    todo = deque(parts)
    helpers = [_pool[0].submit(_take_turns, todo) for _ in range(min(threads, len(parts)) - 1)]
    try:
        _take_turns(todo)
    finally:
        # One that has not begun has nothing left to do; one that runs writes into memory of the caller's.
        running = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in running]
    for error in errors:
        if error is not None:
            raise error


def _take_turns(todo: deque[Callable[[], None]]) -> None:
    while True:
        try:
            part = todo.popleft()
        except IndexError:
            return
        part()


def split_rows(row_starts: NDArray[Any], parts: int) -> list[tuple[int, int]]:
    """Ranges of rows with about as many nonzeros each; none is empty, so there may be fewer than asked for.

    Example:
        >>> split_rows(np.array([0, 10, 11, 12, 25]), 2)
        [(0, 3), (3, 4)]
    """
    rows, total = len(row_starts) - 1, int(row_starts[-1])
    # A row costs something even when it is empty.
    work = row_starts + np.arange(rows + 1) * (1 + total // max(rows, 1) // 8)
    inner = np.searchsorted((work[1:] + work[:-1]) / 2, work[-1] * np.arange(1, parts) / parts)
    cuts = sorted({0, *inner.tolist(), rows})
    return list(pairwise(cuts))


def split_evenly(size: int, parts: int, multiple: int) -> list[tuple[int, int]]:
    """Ranges that cover 0 to size, equal but for the last, each a multiple long; fewer than asked for if too short.

    Example:
        >>> split_evenly(70, 2, 16)
        [(0, 48), (48, 70)]
    """
    step = max(-(-size // (parts * multiple)), 1) * multiple
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]


os.register_at_fork(after_in_child=_pool.clear)  # a child process has the pool but none of its threads
