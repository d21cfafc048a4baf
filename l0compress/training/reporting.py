"""The one way out of training: each step and each epoch is reported, as an event and as the state that it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from l0compress.training.events import OnEvent, ProgressEvent, ignore
from l0compress.training.state_dicts import StateDict, Stateful

_SECONDS_BETWEEN_EVENTS = 0.5


class Checkpoints(Protocol):
    """Where the states of a run are saved, and the one that it goes on from."""

    @property
    def start(self) -> StateDict | None: ...

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        """Called after every step, and with ``must`` at the end of a phase; may end the run by an error."""
        ...


@dataclass(frozen=True)
class NoCheckpoints:
    """A run that starts at the beginning and saves nothing."""

    start: StateDict | None = None

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        """Nothing is saved."""


@dataclass
class Reporter:
    """Hands events to one listener and states to another."""

    on_event: OnEvent = ignore
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)
    _last_sent: float = field(default=0.0, init=False)

    def step_(self, state: Stateful, make_event: Callable[[], ProgressEvent]) -> None:
        """Report a step; its event is made and sent at most twice a second."""
        now = time.monotonic()
        if now - self._last_sent >= _SECONDS_BETWEEN_EVENTS:
            self._last_sent = now
            self.on_event(make_event())
        self.checkpoints.save_if_due_(state)

    def epoch_(self, state: Stateful, event: ProgressEvent, *, ends_phase: bool) -> None:
        """Report an epoch, and the state that the next one begins with."""
        self.on_event(event)
        self.checkpoints.save_if_due_(state, must=ends_phase)
