"""Labels: one walk over the graph says which elements of which tensors live and die together.

requires: a captured graph with shapes on every node.
ensures:  a :class:`Labelled` with a value for every tensor node and the facts that relate their labels.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.labels.space import LabelSpace
from l0compress.graph.labels.values import Shape, Value, along, flattened, varying
from l0compress.graph.nodes.mutation import exposed_by
from l0compress.graph.nodes.network import attribute
from l0compress.graph.nodes.shapes import concrete, shape_of
from l0compress.graph.operators import Step, apply_rule

Entry = Value | tuple[Value | None, ...]


@dataclass(frozen=True, eq=False)
class Labelled:
    """The outcome of the walk.

    Attributes:
        values: by node name, the value of each tensor (a tuple where a node returns several).
        space: the facts collected.
        parameters: by dotted name, the value of each parameter and buffer that the graph uses.
        seeds: labels that belong to a parameter; only these may start a removal.
    """

    graph: CapturedGraph
    values: dict[str, Entry]
    space: LabelSpace
    parameters: dict[str, Value]
    seeds: Tensor


def label(graph: CapturedGraph) -> Labelled:
    """Walk the graph once and collect labels and facts.

    Examples:
        >>> from l0compress.graph.capture import capture
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> labelled = label(capture(net, (torch.zeros(2, 4),)))
        >>> [tuple(sorted(varying(plane))) for plane in labelled.values["relu"].planes]
        [(1,)]
    """
    walk = _Walk(graph)
    for node in graph.nodes():
        walk.visit_(node)
    seeds = torch.cat(walk.seeds) if walk.seeds else torch.zeros(0, dtype=torch.long)
    return Labelled(graph, walk.values, walk.space, walk.parameters, seeds)


class _Walk:
    def __init__(self, graph: CapturedGraph) -> None:
        self.graph = graph
        self.space = LabelSpace()
        self.values: dict[str, Entry] = {}
        self.parameters: dict[str, Value] = {}
        self.seeds: list[Tensor] = []
        self.by_tensor: dict[int, Value] = {}

    def visit_(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._attribute_(node)
        elif node.op == "placeholder":
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                self.values[node.name] = Value(shape_of(value))
        elif node.op == "output":
            for source in node.all_input_nodes:
                for value in self._entries(source):
                    self.space.freeze_value_(value, source, "it is part of the model's output")
        elif node.op == "call_function":
            self._call_(node)

    def _attribute_(self, node: fx.Node) -> None:
        tensor = attribute(self.graph.graph_module, str(node.target))
        if not isinstance(tensor, Tensor):
            return
        if id(tensor) not in self.by_tensor:
            self.by_tensor[id(tensor)] = self._fresh(tensor)
        value = self.by_tensor[id(tensor)]
        self.values[node.name] = value
        self.parameters[str(node.target)] = value

    def _fresh(self, tensor: Tensor) -> Value:
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point():
            return Value(shape)
        planes = tuple(along(self.space.fresh(size), d, shape) for d, size in enumerate(shape) if size > 1)
        if isinstance(tensor, nn.Parameter):
            self.seeds.extend(flattened(plane) for plane in planes)
        return Value(shape, planes)

    def _entries(self, node: fx.Node) -> list[Value]:
        entry = self.values.get(node.name)
        listed = entry if isinstance(entry, tuple) else (entry,)
        return [value for value in listed if isinstance(value, Value)]

    def _call_(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            entry = self.values.get(node.args[0].name)
            picked = entry[node.args[1]] if isinstance(entry, tuple) and isinstance(node.args[1], int) else None
            if picked is not None:
                self.values[node.name] = picked
            return
        tensors = value if isinstance(value, (tuple, list)) else (value,)
        if not any(isinstance(tensor, Tensor) for tensor in tensors):
            return
        shapes = tuple(shape_of(tensor) if isinstance(tensor, Tensor) else () for tensor in tensors)
        step = self._step(node, shapes)
        for alias in exposed_by(node):
            for seen in self._entries(alias):
                self.space.freeze_value_(seen, node, "it is written in place and seen through another view")
        result = self._without_single_channels(node, apply_rule(step))
        if isinstance(value, (tuple, list)):
            self.values[node.name] = result if isinstance(result, tuple) else (result,)
        else:
            self.values[node.name] = result[0] if isinstance(result, tuple) and result[0] is not None else result

    def _without_single_channels(self, node: fx.Node, result: Entry) -> Entry:
        """A plane that no longer varies hangs on one channel as a whole; that channel then has to stay."""
        if isinstance(result, tuple):
            return tuple(self._settled(node, value) if value is not None else None for value in result)
        return self._settled(node, result)

    def _settled(self, node: fx.Node, value: Value) -> Value:
        for plane in value.planes:
            if not varying(plane):
                self.space.freeze_(plane, node, "a single channel of it is picked out here")
        return Value(value.shape, tuple(plane for plane in value.planes if varying(plane)))

    def _step(self, node: fx.Node, shapes: tuple[Shape, ...]) -> Step:
        def resolve(argument: Any) -> Any:
            if not isinstance(argument, fx.Node):
                return argument
            if argument.name in self.values:
                return self.values[argument.name]
            return concrete(argument.meta.get("val"))

        args = map_aggregate(node.args, resolve)
        kwargs = map_aggregate(node.kwargs, resolve)
        return Step(self.space, node, tuple(args), dict(kwargs), shapes, self.graph)
