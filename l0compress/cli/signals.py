"""SIGTERM ends a command as Ctrl-C does: what was half-written goes, and it says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came; everything that is open on the way out gets to clean up."""


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Raise :class:`Terminated` where SIGTERM finds the program, in the main thread of this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() == process:
            raise Terminated
        # A worker that was forked off has inherited this, and is ended by this signal.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
