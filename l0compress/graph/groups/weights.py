"""Weights: the parameters that contractions and look-ups read, and how often each of their elements is used.

requires: a captured graph.
ensures:  one :class:`Weight` for each parameter of two or more dimensions that a linear layer, convolution, recurrent
          layer, matrix product or embedding reads, as it is or rearranged; tied parameters are one. A zero in such a
          weight saves what :func:`nonzero_cost` says. Biases, norms and what is added or scaled are no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from l0compress.graph.capture import CapturedGraph, check_captured
from l0compress.graph.groups.cost import Cost, cost, node_macs
from l0compress.graph.nodes.network import Place, argument_at, attribute
from l0compress.graph.nodes.recurrence import PARAMS, is_recurrent
from l0compress.graph.nodes.shapes import node_shape
from l0compress.graph.operators.record import operator_of

INDEX_BYTES = 4  # a column index, and a row pointer, of SciPy's CSR matrices


@dataclass(frozen=True, eq=False)
class Use:
    """One reading of a weight.

    Attributes:
        node: name of the node.
        order: which of the node's weights it is; only recurrent layers have several.
        macs: multiply-accumulates of the reading over the whole example batch.
        counts: how often each element is read, of the weight's shape; None where all are read alike.
    """

    node: str
    order: int
    macs: int
    counts: Tensor | None

    def share(self, present: Tensor) -> Tensor:
        """The share of the reading that is left, given what is left of each element: a scalar in float64."""
        if self.counts is None:
            return present.sum(dtype=torch.float64) / present.numel()
        counts = self.counts.to(present.device)
        return (present * counts).sum(dtype=torch.float64) / counts.sum(dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter that may be sparse.

    Attributes:
        name: its name; the first one where tied parameters have several.
        names: all of them.
        shape: its shape.
        element_bytes: bytes of one value.
        uses: where it is multiplied. A look-up multiplies nothing.
        looked_up: whether rows of it are picked somewhere.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    element_bytes: int
    uses: tuple[Use, ...]
    looked_up: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def macs_each(self) -> float | Tensor:
        """Multiply-accumulates, over the example batch, that a zero saves: a number, or one of the weight's shape."""
        alike = sum(use.macs for use in self.uses if use.counts is None) / max(self.numel, 1)
        others = [use.counts * (use.macs / float(use.counts.sum())) for use in self.uses if use.counts is not None]
        return alike + torch.stack(others).sum(0) if others else alike

    def stored_bytes(self, nonzeros: int) -> int:
        """Bytes as a CSR matrix of one row an output, or dense where that is smaller.

        >>> Weight("w", ("w",), (100, 50), 4, ()).stored_bytes(250)
        2404
        """
        return min(self.csr_bytes(nonzeros), self.numel * self.element_bytes)

    def csr_bytes(self, nonzeros: int) -> int:
        """Bytes as a CSR matrix: a value and a column index for each nonzero, and the row pointers."""
        return nonzeros * (self.element_bytes + INDEX_BYTES) + INDEX_BYTES * (self.shape[0] + 1)


def nonzero_cost(graph: CapturedGraph) -> Cost:
    """What a graph costs when the exact zeros in its weights are left out; other parameters count in full.

    ``params`` are the nonzeros, ``macs`` those of products with a nonzero weight, and ``bytes`` counts each
    weight as a CSR matrix with indices of 4 bytes (a value and an index for each nonzero, a pointer for each row), or
    dense where that is smaller.

    >>> from l0compress.graph.capture import capture
    >>> net = nn.Linear(4, 3)
    >>> _ = net.weight.data[:2].fill_(0)
    >>> graph = capture(net, (torch.zeros(2, 4),))
    >>> cost(graph), nonzero_cost(graph)
    (Cost(params=15, macs=12, bytes=60), Cost(params=7, macs=4, bytes=60))
    """
    check_captured(graph, "nonzero_cost")
    whole = cost(graph)
    params, macs, size_bytes = whole.params, 0.0, whole.bytes
    for weight in find_weights(graph):
        present = attribute(graph.graph_module, weight.name).detach() != 0
        nonzeros = int(present.sum())
        params -= weight.numel - nonzeros
        size_bytes -= weight.numel * weight.element_bytes - weight.stored_bytes(nonzeros)
        macs += sum(use.macs * (1 - float(use.share(present))) for use in weight.uses)
    macs = round(whole.macs - macs / graph.batch_size)
    # An int8 file stores zeros like any other weight.
    return Cost(params, macs, size_bytes, lambda: whole.int8_bytes)


def find_weights(graph: CapturedGraph) -> tuple[Weight, ...]:
    """The parameters of a graph that may be sparse, in the order in which the graph names them.

    >>> from l0compress.graph.capture import capture
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    >>> (weight,) = find_weights(capture(net, (torch.zeros(2, 3, 5, 5),)))
    >>> weight.name, weight.macs_each() / 2
    ('0.weight', 25.0)
    """
    return _Search(graph).found()


def prunable_weights(graph: CapturedGraph) -> tuple[Weight, ...]:
    """Those of :func:`find_weights` that are in no layer which is to be kept."""
    return tuple(w for w in find_weights(graph) if not any(graph.protection.keeps(name) for name in w.names))


class _Search:
    def __init__(self, graph: CapturedGraph) -> None:
        self.graph, self.module = graph, graph.graph_module
        self.uses: dict[int, list[Use]] = {}
        self.looked_up: set[int] = set()

    def found(self) -> tuple[Weight, ...]:
        for node in self.graph.nodes():
            if node.op == "call_function":
                self._visit_(node)
        names: dict[int, list[str]] = {}
        for node in self.graph.nodes():
            if node.op == "get_attr":
                known = names.setdefault(id(attribute(self.module, str(node.target))), [])
                known += [] if str(node.target) in known else [str(node.target)]
        return tuple(self._weight(names[key], key) for key in names if key in self.uses)

    def _weight(self, names: list[str], key: int) -> Weight:
        tensor, uses, looked_up = attribute(self.module, names[0]), tuple(self.uses[key]), key in self.looked_up
        return Weight(names[0], tuple(names), tuple(tensor.shape), tensor.element_size(), uses, looked_up)

    def _visit_(self, node: fx.Node) -> None:
        counted = False
        for order, place in enumerate(places_of(node)):
            source = _Source.of(self.module, argument_at(node, place))
            if source is None:
                continue
            macs = 0 if counted else self._macs(node, place)
            counted = not is_recurrent(node)
            for tensor in source.parameters:
                uses = self.uses.setdefault(id(tensor), [])
                if _looks_up(node):
                    self.looked_up.add(id(tensor))
                else:
                    uses.append(Use(node.name, order if is_recurrent(node) else 0, *source.read(tensor, macs)))

    def _macs(self, node: fx.Node, place: Place) -> int:
        if not is_recurrent(node):
            return node_macs(node)
        x: Any = node.args[0]
        return prod(node_shape(x)[:2]) * argument_at(node, place).meta["val"].numel()


def places_of(node: fx.Node) -> tuple[Place, ...]:
    """Where a node has weights among its arguments."""
    if is_recurrent(node):
        listed: Any = node.args[PARAMS]
        return tuple((PARAMS, position) for position, p in enumerate(listed) if p.meta["val"].dim() > 1)
    weights = operator_of(node).weights
    return tuple(place for place in weights.places if isinstance(node.args[place], fx.Node)) if weights else ()


def _looks_up(node: fx.Node) -> bool:
    weights = operator_of(node).weights
    return weights is not None and weights.looked_up


@dataclass(frozen=True, eq=False)
class _Source:
    """An argument that is made of parameters by moving their elements about and nothing else.

    Attributes:
        module: where the parameters are.
        argument: the node.
        leaves: the nodes of its parameters.
    """

    module: nn.Module
    argument: fx.Node
    leaves: tuple[fx.Node, ...]

    @classmethod
    def of(cls, module: nn.Module, argument: fx.Node) -> _Source | None:
        leaves = tuple(_leaves(argument))
        tensors = [attribute(module, str(leaf.target)) if leaf.op == "get_attr" else None for leaf in leaves]
        sound = all(isinstance(t, nn.Parameter) and t.dim() > 1 and t.is_floating_point() for t in tensors)
        return cls(module, argument, leaves) if leaves and sound else None

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Its distinct parameters."""
        distinct = {id(p): p for p in (attribute(self.module, str(leaf.target)) for leaf in self.leaves)}
        return tuple(distinct.values())

    @cached_property
    def gradients(self) -> dict[int, Tensor]:
        """How often each element of each parameter is in the argument: the gradient of the argument's sum."""
        if self.argument.op == "get_attr":
            return {}
        made: dict[int, Tensor] = {
            id(p): torch.zeros(p.shape, requires_grad=True, dtype=torch.float32) for p in self.parameters
        }
        values: dict[fx.Node, Any] = {leaf: made[id(attribute(self.module, str(leaf.target)))] for leaf in self.leaves}
        with torch.enable_grad():
            total = _evaluated(self.argument, values).sum()
        return dict(zip(made, torch.autograd.grad(total, list(made.values())), strict=True))

    def read(self, tensor: nn.Parameter, macs: int) -> tuple[int, Tensor | None]:
        """The parameter's part of ``macs``, and how often each of its elements is read (None: all alike)."""
        if not self.gradients:
            return macs, None
        counts = self.gradients[id(tensor)]
        mine = float(counts.sum(dtype=torch.float64))
        whole = sum(float(other.sum(dtype=torch.float64)) for other in self.gradients.values())
        alike = bool((counts == counts.flatten()[0]).all())
        return round(macs * mine / whole), None if alike else counts


def _leaves(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that a movement starts from."""
    if node.op != "call_function" or not operator_of(node).moves or node.target is torch.ops.aten.view.dtype:
        yield node
        return
    for source in node.all_input_nodes:
        yield from _leaves(source)


def _evaluated(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node not in values:

        def resolve(argument: fx.Node) -> Any:
            return _evaluated(argument, values)

        target: Any = node.target
        values[node] = target(*map_arg(node.args, resolve), **map_arg(node.kwargs, resolve))
    return values[node]
