"""Time functions in turns, so that all of them see the machine in the same conditions."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Turns:
    """How often functions that take turns are called.

    Attributes:
        max_seconds: no new round starts after this long, except for the fewest.
        rounds: the most rounds; in each, every function is called untimed and then timed several times.
        fewest_rounds: rounds that are run however long they take.
        calls_a_round: timed calls of each function per round.
        warmup_calls: untimed calls of each function before the first round.
        settling_seconds: how long a function is called untimed in each round, at least once: OpenMP threads
            (torch's, for one) keep spinning after a call, on the core that the next function needs.
    """

    max_seconds: float
    rounds: int = 40
    fewest_rounds: int = 3
    calls_a_round: int = 3
    warmup_calls: int = 1
    settling_seconds: float = 0.003


def in_turns(
    calls: Mapping[str, Callable[[], Any]], turns: Turns, *, on_round: Callable[[float], None] | None = None
) -> dict[str, list[int]]:
    """Return the nanoseconds of every timed call of each function.

    The untimed calls of a round let caches fill and the previous function's threads go to sleep. The order rotates
    from round to round. Garbage collection is off in the meantime. ``on_round`` hears before each round which share of
    them is done, by number or by time.

    Example:
        >>> taken = in_turns({"sum": lambda: sum(range(9))}, Turns(max_seconds=0, fewest_rounds=2))
        >>> len(taken["sum"])
        6
    """
    taken: dict[str, list[int]] = {name: [] for name in calls}
    names = list(calls)
    for call in calls.values():
        for _ in range(turns.warmup_calls):
            call()
    with _no_collection():
        start = time.perf_counter()
        for index in range(turns.rounds):
            if index >= turns.fewest_rounds and time.perf_counter() - start > turns.max_seconds:
                break
            if on_round is not None:
                on_round(_share(index, time.perf_counter() - start, turns))
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                _settle(calls[name], turns.settling_seconds)
                taken[name] += [_nanoseconds(calls[name]) for _ in range(turns.calls_a_round)]
    return taken


def medians_ms(calls: Mapping[str, Callable[[], Any]], *, max_seconds: float) -> dict[str, float]:
    """Return the median milliseconds of each function, timed in turns.

    Example:
        >>> sorted(medians_ms({"sum": lambda: sum(range(9)), "max": lambda: max(range(9))}, max_seconds=0.1))
        ['max', 'sum']
    """
    taken = in_turns(calls, Turns(max_seconds))
    return {name: float(np.median(nanoseconds)) / 1e6 for name, nanoseconds in taken.items()}


def _share(rounds: int, seconds: float, turns: Turns) -> float:
    """How much is done: whichever of rounds and time ends first."""
    by_time = min(seconds / turns.max_seconds, rounds / turns.fewest_rounds) if turns.max_seconds > 0 else 0.0
    return min(1.0, max(rounds / turns.rounds, by_time))


def _settle(call: Callable[[], Any], seconds: float) -> None:
    until = time.perf_counter() + seconds
    call()
    while time.perf_counter() < until:
        call()


def _nanoseconds(call: Callable[[], Any]) -> int:
    begin = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - begin


@contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
