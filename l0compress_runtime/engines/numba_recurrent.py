"""Recurrent layers of the numba engine: the sequence's product with the input at once, then one compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.engines.inputs import recurrent_input
from l0compress_runtime.engines.threads import WORTH_A_THREAD, run_parts, split_evenly
from l0compress_runtime.engines.workspace import PACKED_FLOATS, scratch
from l0compress_runtime.layers import SparseLinear, SparseRecurrent
from l0compress_runtime.recurrence import OneDirection, directions_of

Array = NDArray[Any]

# In a part shorter than a vector, each step computes the rest of the vector in vain.
FEWEST_SAMPLES = 16


class NumbaRecurrent:
    """The kernel of a recurrent layer. Threads share the directions and, if there are enough of them, the samples.

    Args:
        layer: the layer.
        threads: the most threads that a call uses.
        kernels: the module of compiled loops.
        compiled: builds a kernel of each direction's product with the input.
        weights: builds a weight in the form that the compiled loops take.
    """

    def __init__(
        self,
        layer: SparseRecurrent,
        threads: int,
        kernels: ModuleType,
        compiled: Callable[[SparseLinear], Callable[[Array], Array]],
        weights: Callable[[SparseLinear], Any],
    ) -> None:
        self._layer, self._threads, self._kernels = layer, threads, kernels
        self._directions: tuple[OneDirection, ...] = directions_of(layer)
        self._projects = [compiled(direction.input) for direction in self._directions]
        self._weights = [weights(direction.recurrent) for direction in self._directions]
        self(np.zeros((1, 1, layer.columns), np.float32))

    def __call__(self, x: Array, *states: Array | None) -> tuple[Array, ...]:
        x, last = recurrent_input(self._layer, x, states)
        length, batch, _ = x.shape
        y = np.empty((length, self._layer.directions, batch, self._layer.hidden), np.float32)
        # A cell without a cell state uses the memory of one for intermediate results.
        both = (last[0], last[-1] if len(last) > 1 else np.zeros_like(last[0]))
        projected = [project(x) for project in self._projects]
        # As for a product, for each step.
        work = self._layer.recurrent.nnz * length * max(batch, 8) // 32
        threads = min(self._threads, 1 + work // WORTH_A_THREAD)
        parts = [
            partial(self._run, (*part, side, self._directions[side].backward), projected[side], both, y)
            for side in range(len(self._directions))
            for part in self._ranges(batch, threads)
        ]
        run_parts(parts, threads=threads)
        return (y, *last)

    def _ranges(self, batch: int, threads: int) -> list[tuple[int, int]]:
        shares = -(-threads // len(self._directions))
        if batch < shares * FEWEST_SAMPLES:
            return [(0, batch)]
        return split_evenly(batch, shares, FEWEST_SAMPLES)

    def _run(self, part: tuple[int, int, int, bool], projected: Array, states: tuple[Array, Array], y: Array) -> None:
        begin, end, side, _ = part
        units, rows = self._layer.hidden, projected.shape[2]
        width = 1 if end - begin == 1 else self._kernels.tile_width(end - begin, self._kernels.WIDEST)
        while width > FEWEST_SAMPLES and width * units > PACKED_FLOATS:
            width //= 2
        memory = scratch(width * units, width * units, width * rows, width * rows)
        cell = self._kernels.CELLS[self._layer.cell]
        self._kernels.recur(self._weights[side], cell, part, projected, memory, states, y)
