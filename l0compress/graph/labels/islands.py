"""Islands: rearrangements that are rectangles at both ends but not inside, as a channel shuffle is.

requires: the values of the label pass.
ensures:  the layout of the nodes that :func:`islands` names need not stay a rectangle: the way across is a permutation
          of channels and nothing else, so surgery can replace it by one ``index_select``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.labels.values import Value, varying
from l0compress.graph.labels.walk import Entry, Labelled
from l0compress.graph.nodes.network import op_name
from l0compress.graph.operators.record import operator_of


@dataclass(frozen=True, eq=False)
class Crossing:
    """The way across an island.

    Attributes:
        start: the node on this side.
        dim: the dimension of its channels, before and after.
        order: int64: which channel of ``start`` each channel on the other side is.
    """

    start: fx.Node
    dim: int
    order: Tensor


def is_flat(entry: Entry | None) -> bool:
    """Whether a tensor has channels along exactly one dimension."""
    return isinstance(entry, Value) and len(entry.planes) == 1 and len(varying(entry.planes[0])) == 1


def islands(labelled: Labelled) -> set[str]:
    """Nodes that only rearrange between two flat layouts in which nothing but the order of channels differs."""
    nodes = {node.name: node for node in labelled.graph.nodes()}
    values = labelled.values
    inside = {
        name
        for name, value in values.items()
        if isinstance(value, Value) and len(value.planes) == 1 and not is_flat(value) and _rearranges(nodes[name])
    }

    def sound(user: fx.Node) -> bool:
        return is_flat(values.get(user.name)) and _rearranges(user) and crossing(user, values) is not None

    while True:
        leaking = {
            name
            for name in inside
            if not all(user.name in inside or sound(user) for user in nodes[name].users)
            or not all(source.name in inside or is_flat(values.get(source.name)) for source in _sources(nodes[name]))
        }
        if not leaking:
            return inside
        inside -= leaking


def crossing(end: fx.Node, values: dict[str, Entry]) -> Crossing | None:
    """How a flat tensor comes from the last flat one before it, None if more than the order of channels changes."""
    steps = [end]
    while _rearranges(steps[-1]) and not is_flat(values.get(_sources(steps[-1])[0].name)):
        steps.append(_sources(steps[-1])[0])
    start = _sources(steps[-1])[0] if _rearranges(steps[-1]) else end
    before, after = values.get(start.name), values.get(end.name)
    if start is end or not isinstance(before, Value) or not isinstance(after, Value) or before.shape != after.shape:
        return None
    (dim,) = varying(before.planes[0])
    if varying(after.planes[0]) != {dim} or isinstance(start.meta["val"].shape[dim], torch.SymInt):
        return None
    positions = torch.arange(prod(before.shape)).view(before.shape)
    moved = positions
    for step in reversed(steps):
        moved = _replayed(step, moved, values)
    stride = positions.stride(dim)
    order = moved.movedim(dim, 0).reshape(before.shape[dim], -1)[:, 0] // stride
    return Crossing(start, dim, order) if torch.equal(positions.index_select(dim, order), moved) else None


def _rearranges(node: fx.Node) -> bool:
    return operator_of(node).rearranges


def _sources(node: fx.Node) -> list[fx.Node]:
    return node.all_input_nodes[:1]


def _replayed(step: fx.Node, positions: Tensor, values: dict[str, Entry]) -> Tensor:
    """Run one rearrangement on a tensor of positions, as it runs in the dense model."""
    if op_name(step) in ("permute", "transpose", "t"):
        target: Any = step.target
        return target(positions, *step.args[1:])
    value = values[step.name]
    return positions.reshape(value.shape) if isinstance(value, Value) else positions
