"""An ONNX graph as data flow: who produces a value, who reads it, and which values are constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


@dataclass(frozen=True, eq=False)
class Flow:
    """A graph with lookup tables for its values.

    Attributes:
        model: the graph.
        nodes: its nodes, in order.
        reads: for each node the values that it reads, including those of its inner graphs (If, Loop, Scan).
        makers: the node that produces a value, by the value's name.
        readers: the nodes that read a value, by the value's name.
        constants: initializers by name.
        outputs: names of the graph's outputs.
        shapes: of the values that the graph describes; a size is a number, the name of a free one, or None.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[tuple[str, ...], ...]
    makers: dict[str, int]
    readers: dict[str, tuple[int, ...]]
    constants: dict[str, onnx.TensorProto]
    outputs: frozenset[str]
    shapes: dict[str, tuple[int | str | None, ...]]

    def array(self, name: str) -> NDArray[np.generic]:
        """Return a constant's values."""
        return numpy_helper.to_array(self.constants[name])

    def only_reader(self, name: str) -> int | None:
        """Return the only node that reads a value that is not a graph output; None if there is no such node."""
        readers = self.readers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def flow_of(model: onnx.ModelProto) -> Flow:
    """Build the lookup tables of a model.

    Example:
        >>> from onnx import helper, TensorProto
        >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
        >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
        >>> flow = flow_of(helper.make_model(graph))
        >>> flow.reads, flow.makers
        ((('x',),), {'y': 0})
    """
    nodes = tuple(model.graph.node)
    reads = tuple(tuple(dict.fromkeys(_reads(node))) for node in nodes)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    readers: dict[str, list[int]] = {}
    for index, names in enumerate(reads):
        for name in names:
            readers.setdefault(name, []).append(index)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = frozenset(value.name for value in model.graph.output)
    return Flow(
        model, nodes, reads, makers, {k: tuple(v) for k, v in readers.items()}, constants, outputs, _shapes(model.graph)
    )


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes that a node was given, by name.

    Example:
        >>> from onnx import helper
        >>> attributes_of(helper.make_node("Gemm", ["x", "w"], ["y"], transB=1))
        {'transB': 1}
    """
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def has_inner_graph(node: onnx.NodeProto) -> bool:
    """Return whether a node has graphs of its own."""
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | str | None, ...]]:
    described = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return {
        name: tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim)
        for name, kind in described.items()
        if kind.HasField("shape")
    }


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _captured(graph)


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield what an inner graph reads from outside."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        yield from (name for name in _reads(node) if name not in own)
        own.update(node.output)
    yield from (value.name for value in graph.output if value.name not in own)
