"""Threads that work for all kernels of a process; the calling thread does its share.

A kernel runs for some ten microseconds, and an executor of ``concurrent.futures`` takes as long to hand over a part and
to report that it is done. So this is a queue and a lock.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Parts per thread where splitting is free: the last of them even out differences between threads.
PARTS_A_THREAD = 2

# Nanoseconds of work worth handing to another thread: it may take twenty thousand to wake up, and whoever waits for it
# as long again. A layer timed alone gains from half as much, because then the other thread has hardly slept.
WORTH_A_THREAD = 60_000


class _Job:
    """Parts that several threads take one after another; whoever finishes the last one releases the lock."""

    def __init__(self, parts: Sequence[Callable[[], None]]) -> None:
        self._todo = deque(parts)
        self._last = len(parts) - 1
        self._finished = count()
        self._done = threading.Lock()
        self._done.acquire()
        self.errors: list[BaseException] = []

    def take_turns(self) -> None:
        while True:
            try:
                part = self._todo.popleft()
            except IndexError:
                return
            try:
                part()
            except BaseException as error:  # noqa: BLE001 - raised by wait, in the caller's thread
                self.errors.append(error)
            if next(self._finished) == self._last:
                self._done.release()

    def wait(self) -> None:
        """Wait until every part has been run, no matter by whom."""
        self._done.acquire()
        for error in self.errors:
            raise error


class _Workers:
    """Threads that wait for jobs: as many as were ever wanted at once, at most one per core."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0

    def call(self, job: _Job, wanted: int) -> None:
        """Offer a job to this many threads. Latecomers find nothing to do; if nobody comes, the caller does all."""
        wanted = min(wanted, os.cpu_count() or 1)
        if self._count < wanted:
            self._start(wanted)
        # If offers pile up all threads are busy, and more offers would only have to be waited for.
        for _ in range(min(wanted, 2 * self._count - self._jobs.qsize())):
            self._jobs.put(job)

    def _start(self, wanted: int) -> None:
        with self._lock:
            while self._count < wanted:
                thread = threading.Thread(target=self._serve, name=f"l0compress-{self._count}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads here, or the interpreter is about to end
                    return
                self._count += 1

    def _serve(self) -> None:
        while True:
            self._jobs.get().take_turns()


_workers = _Workers()


def _forget_workers() -> None:
    global _workers
    _workers = _Workers()


os.register_at_fork(after_in_child=_forget_workers)


def run_parts(parts: Sequence[Callable[[], None]], *, threads: int) -> None:
    """Run every part, in any order, on at most this many threads, including this one; return when all are done.

    A thread that finishes takes the next part, so one that is slow to wake costs little. Raises what a part raises.
    """
    if threads < 2 or len(parts) < 2:
        for part in parts:
            part()
        return
    job = _Job(parts)
    _workers.call(job, min(threads, len(parts)) - 1)
    job.take_turns()
    job.wait()


def split_rows(row_starts: NDArray[Any], parts: int) -> list[tuple[int, int]]:
    """Return ranges of rows with about equal numbers of nonzeros; none is empty, so there may be fewer than asked for.

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
    """Return ranges that cover 0 to size, equal except the last, each a multiple long; fewer if size is too short.

    Example:
        >>> split_evenly(70, 2, 16)
        [(0, 48), (48, 70)]
    """
    step = max(-(-size // (parts * multiple)), 1) * multiple
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]
