"""From what is asked for to what it allows of one network: counted, or measured where a time is meant.

Measuring needs ONNX Runtime, which nothing else of training does; it is imported when a time is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from l0compress.errors import TargetError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import find_groups
from l0compress.graph.groups.cost import cost
from l0compress.progress import OnCount, uncounted
from l0compress.training.processes import joined, processes_for
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import LATENCY, AbsoluteTarget, Target

if TYPE_CHECKING:
    from l0compress.latency import MeasuredTime
    from l0compress.latency.whole import Timer

Allowances = Callable[[Target], AbsoluteTarget]
Measure = Callable[[CapturedGraph, FinetuneSettings], "MeasuredTime"]


def latency_target(
    graph: CapturedGraph, target: Target | str, *, batch: int = 1, threads: int = 2, dtype: str = "float32"
) -> AbsoluteTarget:
    """Measure what a time allows of ``graph`` on this machine, for a :class:`~l0compress.training.budget.Budget`.

    Takes one to two minutes. The time is that of the file which ``export_onnx`` writes.

    Args:
        graph: the dense model.
        target: ``"latency=0.5"``, a share of the time that ``graph`` takes, or ``"latency=5ms"``.
        batch: samples a call.
        threads: threads within an operator.
        dtype: ``"float32"``, or ``"int8"`` for the file that :func:`~l0compress.quantize_onnx` makes of it.

    Raises:
        TargetError: the target is not a time, or not below that of ``graph``; or a count or dtype is wrong.
        NothingToPruneError: nothing of ``graph`` can be removed.
        SurgeryError: ``graph`` cannot be exported to ONNX.
    """
    from l0compress.latency import Deployment, measure_time

    wanted = Target.of(target)
    if wanted.unit != LATENCY:
        raise TargetError(f"Target {wanted} is not a time.", fix="Write for example 'latency=0.5' or 'latency=5ms'.")
    known = measure_time(find_groups(graph), Deployment(batch, threads, dtype))
    return wanted.on(known.dense, known)


def measured_time(graph: CapturedGraph, settings: FinetuneSettings, on_progress: OnCount = uncounted) -> MeasuredTime:
    """Measure ``graph`` as the settings say that it will run; as :func:`~l0compress.latency.measure_time`.

    Of several processes the first one measures for all.
    """
    from l0compress.latency import Deployment, measure_time

    deployment = Deployment(settings.latency_batch, settings.latency_threads, settings.latency_dtype)
    processes = processes_for(settings.device)
    if processes.is_alone:
        return measure_time(find_groups(graph), deployment, on_progress)
    # What is measured differs each time, and two that measure at once disturb each other.
    found = processes.from_first(lambda: measure_time(find_groups(graph), deployment, on_progress).to_json())
    return known_time(found, graph)


def known_time(stored: Mapping[str, Any], graph: CapturedGraph) -> MeasuredTime:
    """What was measured of ``graph`` before, from plain values.

    Where there are several processes, small networks that are timed from here on are timed by the first one, for all.
    """
    from l0compress.latency import MeasuredTime

    found = MeasuredTime.from_json(stored, graph)
    return found if joined().is_alone else replace(found, beside=_TimedByFirst(found.beside))


@dataclass(frozen=True)
class _TimedByFirst:
    """Times small networks in the first of several processes, so that all of them decide by the same time."""

    timer: Timer

    def time(self, small: CapturedGraph) -> float:
        return joined().from_first(lambda: self.timer.time(small))


def allowances(
    graph: CapturedGraph,
    settings: FinetuneSettings | None = None,
    *,
    counted: Callable[[str], int] | None = None,
    measure: Measure = measured_time,
) -> Allowances:
    """What says of a target how much it allows of ``graph``.

    Args:
        graph: the dense model.
        settings: where the model will run; one sample and two threads, where they are not given.
        counted: the cost of all of it in a unit; by default that of the graph.
        measure: measures the model, where a target is a time; called once at most.

    Raises:
        TargetError: (what is returned) the model uses no more than a target allows.
        SurgeryError: (likewise) it cannot be exported to ONNX, and a target is a time.
    """
    found: list[MeasuredTime] = []

    def allowed(target: Target) -> AbsoluteTarget:
        if target.unit != LATENCY:
            return target.on(cost(graph).get(target.unit) if counted is None else counted(target.unit))
        if not found:
            found.append(measure(graph, FinetuneSettings() if settings is None else settings))
        return target.on(found[0].dense, found[0])

    return allowed
