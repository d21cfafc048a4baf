"""What can be removed from a model, and what cannot and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from l0compress.gates.reach import smallest_keep
from l0compress.graph.capture.training_mode import TrainingOnly
from l0compress.graph.groups import Group, Groups, find_groups
from l0compress.graph.groups.cost import Cost, cost
from l0compress.graph.groups.frozen import Frozen, FrozenReason, by_reason, unknown_operators
from l0compress.loading import DataSource, ModelSource
from l0compress.pipeline.repeats import repeated
from l0compress.pipeline.sources import open_graph
from l0compress.progress import tell


@dataclass(frozen=True)
class GroupRow:
    """Groups that are alike, as one row for people.

    Attributes:
        name: of the groups, positions in braces: ``layers.{0..15}.mlp.up``.
        kind: of each.
        groups: how many there are.
        channels: how many moves each has.
        params, macs: what goes when all of them go, what two of them share counted once.
        can_vanish: whether each may go as a whole.
    """

    name: str
    kind: str
    groups: int
    channels: int
    params: int
    macs: int
    can_vanish: bool


@dataclass(frozen=True)
class Inspection:
    """The answer of :func:`inspect`.

    Attributes:
        model: the model file.
        cost: of the dense model.
        smallest: of the smallest model that removal can reach.
        groups: what is cut together.
        rows: the same, groups that are alike merged.
        frozen: what stays whole, and why.
        unknown: operators without a rule, as ``namespace::name``, and the lines that call them.
        training_only: what the model does in training mode that no run will do: random numbers, updates of buffers.
    """

    model: str
    cost: Cost
    smallest: Cost
    groups: tuple[Group, ...]
    rows: tuple[GroupRow, ...]
    frozen: tuple[Frozen, ...]
    unknown: tuple[tuple[str, tuple[str, ...]], ...] = ()
    training_only: tuple[TrainingOnly, ...] = ()

    @property
    def num_moves(self) -> int:
        """How many closed removals there are."""
        return sum(len(group.moves) for group in self.groups)

    @property
    def reasons(self) -> tuple[FrozenReason, ...]:
        """What is frozen, merged by reason, operator and line; most parameters first."""
        return by_reason(self.frozen)

    def single_rows(self) -> tuple[GroupRow, ...]:
        """One row a group, in the groups' order."""
        return tuple(
            GroupRow(group.name, group.kind, 1, len(group.moves), group.params, group.macs, group.can_vanish)
            for group in self.groups
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON, nothing merged; the keys are documented in ``docs/inspect.md``."""
        dense, smallest = asdict(self.cost), asdict(self.smallest)
        return {
            "model": self.model,
            "cost": dense,
            "smallest": smallest,
            "removable": {unit: share(dense[unit] - smallest[unit], dense[unit]) for unit in dense},
            "moves": self.num_moves,
            "groups": [self._group_json(group) for group in self.groups],
            "frozen": [{**asdict(place), "shape": list(place.shape)} for place in self.frozen],
            "unknown_operators": [{"op": op, "sources": list(sources)} for op, sources in self.unknown],
            "training_only": [asdict(part) for part in self.training_only],
        }

    def _group_json(self, group: Group) -> dict[str, Any]:
        return {
            **asdict(group),
            "moves": len(group.moves),
            "where": list(group.where),
            "params_share": share(group.params, self.cost.params),
            "macs_share": share(group.macs, self.cost.macs),
        }


def share(part: int, whole: int) -> float:
    """``part`` of ``whole``; 0 of nothing.

    Examples:
        >>> share(1, 4), share(0, 0)
        (0.25, 0.0)
    """
    return part / whole if whole else 0.0


def inspect(
    source: ModelSource,
    *,
    data: DataSource | str | None = None,
    fixed: bool = False,
    keep: Sequence[str] = (),
    min_density: Sequence[float | str] = (),
) -> Inspection:
    """Load and capture a model, and list what can be removed from it.

    Args:
        source: the model file and how to read it.
        data: names the data whose first samples serve as example inputs; not needed for a ``.pt2`` file.
        fixed: capture the model for sequences as long as the data's, not of any length.
        keep, min_density: what may not be removed, as for
            :meth:`~l0compress.graph.capture.captured.CapturedGraph.protected`.

    Raises:
        InputError: the model cannot be read or captured, or nothing of it can be removed; or a limit is wrong.
    """
    graph = open_graph(source, data, dynamic="batch" if fixed else "auto")
    graph = graph.protected(keep=keep, min_density=min_density)
    tell("finding what can be removed")
    groups = find_groups(graph)
    smallest = groups.cost_of(smallest_keep(groups, torch.zeros(groups.num_moves)))
    return Inspection(
        str(source.path),
        cost(graph),
        smallest,
        groups.groups,
        group_rows(groups),
        groups.frozen,
        unknown_operators(groups.labelled),
        graph.training_only,
    )


def group_rows(groups: Groups) -> tuple[GroupRow, ...]:
    """The groups of a model for people: those that differ in their position alone are one row."""
    rows = []
    for name, members in repeated(groups.groups):
        first = members[0]
        params, macs = (first.params, first.macs) if len(members) == 1 else _carried(groups, members)
        channels = len(first.moves)
        rows.append(GroupRow(name, first.kind, len(members), channels, params, macs, first.can_vanish))
    return tuple(rows)


def _carried(groups: Groups, members: tuple[Group, ...]) -> tuple[int, int]:
    """Parameters and multiply-accumulates that go with all of the members."""
    alive = torch.ones(groups.components.count, dtype=torch.float64)
    before = [float(groups.costs.evaluate(alive, unit)) for unit in ("params", "macs")]
    gone = {component for group in members for move in group.moves for component in groups.removals[move].components}
    alive[list(gone)] = 0
    after = [float(groups.costs.evaluate(alive, unit)) for unit in ("params", "macs")]
    return round(before[0] - after[0]), round(before[1] - after[1])
