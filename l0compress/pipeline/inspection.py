"""What can be removed from a model, and what cannot and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from l0compress.gates.reach import smallest_cost
from l0compress.graph.cost import UNITS, Cost, cost
from l0compress.graph.frozen import Frozen
from l0compress.graph.groups import Group, find_groups
from l0compress.loading import ModelSource
from l0compress.pipeline.sources import open_graph


@dataclass(frozen=True)
class Inspection:
    """The answer of :func:`inspect`.

    Attributes:
        model: the model file.
        cost: of the dense model.
        smallest: the least that removal can reach, in each unit by itself.
        groups: what is cut together.
        frozen: what stays whole, and why.
    """

    model: str
    cost: Cost
    smallest: Cost
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]

    @property
    def num_moves(self) -> int:
        """How many closed removals there are."""
        return sum(len(group.moves) for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        groups = [{**asdict(group), "moves": len(group.moves), "where": list(group.where)} for group in self.groups]
        return {
            "model": self.model,
            "cost": asdict(self.cost),
            "smallest": asdict(self.smallest),
            "moves": self.num_moves,
            "groups": groups,
            "frozen": [asdict(place) for place in self.frozen],
        }


def inspect(source: ModelSource, *, data: str | None = None) -> Inspection:
    """Load and capture a model, and list what can be removed from it.

    Args:
        source: the model file and how to read it.
        data: names the data whose first samples serve as example inputs; not needed for a ``.pt2`` file.

    Raises:
        InputError: the model cannot be read or captured, or nothing of it can be removed.
    """
    graph = open_graph(source, data)
    groups = find_groups(graph)
    smallest = Cost(*(smallest_cost(groups, unit) for unit in UNITS))
    return Inspection(str(source.path), cost(graph), smallest, groups.groups, groups.frozen)
