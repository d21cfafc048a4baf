"""Which operators of a graph take time that depends on widths, and which lines of components these widths are.

requires: the groups of a dense graph.
ensures:  a :class:`Work` that covers every multiply-accumulate and every element that the graph computes: operators
          that can be timed by themselves, what other contractions multiply, and what everything else writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from l0compress.graph.groups import Groups
from l0compress.graph.groups.live_counts import LineIndex, LiveCounts
from l0compress.graph.labels.values import Value, core, flattened, varying
from l0compress.graph.nodes.network import op_name
from l0compress.graph.nodes.shapes import node_shape
from l0compress.latency.operators import Attention, Convolution, Linear, Timed

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


@dataclass(frozen=True)
class Placed:
    """An operator of the graph that can be timed by itself: the node, and the line of each of its widths."""

    node: str
    operator: Timed
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Amount:
    """``each`` times the product of the live counts of ``lines``, which the node needs for a sample."""

    node: str
    each: float
    lines: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Work:
    """What a graph does.

    Attributes:
        lines: the widths.
        operators: what can be timed by itself.
        macs: multiply-accumulates of the other contractions.
        elements: what all other operators write.
    """

    lines: LiveCounts
    operators: tuple[Placed, ...]
    macs: tuple[Amount, ...]
    elements: tuple[Amount, ...]


def work_of(groups: Groups) -> Work:
    """Everything that takes time in the graph of ``groups``.

    >>> import torch
    >>> from torch import nn
    >>> from l0compress.graph import capture, find_groups
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> work = work_of(find_groups(capture(net, (torch.zeros(2, 4),))))
    >>> [(placed.node, placed.operator.axes, placed.operator.widths) for placed in work.operators]
    [('linear', ('outputs', 'inputs'), (8, 4)), ('linear_1', ('inputs',), (8,))]
    >>> [(amount.node, amount.each) for amount in work.elements]
    [('relu', 1.0)]
    """
    finder = _Finder(groups)
    for node in groups.graph.nodes():
        if node.op == "call_function":
            finder.visit_(node)
    return Work(finder.lines.counts(), tuple(finder.operators), tuple(finder.macs), tuple(finder.elements))


class _Finder:
    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.batch = groups.graph.batch_size
        self.operators: list[Placed] = []
        self.macs: list[Amount] = []
        self.elements: list[Amount] = []
        self.lines = LineIndex(groups.components)
        self.facts: dict[str, list[Any]] = {}
        self.can_go = (groups.moves_of_component < groups.num_moves).any(1).numpy()
        for fact in groups.labelled.space.macs:
            self.facts.setdefault(fact.node.name, []).append(fact)

    def visit_(self, node: fx.Node) -> None:
        placed = self.placed(node)
        if placed is not None:
            # Where no width can change, its time is part of what is fixed.
            self.operators += [placed] if placed.lines else []
        elif node.name in self.facts:
            for fact in self.facts[node.name]:
                self.macs.append(Amount(node.name, fact.coefficient, self.lines_of(fact.planes)))
        elif not _moves_nothing(node):
            value = self.groups.labelled.values.get(node.name)
            for written in value if isinstance(value, tuple) else (value,):
                if isinstance(written, Value) and written.planes:
                    alike = prod(written.shape) / prod(core(plane).numel() for plane in written.planes)
                    self.elements.append(Amount(node.name, alike / self.batch, self.lines_of(written.planes)))

    def placed(self, node: fx.Node) -> Placed | None:
        name = op_name(node)
        if name == "linear":
            return self.linear(node)
        if name in _CONVOLUTIONS or name in _TRANSPOSED:
            return self.convolution(node, transposed=name in _TRANSPOSED)
        return self.attention(node) if name == "scaled_dot_product_attention" else None

    def linear(self, node: fx.Node) -> Placed | None:
        outputs, inputs = self.weight(node).shape
        shape = node_shape(node.args[0])
        rows = prod(shape[:-1])
        if rows % self.batch:
            return None
        sizes = {"outputs": outputs, "inputs": inputs}
        lines = self.axes(node, ("outputs", "inputs"))
        operator = Linear(tuple(lines), **sizes, rows=rows // self.batch, is_matrix=len(shape) == 2)
        return Placed(node.name, operator, tuple(lines.values()))

    def convolution(self, node: fx.Node, *, transposed: bool) -> Placed | None:
        weight, x = self.weight(node).shape, node_shape(node.args[0])
        num_spatial = len(weight) - 2
        groups = int(_argument(node, 6, 1))
        outputs = weight[1] * groups if transposed else weight[0]
        inputs = weight[0] if transposed else weight[1] * groups
        depthwise = groups == inputs and groups > 1
        plain = groups == 1 or (depthwise and outputs == inputs and not transposed)
        if len(x) != num_spatial + 2 or not plain:
            return None
        names = ("inputs", "outputs") if transposed else ("outputs", "inputs")
        lines = self.axes(node, names[:1] if depthwise else names)
        operator = Convolution(
            tuple(lines),
            outputs=outputs,
            inputs=None if depthwise else inputs,
            per_output=1,
            size=tuple(x[2:]),
            kernel=tuple(weight[2:]),
            attributes=_attributes(node, num_spatial, transposed=transposed),
            transposed=transposed,
        )
        return Placed(node.name, operator, tuple(lines.values()))

    def attention(self, node: fx.Node) -> Placed | None:
        query, key, value = (node_shape(node.args[place]) for place in range(3))
        written = self.groups.labelled.values.get(node.name)
        if len(query) != 4 or query[1] != key[1] or not isinstance(written, Value):
            return None
        planes = [plane for plane in written.planes if 1 in varying(plane)]
        lines = {"channels": self.line(planes[0])} if planes and self.is_cut(planes[0]) else {}
        if lines and len(self.lines.arrays[lines["channels"]]) != query[1] * query[3]:
            return None
        operator = Attention(tuple(lines), query[1] * query[3], query[3], query[2], key[2], value[3])
        return Placed(node.name, operator, tuple(lines.values()))

    def weight(self, node: fx.Node) -> Value:
        source = node.args[1]
        found = self.groups.labelled.values[source.name] if isinstance(source, fx.Node) else None
        return found if isinstance(found, Value) else Value(node_shape(source))

    def axes(self, node: fx.Node, names: Sequence[str]) -> dict[str, int]:
        """The lines along the first dimensions of a node's weight, by the names of these dimensions."""
        found = {}
        for dim, name in enumerate(names):
            plane = self.weight(node).plane_along(dim)
            if plane is not None and varying(plane) == {dim} and self.is_cut(plane):
                found[name] = self.line(plane)
        return found

    def is_cut(self, plane: Tensor) -> bool:
        """Whether anything along a plane can be removed."""
        return bool(self.can_go[self.groups.components.of(flattened(plane))].any())

    def lines_of(self, planes: Sequence[Tensor]) -> tuple[int, ...]:
        return tuple(self.line(plane) for plane in planes)

    def line(self, plane: Tensor) -> int:
        return self.lines.index(flattened(plane))


_VIEWS = frozenset(
    {"view", "reshape", "expand", "slice", "select", "squeeze", "unsqueeze", "dropout", "flatten", "getitem", "detach"}
)


def _moves_nothing(node: fx.Node) -> bool:
    """Whether a node only looks at its input in another way, or does nothing in a model that is run."""
    return op_name(node) in _VIEWS or not isinstance(node.meta.get("val"), Tensor | tuple | list)


def _argument(node: fx.Node, place: int, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else default


def _attributes(node: fx.Node, num_spatial: int, *, transposed: bool) -> tuple[tuple[str, Any], ...]:
    def sizes(value: Any) -> list[int]:
        listed = list(value) if isinstance(value, list | tuple) else [value]
        return [int(size) for size in (listed * num_spatial if len(listed) == 1 else listed)]

    padding = _argument(node, 4, 0)
    dilation = sizes(_argument(node, 7 if transposed else 5, 1))
    found: list[tuple[str, Any]] = [("strides", tuple(sizes(_argument(node, 3, 1)))), ("dilations", tuple(dilation))]
    if isinstance(padding, str):
        found.append(("auto_pad", "SAME_UPPER" if padding == "same" else "VALID"))
    else:
        found.append(("pads", tuple(sizes(padding) * 2)))
    if transposed:
        found.append(("output_padding", tuple(sizes(_argument(node, 5, 0)))))
    return tuple(found)
