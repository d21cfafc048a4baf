"""What a layer computes, densely in numpy and in float64: the truth that engines are compared with, and slow."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from l0compress.runtime.layers import Layer, SparseConv, SparseEmbedding, float_weight

Array = NDArray[Any]


def reference(layer: Layer, x: Array) -> Array:
    """The layer's output for x, accumulated in float64 and returned in it.

    Example:
        >>> from scipy import sparse
        >>> from l0compress.runtime.layers import SparseLinear
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


def activated(activation: str | None, x: Array) -> Array:
    """The named activation of x in the dtype of x.

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
    """Sum over the positions of the kernel of what each contributes to every output."""
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
