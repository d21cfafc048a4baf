"""Measuring a dense network on this machine: all that a budget in milliseconds needs to know.

requires: the groups of a dense graph.
ensures:  the time of the whole network, and a resource that predicts it for any decision on these groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.latency.deployment import Deployment
from l0compress.latency.fit import Coefficients, fitted, trial_plans
from l0compress.latency.kernels import Work, work_of
from l0compress.latency.operators import Timed
from l0compress.latency.profiling import Stopwatch
from l0compress.latency.resource import Latency, TimeModel
from l0compress.latency.tables import Table
from l0compress.latency.whole import SECONDS, Beside, Files, Timer, times_in_turns
from l0compress.progress import OnCount, uncounted


@dataclass(frozen=True, eq=False)
class MeasuredTime:
    """What was measured of one dense network.

    Attributes:
        deployment: how it was run.
        dense: nanoseconds of the whole network.
        tables: of its operators, by their nodes.
        coefficients: how these add up.
        beside: measures small networks.
    """

    deployment: Deployment
    dense: int
    tables: Mapping[str, Table]
    coefficients: Coefficients
    beside: Timer = field(repr=False)

    def __call__(self, groups: Groups) -> Latency:
        """Return the latency of a network as a function of what is removed.

        ``groups`` are those of the dense network, or of one that was cut from it.
        """
        work = work_of(groups)
        tables = tuple(self.tables[placed.node] for placed in work.operators)
        return Latency.of_model(groups, TimeModel(work, tables, self.coefficients, self.beside.time))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON, from which a run goes on where another measurement would differ."""
        kinds = list({id(table): table for table in self.tables.values()}.values())
        return {
            "deployment": self.deployment.to_json(),
            "dense_ns": self.dense,
            "coefficients": asdict(self.coefficients),
            "tables": [table.to_json() for table in kinds],
            "table_of": {node: kinds.index(table) for node, table in self.tables.items()},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], dense: CapturedGraph) -> MeasuredTime:
        """What :meth:`to_json` wrote down of the network ``dense``."""
        deployment = Deployment(**stored["deployment"])
        kinds = [Table.from_json(table) for table in stored["tables"]]
        tables = {node: kinds[position] for node, position in stored["table_of"].items()}
        coefficients = Coefficients(**stored["coefficients"])
        beside = Beside(dense, Files(deployment), stored["dense_ns"])
        return cls(deployment, stored["dense_ns"], tables, coefficients, beside)


def measure_time(
    groups: Groups, deployment: Deployment, on_progress: OnCount = uncounted, *, seconds: float = SECONDS
) -> MeasuredTime:
    """Measure the dense network of ``groups``: operators over their widths, then a few whole files.

    One to two minutes for ResNet-50 on two cores; operators that this machine has timed before are looked up.

    Args:
        groups: all that can be removed.
        deployment: batch size, threads and number format that the time is meant for.
        on_progress: called with what is being measured, its number, and how many there are.
        seconds: how long a comparison of whole files may take.

    Raises:
        SurgeryError: the graph cannot be exported to ONNX, or not quantized.
    """
    work = work_of(groups)
    tables = _tables(work, deployment, on_progress)
    files, plans = Files(deployment), trial_plans(groups)
    runs = []
    for number, plan in enumerate(plans):
        on_progress("files", number, len(plans))
        runs.append(files.opened(shrink(groups.graph, plan)))
    measured = times_in_turns(runs, seconds=seconds)
    on_progress("files", len(plans), len(plans))
    beside = Beside(groups.graph, files, measured[0], run=runs[0], seconds=seconds)
    draft = TimeModel(work, tables, Coefficients.of_tables(), beside.time)
    lefts = [groups.left(plan.keep) for plan in plans]
    rows = [draft.features(left.alive, left.fate.live) for left in lefts]
    named = {placed.node: table for placed, table in zip(work.operators, tables, strict=True)}
    return MeasuredTime(deployment, round(measured[0]), named, fitted(rows, measured), beside)


def _tables(work: Work, deployment: Deployment, on_progress: OnCount) -> tuple[Table, ...]:
    """Tables of the operators; equal ones are measured once."""
    kinds = list(dict.fromkeys(placed.operator for placed in work.operators))
    watch = Stopwatch.opened(deployment)
    found: dict[Timed, Table] = {}
    try:
        for number, operator in enumerate(kinds):
            on_progress("operators", number, len(kinds))
            found[operator] = _table(operator, watch)
    finally:
        watch.keep()
    on_progress("operators", len(kinds), len(kinds))
    return tuple(found[placed.operator] for placed in work.operators)


def _table(operator: Timed, watch: Stopwatch) -> Table:
    return Table.measured(operator.widths, operator.unit, lambda widths: watch.time(operator.at(widths)))
