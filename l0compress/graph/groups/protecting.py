"""Protection carried out on labels: what a kept layer freezes, and the floors under groups.

requires: components, and the globs of a protected graph.
ensures:  what a kept layer returns cannot be cut, nor can what only kept layers have; :class:`Floors` say which groups
          keep how many of their moves, in the dense graph and in every smaller one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx

from l0compress.graph.groups.components import Components, refrozen
from l0compress.graph.groups.naming import Group
from l0compress.graph.labels.space import FrozenFact
from l0compress.graph.labels.values import Value, flattened
from l0compress.graph.labels.walk import Labelled
from l0compress.graph.nodes.protection import least, stands_for
from l0compress.graph.operators.record import operator_of


@dataclass(frozen=True, eq=False)
class Floors:
    """The least that has to stay of some sets of moves, no two of which overlap.

    Attributes:
        of_move: int64 (num_moves,): the set that each move is in, -1 where it is in none.
        least: int64 (sets,): how many moves of each have to stay.
        names: what each set is called.
    """

    of_move: Tensor
    least: Tensor
    names: tuple[str, ...]

    @classmethod
    def none(cls, num_moves: int) -> Floors:
        """No set."""
        return cls(torch.full((num_moves,), -1), torch.zeros(0, dtype=torch.long), ())

    def missed(self, keep: Tensor) -> int | None:
        """The first set of which ``keep``, bool (num_moves,), has too few; None where there is none."""
        if not self.names:
            return None
        missed = (self.counts(keep) < self.least).nonzero()
        return int(missed[0, 0]) if len(missed) else None

    def counts(self, keep: Tensor) -> Tensor:
        """int64 (sets,): how many moves of each set ``keep`` has."""
        return torch.bincount(self.of_move[keep & (self.of_move >= 0)], minlength=len(self.names))

    def sets(self) -> Iterator[tuple[Tensor, int]]:
        """The moves of each set, and how many of them have to stay."""
        for number, count in enumerate(self.least.tolist()):
            yield (self.of_move == number).nonzero().flatten(), count

    def after(self, moves: Tensor) -> Floors:
        """The floors of a smaller graph, each of whose moves was one of these: int64, -1 where it is none.

        A kept move that has no counterpart there stays, so that a set may need fewer; it never needs more than it has.
        """
        of_move = torch.where(moves < 0, -1, self.of_move[moves.clamp(min=0)] if len(self.of_move) else moves)
        left = torch.bincount(of_move[of_move >= 0], minlength=len(self.names))
        return replace(self, of_move=of_move, least=torch.minimum(self.least, left))


def kept_nodes(labelled: Labelled) -> dict[str, str]:
    """The nodes that stand for parameters of kept layers, and those parameters' names."""
    protection = labelled.graph.protection
    attributes = (node for node in labelled.graph.nodes() if node.op == "get_attr")
    return {node.name: str(node.target) for node in attributes if protection.keeps(str(node.target))}


def protected(labelled: Labelled, components: Components) -> Components:
    """The components with those frozen that kept layers need; facts are added that say why."""
    kept = kept_nodes(labelled)
    if not kept:
        return components
    layers, names = _Layers(labelled, components), frozenset(kept.values())
    nodes = {node.name: node for node in labelled.graph.nodes()}
    for place, name in kept.items():
        own = layers.own(name, names)
        planes = [flattened(plane) for plane in labelled.parameters[name].planes]
        stuck = [labels[torch.from_numpy(own[components.of(labels)])] for labels in planes]
        glob = next(glob for glob in labelled.graph.protection.keep if stands_for(glob, name))
        reader = next(layers.readers(name), nodes[place])
        if stuck:
            labelled.space.frozen.append(FrozenFact(torch.cat(stuck), reader, f"it is to be kept (keep {glob!r})"))
    return refrozen(labelled, components)


def floors_of(
    labelled: Labelled, components: Components, groups: Sequence[Group], members: Sequence[frozenset[int]]
) -> Floors:
    """The floors under the groups of a dense graph; ``members`` are the components of each move."""
    protection = labelled.graph.protection
    if not protection.min_density:
        return Floors.none(len(members))
    layers = _Layers(labelled, components)
    owners = {name: layers.own(name, frozenset((name,))) for name in labelled.parameters}
    of_move, minima, names = torch.full((len(members),), -1), [], []
    for group in groups:
        first = list(members[group.moves[0]])
        share = protection.density_of(name for name, own in owners.items() if own[first].any())
        number = least(share, len(group.moves))
        if number:
            of_move[list(group.moves)] = len(names)
            minima.append(number)
            names.append(f"{group.name} {group.kind}")
    return Floors(of_move, torch.tensor(minima, dtype=torch.long), tuple(names))


class _Layers:
    """Which components are a layer's own: those that it returns, and those that nothing else has."""

    def __init__(self, labelled: Labelled, components: Components) -> None:
        self._labelled, self._components = labelled, components
        self._on = {name: self._along(value) for name, value in labelled.parameters.items()}
        self._holders = np.zeros(components.count, dtype=np.int64)
        for members in self._on.values():
            self._holders[members] += 1
        self._nodes: defaultdict[str, list[fx.Node]] = defaultdict(list)
        for node in labelled.graph.nodes():
            if node.op == "get_attr":
                self._nodes[str(node.target)].append(node)

    def own(self, name: str, together: frozenset[str]) -> np.ndarray:
        """bool (components,): along the parameter ``name``, what its layer returns and what only ``together`` have."""
        holders = self._holders.copy()
        for other in together & self._on.keys():
            holders[self._on[other]] -= 1
        mine = np.zeros(self._components.count, dtype=bool)
        mine[self._on[name]] = holders[self._on[name]] == 0
        for reader in self.readers(name):
            entry = self._labelled.values.get(reader.name)
            for value in entry if isinstance(entry, tuple) else (entry,):
                if isinstance(value, Value):
                    mine[np.intersect1d(self._on[name], self._along(value))] = True
        return mine

    def readers(self, name: str) -> Iterator[fx.Node]:
        """What computes with a parameter, however it is turned before."""
        for node in self._nodes[name]:
            yield from _readers(node)

    def _along(self, value: Value) -> np.ndarray:
        found = [self._components.of(flattened(plane)) for plane in value.planes]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.op == "call_function" and operator_of(user).moves:
            yield from _readers(user)
        elif user.op == "call_function":
            yield user
