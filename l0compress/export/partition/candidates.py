"""Products with a constant that is sparse enough: what may become a sparse layer, and what may not and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from l0compress.export.partition.constants import parameter_of
from l0compress.export.partition.flow import Flow
from l0compress.export.partition.names import layer_name, recurrent_name, spoken
from l0compress.export.partition.recurrent import RECURRENT, recurrence_of, weights_of, why_dense
from l0compress.export.partition.views import flattened_from
from l0compress.runtime.manifest import Recurrence

# Below this share of zeros no engine gains, and below this size no layer is worth a step of its own.
FEWEST_ZEROS = 0.6
FEWEST_ELEMENTS = 256

_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}


@dataclass(frozen=True)
class Candidate:
    """A product that may run sparse.

    Attributes:
        kind: ``linear``, ``conv``, ``embedding`` or ``recurrent``.
        name: what the layer is called in the user's model, as far as the graph tells.
        nodes: the nodes that it stands for.
        inputs: the values that it reads: one, but for the states of a recurrent node.
        outputs: the values that it makes: one, but for those of a recurrent node.
        weight: its constant.
        transposed: the outputs of the layer are the columns of the constant, not its rows.
        bias: a constant of one value an output, or None.
        activation: what is applied last, or None.
        zeros: share of exact zeros in the weight, of a recurrent node in both weights together.
        window: of a convolution: kernel, stride, padding, dilation and groups.
        recurrence: of a recurrent node, with its second weight by its name in the graph.
        flat_from: the dimensions of the input from this one on are taken as one; None leaves it as it is.
    """

    kind: str
    name: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str
    transposed: bool = False
    bias: str | None = None
    activation: str | None = None
    zeros: float = 0.0
    window: Window | None = None
    recurrence: Recurrence | None = None
    flat_from: int | None = None

    def scale_axes(self) -> dict[str, int]:
        """For each of its constants that may be stored with a scale an output, the dimension of the outputs."""
        if self.recurrence is not None:
            return {self.weight: 1, self.recurrence.weight: 1}
        return {self.weight: int(self.transposed)}


@dataclass(frozen=True)
class Window:
    """How a convolution moves; see :class:`l0compress.runtime.layers.SparseConv`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Found:
    """What :func:`find_candidates` found: candidates, and for sparse constants that are none, the reason."""

    candidates: tuple[Candidate, ...]
    reasons: dict[str, str] = field(default_factory=dict)


class _Unfit(Exception):
    """A node cannot run sparse; the message is the reason."""


def find_candidates(flow: Flow, *, activations: tuple[str, ...] = ("relu",)) -> Found:
    """Find every product with a sparse constant, with the bias and the activation that follow it.

    Args:
        flow: a graph whose constants are folded.
        activations: which activations become part of a layer.
    """
    candidates, reasons, taken = [], {}, set()
    for index, node in enumerate(flow.nodes):
        for name in flow.reads[index]:
            zeros = sparse_share(flow, name)
            if zeros is None:
                continue
            try:
                candidate = _candidate(flow, index, node, name, zeros, activations)
            except _Unfit as reason:
                reasons[spoken(flow, name, node)] = f"{node.op_type} {reason}"
                continue
            if taken.isdisjoint(candidate.nodes):
                candidates.append(candidate)
                taken.update(candidate.nodes)
    return Found(tuple(candidates), reasons)


def sparse_share(flow: Flow, *names: str) -> float | None:
    """Share of exact zeros of float32 constants that together have enough of them; None for everything else."""
    tensors = [flow.constants.get(name) for name in names]
    if any(tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 for tensor in tensors):
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
            raise _Unfit(f"reads {parameter_of(flow, name)!r}, of which a value is not finite")


def _candidate(
    flow: Flow, index: int, node: onnx.NodeProto, weight: str, zeros: float, activations: tuple[str, ...]
) -> Candidate:
    reader = _READERS.get(node.op_type)
    if reader is None:
        raise _Unfit("has no sparse form")
    _check_finite(flow, weight)
    return _flattening(flow, _with_activation(flow, reader(flow, index, node, weight, zeros), activations))


def _gemm(flow: Flow, index: int, node: onnx.NodeProto, weight: str, zeros: float) -> Candidate:
    given = _attributes(node)
    if list(node.input).index(weight) != 1:
        raise _Unfit("has the sparse constant on its left, or as its bias")
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        raise _Unfit("is scaled or transposes its input")
    transposed = not given.get("transB", 0)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and not _is_vector(flow, bias, _outputs(flow, weight, transposed)):
        raise _Unfit("adds what is not one finite constant an output")
    name = layer_name(flow, weight, bias, node.output[0])
    return Candidate(
        "linear", name, (index,), (node.input[0],), (node.output[0],), weight, transposed, bias, None, zeros
    )


def _matmul(flow: Flow, index: int, node: onnx.NodeProto, weight: str, zeros: float) -> Candidate:
    if list(node.input).index(weight) != 1:
        raise _Unfit("has the sparse constant on its left")
    if len(flow.constants[weight].dims) != 2:
        raise _Unfit("multiplies a stack of matrices")
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
    given, dims = _attributes(node), flow.constants[weight].dims
    rank = len(dims) - 2
    if list(node.input).index(weight) != 1:
        raise _Unfit("has the sparse constant as its input")
    if rank not in (1, 2):
        raise _Unfit(f"has {rank} spatial dimensions")
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _Unfit("pads by what its input's size is")
    pads = given.get("pads") or [0] * (2 * rank)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and not _is_vector(flow, bias, dims[0]):
        raise _Unfit("has a bias that is no constant, or not finite")
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
    if list(node.input).index(weight) != 0 or _attributes(node).get("axis", 0) or len(flow.constants[weight].dims) != 2:
        raise _Unfit("does not look up rows of a matrix")
    if node.input[1] in flow.constants:
        raise _Unfit("looks up the same rows every time")
    name = layer_name(flow, weight, None, node.output[0])
    return Candidate("embedding", name, (index,), (node.input[1],), (node.output[0],), weight, zeros=zeros)


def _recurrent(flow: Flow, index: int, node: onnx.NodeProto, _: str, _zeros: float) -> Candidate:
    weight, recurrent, bias = weights_of(node)
    zeros = sparse_share(flow, weight, recurrent)
    if zeros is None:
        raise _Unfit("has too few zeros in its two weights together")
    reason = why_dense(flow, node)
    if reason is not None:
        raise _Unfit(reason)
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


def _with_activation(flow: Flow, candidate: Candidate, activations: tuple[str, ...]) -> Candidate:
    if candidate.kind in ("embedding", "recurrent"):
        return candidate
    found = _activation(flow, candidate.outputs[0])
    if found is None or found[0] not in activations:
        return candidate
    activation, nodes = found
    outputs = (flow.nodes[nodes[-1]].output[0],)
    return replace(candidate, activation=activation, nodes=(*candidate.nodes, *nodes), outputs=outputs)


def _flattening(flow: Flow, candidate: Candidate) -> Candidate:
    """With the flattening of its input, which would otherwise be a dense graph of its own."""
    maker = flow.makers.get(candidate.inputs[0])
    if candidate.kind != "linear" or maker is None or flow.only_reader(candidate.inputs[0]) is None:
        return candidate
    flat_from = flattened_from(flow, maker)
    if flat_from is None:
        return candidate
    inputs = (flow.nodes[maker].input[0],)
    return replace(candidate, inputs=inputs, nodes=(maker, *candidate.nodes), flat_from=flat_from)


def _activation(flow: Flow, value: str) -> tuple[str, tuple[int, ...]] | None:
    """The activation that alone reads a value, and its nodes."""
    reader = flow.only_reader(value)
    if reader is not None:
        node = flow.nodes[reader]
        if node.op_type == "Gelu":
            approximate = _attributes(node).get("approximate", b"none")
            return ("gelu_tanh" if approximate == b"tanh" else "gelu"), (reader,)
        name = _ACTIVATIONS.get(node.op_type)
        return None if name is None else (name, (reader,))
    readers = flow.readers.get(value, ())
    if len(readers) == 2 and value not in flow.outputs:
        first, second = (flow.nodes[index] for index in readers)
        gated = first.op_type == "Sigmoid" and second.op_type == "Mul" and first.output[0] in second.input
        if gated and flow.only_reader(first.output[0]) == readers[1]:
            return "silu", readers
    return None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _outputs(flow: Flow, weight: str, transposed: bool) -> int:
    return flow.constants[weight].dims[1 if transposed else 0]


def _is_vector(flow: Flow, name: str, size: int) -> bool:
    """Whether a value is a constant with one finite number for each of ``size`` outputs."""
    tensor = flow.constants.get(name)
    if tensor is None or tensor.data_type != TensorProto.FLOAT or not tensor.dims:
        return False
    return prod(tensor.dims) == size == tensor.dims[-1] and bool(np.isfinite(flow.array(name)).all())


def _adds_dimensions(flow: Flow, constant: str, value: str) -> bool:
    """Whether a constant has, or may have, more dimensions than a value, which gets them with the constant."""
    rank = len(flow.constants[constant].dims)
    return rank > 1 and rank > len(flow.shapes.get(value, ()))
