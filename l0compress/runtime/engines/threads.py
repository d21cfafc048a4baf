"""One pool of threads for all kernels of a process; the caller's own thread does its share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Nanoseconds of work that are worth handing to another thread, which takes some ten thousand.
WORTH_A_THREAD = 30_000

_pool: list[ThreadPoolExecutor] = []


def run_parts(parts: Sequence[Callable[[], None]], *, threads: int) -> None:
    """Run every part, in order within a thread, neighbouring parts in the same one; return when all are done.

    Raises whatever a part raises.
    """
    shares = [parts[begin:end] for begin, end in split_evenly(len(parts), max(threads, 1), 1)]
    if len(shares) > 1 and not _pool:
        _pool.append(ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="l0compress"))
    others = [_pool[0].submit(_run_all, share) for share in shares[1:]]
    try:
        _run_all(shares[0] if shares else ())
    finally:
        # A part that still runs writes into memory of the caller's.
        wait(others)
    for other in others:
        other.result()


def _run_all(parts: Sequence[Callable[[], None]]) -> None:
    for part in parts:
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
