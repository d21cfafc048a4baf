"""One pool of threads for all kernels of a process; the caller's own thread does its share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Nanoseconds of work that are worth handing to another thread, which takes some ten thousand.
WORTH_A_THREAD = 30_000

_pool: list[ThreadPoolExecutor] = []


def run_parts(parts: Sequence[Callable[[], None]]) -> None:
    """Run every part, the first in this thread and the others beside it; return when all are done."""
    if not parts:
        return
    if not _pool and len(parts) > 1:
        _pool.append(ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="l0compress"))
    others = [_pool[0].submit(part) for part in parts[1:]]
    parts[0]()
    for other in others:
        other.result()


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
    step = -(-size // (parts * multiple)) * multiple
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]


os.register_at_fork(after_in_child=_pool.clear)  # a child process has the pool but none of its threads
