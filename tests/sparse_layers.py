"""Random sparse layers, and the same layers as ONNX Runtime computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse

from l0compress_runtime.layers import GATES, SparseConv, SparseLinear, SparseRecurrent, float_weight

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
    return _session_output(
        [node, helper.make_node("Add", ["y", "b"], ["z"])],
        {"x": x},
        {"w": weight, "b": bias},
        ["z"],
    )[0]


OPERATORS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru_reset_after": ("GRU", {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}),
}


def recurrent_layer(
    rng: np.random.Generator, cell: str, direction: str, size: tuple[int, int], density: float = 0.3, **options: Any
) -> SparseRecurrent:
    """A recurrent layer of (in, hidden) whose states neither vanish nor grow; options are dtype and bias."""
    hidden = size[1]
    dtype = options.get("dtype", "float32")
    rows = (1 + (direction == "bidirectional")) * GATES[cell] * hidden
    weight, recurrent = (sparse_matrix(rng, (rows, width), density, np.dtype(dtype)) for width in size)
    if dtype == "float32":
        recurrent.data *= np.float32(0.7 / max(density * hidden, 1))
    scales = [scale_of(rng, rows, dtype) for _ in range(2)]
    if scales[1] is not None:
        scales[1] /= np.float32(max(density * hidden, 1))
    bias = vector(rng, 2 * rows) if options.get("bias", True) else None
    return SparseRecurrent(cell, direction, weight, recurrent, bias, *scales)


def onnxruntime_recurrent(layer: SparseRecurrent, x: Array, *states: Array | None) -> list[Array]:
    """What ONNX Runtime's operator makes of x with the layer's weights written out densely."""
    operator, options = OPERATORS[layer.cell]
    options = {name: value * layer.directions if isinstance(value, list) else value for name, value in options.items()}
    gates = GATES[layer.cell] * layer.hidden
    recurrent = float_weight(SparseLinear(layer.recurrent, scale=layer.recurrent_scale))
    weights = {
        "w": float_weight(layer).toarray().reshape(layer.directions, gates, layer.columns),
        "r": recurrent.toarray().reshape(layer.directions, gates, layer.hidden),
    }
    if layer.bias is not None:
        weights["b"] = layer.bias.reshape(layer.directions, 2 * gates)
    given = {name: state for name, state in zip(("h", "c"), states, strict=False) if state is not None}
    outputs = ["y", "last", "cell"][: 1 + layer.states]
    inputs = ["x", "w", "r", "b" if "b" in weights else "", "", *(name if name in given else "" for name in ("h", "c"))]
    node = helper.make_node(
        operator, inputs[: 5 + layer.states], outputs, direction=layer.direction, hidden_size=layer.hidden, **options
    )
    return _session_output([node], {"x": x, **given}, weights, outputs)


def _session_output(nodes: Any, feeds: dict[str, Array], weights: dict[str, Array], outputs: list[str]) -> list[Array]:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(outputs, feeds)]
