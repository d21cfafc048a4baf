"""Reads: where channels are summed over, and therefore where a gate multiplies them.

Gating what reads a channel is exact whatever bias, normalisation or activation stands in between. The reader of q.k is
bilinear: there the factor multiplies the activation, and only by those moves that leave the head itself alive.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from l0compress.graph.groups.components import Components
from l0compress.graph.groups.moves import Removal
from l0compress.graph.labels.space import ReadFact
from l0compress.graph.labels.values import core, varying
from l0compress.graph.labels.walk import Labelled
from l0compress.graph.nodes.network import Place, argument_at, attribute


@dataclass(frozen=True, eq=False)
class Read:
    """One argument of a contraction that carries channels.

    Attributes:
        node: name of the node.
        arg: place of the argument that is multiplied.
        shape: the factor's shape, which broadcasts against the argument.
        layout: the shape of the channels; longer than ``shape`` where they are folded into a dynamic dimension along
            which the factor is one.
        moves: int64 (prod(shape), K): the moves whose removal silences each channel, padded with ``num_moves``.
        components: int64 (prod(layout),).
        survivors: int64 (prod(layout),): the component that each channel feeds, -1 where its result is always needed.
        parameter: name of the parameter, where the argument is one that nothing else reads: a factor can be folded in.
    """

    node: str
    arg: Place
    shape: tuple[int, ...]
    layout: tuple[int, ...]
    moves: Tensor
    components: Tensor
    survivors: Tensor
    parameter: str | None

    def silenced(self, alive: Tensor) -> Tensor:
        """bool ``shape``: dead channels that would still reach a live result."""
        needed = torch.where(self.survivors < 0, True, alive[self.survivors.clamp(min=0)])
        silent = (~alive[self.components] & needed).view(self.layout)
        for dim, size in enumerate(self.shape):
            silent = silent.any(dim, keepdim=True) if size == 1 else silent
        return silent


def find_reads(labelled: Labelled, components: Components, table: Tensor, padding: int) -> tuple[Read, ...]:
    """The reads that some move silences.

    Args:
        table: int64 (components, K): the moves of each component.
        padding: the entry of ``table`` that stands for no move.
    """
    usage = _parameter_usage(labelled)
    found = []
    for fact in labelled.space.reads:
        members, survivors = _components_of(fact, components)
        moves = table[members]
        ending = table[survivors.clamp(min=0)]
        ends = (moves.unsqueeze(-1) == ending.unsqueeze(-2)).any(-1) & (survivors >= 0).unsqueeze(-1)
        moves = torch.where(ends, padding, moves)
        if bool((moves == padding).all()):
            continue
        source = argument_at(fact.node, fact.arg)
        name = str(source.target) if isinstance(source, fx.Node) and source.op == "get_attr" else None
        sole = name is not None and usage[name] == 1
        layout = tuple(core(fact.plane).shape)
        moves = moves.sort(-1).values.view(*layout, -1)
        for dim in _dynamic_dims(fact):
            moves = moves.narrow(dim, 0, 1)  # the others are the same, or ungateable() would have refused them
        shape, moves = tuple(moves.shape[:-1]), moves.reshape(-1, moves.shape[-1])
        found.append(Read(fact.node.name, fact.arg, shape, layout, moves, members, survivors, name if sole else None))
    return tuple(found)


def _components_of(fact: ReadFact, components: Components) -> tuple[Tensor, Tensor]:
    small = core(fact.plane)
    members = torch.from_numpy(components.of(small).astype(np.int64)).reshape(-1)
    if fact.survivors is None:
        return members, torch.full_like(members, -1)
    fed = core(fact.survivors).expand(small.shape)
    return members, torch.from_numpy(components.of(fed.contiguous()).astype(np.int64)).reshape(-1)


def _parameter_usage(labelled: Labelled) -> Counter[str]:
    """How many places use each parameter, tied names counted together."""
    by_tensor: Counter[int] = Counter()
    ids: dict[str, int] = {}
    for node in labelled.graph.nodes():
        if node.op == "get_attr":
            ids[str(node.target)] = id(attribute(labelled.graph.graph_module, str(node.target)))
            by_tensor[ids[str(node.target)]] += len(node.users)
    return Counter({name: by_tensor[key] for name, key in ids.items()})


def ungateable(labelled: Labelled, components: Components, removals: tuple[Removal, ...]) -> set[int]:
    """Moves that would need a factor that varies along a dynamic dimension, into which channels are folded."""
    facts = [fact for fact in labelled.space.reads if _dynamic_dims(fact)]
    if not facts:
        return set()
    refused: set[int] = set()
    for fact in facts:
        members, survivors = (part.numpy() for part in _components_of(fact, components))
        for index, removal in enumerate(removals):
            dead = np.isin(members, list(removal.components))
            silenced = (dead & ~np.isin(survivors, list(removal.components))).reshape(core(fact.plane).shape)
            if any((silenced != silenced.take([0], dim)).any() for dim in _dynamic_dims(fact)):
                refused.add(index)
    return refused


def _dynamic_dims(fact: ReadFact) -> tuple[int, ...]:
    """The dynamic dimensions of an activation along which its channels vary."""
    source = argument_at(fact.node, fact.arg)
    if not isinstance(source, fx.Node) or source.op == "get_attr":
        return ()
    sizes = source.meta["val"].shape
    return tuple(sorted(dim for dim in varying(fact.plane) if isinstance(sizes[dim], torch.SymInt)))
