"""A captured graph in units: a flat list of operators, cut into modules that have their own weights.

requires: a network that runs a captured graph, gated or not.
ensures:  a network of the same parameters and buffers that computes the same, in which all operators that read a weight
          are in the unit that has it. No unit hands on a weight, or a view of one: FSDP frees weights when a unit ends.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from l0compress.gates.scaling import scaled_weight
from l0compress.graph.nodes.mutation import written_base
from l0compress.graph.nodes.network import GraphNetwork, attribute

# About as many units as this; the two that are gathered at a time are then small beside the whole.
UNITS = 32
_NOWHERE = 2**62


class Unit(nn.Module):
    """Operators with the weights that they read.

    The graph has a module around it, because FSDP gives what it divides another class, and torch.fx makes one for each
    graph.
    """

    def __init__(self, body: GraphNetwork) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Units:
    """A network in units.

    Attributes:
        network: calls the units one after another. It has the gates, and weights that several units read.
        units: those that have weights, in the order in which they run.
        kept: weights that cannot be divided: numbers, those of another type than most, and those that are returned.
    """

    network: Unit
    units: tuple[Unit, ...]
    kept: frozenset[nn.Parameter]


def in_units(network: GraphNetwork, *, number: int = UNITS) -> Units:
    """Cut a network into about ``number`` units. It shares parameters, buffers and modules with ``network``.

    >>> from l0compress.graph.capture import capture
    >>> network = capture(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), (torch.zeros(2, 2),)).module()
    >>> units = in_units(network)
    >>> [[name for name, _ in unit.body.named_parameters()] for unit in units.units]
    [['0.weight', '0.bias'], ['1.weight', '1.bias']]
    >>> torch.equal(units.network(torch.ones(1, 2)), network(torch.ones(1, 2)))
    True
    """
    training = network.training
    network.eval()  # what depends on the mode is looked up in graphs that are in evaluation mode
    graph = _Graph(network)
    units = _Network(graph, graph.segments(number)).in_units()
    network.train(training)
    units.network.train(training)
    return units


class _Graph:
    """What is known of the nodes of a network's graph."""

    def __init__(self, network: GraphNetwork) -> None:
        self.network, self.nodes = network, list(network.graph.nodes)
        self.weights = {node: found for node in self.nodes if isinstance(found := self._read(node), nn.Parameter)}
        self.ahead = self._ahead()
        # In this order: what leads from weights to weights stands behind them.
        self.from_weights: set[fx.Node] = set()
        for node in self.nodes:
            if node in self.weights or self._is_from_weights(node):
                self.from_weights.add(node)
        self.body = [n for n in self.nodes if n.op in ("call_function", "call_module") and n not in self.ahead]

    def _read(self, node: fx.Node) -> Any:
        return attribute(self.network, str(node.target)) if node.op == "get_attr" else None

    def _ahead(self) -> set[fx.Node]:
        """What the network does before all units, since it reads nothing: it draws the gates."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            takes_nothing = node.op == "call_module" and not node.all_input_nodes
            takes_one = node.target is operator.getitem and set(node.all_input_nodes) <= found
            if takes_nothing or (takes_one and node.all_input_nodes):
                found.add(node)
        return found

    def _is_from_weights(self, node: fx.Node) -> bool:
        """Whether what a node returns may be a weight or a view of one; where that is not known, it may."""
        sources = node.all_input_nodes
        if node.op == "output" or not any(source in self.from_weights for source in sources):
            return False
        others = [s for s in sources if s not in self.from_weights and s not in self.ahead and _may_be_tensor(s)]
        return not others or node.target is scaled_weight or _may_be_view(node)

    def kept(self) -> frozenset[nn.Parameter]:
        weights = set(self.weights.values())
        types = [weight.dtype for weight in weights if weight.is_floating_point()]
        most = max(set(types), key=types.count, default=None)
        found = {weight for weight in weights if weight.dim() == 0 or weight.dtype != most}
        return frozenset(found | set(self._sources([n for n in self.nodes if n.op == "output"])))

    def _sources(self, nodes: list[fx.Node]) -> Iterator[nn.Parameter]:
        """The weights that nodes read or that views of them lead to."""
        for node in nodes:
            for source in node.all_input_nodes:
                if source in self.weights:
                    yield self.weights[source]
                elif source in self.from_weights:
                    yield from self._sources([source])

    def segments(self, number: int) -> list[list[fx.Node]]:
        """The nodes between input and output in about ``number`` runs that read equally many elements of weights."""
        most = sum(weight.numel() for weight in set(self.weights.values())) / number
        together = self._together()
        segments: list[list[fx.Node]] = [[]]
        seen: set[nn.Parameter] = set()
        count, needed_until = 0, -1
        for index, node in enumerate(self.body):
            new = {self.weights[source] for source in node.all_input_nodes if source in self.weights} - seen
            if new and count >= most and needed_until < index:
                segments.append([])
                count = 0
            segments[-1].append(node)
            seen |= new
            count += sum(weight.numel() for weight in new)
            needed_until = max(needed_until, together[node])
        return segments

    def _together(self) -> dict[fx.Node, int]:
        """For each node of the body the position of the last one that has to be in the same unit."""
        position = {node: index for index, node in enumerate(self.body)}
        last = dict(position)
        for node in self.body:
            if node in self.from_weights:
                last[node] = max([last[node], *(position.get(user, _NOWHERE) for user in node.users)])
            # FSDP hands a unit views of what it takes, and those cannot be written to.
            written = written_base(node)
            if written in last:
                last[written] = max(last[written], position[node])
        return last


class _Network:
    """Makes modules of segments."""

    def __init__(self, graph: _Graph, segments: list[list[fx.Node]]) -> None:
        self._graph, self._segments = graph, segments
        self._segment = {node: number for number, segment in enumerate(segments) for node in segment}
        self._kept = graph.kept()
        self._own = self._owners()

    def _owners(self) -> dict[nn.Parameter, int]:
        """The one segment in which a weight is read; those that are read in several belong to none."""
        readers: dict[nn.Parameter, set[int]] = {}
        for node, weight in self._graph.weights.items():
            readers.setdefault(weight, set()).update(self._segment.get(user, -1) for user in node.users)
        return {
            weight: next(iter(found))
            for weight, found in readers.items()
            if len(found) == 1 and -1 not in found and weight not in self._kept
        }

    def in_units(self) -> Units:
        root, made = fx.Graph(), dict[fx.Node, fx.Node]()
        modules: dict[str, Any] = {}

        def copied(node: fx.Node) -> None:
            made[node] = root.node_copy(node, made.__getitem__)
            if node.op in ("get_attr", "call_module"):
                modules[str(node.target)] = attribute(self._graph.network, str(node.target))

        for node in self._graph.nodes:
            if node.op == "placeholder" or node in self._graph.ahead or self._is_read_by_root(node):
                copied(node)
        units = []
        for number, segment in enumerate(self._segments):
            unit, inputs, outputs = self._unit(segment)
            modules[f"unit_{number}"] = unit
            units.append(unit)
            called = root.call_module(f"unit_{number}", tuple(made[source] for source in inputs))
            for place, node in enumerate(outputs):
                made[node] = root.call_function(operator.getitem, (called, place))
        copied(self._graph.nodes[-1])
        root._codegen = copy.copy(self._graph.network.graph._codegen)
        with_weights = (unit for unit in units if any(True for _ in unit.parameters()))
        return Units(Unit(GraphNetwork(modules, root)), tuple(with_weights), self._kept)

    def _is_read_by_root(self, node: fx.Node) -> bool:
        """Whether the network reads it and hands it to units: a weight of several, or what goes to the output."""
        if node.op != "get_attr":
            return False
        if node in self._graph.weights:
            return self._graph.weights[node] not in self._own
        return any(user.op == "output" for user in node.users)

    def _unit(self, segment: list[fx.Node]) -> tuple[Unit, list[fx.Node], list[fx.Node]]:
        """A unit, what it takes, and what it returns to others."""
        inside = set(segment)
        read = list(dict.fromkeys(source for node in segment for source in node.all_input_nodes))
        own = [n for n in read if n.op == "get_attr" and (n not in self._graph.weights or not self._is_read_by_root(n))]
        inputs = [source for source in read if source not in inside and source not in own]
        outputs = [node for node in segment if any(user not in inside for user in node.users)]
        graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
        for source in inputs:
            made[source] = graph.placeholder(source.name)
            made[source].meta = copy.copy(source.meta)
        for node in (*own, *segment):
            made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(tuple(made[node] for node in outputs))
        named = {str(node.target) for node in (*own, *segment) if node.op in ("get_attr", "call_module")}
        modules: Mapping[str, Any] = {name: attribute(self._graph.network, name) for name in named}
        return Unit(GraphNetwork(dict(modules), graph)), inputs, outputs


def _may_be_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val", torch.empty(0))
    return isinstance(value, Tensor | list | tuple)


def _may_be_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(returned.alias_info is not None for returned in schema.returns)
