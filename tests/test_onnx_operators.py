"""Every operator of ONNX that is read computes what ONNX Runtime computes, in every version that changed its form."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from l0compress.loading import load_model

RNG = np.random.default_rng(0)
ML = "ai.onnx.ml"
MICROSOFT = "com.microsoft"


def f32(*shape: int) -> np.ndarray:
    """Numbers of both signs."""
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Numbers between 0.1 and 0.9."""
    return RNG.uniform(0.1, 0.9, size=shape).astype(np.float32)


def i64(*values: Any) -> np.ndarray:
    """A list of integers."""
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """A node of one operator.

    Attributes:
        inputs: what the model is called with.
        constants: inputs after these, kept in the file; None where one is left out.
        opsets: the versions of the operators to try.
        outputs: how many outputs the node has; those that ``only`` names are compared.
    """

    operator: str
    inputs: tuple[np.ndarray, ...]
    constants: tuple[np.ndarray | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opsets: tuple[int, ...] = (18,)
    outputs: int = 1
    only: tuple[int, ...] | None = None
    domain: str = ""
    kind: int = TensorProto.FLOAT

    def model(self, opset: int) -> onnx.ModelProto:
        inputs, initializers, names = [], [], []
        for position, array in enumerate(self.inputs):
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(f"x{position}", kind, array.shape))
            names.append(f"x{position}")
        for position, array in enumerate(self.constants):
            names.append("" if array is None else f"c{position}")
            if array is not None:
                initializers.append(numpy_helper.from_array(array, f"c{position}"))
        results = [f"y{position}" for position in range(self.outputs)]
        node = helper.make_node(self.operator, names, results, domain=self.domain, **self.attributes)
        nodes, returned = [node], []
        for position in self.only or range(self.outputs):
            # Only floating-point outputs are read, so others are cast.
            nodes.append(helper.make_node("Cast", [f"y{position}"], [f"z{position}"], to=self.kind))
            returned.append(helper.make_tensor_value_info(f"z{position}", self.kind, None))
        graph = helper.make_graph(nodes, "case", inputs, returned, initializers)
        versions = [helper.make_opsetid("", opset)]
        if self.domain:
            versions.append(helper.make_opsetid(self.domain, 3 if self.domain == ML else 1))
        return helper.make_model(graph, opset_imports=versions, ir_version=8 if opset < 21 else 10)


def unary(names: str, make: Any = f32, opsets: tuple[int, ...] = (18,)) -> list[Case]:
    return [Case(name, (make(2, 5),), opsets=opsets) for name in names.split()]


X3, X4 = f32(2, 3, 8), f32(2, 4, 6, 7)
ELEMENTWISE = [
    *unary("Abs Ceil Cos Erf Exp Floor HardSwish Neg Relu Round Sigmoid Sign Sin Softplus Softsign Tanh Tan Sinh Cosh"),
    *unary("Atan Asinh Identity Elu Selu LeakyRelu HardSigmoid Celu Mish"),
    *unary("Acos Asin Atanh Log Reciprocal Sqrt", positive),
    Case("Acosh", (1 + positive(2, 5),)),
    Case("Gelu", (f32(2, 5),), opsets=(20,)),
    Case("Gelu", (f32(2, 5),), attributes={"approximate": "tanh"}, opsets=(20,)),
    Case("Elu", (f32(2, 5),), attributes={"alpha": 0.3}, opsets=(7,)),
    Case("LeakyRelu", (f32(2, 5),), attributes={"alpha": 0.3}, opsets=(7, 16)),
    Case("Selu", (f32(2, 5),), attributes={"alpha": 0.3, "gamma": 2.0}),
    Case("Celu", (f32(2, 5),), attributes={"alpha": 0.3}),
    Case("HardSigmoid", (f32(2, 5),), attributes={"alpha": 1 / 6, "beta": 0.5}),
    Case("ThresholdedRelu", (f32(2, 5),), attributes={"alpha": 0.5}, opsets=(10, 18)),
    Case("Shrink", (f32(2, 5),), attributes={"bias": 0.1, "lambd": 0.4}),
    Case("Swish", (f32(2, 5),), attributes={"alpha": 1.5}, opsets=(24,)),
    *[Case(name, (f32(2, 5), f32(5))) for name in ["Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal"]],
    *[Case(name, (f32(2, 5), f32(5)), opsets=(16,)) for name in ["LessOrEqual", "GreaterOrEqual"]],
    *[Case(name, (f32(2, 5),), (np.float32(0.7),), opsets=(7, 14)) for name in ["Add", "Sub", "Mul", "Div"]],
    *[Case(name, (f32(5),), (f32(1, 1),)) for name in ["Add", "Mul"]],
    Case("Div", (i64(7, -7, 8), i64(2, 2, -3))),
    Case("Pow", (positive(2, 5), f32(5))),
    Case("Pow", (f32(2, 5),), (np.float32(2.0),), opsets=(7, 15)),
    Case("Pow", (f32(2, 5),), (i64(3),)),
    Case("Mod", (i64(7, -7, 8), i64(2, 2, -3))),
    Case("Mod", (f32(2, 5), f32(2, 5)), attributes={"fmod": 1}),
    *[Case(name, (f32(2, 5), f32(5), f32(2, 1)), opsets=(8, 13)) for name in ["Sum", "Max", "Min", "Mean"]],
    *[Case(name, (f32(2, 5),), (np.float32(0.1),)) for name in ["Max", "Min"]],
    *[Case(name, (f32(3) > 0, f32(3) > 0)) for name in ["And", "Or", "Xor"]],
    Case("Not", (f32(3) > 0,)),
    Case("Where", (f32(2, 5) > 0, f32(2, 5), f32(5)), opsets=(9, 16)),
    Case("Where", (f32(2, 5) > 0,), (np.float32(0.0), np.float32(-1e9))),
    Case("Where", (f32(2, 5) > 0, f32(5)), (np.float32(0.5),)),
    Case("Clip", (f32(2, 5),), attributes={"min": -0.3, "max": 0.4}, opsets=(7, 10)),
    Case("Clip", (f32(2, 5),), (np.float32(-0.3), np.float32(0.4)), opsets=(11, 18)),
    Case("Clip", (f32(2, 5),), (None, np.float32(0.4)), opsets=(13,)),
    Case("IsInf", (np.array([1, np.inf, -np.inf], np.float32),), attributes={"detect_negative": 0}),
    Case("IsNaN", (np.array([1, np.nan], np.float32),)),
    Case("PRelu", (X4,), (f32(4, 1, 1),), opsets=(9, 16)),
    Case("PRelu", (X4,), (f32(1),)),
    Case("PRelu", (f32(2, 5),), (f32(5),)),
    *[Case(name, (X3,), attributes={"axis": axis}, opsets=(13,)) for name in ("Softmax", "LogSoftmax") for axis in (1,
         -1)],
    *[Case(name, (X3,), opsets=(7, 12)) for name in ("Softmax", "LogSoftmax")],
    Case("Softmax", (X3,), attributes={"axis": 2}, opsets=(11,)),
    Case("Hardmax", (X3,), opsets=(13,)),
    Case("Cast", (f32(2, 5),), attributes={"to": TensorProto.INT64}),
    Case("Cast", (f32(2, 5),), attributes={"to": TensorProto.DOUBLE}, kind=TensorProto.DOUBLE),
    Case("Cast", (f32(2, 5),), attributes={"to": TensorProto.BOOL}),
    Case("QuickGelu", (f32(2, 5),), domain=MICROSOFT),
    Case("FastGelu", (f32(2, 5),), (f32(5),), domain=MICROSOFT),
    Case("BiasGelu", (f32(2, 5),), (f32(5),), domain=MICROSOFT),
]  # fmt: skip
PRODUCTS = [
    Case("Gemm", (f32(2, 4),), (f32(3, 4), f32(3)), {"transB": 1}, opsets=(7, 11, 13)),
    Case("Gemm", (f32(4, 2),), (f32(4, 3), f32(2, 3)), {"transA": 1, "alpha": 0.5, "beta": 2.0}, opsets=(7, 13)),
    Case("Gemm", (f32(2, 4),), (f32(4, 3),), opsets=(11,)),
    Case("Gemm", (f32(2, 4),), (f32(1, 4), f32(1)), {"transB": 1}),
    Case("MatMul", (f32(2, 5, 4), f32(2, 4, 3)), opsets=(9, 13)),
    Case("MatMul", (f32(2, 5, 4),), (f32(4, 3),)),
    Case("FusedMatMul", (f32(2, 5, 4), f32(2, 3, 4)), attributes={"alpha": 0.5, "transB": 1}, domain=MICROSOFT),
    Case("Einsum", (f32(2, 5, 4), f32(2, 3, 4)), attributes={"equation": "bid, bjd -> bij"}),
    Case("Det", (f32(2, 3, 3),)),
]  # fmt: skip
CONVOLUTIONS = [
    Case("Conv", (X4,), (f32(3, 4, 3, 3), f32(3)), {"pads": [1, 1, 1, 1], "strides": [2, 1]}, opsets=(7, 11)),
    Case("Conv", (X4,), (f32(8, 2, 3, 3),), {"group": 2, "dilations": [2, 1], "kernel_shape": [3, 3]}),
    Case("Conv", (X4,), (f32(3, 4, 2, 3),), {"pads": [0, 1, 1, 2]}),
    *[Case("Conv", (X4,), (f32(3, 4, 3, 2),), {"auto_pad": rule, "strides": [2, 3]}) for rule in ("SAME_UPPER",
         "SAME_LOWER", "VALID")],
    Case("Conv", (X3,), (f32(4, 3, 3), f32(4))),
    Case("Conv", (f32(1, 2, 4, 4, 4),), (f32(3, 2, 2, 2, 2),)),
    Case("ConvTranspose", (X4,), (f32(4, 3, 3, 3), f32(3)), {"strides": [2, 2], "pads": [1, 1, 1, 1],
         "output_padding": [1, 1]}, opsets=(7, 11)),
    Case("ConvTranspose", (X4,), (f32(4, 3, 3, 3),), {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    Case("ConvTranspose", (X4,), (f32(4, 3, 3, 3),), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", (X4,), (f32(4, 3, 3, 3),), {"strides": [2, 2], "output_shape": [12, 14]}),
    Case("ConvTranspose", (X4,), (f32(4, 3, 3, 3),), {"group": 2, "dilations": [2, 1]}),
]  # fmt: skip
POOLS = [
    *[Case(name, (X4,), (), {"kernel_shape": [3, 2], "strides": [2, 1], **more}, opsets=opsets)
      for name in ("MaxPool", "AveragePool")
      for more, opsets in [({}, (7, 12)), ({"pads": [1, 1, 1, 1]}, (10, 18)), ({"pads": [0, 1, 1, 0]}, (12,)),
                           ({"auto_pad": "SAME_UPPER"}, (11,)), ({"auto_pad": "SAME_LOWER"}, (12,)),
                           ({"ceil_mode": 1}, (19,)), ({"auto_pad": "VALID"}, (12,))]],
    Case("MaxPool", (X4,), (), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    Case("MaxPool", (X4,), (), {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (X4,), (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", (X4,), (), {"kernel_shape": [3, 3], "pads": [2, 0, 1, 1], "count_include_pad": 1}),
    Case("MaxPool", (X3,), (), {"kernel_shape": [3], "strides": [2]}),
    Case("AveragePool", (X3,), (), {"kernel_shape": [3]}),
    Case("AveragePool", (f32(1, 2, 4, 4, 4),), (), {"kernel_shape": [2, 2, 2]}),
    Case("LpPool", (X4,), (), {"kernel_shape": [2, 2], "p": 3}),
    *[Case(name, (x,), opsets=(7, 18)) for name in ("GlobalAveragePool", "GlobalMaxPool") for x in (X3, X4)],
    Case("GlobalLpPool", (X4,), attributes={"p": 3}),
]  # fmt: skip
NORMS = [
    Case("BatchNormalization", (X4,), (f32(4), f32(4), f32(4), positive(4)), {"epsilon": 1e-3}, opsets=(7, 9, 14, 15)),
    Case("InstanceNormalization", (X4,), (f32(4), f32(4)), opsets=(7, 18)),
    Case("LayerNormalization", (X3,), (f32(8), f32(8)), opsets=(17,)),
    Case("LayerNormalization", (X3,), (f32(3, 8),), {"axis": 1, "epsilon": 1e-3}, opsets=(17,)),
    Case("LayerNormalization", (X3,), (f32(3, 8), f32(3, 8)), {"axis": 1}, opsets=(17,)),
    Case("SkipLayerNormalization", (X3, f32(2, 3, 8)), (f32(8), f32(8), f32(8)), domain=MICROSOFT),
    Case("SkipLayerNormalization", (X3, f32(2, 3, 8)), (f32(8), f32(8)), outputs=4, only=(0, 3), domain=MICROSOFT),
    Case("RMSNormalization", (X3,), (f32(8),), opsets=(23,)),
    Case("RMSNormalization", (X3,), (f32(8),), {"axis": 1}, opsets=(23,)),
    Case("GroupNormalization", (X4,), (f32(4), f32(4)), {"num_groups": 2}, opsets=(21,)),
    Case("LRN", (X4,), attributes={"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 2.0}, opsets=(7, 13)),
    Case("LpNormalization", (X3,), attributes={"axis": 1, "p": 1}),
    Case("LpNormalization", (X3,)),
    Case("MeanVarianceNormalization", (X4,)),
    Case("Dropout", (X3,), opsets=(7, 10, 13)),
    Case("Dropout", (X3,), (np.float32(0.3),), opsets=(13,)),
]  # fmt: skip
REDUCTIONS = [
    *[Case(f"Reduce{name}", (positive(2, 3, 8),), (), {"axes": [1], "keepdims": 0}, opsets=(7, 11))
      for name in ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]],
    *[Case(f"Reduce{name}", (positive(2, 3, 8),), (i64(-1, 0),), opsets=(18,))
      for name in ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]],
    *[Case(f"Reduce{name}", (positive(2, 3, 8),), opsets=(18,)) for name in ["Sum", "Mean", "Max", "Min", "Prod",
         "L2"]],
    Case("ReduceSum", (X3,), (i64(),), {"noop_with_empty_axes": 1}, opsets=(13,)),
    *[Case(name, (X3,), (), {"axis": 1, "keepdims": keep}, opsets=(7, 13)) for name in ("ArgMax", "ArgMin")
         for keep in (0, 1)],
    *[Case(name, (np.round(X3),), (), {"axis": 2, "select_last_index": 1}) for name in ("ArgMax", "ArgMin")],
    Case("TopK", (X3,), (), {"k": 3}, opsets=(7,), outputs=2),
    Case("TopK", (X3,), (i64(2),), {"axis": 1, "largest": 0}, opsets=(11,), outputs=2),
    *[Case("CumSum", (X3,), (np.array(1, np.int64),), {"exclusive": e, "reverse": r}, opsets=(14,)) for e in (0,
         1) for r in (0, 1)],
]  # fmt: skip
MOVEMENTS = [
    Case("Reshape", (X3,), (i64(0, -1),), opsets=(7, 14)),
    Case("Reshape", (X3,), (i64(2, 4, 6),), {"allowzero": 1}, opsets=(14,)),
    *[Case("Flatten", (X4,), (), {"axis": axis}, opsets=(9, 13)) for axis in (0, 1, 2, 4)],
    Case("Squeeze", (f32(2, 1, 3, 1),), (), {"axes": [1]}, opsets=(7, 11)),
    Case("Squeeze", (f32(2, 1, 3, 1),), (i64(-1, 1),), opsets=(13,)),
    Case("Squeeze", (f32(2, 1, 3, 1),), opsets=(7, 13)),
    Case("Unsqueeze", (f32(2, 3),), (), {"axes": [0, 2]}, opsets=(7, 11)),
    Case("Unsqueeze", (f32(2, 3),), (i64(-1, 0),), opsets=(13,)),
    Case("Transpose", (X3,), (), {"perm": [2, 0, 1]}, opsets=(7, 13)),
    Case("Transpose", (X3,)),
    Case("Concat", (X3, f32(2, 2, 8)), (), {"axis": 1}, opsets=(7, 13)),
    Case("Concat", (X3,), (f32(2, 1, 8),), {"axis": -2}),
    Case("Split", (X3,), (), {"axis": 2, "split": [3, 5]}, opsets=(7, 11), outputs=2),
    Case("Split", (X3,), (i64(3, 5),), {"axis": 2}, opsets=(13,), outputs=2),
    Case("Split", (X3,), (), {"axis": -1}, opsets=(7, 13), outputs=2),
    Case("Split", (X3,), (), {"axis": 2, "num_outputs": 3}, opsets=(18,), outputs=3),
    Case("Expand", (f32(3, 1),), (i64(2, 1, 4),), opsets=(8, 13)),
    Case("Tile", (X3,), (i64(1, 2, 3),), opsets=(7, 13)),
    Case("Trilu", (f32(4, 5),), (np.array(1, np.int64),), opsets=(14,)),
    Case("Trilu", (f32(4, 5),), (), {"upper": 0}, opsets=(14,)),
    *[Case("DepthToSpace", (f32(2, 8, 3, 4),), (), {"blocksize": 2, "mode": mode}, opsets=(11,)) for mode in ("DCR",
         "CRD")],
    Case("SpaceToDepth", (f32(2, 2, 6, 4),), (), {"blocksize": 2}),
    Case("EyeLike", (f32(3, 4),), (), {"k": 1}),
    Case("Shape", (X3,), opsets=(7, 15)),
    Case("Shape", (X3,), (), {"start": 1, "end": -1}, opsets=(15,)),
    Case("Size", (X3,)),
]  # fmt: skip
INDEXING = [
    Case("Gather", (X3,), (i64(2, -1),), {"axis": 1}, opsets=(7, 13)),
    Case("Gather", (X3,), (i64([0, 1], [2, 2]),), {"axis": 1}),
    Case("Gather", (X3,), (np.array(-1, np.int64),), {"axis": 2}),
    Case("Gather", (X3,), (i64(2),), {"axis": -1}),
    Case("Gather", (X3, i64([1, 0])), (), {"axis": 1}),
    Case("Gather", (X3, np.array(1, np.int64)), (), {"axis": 1}),
    Case("GatherElements", (X3, i64([[0, -1]], [[2, 1]])), (), {"axis": 1}, opsets=(11,)),
    Case("GatherND", (X3, i64([0, 1], [1, 2])), opsets=(11,)),
    Case("GatherND", (X3, i64([[1]], [[-1]])), (), {"batch_dims": 1}, opsets=(12,)),
    Case("ScatterElements", (X3, i64([[0] * 8], [[-1] * 8]), f32(2, 1, 8)), (), {"axis": 1}, opsets=(11,)),
    Case("ScatterElements", (X3, i64([[0] * 8], [[1] * 8]), f32(2, 1, 8)), (), {"axis": 1, "reduction": "add"},
         opsets=(16,)),
    Case("ScatterElements", (X3, i64([[0] * 8], [[1] * 8]), f32(2, 1, 8)), (), {"axis": 1, "reduction": "max"}),
    Case("Scatter", (X3, i64([[0] * 8], [[1] * 8]), f32(2, 1, 8)), (), {"axis": 1}, opsets=(10,)),
    Case("ScatterND", (X3, i64([0, 1], [1, -1]), f32(2, 8)), opsets=(11,)),
    Case("ScatterND", (X3, i64([0, 1], [0, 1]), f32(2, 8)), (), {"reduction": "add"}, opsets=(16,)),
    Case("Slice", (X3,), (), {"starts": [1, -3], "ends": [9, 7], "axes": [1, 2]}, opsets=(7, 9)),
    Case("Slice", (X3,), (i64(0, 1), i64(2**31 - 1, -1), i64(1, 2), i64(1, 2)), opsets=(10, 13)),
    Case("Slice", (X3,), (i64(-1), i64(-(2**63)), i64(2), i64(-2)), opsets=(13,)),
    Case("Slice", (X3,), (i64(6), i64(1), i64(2), i64(-2)), opsets=(13,)),
    Case("Slice", (X3,), (i64(0, 1), i64(1, 3)), opsets=(13,)),
    Case("Pad", (X4,), (), {"pads": [0, 0, 1, 0, 0, 0, 2, 3], "value": 0.5}, opsets=(7, 10)),
    Case("Pad", (X4,), (i64(0, 1, 1, 0, 0, 0, 2, 3), np.float32(0.5)), opsets=(11, 18)),
    Case("Pad", (X4,), (i64(1, 2), None, i64(-1)), opsets=(18,)),
    *[Case("Pad", (X4,), (i64(0, 0, 1, 2, 0, 0, 2, 1),), {"mode": mode}, opsets=(13,)) for mode in ("edge", "reflect")],
    Case("Pad", (X4,), (i64(0, 0, -1, 0, 0, 0, 2, -2),), opsets=(13,)),
    Case("Pad", (f32(4, 5),), (i64(1, 0, 0, 2),), {"mode": "edge"}),
    Case("Pad", (X4,), (i64(0, 0, 1, 2, 0, 0, 2, 1),), {"mode": "wrap"}, opsets=(19,)),
    Case("OneHot", (i64(1, -1, 3),), (np.array(4, np.int64), f32(2)), opsets=(11,)),
    Case("OneHot", (i64([1, 0]),), (i64(3), np.array([0, 5], np.float32)), {"axis": 0}, opsets=(9,)),
]  # fmt: skip
RESIZES = [
    Case("GridSample", (X4, positive(2, 3, 3, 2)), opsets=(16, 20)),
    Case("GridSample", (X4, f32(2, 3, 3, 2)), (), {"mode": "nearest", "padding_mode": "border", "align_corners": 1}),
    Case("Upsample", (X4,), (), {"scales": [1.0, 1.0, 2.0, 3.0]}, opsets=(7,)),
    Case("Upsample", (X4,), (np.array([1, 1, 2, 2], np.float32),), {"mode": "linear"}, opsets=(9,)),
    Case("Resize", (X4,), (np.array([1, 1, 2, 1.5], np.float32),), opsets=(10,)),
    *[Case("Resize", (X4,), (None, np.array(scales, np.float32)), {"mode": mode,
         "coordinate_transformation_mode": how}, opsets=(13, 19))
      for scales in ([1, 1, 2, 3], [1, 1, 0.5, 2]) for mode in ("nearest", "linear")
      for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")],
    *[Case("Resize", (X4,), (None, np.array([1, 1, 1.7, 2.3], np.float32)), {"mode": "nearest", "nearest_mode": how},
         opsets=(13,))
      for how in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")],
    *[Case("Resize", (X4,), (None, None, i64(2, 4, 9, 5)), {"mode": mode, "coordinate_transformation_mode": how},
         opsets=(13,))
      for mode, how in [("nearest", "asymmetric"), ("linear", "half_pixel"), ("cubic", "half_pixel"), ("cubic",
           "align_corners")]],
    Case("Resize", (X4,), (None, np.array([2, 2], np.float32)), {"axes": [2, 3]}, opsets=(18,)),
    Case("Resize", (X3,), (None, np.array([1, 1, 2], np.float32)), {"mode": "linear"}),
    Case("Resize", (X4,), (None, np.array([1, 1, 1.3, 1.7], np.float32)), {"mode": "linear"}, opsets=(13,)),
]  # fmt: skip


def recurrent(name: str, blocks: int, **attributes: Any) -> Case:
    """A layer of five units over sequences of six, seven features wide."""
    sides = 2 if attributes.get("direction") == "bidirectional" else 1
    x = f32(3, 6, 7) if attributes.get("layout") else f32(6, 3, 7)
    weights = (f32(sides, blocks * 5, 7), f32(sides, blocks * 5, 5), f32(sides, 2 * blocks * 5))
    outputs = 3 if name == "LSTM" else 2
    return Case(name, (x,), weights, {"hidden_size": 5, **attributes}, opsets=(14,), outputs=outputs)


def started(name: str, blocks: int) -> Case:
    """A layer with initial states."""
    states = (f32(1, 3, 5),) * (2 if name == "LSTM" else 1)
    weights = (f32(1, blocks * 5, 7), f32(1, blocks * 5, 5), None, None, *states)
    attributes = {"hidden_size": 5} | ({"linear_before_reset": 1} if name == "GRU" else {})
    return Case(name, (f32(6, 3, 7),), weights, attributes, opsets=(7, 14), outputs=2)


RECURRENT = [
    *[recurrent(name, blocks, direction=direction, **more)
      for name, blocks, more in [("LSTM", 4, {}), ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {})]
      for direction in ("forward", "reverse", "bidirectional")],
    recurrent("RNN", 1, activations=["Relu"]),
    *[started(name, blocks) for name, blocks in [("LSTM", 4), ("GRU", 3), ("RNN", 1)]],
]  # fmt: skip
ATTENTION = [
    Case("Attention", (f32(2, 3, 4, 8), f32(2, 3, 5, 8), f32(2, 3, 5, 8)), opsets=(23,)),
    Case("Attention", (f32(2, 4, 12), f32(2, 4, 6), f32(2, 4, 6)), (), {"q_num_heads": 4, "kv_num_heads": 2,
         "is_causal": 1}, opsets=(23,)),
    Case("Attention", (f32(2, 3, 4, 8), f32(2, 3, 5, 8), f32(2, 3, 5, 8)), (f32(4, 5),), {"scale": 0.3}, opsets=(23,)),
    *[Case("RotaryEmbedding", (f32(2, 3, 4, 8), f32(6, 4), f32(6, 4), i64([0, 1, 2, 3], [1, 2, 3, 5])), (),
         {"interleaved": i}, opsets=(23,)) for i in (0, 1)],
]  # fmt: skip
CLASSICAL = [
    Case("Scaler", (f32(3, 4),), (), {"offset": [0.1, 0.2, 0.3, 0.4], "scale": [2.0, 3.0, 4.0, 5.0]}, domain=ML),
    *[Case("Normalizer", (positive(3, 4),), (), {"norm": norm}, domain=ML) for norm in ("MAX", "L1", "L2")],
    Case("LinearRegressor", (f32(3, 4),), (), {"coefficients": f32(8).tolist(), "intercepts": [0.1, 0.2],
         "targets": 2}, domain=ML),
    Case("LinearClassifier", (f32(3, 2),), (), {"coefficients": f32(6).tolist(), "intercepts": [0.1, 0.2, 0.3],
         "classlabels_ints": [0, 1, 2], "post_transform": "SOFTMAX"}, domain=ML, outputs=2, only=(1,)),
]  # fmt: skip
CASES = (
    ELEMENTWISE + PRODUCTS + CONVOLUTIONS + POOLS + NORMS + REDUCTIONS + MOVEMENTS + INDEXING + RESIZES + RECURRENT
    + ATTENTION + CLASSICAL
)  # fmt: skip
PAIRS = [(case, opset) for case in CASES for opset in case.opsets]


def expected_of(model: onnx.ModelProto, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{position}": array for position, array in enumerate(arrays)})


@pytest.mark.parametrize(("case", "opset"), PAIRS, ids=[f"{i}-{c.operator}-{o}" for i, (c, o) in enumerate(PAIRS)])
def test_it_computes_what_onnx_runtime_computes(case: Case, opset: int, tmp_path: Path) -> None:
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"this onnx knows the operators up to version {onnx.defs.onnx_opset_version()}")
    model = case.model(opset)
    expected = expected_of(model, case.inputs)
    for value, array in zip(model.graph.output, expected, strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, case.kind, [None] * array.ndim))
    (tmp_path / "case.onnx").write_bytes(model.SerializeToString())
    found = load_model(tmp_path / "case.onnx")(*(torch.from_numpy(array) for array in case.inputs))
    results = found if isinstance(found, tuple) else (found,)
    for result, array in zip(results, expected, strict=True):
        assert tuple(result.shape) == array.shape
        np.testing.assert_allclose(result.detach().numpy(), array, rtol=1e-4, atol=1e-5)
