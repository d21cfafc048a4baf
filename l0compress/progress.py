"""How far a long job has come, told to whoever listens: nobody, unless a command shows it.

requires: parts that say what they do, each with what it is expected to take beside the others.
ensures:  a listener hears what is being done, and the share of the whole job that is done, which never goes back.

Training has events of its own, :mod:`~l0compress.training.events`, which say more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, float], None]
# What is being done ("operators" or "files"), its number, and how many there are.
OnCount = Callable[[str, int, int], None]


def _nobody(what: str, share: float) -> None:
    del what, share


def uncounted(what: str, number: int, total: int) -> None:
    """Where nobody asks how far it has come."""
    del what, number, total


_LISTENER: ContextVar[Listener] = ContextVar("listener", default=_nobody)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let ``listener`` hear what is told inside: what is being done, and the share that is done, from 0 to 1."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(what: str, share: float = 0.0) -> None:
    """Say what is being done, and which share of it is done."""
    _LISTENER.get()(what, share)


class Stages:
    """Parts of a job, one after another, each as large a share of it as it is expected to take.

    Example:
        >>> heard = []
        >>> with heard_by(lambda what, share: heard.append((what, share))):
        ...     stages = Stages([1, 3])
        ...     with stages.stage("reading"):
        ...         pass
        ...     with stages.stage("timing"):
        ...         tell("batch 8", 0.5)
        >>> heard
        [('reading', 0.0), ('timing', 0.25), ('timing, batch 8', 0.625), ('timing', 1.0)]
    """

    def __init__(self, sizes: Sequence[float]) -> None:
        self._sizes, self._next = tuple(sizes), 0

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Do the next part; what is told inside is about that part."""
        whole, outer = sum(self._sizes) or 1.0, _LISTENER.get()
        start, size = sum(self._sizes[: self._next]) / whole, self._sizes[self._next] / whole
        self._next += 1

        def inner(detail: str, share: float) -> None:
            outer(f"{what}, {detail}" if detail else what, start + size * share)

        inner("", 0.0)
        with heard_by(inner):
            yield
        if self._next == len(self._sizes):
            inner("", 1.0)
