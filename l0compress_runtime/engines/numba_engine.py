"""The fastest engine: compiled loops that copy only what a thread is about to read.

A product with a batch lays samples side by side, as wide as a vector register; a convolution reads shifted rows of a
padded image, one nonzero after another, and needs no im2col matrix. Threads get parts of the batch or of the image
if there are enough, otherwise rows of the weight with equal numbers of nonzeros.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from threading import get_ident
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.engines.inputs import embedding_input, linear_input
from l0compress_runtime.engines.numba_convolution import NumbaConv
from l0compress_runtime.engines.numba_recurrent import NumbaRecurrent
from l0compress_runtime.engines.threads import PARTS_A_THREAD, WORTH_A_THREAD, run_parts, split_evenly, split_rows
from l0compress_runtime.engines.workspace import PACKED_FLOATS, scratch
from l0compress_runtime.errors import NOTHING_RUN, InputError
from l0compress_runtime.layers import Layer, SparseConv, SparseEmbedding, SparseLinear, SparseRecurrent, matrix_shape

Array = NDArray[Any]

# Batch sizes whose plans are kept.
KEPT_PLANS = 64


@dataclass(frozen=True)
class NumbaEngine:
    """Loops compiled by numba when a layer is compiled; the machine code is cached on disk."""

    name: str = "numba"

    def available(self) -> bool:
        """Return whether numba is installed."""
        return find_spec("numba") is not None

    def supports(self, layer: Layer) -> bool:
        """Return True: there is a loop for every layer."""
        return isinstance(layer, Layer)

    def compile(self, layer: Layer, *, threads: int) -> Callable[..., Any]:
        """Compile a layer; see :class:`l0compress_runtime.engines.Engine`.

        Raises:
            InputError: numba cannot be imported.
        """
        kernels = _kernels()
        if isinstance(layer, SparseConv):
            return NumbaConv(layer, threads, kernels)
        if isinstance(layer, SparseEmbedding):
            return partial(_embedding, layer, _weights(layer, kernels), kernels)
        if isinstance(layer, SparseRecurrent):
            linear = partial(_Linear, threads=threads, kernels=kernels)
            weights = partial(_weights, kernels=kernels)
            return NumbaRecurrent(layer, threads, _kernels("numba_recurrent_kernels"), linear, weights)
        return _Linear(layer, threads, kernels)


def _kernels(name: str = "numba_kernels") -> ModuleType:
    try:
        return importlib.import_module(f"l0compress_runtime.engines.{name}")
    except ImportError as error:
        raise InputError(
            f"the engine 'numba' cannot run here: {error}.",
            fix="Install a numba that fits the installed numpy: pip install -U 'l0compress-runtime[numba]'.",
            assurance=NOTHING_RUN,
        ) from error


def _weights(layer: SparseLinear | SparseEmbedding, kernels: ModuleType) -> Any:
    """Return the fields of Weights for a layer, with column indices in two bytes where they fit."""
    weight = layer.weight
    rows, columns = matrix_shape(weight)
    weights = kernels.Weights(
        weight.data,
        weight.indices.astype(np.uint16 if columns <= 1 << 16 else np.int32),
        weight.indptr.astype(np.int64),
        np.ones(rows, np.float32) if layer.scale is None else layer.scale,
        np.zeros(rows, np.float32) if isinstance(layer, SparseEmbedding) or layer.bias is None else layer.bias,
        kernels.NUMBERS[None if isinstance(layer, SparseEmbedding) else layer.activation],
    )
    return tuple(weights)


@dataclass(frozen=True)
class _Plan:
    """How a batch of one size is multiplied: the parts, and the scratch memory per part."""

    threads: int
    parts: tuple[tuple[int, int, int, int], ...]
    memory: tuple[int, int]
    packs_all: bool  # A part packs the whole batch: parts run by one thread can share it.


class _Linear:
    """The kernel of a linear layer."""

    def __init__(self, layer: SparseLinear, threads: int, kernels: ModuleType) -> None:
        self._layer, self._threads, self._kernels = layer, threads, kernels
        self._rows = layer.shape[0]
        self._weights = _weights(layer, kernels)
        # No reference cycles: a released bundle is freed at once, without waiting for the garbage collector.
        self._plan = lru_cache(maxsize=KEPT_PLANS)(partial(_planned, layer, kernels, threads))
        for samples in (1, 2):
            self(np.zeros((samples, layer.shape[1]), np.float32))

    def __call__(self, x: Array) -> Array:
        samples = linear_input(self._layer, x)
        y = np.empty((len(samples), self._rows), np.float32)
        plan = self._plan(len(samples))
        run = self._one if len(samples) == 1 else partial(self._batch, plan, set())
        if len(plan.parts) == 1:
            run(samples, y, plan.parts[0])
        else:
            run_parts([partial(run, samples, y, part) for part in plan.parts], threads=plan.threads)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self._rows)

    def _one(self, x: Array, y: Array, part: Any) -> None:
        self._kernels.vector_product(self._weights, x, part, y)

    def _batch(self, plan: _Plan, packed_by: set[int], x: Array, y: Array, part: Any) -> None:
        """Multiply a part; ``packed_by``: threads whose scratch holds all samples, shared by parts of the same call."""
        memory, thread = scratch(*plan.memory), get_ident()
        self._kernels.batch_product(self._weights, x, part, thread in packed_by, memory, y)
        if plan.packs_all:
            packed_by.add(thread)


def _planned(layer: SparseLinear, kernels: ModuleType, most_threads: int, samples: int) -> _Plan:
    rows, columns = layer.shape
    # A nonzero costs about as much for one sample as for the lanes of half a register.
    work = layer.weight.nnz * max(samples, 8) // 32
    threads = min(most_threads, 1 + work // WORTH_A_THREAD)
    if not samples or not rows:
        parts = []
    elif samples >= 2 * kernels.LANES * threads:
        parts = [(*part, 0, rows) for part in split_evenly(samples, threads, kernels.LANES)]
    else:
        shares = 1 if threads == 1 else threads * PARTS_A_THREAD
        parts = [(0, samples, *part) for part in split_rows(layer.weight.indptr.astype(np.int64), shares)]
    most = max((end - begin for begin, end, _, _ in parts), default=0)
    width = kernels.tile_width(most, kernels.WIDEST)
    while width > kernels.LANES and width * columns > PACKED_FLOATS:
        width //= 2
    return _Plan(threads, tuple(parts), (width * columns, width * kernels.ROWS), packs_all=samples == most <= width)


def _embedding(layer: SparseEmbedding, weights: Any, kernels: ModuleType, x: Array) -> Array:
    rows = embedding_input(layer, x)
    width = matrix_shape(layer.weight)[1]
    out = np.empty((len(rows), width), np.float32)
    kernels.gather(weights, rows, out)
    return out.reshape(*x.shape, width)
