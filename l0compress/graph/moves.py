"""Moves: the closed removals of a graph, found from single channels and from rows and columns of grids.

requires: labels and their components.
ensures:  each :class:`Removal` can be taken out of the graph by itself: no frozen component in it, every grid left a
          rectangle, no dimension left empty. What cannot be removed is listed with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from l0compress.graph.components import Components
from l0compress.graph.labels import Labelled
from l0compress.graph.values import Value, flattened


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
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    of_component: dict[int, tuple[int, ...]]

    def emptied(self, dead: frozenset[int] | set[int]) -> str | None:
        """The name of a line that would be left without any component, if there is one."""
        counts: Counter[int] = Counter()
        for component in dead:
            counts.update(self.of_component.get(component, ()))
        return next((self.names[line] for line, count in counts.items() if count >= self.sizes[line]), None)


@dataclass(frozen=True, eq=False)
class Found:
    removals: tuple[Removal, ...]
    refused: dict[int, int]  # component -> index of the frozen fact it ran into, -1 where a layer would be emptied


def find_lines(labelled: Labelled, components: Components) -> Lines:
    by_content: dict[bytes, int] = {}
    names: list[str] = []
    sizes: list[int] = []
    of_component: dict[int, list[int]] = {}
    for name, entry in labelled.values.items():
        for value in entry if isinstance(entry, tuple) else (entry,):
            for plane in value.planes if isinstance(value, Value) else ():
                array = components.of(flattened(plane))
                key = array.tobytes()
                if key in by_content:
                    continue
                by_content[key] = len(names)
                distinct = np.unique(array)
                for component in distinct.tolist():
                    of_component.setdefault(component, []).append(len(names))
                names.append(name)
                sizes.append(len(distinct))
    return Lines(tuple(names), tuple(sizes), {component: tuple(found) for component, found in of_component.items()})


def find_moves(labelled: Labelled, components: Components, lines: Lines) -> Found:
    """Close every seed; keep the distinct closures that the graph can lose."""
    eligible = np.zeros(components.count, dtype=bool)
    eligible[components.of(labelled.seeds)] = True
    removals: dict[frozenset[int], Removal] = {}
    refused: dict[int, int] = {}
    for seed, kind in _seeds(components, eligible):
        dead, obstacle = components.close(seed)
        members = frozenset(dead)
        if members in removals:
            continue
        if obstacle is not None or lines.emptied(members) is not None:
            reason = int(components.reasons[obstacle]) if obstacle is not None else -1
            for component in seed:
                refused.setdefault(component, reason)
            continue
        touched = sorted({line for component in members for line in lines.of_component.get(component, ())})
        removals[members] = Removal(members, kind, tuple(touched))
    return Found(tuple(removals.values()), refused)


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
