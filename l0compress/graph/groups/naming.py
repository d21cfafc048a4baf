"""Sort moves into groups and name them after the layers that they cut."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from l0compress.graph.groups.components import Components
from l0compress.graph.groups.cost_model import CostModel
from l0compress.graph.groups.moves import Removal
from l0compress.graph.labels.values import flattened, varying
from l0compress.graph.labels.walk import Labelled


@dataclass(frozen=True)
class Move:
    """A closed removal: the unit that is gated, costed and cut.

    Attributes:
        index: position in ``Groups.moves``, in keep masks and among the gates.
        group: position in ``Groups.groups``.
        label: group name and position in it, for people.
    """

    index: int
    group: int
    label: str


@dataclass(frozen=True)
class Group:
    """Moves of one place that are alternatives to each other; at least one must stay unless the group can vanish.

    Attributes:
        name: the layer that produces the channels.
        kind: ``channels``, ``blocks`` (attention heads, convolution groups), ``width`` (inside blocks) or ``inputs``.
        moves: indices of its moves.
        params, macs: cost of the dense model that goes when all of the group does.
        where: the parameter dimensions that shorten, as ``name:dim``.
        can_vanish: all of its moves may go together, since the output still depends on the input without them.
    """

    name: str
    kind: str
    moves: tuple[int, ...]
    params: int
    macs: int
    where: tuple[str, ...]
    can_vanish: bool = False


def named_groups(
    labelled: Labelled, components: Components, removals: tuple[Removal, ...], costs: CostModel
) -> tuple[tuple[Group, ...], tuple[Removal, ...]]:
    """Groups of moves that shorten the same lines in the same way, and the removals in the groups' order."""
    places = _places(labelled, components)
    clusters: defaultdict[tuple[str, tuple[int, ...]], list[Removal]] = defaultdict(list)
    for removal in removals:
        clusters[removal.kind, removal.lines].append(removal)
    groups, ordered, taken = [], [], Counter()

    def where_of(members: list[Removal]) -> list[tuple[int, str, int]]:
        return sorted({place for component in members[0].components for place in places.get(component, ())})

    for (kind, _), members in sorted(clusters.items(), key=lambda item: (where_of(item[1]), item[0])):
        where = where_of(members)
        name, kind = _name([place for _, place, _ in where], [dim for _, _, dim in where], kind)
        taken[name, kind] += 1
        if taken[name, kind] > 1:
            name = f"{name} #{taken[name, kind]}"
        params, macs = _carried(members, components, costs)
        indices = tuple(range(len(ordered), len(ordered) + len(members)))
        groups.append(Group(name, kind, indices, params, macs, tuple(f"{place}:{dim}" for _, place, dim in where)))
        ordered.extend(members)
    return tuple(groups), tuple(ordered)


def _places(labelled: Labelled, components: Components) -> dict[int, set[tuple[int, str, int]]]:
    """For each component, the parameter dimensions that it lies on: (order, name, dim)."""
    places: defaultdict[int, set[tuple[int, str, int]]] = defaultdict(set)
    for order, (name, value) in enumerate(labelled.parameters.items()):
        for plane in value.planes:
            (dim,) = varying(plane)
            for component in set(components.of(flattened(plane)).tolist()):
                places[component].add((order, name, dim))
    return places


def _name(names: list[str], dims: list[int], kind: str) -> tuple[str, str]:
    """The layer whose output the channels are; a weight that is cut along its input alone selects its inputs."""
    producers = [name for name, dim in zip(names, dims, strict=True) if dim == 0]
    if producers:
        return producers[0].rpartition(".")[0] or producers[0], kind
    layer = names[0].rpartition(".")[0] or names[0] if names else "graph"
    inputs = len(names) == 1 and dims == [1] and kind == "channels"
    return layer, "inputs" if inputs else kind


def _carried(members: list[Removal], components: Components, costs: CostModel) -> tuple[int, int]:
    """Parameters and multiply-accumulates that go with the whole group."""
    alive = torch.ones(components.count, dtype=torch.float64)
    before = [float(costs.evaluate(alive, unit)) for unit in ("params", "macs")]
    alive[list({component for removal in members for component in removal.components})] = 0
    after = [float(costs.evaluate(alive, unit)) for unit in ("params", "macs")]
    return round(before[0] - after[0]), round(before[1] - after[1])
