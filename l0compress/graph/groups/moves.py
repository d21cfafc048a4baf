"""Moves: the closed removals of a graph, found from single channels and from rows and columns of grids.

requires: labels and their components.
ensures:  each :class:`Removal` can be taken out of the graph by itself: no frozen component in it, every grid left a
          rectangle, no dimension left empty that the graph needs. What cannot be removed is listed with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from l0compress.graph.groups.components import Components
from l0compress.graph.labels.values import Value, flattened
from l0compress.graph.labels.walk import Labelled


@dataclass(frozen=True)
class Removal:
    """Components that die together, the kind of place that started it, and the lines that it shortens."""

    components: frozenset[int]
    kind: str
    lines: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Lines:
    """Every arrangement of components along tensors of the graph, each distinct one once.

    Attributes:
        names: where each line is, as the name of the first node that has it.
        sizes: how many distinct components a line has.
        of_component: the lines that a component lies on.
        of_node: for each tensor that a node returns, the lines of its planes.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    of_component: dict[int, tuple[int, ...]]
    of_node: dict[str, tuple[frozenset[int], ...]]

    def emptied(self, dead: frozenset[int] | set[int]) -> frozenset[int]:
        """The lines that would be left without any component."""
        counts: Counter[int] = Counter()
        for component in dead:
            counts.update(self.of_component.get(component, ()))
        return frozenset(line for line, count in counts.items() if count >= self.sizes[line])


@dataclass(frozen=True, eq=False)
class Found:
    removals: tuple[Removal, ...]
    refused: dict[int, int]  # component -> index of the frozen fact it ran into, -1 where a layer would be emptied


def find_lines(labelled: Labelled, components: Components) -> Lines:
    by_content: dict[bytes, int] = {}
    names: list[str] = []
    sizes: list[int] = []
    of_component: dict[int, list[int]] = {}

    def line_of(name: str, plane: Tensor) -> int:
        array = components.of(flattened(plane))
        key = array.tobytes()
        if key not in by_content:
            by_content[key] = len(names)
            distinct = np.unique(array)
            for component in distinct.tolist():
                of_component.setdefault(component, []).append(len(names))
            names.append(name)
            sizes.append(len(distinct))
        return by_content[key]

    of_node = {
        name: tuple(
            frozenset(line_of(name, plane) for plane in (value.planes if isinstance(value, Value) else ()))
            for value in (entry if isinstance(entry, tuple) else (entry,))
        )
        for name, entry in labelled.values.items()
    }
    members = {component: tuple(found) for component, found in of_component.items()}
    return Lines(tuple(names), tuple(sizes), members, of_node)


def find_moves(
    labelled: Labelled, components: Components, lines: Lines, bearable: Callable[[frozenset[int]], bool]
) -> Found:
    """Close every seed; keep the distinct closures that the graph can lose.

    Args:
        bearable: whether the graph can lose every channel of a set of lines.
    """
    eligible = np.zeros(components.count, dtype=bool)
    eligible[components.of(labelled.seeds)] = True
    removals: dict[frozenset[int], Removal] = {}
    refused: dict[int, int] = {}
    branches: dict[frozenset[int], Removal] = {}
    for seed, kind in _seeds(components, eligible):
        dead, obstacle = components.close(seed)
        members = frozenset(dead)
        if members in removals or members in branches:
            continue
        empty = lines.emptied(members)
        if obstacle is not None or not bearable(empty):
            reason = int(components.reasons[obstacle]) if obstacle is not None else -1
            for component in seed:
                refused.setdefault(component, reason)
            continue
        touched = sorted({line for component in members for line in lines.of_component.get(component, ())})
        (branches if empty else removals)[members] = Removal(members, kind, tuple(touched))
    for members, branch in sorted(branches.items(), key=lambda item: len(item[0])):
        if not _follows(members, removals, components):
            removals[members] = branch
    return Found(tuple(removals.values()), refused)


def _follows(members: frozenset[int], removals: dict[frozenset[int], Removal], components: Components) -> bool:
    """Whether the removal of a whole branch is that of its parts, so that it needs no move of its own."""
    parts = [part for part in removals if next(iter(part)) in members and part < members]
    return components.close(frozenset().union(*parts))[0] == members


def _seeds(components: Components, eligible: np.ndarray) -> Iterator[tuple[tuple[int, ...], str]]:
    """Rows and columns of grids that hold a parameter, then single components outside grids."""
    for grid in components.grids:
        for kind, face in (("blocks", grid), ("width", grid.T)):
            for row in face:
                seed = tuple(np.unique(row).tolist())
                if eligible[list(seed)].any():
                    yield seed, kind
    for component in np.flatnonzero(eligible).tolist():
        if component not in components.grids_of:
            yield (component,), "channels"


def moves_of_component(removals: tuple[Removal, ...], count: int) -> Tensor:
    """int64 (count, K): the moves that remove each component, padded with ``len(removals)``."""
    sizes = [len(removal.components) for removal in removals]
    members = np.fromiter((c for removal in removals for c in removal.components), dtype=np.int64, count=sum(sizes))
    order = np.argsort(members, kind="stable")
    members, moves = members[order], np.repeat(np.arange(len(removals)), sizes)[order]
    column = np.arange(len(members)) - np.searchsorted(members, members)
    table = torch.full((count, int(column.max(initial=0)) + 1), len(removals), dtype=torch.long)
    table[torch.from_numpy(members), torch.from_numpy(column)] = torch.from_numpy(moves)
    return table
