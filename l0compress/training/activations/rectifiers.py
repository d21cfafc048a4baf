"""Rectifiers: operators that are exactly zero on a half-line, so that a unit behind one may never fire.

requires: a captured graph.
ensures:  found by operator and arguments, under whatever name of a module; those alone behind which something can be
          removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups, groups_if_any
from l0compress.graph.labels.values import Value, flattened
from l0compress.graph.nodes.network import op_name

# Zero below something, and nowhere negative.
_ALWAYS = frozenset({"relu", "relu6", "hardsigmoid"})
_BETWEEN = frozenset({"clamp", "clip", "hardtanh", "clamp_min", "clamp_max"})


@dataclass(frozen=True)
class Rectifier:
    """A node that returns rectified activations.

    Attributes:
        node: its name.
        units: how many units have an activation of their own: channels, or hidden units of a layer.
        signed: whether it returns negative numbers, too.
    """

    node: str
    units: int
    signed: bool


def is_rectifier(node: fx.Node) -> bool:
    """Whether an operator is exactly zero on a half-line of its operand.

    >>> graph = fx.Graph()
    >>> x, aten = graph.placeholder("x"), torch.ops.aten
    >>> made = [graph.call_function(*call) for call in (
    ...     (aten.relu.default, (x,)), (aten.clamp.default, (x, 0, 6)), (aten.clamp.default, (x, -1, 1)),
    ...     (aten.gelu.default, (x,)), (aten.hardswish.default, (x,)))]
    >>> [is_rectifier(node) for node in made]
    [True, True, False, False, True]
    """
    name = op_name(node)
    if name in _ALWAYS or name == "hardswish":
        return True
    if name in _BETWEEN:
        low, high = _bounds(node)
        return _is_zero(low) != _is_zero(high)
    if name == "threshold":
        return _is_zero(node.args[2])
    return name == "leaky_relu" and _is_zero(node.args[1] if len(node.args) > 1 else 0.01)


def _bounds(node: fx.Node) -> tuple[Any, Any]:
    """Between which numbers an operator holds its operand."""
    defaults = (-1.0, 1.0) if op_name(node) == "hardtanh" else (None, None)
    names = ("min_val", "max_val") if op_name(node) == "hardtanh" else ("min", "max")
    given = dict(zip(("max",) if op_name(node) == "clamp_max" else names, node.args[1:], strict=False))
    low, high = (given.get(name, node.kwargs.get(name, default)) for name, default in zip(names, defaults, strict=True))
    return low, high


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _is_signed(node: fx.Node) -> bool:
    name = op_name(node)
    if name in _BETWEEN:
        return not _is_zero(_bounds(node)[0])
    return name == "hardswish" or (name == "threshold" and not _reaches_zero(node.args[1]))


def _reaches_zero(least: Any) -> bool:
    return isinstance(least, int | float) and least >= 0


def find_rectifiers(graph: CapturedGraph) -> tuple[Rectifier, ...]:
    """The rectifiers of a graph that have units which can be removed.

    >>> from l0compress.graph.capture import capture
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.ReLU())
    >>> find_rectifiers(capture(net, (torch.zeros(2, 4),)))
    (Rectifier(node='relu', units=8, signed=False),)
    """
    groups = groups_if_any(graph)
    return tuple(
        Rectifier(node.name, prod(flattened(plane).numel() for plane in value.planes), _is_signed(node))
        for node in graph.nodes()
        if is_rectifier(node) and isinstance(value := groups.labelled.values.get(node.name), Value)
        if _has_moves(groups, value)
    )


def _has_moves(groups: Groups, value: Value) -> bool:
    """Whether something of a value can be removed."""
    members = (torch.from_numpy(groups.components.of(flattened(plane)).astype("int64")) for plane in value.planes)
    return any(bool((groups.moves_of_component[each] < groups.num_moves).any()) for each in members)
