"""From the protobuf messages of an ONNX file to plain values.

requires: a checked model, with its external data loaded.
ensures:  the nodes that the floating-point outputs need, and the tensors of the file as PyTorch tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from l0compress.loading.onnx.parsed import Graph, Node

_TYPE = onnx.TensorProto
FLOATING = frozenset({_TYPE.FLOAT, _TYPE.DOUBLE, _TYPE.FLOAT16, _TYPE.BFLOAT16})
# Half precision is trained as float32, and PyTorch supports few operators on unsigned integers.
_DTYPES = {
    _TYPE.FLOAT: torch.float32, _TYPE.FLOAT16: torch.float32, _TYPE.BFLOAT16: torch.float32,
    _TYPE.DOUBLE: torch.float64, _TYPE.BOOL: torch.bool, _TYPE.UINT8: torch.uint8, _TYPE.INT8: torch.int8,
    _TYPE.INT16: torch.int16, _TYPE.UINT16: torch.int32, _TYPE.INT32: torch.int32, _TYPE.UINT32: torch.int64,
    _TYPE.INT64: torch.int64, _TYPE.UINT64: torch.int64,
}  # fmt: skip


class ContentError(ValueError):
    """Content of a file from which no module can be built."""


def needed(graph: onnx.GraphProto, outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that compute the named values, in order."""
    wanted, nodes = set(outputs), []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(_names_used(node))
            nodes.append(node)
    return nodes[::-1]


def _names_used(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in _branches(node).values():
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from _names_used(inner)


def _branches(node: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    return {given.name: given.g for given in node.attribute if given.type == onnx.AttributeProto.GRAPH}


def parse(graph: onnx.GraphProto, outputs: Iterable[str]) -> Graph:
    """Parse a graph into plain values, as far as the named outputs need it.

    Raises:
        ContentError: it holds sparse, complex, quantized or string tensors, or has inputs that are not tensors.
    """
    names = tuple(outputs)
    nodes = needed(graph, names)
    used = {name for node in nodes for name in _names_used(node)} | set(names)
    constants = {tensor.name: tensor_of(tensor) for tensor in graph.initializer if tensor.name in used}
    sparse = [tensor.values.name for tensor in graph.sparse_initializer if tensor.values.name in used]
    if sparse:
        raise ContentError(f"its weight {sparse[0]!r} is sparse; export it with dense weights")
    inputs = [value for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
    for value in inputs:
        if not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type not in _DTYPES:
            raise ContentError(f"its input {value.name!r} is not a tensor of real numbers")
    return Graph(
        nodes=tuple(_node(node, position, used) for position, node in enumerate(nodes)),
        constants=constants,
        inputs=tuple(value.name for value in inputs),
        outputs=names,
    )


def _node(node: onnx.NodeProto, position: int, used: set[str]) -> Node:
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    attributes = {
        given.name: _attribute(given, node) for given in node.attribute if given.type != onnx.AttributeProto.GRAPH
    }
    if operator == "Constant":
        attributes = {"value": _constant(attributes)}
    if operator == "ConstantOfShape" and isinstance(attributes.get("value"), Tensor):
        attributes = {"value": attributes["value"].reshape(-1)[0].item(), "dtype": attributes["value"].dtype}
    branches = {name: parse(graph, [value.name for value in graph.output]) for name, graph in _branches(node).items()}
    taken = frozenset(name for name in node.output if name in used)
    label = node.name or f"#{position}"
    return Node(operator, label, (*node.input,), (*node.output,), taken, attributes, branches)


def _constant(attributes: dict[str, Any]) -> Tensor:
    ((name, value),) = attributes.items()
    if isinstance(value, Tensor):
        return value
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    raise ContentError(f"one of its constants is a {name.removeprefix('value_')}, not a tensor of real numbers")


_READ: dict[int, Callable[[onnx.AttributeProto], Any]] = {
    onnx.AttributeProto.FLOAT: lambda given: given.f,
    onnx.AttributeProto.INT: lambda given: given.i,
    onnx.AttributeProto.STRING: lambda given: given.s.decode(errors="replace"),
    onnx.AttributeProto.FLOATS: lambda given: tuple(given.floats),
    onnx.AttributeProto.INTS: lambda given: tuple(given.ints),
    onnx.AttributeProto.STRINGS: lambda given: tuple(text.decode(errors="replace") for text in given.strings),
    onnx.AttributeProto.TENSOR: lambda given: tensor_of(given.t),
}


def _attribute(given: onnx.AttributeProto, node: onnx.NodeProto) -> Any:
    if given.type not in _READ:
        raise ContentError(
            f"attribute {given.name!r} of its node {node.name!r} ({node.op_type}) is not a number or tensor"
        )
    value = _READ[given.type](given)
    if given.name in ("to", "dtype") and isinstance(value, int):
        return dtype_of(value)
    return value


def dtype_of(number: int) -> torch.dtype:
    """Return the PyTorch dtype that stands for an ONNX type.

    Raises:
        ContentError: there is none.
    """
    found = next((dtype for known, dtype in _DTYPES.items() if known == number), None)
    if found is not None:
        return found
    name = next((name.lower() for name, known in _TYPE.DataType.items() if known == number), str(number))
    quantized = re.match(r"(float|u?int)\d", name) is not None
    what = "quantized ones; give the float file that it was made from" if quantized else "no real numbers"
    raise ContentError(f"it computes with values of type {name}, which are {what}")


def tensor_of(tensor: onnx.TensorProto) -> Tensor:
    """Return a tensor of the file; half precision becomes float32.

    Raises:
        ContentError: PyTorch does not compute with its type.
    """
    dtype = dtype_of(tensor.data_type)
    array = onnx.numpy_helper.to_array(tensor)
    if dtype is torch.float32:
        array = array.astype(np.float32)
    elif array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array)).to(dtype)
