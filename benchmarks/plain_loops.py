"""The inner loops of the numba engine in plain Python: what ``numba_simd`` is weighed against by ``engine_loops.py``.

The same names and arguments as in :mod:`l0compress_runtime.engines.numba_simd`, without intrinsics: the compiler
vectorises the innermost loops by itself. It may reorder sums (``reassoc``), more than the explicit code allows itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from l0compress_runtime.engines.numba_vector_math import reordered

# Positions of an image whose sums stay in the first-level cache while the nonzeros of a row are added to them.
CHUNK = 1024


def make_dot() -> Any:
    """``dot`` as the engine has it where gathers are fast."""
    # The kernels call this while they are imported, below the loop.
    from l0compress_runtime.engines.numba_kernels import plain_dot

    return plain_dot


def make_tile(width: int) -> Any:
    """``tile`` for ``width`` samples side by side; the sums go through memory once for every four nonzeros."""
    is_short = width <= 8

    @reordered
    def tile(weights, row, source, out, at):
        start, stop = weights.starts[row], weights.starts[row + 1]
        # The first start is 0, which the compiler does not know: it would unroll a loop of known length instead of
        # vectorising it. A short one does better so.
        size = width if is_short else width * (weights.starts[0] + 1)
        sums = out[at : at + size]
        for t in range(size):
            sums[t] = np.float32(0)
        whole = start + (stop - start) // 4 * 4
        for k in range(start, whole, 4):
            v0, v1, v2, v3 = (
                np.float32(weights.values[k]),
                np.float32(weights.values[k + 1]),
                np.float32(weights.values[k + 2]),
                np.float32(weights.values[k + 3]),
            )
            x0 = source[np.int64(weights.indices[k]) * size :][:size]
            x1 = source[np.int64(weights.indices[k + 1]) * size :][:size]
            x2 = source[np.int64(weights.indices[k + 2]) * size :][:size]
            x3 = source[np.int64(weights.indices[k + 3]) * size :][:size]
            for t in range(size):
                sums[t] += (v0 * x0[t] + v1 * x1[t]) + (v2 * x2[t] + v3 * x3[t])
        for k in range(whole, stop):
            value, x = np.float32(weights.values[k]), source[np.int64(weights.indices[k]) * size :][:size]
            for t in range(size):
                sums[t] += value * x[t]
        for t in range(size):
            sums[t] = sums[t] * weights.scale[row] + weights.bias[row]

    return tile


def make_line(*, beyond: bool) -> Any:
    """``line``: one shifted line of the image is added after another. Nothing is computed beyond the size."""
    multiple = 1 if beyond else 4

    @reordered
    def line(weights, row, source, base, out, at, size):
        end = size // multiple * multiple
        for begin in range(0, end, CHUNK):
            count = min(CHUNK, end - begin)
            read, written = base + begin, at + begin
            for t in range(count):
                out[np.uint64(written + t)] = np.float32(0)
            for k in range(weights.starts[row], weights.starts[row + 1]):
                value, first = np.float32(weights.values[k]), read + np.int64(weights.indices[k])
                for t in range(count):
                    out[np.uint64(written + t)] += value * source[np.uint64(first + t)]
            for t in range(count):
                out[np.uint64(written + t)] = out[np.uint64(written + t)] * weights.scale[row] + weights.bias[row]

    return line


def make_transpose(width: int) -> Any:
    """``transpose`` of squares of one width, element by element."""

    @reordered
    def transpose(source, at, pitch, last, out, out_at, out_pitch, out_last):
        for i in range(width):
            read = at + min(i, last) * pitch
            for j in range(width):
                out[np.uint64(out_at + min(j, out_last) * out_pitch + i)] = source[np.uint64(read + j)]

    return transpose
