"""The default engine: scipy's sparse products, in the format that suits the batch, split across threads.

scipy releases the interpreter's lock within a product, so threads run in parallel. CSR is best for one sample. For
several it is CSC: CSR adds into the same short row again and again and waits for each sum, CSC adds into a different
row each time. CSC needs few enough rows to write to, and batch columns, for them to stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l0compress_runtime.engines.inputs import conv_input, embedding_input, linear_input
from l0compress_runtime.engines.scipy_recurrent import ScipyRecurrent
from l0compress_runtime.engines.threads import PARTS_A_THREAD, WORTH_A_THREAD, run_parts, split_evenly, split_rows
from l0compress_runtime.layers import (
    Layer,
    SparseConv,
    SparseEmbedding,
    SparseLinear,
    SparseRecurrent,
    float_weight,
    matrix_shape,
)
from l0compress_runtime.reference import activated

Array = NDArray[Any]

# Samples per chunk, and rows per block: 256 KiB of sums, which stay in a second-level cache.
CHUNK = 64
BLOCK_ROWS = 1024

# Samples transposed at a time: rows that are a power of two apart evict each other from the cache.
PACKED_AT_ONCE = 8


@dataclass(frozen=True)
class ScipyEngine:
    """Sparse products by scipy; runs wherever the package does."""

    name: str = "scipy"

    def available(self) -> bool:
        """Return True: the layers are made of scipy's matrices."""
        return True

    def supports(self, layer: Layer) -> bool:
        """Return True: every layer has a form in scipy."""
        return isinstance(layer, Layer)

    def compile(self, layer: Layer, *, threads: int) -> Callable[..., Any]:
        """Compile a layer; see :class:`l0compress_runtime.engines.Engine`."""
        if isinstance(layer, SparseConv):
            return _Conv(layer, threads)
        if isinstance(layer, SparseEmbedding):
            return partial(_embedding, layer, float_weight(layer))
        if isinstance(layer, SparseRecurrent):
            return ScipyRecurrent(layer, partial(_Linear, threads=threads))
        return _Linear(layer, threads)


@dataclass(frozen=True)
class _Block:
    """Neighbouring rows of a layer's weight with the epilogue of their sums."""

    weight: Any
    begin: int
    end: int
    bias: Array | None
    activation: str | None

    def __call__(self, x: Array) -> Array:
        """Return activation(W @ x + bias) for x of shape (columns,) or (columns, n)."""
        sums = self.weight @ x
        if self.bias is not None:
            bias = self.bias[self.begin : self.end]
            sums += bias if x.ndim == 1 else bias[:, None]
        return activated(self.activation, sums)


def _blocks(weight: sparse.csr_array, layer: SparseLinear | SparseConv, count: int) -> list[_Block]:
    ranges = split_rows(weight.indptr, count)
    return [_Block(weight[begin:end], begin, end, layer.bias, layer.activation) for begin, end in ranges]


class _Linear:
    """The kernel of a linear layer."""

    def __init__(self, layer: SparseLinear, threads: int) -> None:
        self._layer, self._most_threads = layer, threads
        self._weight = float_weight(layer)

    def __call__(self, x: Array) -> Array:
        samples = linear_input(self._layer, x)
        if len(samples) == 1 and len(self._csr) == 1:
            return self._csr[0](samples[0]).reshape(*x.shape[:-1], self._layer.shape[0])
        y = np.empty((len(samples), self._layer.shape[0]), np.float32)
        if len(samples) == 1:
            run_parts([partial(_multiply_one, samples, block, y) for block in self._csr], threads=self._threads(1))
        elif len(samples) <= CHUNK:
            self._share_rows(samples, y)
        else:
            self._share_samples(samples, y)
        return y.reshape(*x.shape[:-1], y.shape[1])

    def _share_rows(self, samples: Array, y: Array) -> None:
        """Split the rows across threads, for too few samples to split."""
        threads, whole = self._threads(len(samples)), (0, len(samples))
        columns = np.empty(samples.shape[::-1], np.float32)
        ranges = split_evenly(len(samples), threads, PACKED_AT_ONCE)
        run_parts([partial(_pack, samples, part, columns) for part in ranges], threads=threads)
        run_parts([partial(_multiply, columns, whole, [block], y) for block in self._csc], threads=threads)

    def _share_samples(self, samples: Array, y: Array) -> None:
        threads = self._threads(len(samples))
        chunks = split_evenly(len(samples), -(-len(samples) // (CHUNK * threads)) * threads, PACKED_AT_ONCE)

        def run(chunk: tuple[int, int]) -> None:
            begin, end = chunk
            columns = np.empty((samples.shape[1], end - begin), np.float32)
            _pack(samples[begin:end], (0, end - begin), columns)
            _multiply(columns, chunk, self._csc, y)

        run_parts([partial(run, chunk) for chunk in chunks], threads=threads)

    def _threads(self, samples: int) -> int:
        work = self._weight.nnz * max(samples, 4) // 8
        return min(self._most_threads, 1 + work // WORTH_A_THREAD)

    @cached_property
    def _csr(self) -> list[_Block]:
        threads = self._threads(1)
        return _blocks(self._weight, self._layer, 1 if threads == 1 else threads * PARTS_A_THREAD)

    @cached_property
    def _csc(self) -> list[_Block]:
        threads = self._threads(CHUNK)
        blocks = _blocks(self._weight, self._layer, -(-self._layer.shape[0] // (BLOCK_ROWS * threads)) * threads)
        return [replace(block, weight=block.weight.tocsc()) for block in blocks]


def _multiply_one(x: Array, block: _Block, y: Array) -> None:
    y[0, block.begin : block.end] = block(x[0])


def _multiply(columns: Array, chunk: tuple[int, int], blocks: list[_Block], y: Array) -> None:
    begin, end = chunk
    for block in blocks:
        y[begin:end, block.begin : block.end] = block(columns).T


def _pack(x: Array, part: tuple[int, int], columns: Array) -> None:
    """Set columns[j, i] = x[i, j] for the samples of a part."""
    for begin in range(*part, PACKED_AT_ONCE):
        end = min(begin + PACKED_AT_ONCE, part[1])
        columns[:, begin:end] = x[begin:end].T


class _Conv:
    """The kernel of a convolution: a product with what each kernel position reads (im2col), image by image."""

    def __init__(self, layer: SparseConv, threads: int) -> None:
        self._layer, self._threads = layer, threads
        self._weight = _ungrouped(float_weight(layer), layer)
        self._blocks = _blocks(self._weight, layer, threads)

    def __call__(self, x: Array) -> Array:
        x = conv_input(self._layer, x)
        sizes = self._layer.output_size(x.shape[2:])
        y = np.empty((len(x), matrix_shape(self._weight)[0], prod(sizes)), np.float32)
        work = self._weight.nnz * prod(sizes) * len(x) // 8
        threads = min(self._threads, 1 + work // WORTH_A_THREAD)

        def whole(image: int) -> None:
            columns = _im2col(self._layer, x[image], sizes)
            for block in self._blocks:
                y[image, block.begin : block.end] = block(columns)

        def shared(image: int, columns: Array, block: _Block) -> None:
            y[image, block.begin : block.end] = block(columns)

        if len(x) >= threads:
            run_parts([partial(whole, image) for image in range(len(x))], threads=threads)
        else:
            for image in range(len(x)):
                columns = _im2col(self._layer, x[image], sizes)
                run_parts([partial(shared, image, columns, block) for block in self._blocks], threads=threads)
        return y.reshape(*y.shape[:2], *sizes)


def _im2col(layer: SparseConv, image: Array, sizes: tuple[int, ...]) -> Array:
    """Return (channels * prod(kernel), prod(sizes)): for each kernel position what it reads for each output."""
    if prod(layer.kernel) == 1 and sizes == image.shape[1:] and not np.any(layer.padding):
        return image.reshape(len(image), prod(sizes))
    padded = np.pad(image, ((0, 0), *layer.padding))
    columns = np.empty((len(image), *layer.kernel, *sizes), np.float32)
    for position in product(*map(range, layer.kernel)):
        begins = [at * dilation for at, dilation in zip(position, layer.dilation, strict=True)]
        window = tuple(
            slice(begin, begin + stride * (size - 1) + 1, stride)
            for begin, stride, size in zip(begins, layer.stride, sizes, strict=True)
        )
        columns[(slice(None), *position)] = padded[(slice(None), *window)]
    return columns.reshape(len(image) * prod(layer.kernel), prod(sizes))


def _ungrouped(weight: sparse.csr_array, layer: SparseConv) -> sparse.csr_array:
    """Return the weight of the same convolution with one group: indices moved to their group's channels."""
    if layer.groups == 1:
        return weight
    rows, width = matrix_shape(weight)
    group = np.arange(rows) // max(rows // layer.groups, 1)
    indices = weight.indices + np.repeat(group, np.diff(weight.indptr)) * width
    return sparse.csr_array((weight.data, indices, weight.indptr), shape=(rows, width * layer.groups))


def _embedding(layer: SparseEmbedding, weight: sparse.csr_array, x: Array) -> Array:
    rows = embedding_input(layer, x)
    return weight[rows].toarray().reshape(*x.shape, matrix_shape(weight)[1])
