"""What a node must satisfy to run sparse, operator by operator, and why it may not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod

import numpy as np
import onnx
from onnx import TensorProto

from l0compress.export.partition.candidates import Candidate, Window
from l0compress.export.partition.flow import Flow, attributes_of
from l0compress.export.partition.initializers import parameter_of
from l0compress.export.partition.names import layer_name, recurrent_name
from l0compress.export.partition.recurrent_nodes import RECURRENT, recurrence_of, weights_of, why_dense

# Below this share of zeros no engine gains, and below this size no layer is worth its own step.
FEWEST_ZEROS = 0.6
FEWEST_ELEMENTS = 256

FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


class Unfit(Exception):
    """A node cannot run sparse; the message is the reason."""


def sparse_share(flow: Flow, *names: str, kinds: Collection[int] = (TensorProto.FLOAT,)) -> float | None:
    """Return the share of exact zeros of constants that together have enough of them; None for everything else."""
    tensors = [flow.constants.get(name) for name in names]
    if any(tensor is None or tensor.data_type not in kinds or len(tensor.dims) < 2 for tensor in tensors):
        return None
    size = sum(prod(tensor.dims) for tensor in tensors if tensor is not None)
    if size < FEWEST_ELEMENTS:
        return None
    arrays = [flow.array(name) for name in names]
    zeros = 1 - sum(np.count_nonzero(array) for array in arrays) / size
    return zeros if zeros >= FEWEST_ZEROS else None


def _check_finite(flow: Flow, *names: str) -> None:
    for name in names:
        if not np.isfinite(flow.array(name)).all():
            raise Unfit(f"reads {parameter_of(flow, name)!r}, which has a value that is not finite")


def product(flow: Flow, index: int, weight: str, zeros: float) -> Candidate:
    """Return the node at this index, which reads a weight with this share of zeros, as a candidate.

    Raises:
        Unfit: it cannot run sparse.
    """
    node = flow.nodes[index]
    reader = _READERS.get(node.op_type)
    if reader is None:
        raise Unfit("has no sparse form")
    kind = flow.constants[weight].data_type
    if kind != TensorProto.FLOAT:
        raise Unfit(f"reads {FLOATS[kind]}, but the engines take float32")
    _check_finite(flow, weight)
    return reader(flow, index, node, weight, zeros)


def _gemm(flow: Flow, index: int, node: onnx.NodeProto, weight: str, zeros: float) -> Candidate:
    given = attributes_of(node)
    if list(node.input).index(weight) != 1:
        raise Unfit("has the sparse constant on its left, or as its bias")
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        raise Unfit("is scaled or transposes its input")
    transposed = not given.get("transB", 0)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and not _is_vector(flow, bias, _outputs(flow, weight, transposed)):
        raise Unfit("adds something other than one finite constant per output")
    name = layer_name(flow, weight, bias, node.output[0])
    return Candidate(
        "linear", name, (index,), (node.input[0],), (node.output[0],), weight, transposed, bias, None, zeros
    )


def _matmul(flow: Flow, index: int, node: onnx.NodeProto, weight: str, zeros: float) -> Candidate:
    if list(node.input).index(weight) != 1:
        raise Unfit("has the sparse constant on its left")
    if len(flow.constants[weight].dims) != 2:
        raise Unfit("multiplies a stack of matrices")
    bias, nodes, output = None, (index,), node.output[0]
    follower = flow.only_reader(output)
    if follower is not None and flow.nodes[follower].op_type == "Add":
        other = [name for name in flow.nodes[follower].input if name != output]
        adds = len(other) == 1 and _is_vector(flow, other[0], _outputs(flow, weight, True))
        if adds and not _adds_dimensions(flow, other[0], output):
            bias, nodes, output = other[0], (index, follower), flow.nodes[follower].output[0]
    name = layer_name(flow, weight, bias, output)
    return Candidate("linear", name, nodes, (node.input[0],), (output,), weight, True, bias, None, zeros)


def _conv(flow: Flow, index: int, node: onnx.NodeProto, weight: str, zeros: float) -> Candidate:
    given, dims = attributes_of(node), flow.constants[weight].dims
    rank = len(dims) - 2
    if list(node.input).index(weight) != 1:
        raise Unfit("has the sparse constant as its input")
    if rank not in (1, 2):
        raise Unfit(f"has {rank} spatial dimensions")
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unfit("has padding that depends on the size of its input")
    pads = given.get("pads") or [0] * (2 * rank)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and not _is_vector(flow, bias, dims[0]):
        raise Unfit("has a bias that is not constant, or not finite")
    window = Window(
        tuple(dims[2:]),
        tuple(given.get("strides") or [1] * rank),
        tuple(zip(pads[:rank], pads[rank:], strict=True)),
        tuple(given.get("dilations") or [1] * rank),
        given.get("group", 1),
    )
    name = layer_name(flow, weight, bias, node.output[0])
    return Candidate(
        "conv", name, (index,), (node.input[0],), (node.output[0],), weight, False, bias, None, zeros, window
    )


def _gather(flow: Flow, index: int, node: onnx.NodeProto, weight: str, zeros: float) -> Candidate:
    if (
        list(node.input).index(weight) != 0
        or attributes_of(node).get("axis", 0)
        or len(flow.constants[weight].dims) != 2
    ):
        raise Unfit("does not look up rows of a matrix")
    if node.input[1] in flow.constants:
        raise Unfit("looks up the same rows every time")
    name = layer_name(flow, weight, None, node.output[0])
    return Candidate("embedding", name, (index,), (node.input[1],), (node.output[0],), weight, zeros=zeros)


def _recurrent(flow: Flow, index: int, node: onnx.NodeProto, _: str, _zeros: float) -> Candidate:
    weight, recurrent, bias = weights_of(node)
    zeros = sparse_share(flow, weight, recurrent)
    if zeros is None:
        raise Unfit("has too few zeros in its two weights together")
    reason = why_dense(flow, node)
    if reason is not None:
        raise Unfit(reason)
    _check_finite(flow, *(name for name in (weight, recurrent, bias) if name is not None))
    inputs, outputs, recurrence = recurrence_of(flow, node)
    constants = [parameter_of(flow, name) for name in (weight, recurrent, bias) if name is not None]
    name = recurrent_name(constants, node) or layer_name(flow, weight, bias, outputs[0])
    return Candidate(
        "recurrent", name, (index,), inputs, outputs, weight, bias=bias, zeros=zeros, recurrence=recurrence
    )


_READERS: dict[str, Callable[[Flow, int, onnx.NodeProto, str, float], Candidate]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "Gather": _gather,
    **dict.fromkeys(RECURRENT, _recurrent),
}


def _outputs(flow: Flow, weight: str, transposed: bool) -> int:
    return flow.constants[weight].dims[1 if transposed else 0]


def _is_vector(flow: Flow, name: str, size: int) -> bool:
    """Return whether a value is a constant with one finite number for each of ``size`` outputs."""
    tensor = flow.constants.get(name)
    if tensor is None or tensor.data_type != TensorProto.FLOAT or not tensor.dims:
        return False
    return prod(tensor.dims) == size == tensor.dims[-1] and bool(np.isfinite(flow.array(name)).all())


def _adds_dimensions(flow: Flow, constant: str, value: str) -> bool:
    """Return whether a constant has, or may have, more dimensions than a value, and so adds them to it."""
    rank = len(flow.constants[constant].dims)
    return rank > 1 and rank > len(flow.shapes.get(value, ()))
