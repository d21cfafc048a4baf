"""Operators as ONNX models of their own, at any width: what is timed in place of a whole network.

requires: sizes and attributes of one operator of a graph.
ensures:  a model in which ONNX Runtime chooses the kernel that it chooses in the whole network: fused with what
          follows, and in the blocked layout where a convolution stands between convolutions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 10
# Around a convolution that is timed stand two others, as narrow as a vector, so that it finds its input laid out.
NEIGHBOUR = 16
BEFORE, AFTER = "l0.before", "l0.after"
# One after the other, each with weights of its own. The first wakes the threads up, and is not timed.
COPIES, FIRST = 4, "l0.first"
_SCALE = 0.01


@dataclass(frozen=True)
class Timed(ABC):
    """One operator with the widths that may change.

    Attributes:
        axes: the names of its fields that are widths and can be cut.
    """

    axes: tuple[str, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """The width along each of :attr:`axes`."""
        return tuple(getattr(self, axis) for axis in self.axes)

    def at(self, widths: Sequence[int]) -> Timed:
        """The operator at other widths, one for each of :attr:`axes`."""
        return replace(self, **dict(zip(self.axes, widths, strict=True)))

    @property
    def unit(self) -> int:
        """How many of a width come and go together."""
        return 1

    @abstractmethod
    def model(self, batch: int, *, int8: bool = False) -> onnx.ModelProto:
        """The operator as an ONNX model that takes ``batch`` samples."""

    def is_part(self, op_type: str, name: str) -> bool:
        """Whether the time of a node of that model belongs to the operator."""
        del op_type
        return not any(other in name for other in (BEFORE, AFTER, FIRST))


@dataclass(frozen=True)
class Linear(Timed):
    """``rows`` vectors a sample, from ``inputs`` to ``outputs``; ``is_matrix`` where the rows are the samples."""

    inputs: int
    outputs: int
    rows: int
    is_matrix: bool

    def model(self, batch: int, *, int8: bool = False) -> onnx.ModelProto:
        shape = [batch * self.rows, self.inputs] if self.is_matrix else [batch, self.rows, self.inputs]
        constants: dict[str, np.ndarray] = {"b": np.zeros(self.outputs, np.float32)}
        if int8:
            constants |= {
                "w": np.ones((self.inputs, self.outputs), np.int8),
                "scale": np.full(self.outputs, _SCALE, np.float32),
                "zero": np.zeros(self.outputs, np.int8),
            }
            arguments = ["x", "w", "scale", "zero", "b"]
            nodes = [helper.make_node("DynamicQuantizeMatMul", arguments, ["y"], domain="com.microsoft")]
        elif self.is_matrix:
            constants["w"] = np.full((self.outputs, self.inputs), _SCALE, np.float32)
            nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
        else:
            constants["w"] = np.full((self.inputs, self.outputs), _SCALE, np.float32)
            product = helper.make_node("MatMul", ["x", "w"], ["xw"])
            nodes = [product, helper.make_node("Add", ["xw", "b"], ["y"])]
        return _model(nodes, {"x": shape}, constants)


@dataclass(frozen=True)
class Convolution(Timed):
    """A convolution, transposed or not, over inputs of ``size``; ``per_group`` inputs are read by each output.

    ``inputs`` is None where they follow from the outputs: in a depthwise convolution.
    """

    outputs: int
    inputs: int | None
    per_output: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    transposed: bool = False

    @property
    def channels(self) -> int:
        """How many channels go in."""
        return self.outputs * self.per_output if self.inputs is None else self.inputs

    def model(self, batch: int, *, int8: bool = False) -> onnx.ModelProto:
        depthwise = self.inputs is None
        groups = self.channels if depthwise else 1
        inner = 1 if depthwise else self.channels
        shape = (self.channels, self.outputs, *self.kernel) if self.transposed else (self.outputs, inner, *self.kernel)
        attributes = {**dict(self.attributes), "group": groups}
        if int8 and not self.transposed:
            return self._int8(batch, shape, attributes)
        ones = (1,) * len(self.size)
        laid_out = self.channels > NEIGHBOUR // 4
        constants = {
            "w": np.full(shape, _SCALE, np.float32),
            "b": np.zeros(self.outputs, np.float32),
            "after": np.full((NEIGHBOUR, self.outputs, *ones), _SCALE, np.float32),
        }
        nodes = [
            helper.make_node("ConvTranspose" if self.transposed else "Conv", [BEFORE, "w", "b"], ["out"], **attributes),
            helper.make_node("Relu", ["out"], ["relu"]),
            helper.make_node("Conv", ["relu", "after"], [AFTER], name=AFTER),
        ]
        if laid_out:
            constants["before"] = np.full((self.channels, NEIGHBOUR, *ones), _SCALE, np.float32)
            first = helper.make_node("Conv", ["x", "before"], [BEFORE], name=BEFORE)
        else:
            first = None
            nodes[0].input[0] = "x"
        entry = NEIGHBOUR if laid_out else self.channels
        return _model(nodes, {"x": [batch, entry, *self.size]}, constants, first=first, output=AFTER)

    def _int8(self, batch: int, shape: tuple[int, ...], attributes: Mapping[str, Any]) -> onnx.ModelProto:
        scale, zero = np.float32(_SCALE), np.int8(0)
        constants = {
            "w": np.ones(shape, np.int8),
            "scale": np.asarray(scale),
            "zero": np.asarray(zero),
            "scales": np.full(self.outputs, scale, np.float32),
            "zeros": np.zeros(self.outputs, np.int8),
            "b": np.zeros(self.outputs, np.int32),
        }
        arguments = ["q", "scale", "zero", "w", "scales", "zeros", "scale", "zero", "b"]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("QLinearConv", arguments, ["r"], **attributes),
            helper.make_node("DequantizeLinear", ["r", "scale", "zero"], ["y"]),
        ]
        return _model(nodes, {"x": [batch, self.channels, *self.size]}, constants)

    def is_part(self, op_type: str, name: str) -> bool:
        # What lays the tensors out for the neighbours is theirs, where the operator itself needs no change of layout.
        return "Conv" in op_type and super().is_part(op_type, name)


@dataclass(frozen=True)
class Attention(Timed):
    """``softmax(q k^T) v`` of ``channels // width`` heads."""

    channels: int
    width: int
    queries: int
    keys: int
    value_width: int

    @property
    def unit(self) -> int:
        return self.width

    def model(self, batch: int, *, int8: bool = False) -> onnx.ModelProto:
        del int8  # products of two activations stay in float
        heads = max(1, self.channels // self.width)
        shapes = {
            "q": [batch, heads, self.queries, self.width],
            "k": [batch, heads, self.keys, self.width],
            "v": [batch, heads, self.keys, self.value_width],
        }
        nodes = [
            helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
            helper.make_node("Mul", ["q", "scale"], ["qs"]),
            helper.make_node("MatMul", ["qs", "kt"], ["s"]),
            helper.make_node("Softmax", ["s"], ["p"], axis=-1),
            helper.make_node("MatMul", ["p", "v"], ["y"]),
        ]
        return _model(nodes, shapes, {"scale": np.asarray(np.float32(self.width**-0.5))})


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    constants: Mapping[str, np.ndarray],
    *,
    first: onnx.NodeProto | None = None,
    output: str = "y",
) -> onnx.ModelProto:
    """Copies of ``nodes`` that all read the same inputs, or what ``first`` makes of them."""
    shared = {*inputs, *(() if first is None else (*first.input, *first.output))}
    copies = [] if first is None else [first]
    values = {name: value for name, value in constants.items() if name in shared}
    for number in range(COPIES):
        prefix = f"copy{number}." if number else FIRST
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{prefix}{node.name or node.output[0]}"
            copy.input[:] = [name if name in shared else prefix + name for name in node.input]
            copy.output[:] = [prefix + name for name in node.output]
            copies.append(copy)
        values |= {prefix + name: value for name, value in constants.items() if name not in shared}
    names = [f"copy{number}.{output}" if number else FIRST + output for number in range(COPIES)]
    graph = helper.make_graph(
        copies,
        "operator",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
