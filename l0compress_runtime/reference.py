"""Dense reference implementations in numpy and float64: the slow ground truth that engines are compared with."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from l0compress_runtime.layers import (
    GATES,
    SparseConv,
    SparseEmbedding,
    SparseLinear,
    SparseRecurrent,
    float_weight,
)

Array = NDArray[Any]


def reference(layer: SparseLinear | SparseConv | SparseEmbedding, x: Array) -> Array:
    """Return the layer's output for x, accumulated and returned in float64.

    Example:
        >>> from scipy import sparse
        >>> from l0compress_runtime.layers import SparseLinear
        >>> weight = sparse.csr_array(np.array([[0, 2], [-1, 0]], np.float32))
        >>> reference(SparseLinear(weight, activation="relu"), np.ones((1, 2), np.float32))
        array([[2., 0.]])
    """
    dense = float_weight(layer).toarray().astype(np.float64)
    if isinstance(layer, SparseEmbedding):
        return dense[x]
    if isinstance(layer, SparseConv):
        summed = _convolved(layer, dense, x.astype(np.float64))
        bias_shape = (-1,) + (1,) * len(layer.kernel)
    else:
        summed = x.astype(np.float64) @ dense.T
        bias_shape = (-1,)
    if layer.bias is not None:
        summed = summed + layer.bias.reshape(bias_shape)
    return activated(layer.activation, summed)


def recurrent_reference(layer: SparseRecurrent, x: Array, *states: Array | None) -> tuple[Array, ...]:
    """Return the outputs of a recurrent layer: every hidden state, the last of them, and an LSTM's last cell state.

    Args:
        layer: the layer.
        x: (length, batch, in).
        states: initial states (directions, batch, hidden); None, or none at all, for zeros.

    Example:
        >>> from scipy import sparse
        >>> one = sparse.csr_array(np.ones((1, 1), np.float32))
        >>> y, last = recurrent_reference(SparseRecurrent("rnn_relu", "forward", one, one), np.ones((3, 1, 1)))
        >>> y.ravel(), last.ravel()
        (array([1., 2., 3.]), array([3.]))
    """
    length, batch, _ = x.shape
    size = GATES[layer.cell] * layer.hidden
    recurrent = float_weight(SparseLinear(layer.recurrent, scale=layer.recurrent_scale))
    products = [
        weight.toarray().astype(np.float64).reshape(layer.directions, size, -1)
        for weight in (float_weight(layer), recurrent)
    ]
    biases = np.zeros((layer.directions, 2, size)) if layer.bias is None else layer.bias.astype(np.float64)
    biases = biases.reshape(layer.directions, 2, size)
    given = [*states, *[None] * (layer.states - len(states))]
    carried = [
        np.zeros((layer.directions, batch, layer.hidden)) if state is None else state.astype(np.float64)
        for state in given
    ]
    y = np.zeros((length, layer.directions, batch, layer.hidden))
    for side in range(layer.directions):
        backward = layer.direction == "reverse" or side == 1
        state = tuple(one[side] for one in carried)
        for at in reversed(range(length)) if backward else range(length):
            from_input = x[at].astype(np.float64) @ products[0][side].T + biases[side, 0]
            state = _stepped(layer.cell, from_input, state, products[1][side], biases[side, 1])
            y[at, side] = state[0]
        for one, last in zip(carried, state, strict=True):
            one[side] = last
    return (y, *carried)


def _stepped(
    cell: str, from_input: Array, state: tuple[Array, ...], recurrent: Array, bias: Array
) -> tuple[Array, ...]:
    """Return the next state; the formulas are those of ONNX's operators."""
    hidden = state[0]
    if cell.startswith("rnn"):
        return (activated(cell.removeprefix("rnn_"), from_input + hidden @ recurrent.T + bias),)
    gates = GATES[cell]
    from_inputs, recurrents, biases = np.split(from_input, gates, 1), np.split(recurrent, gates), np.split(bias, gates)
    sums = [x + hidden @ weight.T + b for x, weight, b in zip(from_inputs, recurrents, biases, strict=True)]
    if cell == "lstm":
        i, o, f = (expit(total) for total in sums[:3])
        carried = f * state[1] + i * np.tanh(sums[3])
        return o * np.tanh(carried), carried
    z, r = (expit(total) for total in sums[:2])
    if cell == "gru":
        new = np.tanh(from_inputs[2] + (r * hidden) @ recurrents[2].T + biases[2])
    else:
        new = np.tanh(from_inputs[2] + r * (hidden @ recurrents[2].T + biases[2]))
    return ((1 - z) * new + z * hidden,)


def activated(activation: str | None, x: Array) -> Array:
    """Return the named activation of x in the dtype of x.

    Example:
        >>> activated("relu", np.array([-1.0, 2.0]))
        array([0., 2.])
    """
    if activation is None:
        return x
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "sigmoid":
        return expit(x)
    if activation == "silu":
        return x * expit(x)
    if activation == "tanh":
        return np.tanh(x)
    if activation == "gelu":
        return x * (erf(x * np.sqrt(0.5, dtype=x.dtype)) + 1) / 2
    inner = np.sqrt(2 / np.pi, dtype=x.dtype) * (x + x.dtype.type(0.044715) * x * x * x)
    return x * (np.tanh(inner) + 1) / 2


def _convolved(layer: SparseConv, dense: Array, x: Array) -> Array:
    """Sum what each kernel position contributes to every output."""
    sizes = layer.output_size(x.shape[2:])
    padded = np.pad(x, ((0, 0), (0, 0), *layer.padding))
    channels = layer.channels // layer.groups
    weight = dense.reshape(layer.groups, len(dense) // layer.groups, channels, *layer.kernel)
    out = np.zeros((len(x), layer.groups, weight.shape[1], *sizes))
    grouped = padded.reshape(len(x), layer.groups, channels, *padded.shape[2:])
    for position in product(*map(range, layer.kernel)):
        begins = [at * dilation for at, dilation in zip(position, layer.dilation, strict=True)]
        window = tuple(
            slice(begin, begin + stride * (size - 1) + 1, stride)
            for begin, stride, size in zip(begins, layer.stride, sizes, strict=True)
        )
        out += np.einsum("goc,ngc...->ngo...", weight[(..., *position)], grouped[(..., *window)])
    return out.reshape(len(x), len(dense), *sizes)
