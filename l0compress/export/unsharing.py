"""Split a weight that several nodes read in different ways into one weight for each way.

ONNX Runtime's quantizer assumes that every weight has one reader: it transposes the weight of a ``Gemm`` in place, and
rounds with one scale per output of whichever node it meets first. If others read the same weight, through tied
embeddings or a layer that is called twice, they would get what was made for another. A bias is rounded by the scale of
its node's input, so only one node may read it; ONNX Runtime gives every node its own only since 1.21.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from l0compress.export.partition.flow import attributes_of

# Readers with a scale per output: one for products, wherever the weight has its outputs as columns.
_PRODUCT, _TRANSPOSED, _REST = "product", "transposed", "rest"
_WITH_SCALES = ("Conv", "ConvTranspose")
_WITH_BIAS = ("Gemm", *_WITH_SCALES)
_RECURRENT = ("LSTM", "GRU", "RNN")

# A node, and the position of the weight among its inputs.
Reader = tuple[onnx.NodeProto, int]


def unshared(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the model with a copy of a weight for each way in which it is read; None if it can be quantized as it is.

    Products keep sharing one copy, which is transposed if ``Gemm`` would transpose it. Weights must be in memory.

    Example:
        >>> from onnx import helper
        >>> weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
        >>> nodes = [helper.make_node("Gemm", [x, "w"], [y], transB=1) for x, y in ("xh", "hy")]
        >>> graph = helper.make_graph(nodes, "g", [], [], [weight])
        >>> apart = unshared(helper.make_model(graph))
        >>> [node.input[1] for node in apart.graph.node], [entry.name for entry in apart.graph.initializer]
        (['w_transposed', 'w_transposed'], ['w_transposed'])
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    changed = False
    readers = _readers(result.graph)
    for tensor in list(result.graph.initializer):
        roles = _roles(readers.get(tensor.name, ()))
        if len(roles) > 1 or len(roles.get(_TRANSPOSED, ())) > 1:
            _part_(result.graph, tensor, roles)
            changed = True
    return result if changed else None


def _readers(graph: onnx.GraphProto) -> dict[str, list[Reader]]:
    """Return the readers of each value, including those in graphs within nodes."""
    readers: dict[str, list[Reader]] = {}
    for node in _nodes(graph):
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    return readers


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _roles(readers: Iterable[Reader]) -> dict[str, list[Reader]]:
    """Group readers by the way in which they read a weight; those of one group may share it."""
    roles: dict[str, list[Reader]] = {}
    for number, (node, position) in enumerate(readers):
        roles.setdefault(_role(node, position, number), []).append((node, position))
    return roles


def _role(node: onnx.NodeProto, position: int, number: int) -> str:
    if node.op_type == "MatMul" and position == 1:
        return _PRODUCT
    if node.op_type == "Gemm" and position == 1:
        given = attributes_of(node)
        transposed = _TRANSPOSED if given.get("transB", 0) else _PRODUCT
        scaled = given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", 0)
        return f"scaled_{transposed}" if scaled else transposed
    if node.op_type in _WITH_BIAS and position == 2:
        return f"bias_{number}"
    if node.op_type in _RECURRENT and position in (1, 2):
        return f"{node.op_type.lower()}_{number}"
    return node.op_type.lower() if node.op_type in _WITH_SCALES and position == 1 else _REST


def _part_(graph: onnx.GraphProto, tensor: onnx.TensorProto, roles: dict[str, list[Reader]]) -> None:
    """Give each way of reading its own copy; the first one that reads the weight as it is keeps it."""
    outputs = {value.name for value in graph.output}
    keeps = next((role for role in (_REST, *roles) if role in roles and role != _TRANSPOSED), None)
    taken = {entry.name for entry in graph.initializer}.union(*(node.output for node in _nodes(graph)))
    for role, readers in roles.items():
        if role == keeps:
            continue
        array = numpy_helper.to_array(tensor)
        name = _free_name(f"{tensor.name}_{role}", taken)
        taken.add(name)
        copy = np.ascontiguousarray(array.T) if role == _TRANSPOSED else array
        graph.initializer.append(numpy_helper.from_array(copy, name))
        for node, position in readers:
            node.input[position] = name
            if role == _TRANSPOSED:
                _without_(node, "transB")
    if keeps is None and tensor.name not in outputs:
        graph.initializer.remove(tensor)


def _without_(node: onnx.NodeProto, name: str) -> None:
    kept: Sequence[onnx.AttributeProto] = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free
