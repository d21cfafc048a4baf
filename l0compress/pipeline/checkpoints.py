"""When a run saves its state: every so often, at the end of a phase, and when it is told to stop."""

from __future__ import annotations

import time

from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.stops import Stops, stopped
from l0compress.training.processes import ALONE, Processes
from l0compress.training.state_dicts import Stateful

SECONDS = 30.0
# A state that takes long to write is written less often: this many times as long passes before the next.
PATIENCE = 20.0


class RunCheckpoints:
    """Saves states in a run's folder.

    Args:
        run: the folder.
        stops: is asked after every step.
        every: steps between two states; None goes by time, with at most a twentieth of it for writing.
        processes: those that train together, of which the first saves for all; they stop after the same step.
        gathers: each has a part of the state, so that all of them are asked for it.
    """

    def __init__(
        self,
        run: LivingRun,
        stops: Stops,
        *,
        every: int | None = None,
        processes: Processes = ALONE,
        gathers: bool = False,
    ) -> None:
        self.start = processes.from_first(run.start)
        self._run, self._stops, self._every, self._processes = run, stops, every, processes
        self._gathers = gathers
        self._asked: int | None = None
        self._steps = 0
        self._last, self._took = time.monotonic(), 0.0

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        """Save the state of a run if that is due.

        Raises:
            StoppedError: a signal came; the state is saved.
            RunError: it cannot be written; the one before still holds.
        """
        self._steps += 1
        self._agree_()
        if self._saves(must=must):
            began = time.monotonic()
            self._run.save_(state.state_dict())
            self._steps, self._last = 0, time.monotonic()
            self._took = self._last - began
        self._stop_if_asked()

    def _saves(self, *, must: bool) -> bool:
        now = must or self._asked is not None
        if self._gathers:
            return now or self._processes.from_first(self._due)
        return self._processes.is_first and (now or self._due())

    def check_stop(self) -> None:
        """Raises:
        StoppedError: a signal came.
        """
        self._agree_()
        self._stop_if_asked()

    def _agree_(self) -> None:
        """A signal to one process is one to all, from the next agreement on if it comes while this one is made."""
        self._asked = self._processes.highest(self._stops.signal or 0) or None
        if self._asked is not None:
            self._stops.signal = self._asked

    def _stop_if_asked(self) -> None:
        if self._asked is not None:
            raise stopped(self._run, self._asked)

    def _due(self) -> bool:
        if self._every is not None:
            return self._steps >= self._every
        return time.monotonic() - self._last >= max(SECONDS, PATIENCE * self._took)
