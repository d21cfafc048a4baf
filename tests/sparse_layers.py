"""Random sparse layers, and the same layers as ONNX Runtime computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse

from l0compress.runtime.layers import SparseConv, SparseLinear, float_weight

Array = NDArray[Any]

# int8 values and what they stand for differ from float32 ones in both.
DTYPES = ("float32", "int8")


def sparse_matrix(rng: np.random.Generator, shape: tuple[int, int], density: float, dtype: Any = np.float32) -> Any:
    """CSR with about that density, nonzeros of either sign."""
    dense = np.where(rng.random(shape) < density, rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape), 0)
    if dtype == np.int8:
        dense = np.where(dense != 0, rng.choice([-127, -60, -3, 3, 40, 127], shape), 0)
    return sparse.csr_array(dense.astype(dtype))


def vector(rng: np.random.Generator, size: int) -> Array:
    return rng.normal(size=size).astype(np.float32)


def scale_of(rng: np.random.Generator, rows: int, dtype: str) -> Array | None:
    return rng.uniform(0.005, 0.02, rows).astype(np.float32) if dtype == "int8" else None


def noise(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def onnxruntime_output(layer: SparseLinear | SparseConv, x: Array) -> Array:
    """What ONNX Runtime makes of x with the layer's weight written out densely and no activation."""
    weight = float_weight(layer).toarray()
    if isinstance(layer, SparseLinear):
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = weight.T
    else:
        begins, ends = zip(*layer.padding, strict=True)
        node = helper.make_node(
            "Conv",
            ["x", "w"],
            ["y"],
            strides=layer.stride,
            dilations=layer.dilation,
            pads=[*begins, *ends],
            group=layer.groups,
        )
        weight = weight.reshape(len(weight), -1, *layer.kernel)
    bias = np.zeros(layer.weight.shape[0], np.float32) if layer.bias is None else layer.bias
    bias = bias.reshape(-1, *[1] * len(layer.kernel)) if isinstance(layer, SparseConv) else bias
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["y", "b"], ["z"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(weight), "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": x})
    return np.asarray(out)
