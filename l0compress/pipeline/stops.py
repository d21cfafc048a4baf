"""Signals that ask a run to stop, be they to it alone or to the workers of its data loader as well."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from l0compress.errors import StoppedError
from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.runs import resume_command
from l0compress.training.launch import says_several
from l0compress.workers import is_lost_worker, let_workers_go

# A launcher hands a signal on that its processes have had already: within so many seconds it is the same one.
_ECHO = 5.0
# A signal to a whole group may end a worker before it gets here.
_LATER = 1.0
NAMES = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}


class Stops:
    """The signal that asks the run to stop, if one came."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()
        self._since = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; the second one does not wait for the step to end."""
        del frame
        if os.getpid() != self._process:
            # A data loader's worker has inherited this. Ctrl-C is not for it, and its loader ends it by SIGTERM.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since >= (_ECHO if says_several() else 0.0):
            raise KeyboardInterrupt

    def behind(self, error: Exception) -> int | None:
        """Return the signal that an error may be due to; one that reports a lost worker may come before its cause."""
        until = time.monotonic() + _LATER
        while self.signal is None and is_lost_worker(error) and time.monotonic() < until:
            time.sleep(0.01)
        return self.signal


@contextmanager
def listening() -> Iterator[Stops]:
    """Take Ctrl-C and SIGTERM as a request to stop after the step under way; where that is possible at all."""
    stops = Stops()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    before = {number: signal.signal(number, stops.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(run: LivingRun, number: int) -> StoppedError:
    """The error for a run that a signal stopped."""
    if number == signal.SIGTERM:
        let_workers_go()
    run.log_("stopped", signal=signal.Signals(number).name, position=run.manifest.position)
    name = NAMES.get(signal.Signals(number), "Stopped")
    return StoppedError(
        f"{name}. The run is kept in {str(run.folder)!r} at {run.manifest.position}. Resume with: "
        f"{resume_command(run.folder)}",
        signal=number,
    )
