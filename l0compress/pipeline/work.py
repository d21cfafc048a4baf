"""What is there once a run may compute, whatever is made in it."""

from __future__ import annotations

from dataclasses import dataclass

from l0compress.graph.capture import CapturedGraph
from l0compress.latency import MeasuredTime
from l0compress.pipeline.checkpoints import RunCheckpoints
from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.requests import RunRequest
from l0compress.pipeline.sources import Prepared
from l0compress.pipeline.stops import Stops
from l0compress.pipeline.tracking import Trackers
from l0compress.training.events import DECIDED, MEASURE, WARNING, ProgressEvent
from l0compress.training.latency_targets import known_time, measured_time
from l0compress.training.processes import Processes
from l0compress.training.settings import FinetuneSettings

_WARNINGS, _LATENCY = "warnings", "latency"


@dataclass(frozen=True, eq=False)
class Work:
    """What is there once a run may compute.

    Attributes:
        run: its folder, held.
        request: what it was asked to do.
        prepared: model and data.
        stops: says whether a signal came.
        trackers: whoever listens, and where the run is logged to.
        processes: those that do the work together.
    """

    run: LivingRun
    request: RunRequest
    prepared: Prepared
    stops: Stops
    trackers: Trackers
    processes: Processes

    def tell(self, event: ProgressEvent) -> None:
        """Write an event down as far as it is worth keeping, and hand it on."""
        run = self.run
        if event.epoch_done:
            run.tell_(event)
        if event.stage == WARNING and event.message not in warnings_of(run):
            run.log_(WARNING, message=event.message)
            run.note_(**{_WARNINGS: [*warnings_of(run), event.message]})
        if event.stage == DECIDED:
            run.log_(DECIDED, message=event.message)
        self.trackers.hear(event)

    def measure(self, graph: CapturedGraph, settings: FinetuneSettings) -> MeasuredTime:
        """Measure a time, once in a run: it goes on with what was measured when it began."""
        stored = self.run.manifest.about.get(_LATENCY)
        if stored is not None:
            return known_time(stored, graph)

        def tell(what: str, number: int, total: int) -> None:
            event = ProgressEvent(MEASURE, 0, settings.epochs, epoch_done=False, step=number, steps=total, message=what)
            self.trackers.hear(event)

        found = measured_time(graph, settings, tell)
        self.run.note_(**{_LATENCY: found.to_json()})
        return found

    def checkpoints(self) -> RunCheckpoints:
        """Where states are saved, and the one to go on from."""
        every = self.request.checkpoint_every
        gathers = self.request.finetune_settings().shard
        return RunCheckpoints(self.run, self.stops, every=every, processes=self.processes, gathers=gathers)


def warnings_of(run: LivingRun) -> tuple[str, ...]:
    """What was odd about model and data."""
    return tuple(run.manifest.about.get(_WARNINGS, ()))
