"""The default engine: scipy's CSR products, with the rows of the weight split over threads.

scipy releases the interpreter's lock within a product, so that threads run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l0compress.runtime.engines.inputs import conv_input, embedding_input, linear_input
from l0compress.runtime.engines.threads import run_parts, split_rows
from l0compress.runtime.layers import Layer, SparseConv, SparseEmbedding, SparseLinear, float_weight, matrix_shape
from l0compress.runtime.reference import activated

Array = NDArray[Any]


@dataclass(frozen=True)
class ScipyEngine:
    """Sparse products by scipy; runs wherever the package does."""

    name: str = "scipy"

    def available(self) -> bool:
        """True: scipy is what the layers are made of."""
        return True

    def supports(self, layer: Layer) -> bool:
        """True: every layer has a form in scipy."""
        return isinstance(layer, Layer)

    def compile(self, layer: Layer, *, threads: int) -> Callable[[Array], Array]:
        """See :class:`l0compress.runtime.engines.Engine`."""
        weight = float_weight(layer)
        if isinstance(layer, SparseEmbedding):
            return partial(_embedding, layer, weight)
        blocks = _Blocks(weight, threads)
        if isinstance(layer, SparseConv):
            if layer.groups > 1:
                weight = _ungrouped(weight, layer)
                blocks = _Blocks(weight, threads)
            return partial(_conv, layer, blocks)
        return partial(_linear, layer, blocks)


class _Blocks:
    """A matrix as blocks of rows, one a thread."""

    def __init__(self, weight: sparse.csr_array, threads: int) -> None:
        self.num_rows, _ = matrix_shape(weight)
        self.ranges = split_rows(weight.indptr, threads)
        self.blocks = [weight[begin:end] for begin, end in self.ranges]

    def times(self, dense: Array, bias: Array | None, activation: str | None) -> Array:
        """(rows, n): activation(W @ dense + bias) for dense of shape (columns, n)."""
        out = np.empty((self.num_rows, dense.shape[1]), np.float32)

        def part(block: sparse.csr_array, begin: int, end: int) -> None:
            summed = block @ dense
            if bias is not None:
                summed += bias[begin:end, None]
            out[begin:end] = activated(activation, summed)

        if self.blocks:
            run_parts([partial(part, block, *rows) for block, rows in zip(self.blocks, self.ranges, strict=True)])
        return out


def _linear(layer: SparseLinear, blocks: _Blocks, x: Array) -> Array:
    rows = linear_input(layer, x)
    out = blocks.times(np.ascontiguousarray(rows.T), layer.bias, layer.activation)
    return np.ascontiguousarray(out.T).reshape(*x.shape[:-1], blocks.num_rows)


def _conv(layer: SparseConv, blocks: _Blocks, x: Array) -> Array:
    x = conv_input(layer, x)
    sizes = layer.output_size(x.shape[2:])
    columns = _im2col(layer, x, sizes)
    out = np.empty((len(x), blocks.num_rows, prod(sizes)), np.float32)
    for image, matrix in enumerate(columns):
        out[image] = blocks.times(matrix, layer.bias, layer.activation)
    return out.reshape(len(x), blocks.num_rows, *sizes)


def _embedding(layer: SparseEmbedding, weight: sparse.csr_array, x: Array) -> Array:
    rows = embedding_input(layer, x)
    return weight[rows].toarray().reshape(*x.shape, matrix_shape(weight)[1])


def _im2col(layer: SparseConv, x: Array, sizes: tuple[int, ...]) -> Array:
    """(n, channels * prod(kernel), prod(sizes)): for each position of the kernel what it reads for each output."""
    if prod(layer.kernel) == 1 and sizes == x.shape[2:] and not np.any(layer.padding):
        return x.reshape(*x.shape[:2], prod(sizes))
    padded = np.pad(x, ((0, 0), (0, 0), *layer.padding))
    columns = np.empty((*x.shape[:2], *layer.kernel, *sizes), np.float32)
    for position in product(*map(range, layer.kernel)):
        begins = [at * dilation for at, dilation in zip(position, layer.dilation, strict=True)]
        window = tuple(
            slice(begin, begin + stride * (size - 1) + 1, stride)
            for begin, stride, size in zip(begins, layer.stride, sizes, strict=True)
        )
        columns[(slice(None), slice(None), *position)] = padded[(..., *window)]
    return columns.reshape(len(x), -1, prod(sizes))


def _ungrouped(weight: sparse.csr_array, layer: SparseConv) -> sparse.csr_array:
    """The weight of the same convolution with one group: indices moved to where their group's channels are."""
    rows, width = matrix_shape(weight)
    group = np.arange(rows) // (rows // layer.groups)
    indices = weight.indices + np.repeat(group, np.diff(weight.indptr)) * width
    return sparse.csr_array((weight.data, indices, weight.indptr), shape=(rows, width * layer.groups))
