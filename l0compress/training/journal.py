"""What a run has told so far, and what it keeps of itself while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.training.course import Course, Evaluation, Pass
from l0compress.training.events import OnEvent, ProgressEvent
from l0compress.training.faults import EXPLODED, check_parameters
from l0compress.training.randomness import own_generators, random_states, set_random_states_
from l0compress.training.snapshot import Checkpoints, NoCheckpoints, Snapshot, prefixed

_SECONDS_BETWEEN_EVENTS = 0.5


@dataclass
class Journal:
    """Sends events and keeps those that close an epoch; offers snapshots; knows how much of the run is left.

    Attributes:
        dense: validation result of the dense model.
        carried: tensors that go into every snapshot, whatever the stage.
        steps: steps an epoch; asked of the data once, since a loader may draw random numbers for the answer.
    """

    on_event: OnEvent
    epochs: int
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)
    dense: Evaluation | None = None
    carried: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    rows: list[ProgressEvent] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    last_sent: float = 0.0

    def epoch_(self, event: ProgressEvent) -> None:
        """Record and send the close of an epoch."""
        event = self._timed(event, epochs_done=event.epoch)
        self.rows.append(event)
        self.on_event(event)

    def step_(self, make_event: Callable[[], ProgressEvent]) -> None:
        """Send what happens inside an epoch, at most twice a second; an event is only made when it is due."""
        now = time.monotonic()
        if now - self.last_sent >= _SECONDS_BETWEEN_EVENTS:
            self.last_sent = now
            event = make_event()
            done = event.epoch - 1 + event.step / max(event.steps, 1)
            self.on_event(self._timed(replace(event, epoch_done=False), epochs_done=done))

    def _timed(self, event: ProgressEvent, *, epochs_done: float) -> ProgressEvent:
        seconds = time.monotonic() - self.started
        left = seconds / epochs_done * (self.epochs - epochs_done) if epochs_done > 0 else None
        return replace(event, epochs=self.epochs, seconds=seconds, seconds_left=left)

    def start_of(self, stage: str) -> Snapshot | None:
        """The snapshot that the run starts from, if it was taken in this stage."""
        start = self.checkpoints.start
        return start if start is not None and start.stage == stage else None

    def restore_(self, start: Snapshot) -> None:
        """Take over what was told before the snapshot, and say where the run goes on."""
        values = start.values
        self.dense = evaluation_from(values["dense"])
        self.rows = [ProgressEvent(**row) for row in values["history"]]
        self.started = time.monotonic() - values["seconds"]
        told = ProgressEvent("resumed", values["epoch"] + 1, self.epochs, step=values["step"], epoch_done=False)
        self.on_event(replace(told, steps=values["steps"]))

    def first_pass(self, course: Course, start: Snapshot | None, *, epoch: int) -> Pass:
        """The pass that a phase begins with, and the random state that it begins in."""
        if start is None:
            return self.next_pass(course, epoch)
        device = course.settings.device
        states = start.under("random")

        def restore() -> None:
            set_random_states_(states, device)

        current = self.next_pass(course, start.values["epoch"])
        current.step, current.total = start.values["step"], float(start.values["total"])
        current.augmenting.set_state(start.tensors["augmenting"])
        own = own_generators(course.data.train)
        current.sources = [start.tensors[f"sources.{position}"] for position in range(len(own))]
        for generator, state in zip(own, current.sources, strict=True):
            generator.set_state(state)
        current.restore = restore if current.step else None
        restore()
        return current

    def next_pass(self, course: Course, epoch: int) -> Pass:
        """An epoch from its beginning, with what counts as an explosion in it."""
        current = course.start_pass(epoch)
        if self.dense is not None:
            current.highest = EXPLODED * max(1.0, abs(self.dense.loss))
        return current

    def offer_(self, course: Course, stage: str, current: Pass, stand: Stand, *, must: bool = False) -> None:
        """Offer a snapshot of a phase to be kept; ``stand`` is asked for it only if it is wanted."""

        def make() -> Snapshot:
            network, values, tensors = stand()
            check_parameters(network, f"step {max(current.step, 1)} of epoch {current.epoch + 1}")
            own = {f"sources.{position}": state for position, state in enumerate(current.sources)}
            return Snapshot(
                {"stage": stage, "reading": course.objective.reading.to_json(), **self._values(current), **values},
                {
                    **self.carried,
                    **{name: tensor.detach().cpu() for name, tensor in tensors.items()},
                    **prefixed("random", random_states(course.settings.device)),
                    **own,
                    "augmenting": current.augmenting.get_state(),
                },
            )

        self.checkpoints.offer_(make, must=must)

    def _values(self, current: Pass) -> dict[str, Any]:
        return {
            "epoch": current.epoch,
            "epochs": self.epochs,
            "step": current.step,
            "steps": self.steps,
            "total": current.total,
            "seconds": time.monotonic() - self.started,
            "dense": None if self.dense is None else evaluation_values(self.dense),
            "history": [row.row() for row in self.rows],
        }


Stand = Callable[[], tuple[nn.Module, dict[str, Any], dict[str, Tensor]]]


def evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON can hold it; a number that is not finite becomes text.

    >>> evaluation_from(evaluation_values(Evaluation(float("inf"), 0.5, "accuracy", 10)))
    Evaluation(loss=inf, metric=0.5, metric_name='accuracy', num_samples=10)
    """
    values = asdict(evaluation)
    return {**values, **{name: _plain(values[name]) for name in ("loss", "metric")}}


def evaluation_from(values: dict[str, Any]) -> Evaluation:
    """What :func:`evaluation_values` was given."""
    return Evaluation(float(values["loss"]), float(values["metric"]), values["metric_name"], values["num_samples"])


def _plain(value: float) -> float | str:
    return value if torch.isfinite(torch.tensor(value)) else str(value)
