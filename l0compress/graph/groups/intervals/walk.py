"""Intervals: between which numbers the elements of every tensor of a graph lie, whatever the input.

requires: a captured graph.
ensures:  an interval for each node that holds in evaluation mode for every finite input of any size, channel by
          channel, in the arithmetic of float32.

What no rule names may be anything, and so may floating inputs. What is proved therefore rests on what bounds a value by
itself: rectifiers, sigmoids, softmax, normalisation over channels, tables of embeddings, bytes. A normalisation is
taken to yield the mean and the variance that it should, which float32 fails at where the values hardly differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.intervals.interval import ANYTHING, Interval
from l0compress.graph.groups.intervals.rules import RULES
from l0compress.graph.labels.values import compressed, core
from l0compress.graph.nodes.mutation import base_of, writes
from l0compress.graph.nodes.network import attribute, op_name
from l0compress.graph.nodes.shapes import concrete, node_shape, shape_of
from l0compress.graph.operators.record import operator_of

_OF_DTYPE = {torch.uint8: Interval.of(0.0, 255.0), torch.bool: Interval.of(0.0, 1.0)}
# Numbers that keep what float32 keeps.
_WIDE = (torch.float32, torch.float64)


def intervals(graph: CapturedGraph) -> dict[str, Interval]:
    """The interval of every node that returns a floating tensor, by name, with as many dimensions as that.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> net = nn.Sequential(nn.Sigmoid(), nn.Linear(2, 1), nn.ReLU())
    >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, -2.0]])), net[1].bias.data.zero_()
    >>> found = intervals(capture(net, (torch.zeros(2, 2),)))
    >>> [round(float(bound), 4) for bound in (found["linear"].low, found["linear"].high, found["relu"].low)]
    [-2.0, 1.0, 0.0]
    """
    walk = _Walk(graph)
    with torch.no_grad():
        for node in graph.nodes():
            walk.visit_(node)
    return walk.known


class _Walk:
    """The operands of the rules, as far as the walk has come."""

    def __init__(self, graph: CapturedGraph) -> None:
        self.graph = graph
        self.known: dict[str, Interval] = {}
        self._names: dict[fx.Node, list[str]] = {}

    def visit_(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if writes(node):
            # Under its earlier names the tensor is not any more what it was.
            for name in self._names.get(base_of(node), ()):
                self.known.pop(name, None)
        if isinstance(value, Tensor) and (value.dtype in _WIDE or node.op == "placeholder"):
            found = self._found(node, value)
            self.known[node.name] = _settled(found, value)
        self._names.setdefault(base_of(node), []).append(node.name)

    def of(self, operand: Any) -> Interval:
        if isinstance(operand, int | float):
            return Interval.of(float(operand), float(operand))
        if not isinstance(operand, fx.Node):
            return ANYTHING
        weight = self.weight(operand)
        return self.known.get(operand.name, ANYTHING) if weight is None else Interval(weight, weight)

    def weight(self, operand: Any) -> Tensor | None:
        if not isinstance(operand, fx.Node) or operand.op != "get_attr":
            return None
        found = attribute(self.graph.graph_module, str(operand.target))
        return found.detach().double() if isinstance(found, Tensor) and found.is_floating_point() else None

    def _found(self, node: fx.Node, value: Tensor) -> Interval:
        if node.op == "placeholder":
            return _OF_DTYPE.get(value.dtype, ANYTHING)
        if node.op != "call_function":
            return ANYTHING
        rule = RULES.get(op_name(node))
        if rule is not None:
            return rule(self, node)
        return self._moved(node) if operator_of(node).moves else ANYTHING

    def _moved(self, node: fx.Node) -> Interval:
        """Elements that are moved take their bounds along: the operator is run on these."""
        if node.target is torch.ops.aten.view.dtype:
            return ANYTHING
        if op_name(node) == "getitem":
            return self._moved_together(node)
        if op_name(node) in _SAME_PLACE:
            return self.of(node.args[0])
        low, high = (self._run(node, which) for which in (_low, _high))
        return Interval(core(compressed(low)).double(), core(compressed(high)).double())

    def _moved_together(self, node: fx.Node) -> Interval:
        """One of the tensors that a movement returns."""
        source, position = node.args[:2]
        if not isinstance(source, fx.Node) or not operator_of(source).moves or not isinstance(position, int):
            return ANYTHING
        low, high = (self._run(source, which)[position] for which in (_low, _high))
        return Interval(core(compressed(low)), core(compressed(high)))

    def _run(self, node: fx.Node, bound: Callable[[Interval], Tensor]) -> Any:
        def resolve(argument: Any) -> Any:
            if not isinstance(argument, fx.Node):
                return argument
            if not isinstance(argument.meta.get("val"), Tensor):
                return concrete(argument.meta.get("val"))
            return bound(self.of(argument)).expand(node_shape(argument))

        run: Any = node.target
        return run(*map_aggregate(node.args, resolve), **map_aggregate(node.kwargs, resolve))


# Casts and copies, whose numbers stay where they are.
_SAME_PLACE = frozenset({"to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh_copy"})


def _low(found: Interval) -> Tensor:
    return found.low


def _high(found: Interval) -> Tensor:
    return found.high


def _settled(found: Interval, value: Tensor) -> Interval:
    """The interval with the value's dimensions, the same along free sizes; anything where it is no number."""
    if bool(found.low.isnan().any() | found.high.isnan().any()):
        found = ANYTHING
    free = [dim for dim, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
    return found.with_rank(len(shape_of(value))).over(free)
