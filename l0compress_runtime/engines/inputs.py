"""Checks that every kernel makes of its input before it touches memory."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.errors import NOTHING_COMPUTED, InputError
from l0compress_runtime.layers import SparseConv, SparseEmbedding, SparseLinear, SparseRecurrent, matrix_shape

Array = NDArray[Any]

_FLOAT32 = np.dtype(np.float32)


def linear_input(layer: SparseLinear, x: Array) -> Array:
    """Return x as contiguous rows of shape (n, in)."""
    columns = layer.shape[1]
    if x.dtype != _FLOAT32 or x.ndim < 1 or x.shape[-1] != columns:
        raise InputError(
            f"a sparse linear layer takes float32 (..., {columns}), but was given {x.dtype} {x.shape}.",
            fix="Pass an array of that shape and dtype.",
            assurance=NOTHING_COMPUTED,
        )
    x = _plain(x)
    return x if x.ndim == 2 else x.reshape(prod(x.shape[:-1]), columns)


def conv_input(layer: SparseConv, x: Array) -> Array:
    """Return x as a contiguous array of shape (n, channels, *spatial)."""
    dims = len(layer.kernel)
    if x.dtype != _FLOAT32 or x.ndim != dims + 2 or x.shape[1] != layer.channels:
        raise InputError(
            f"a sparse convolution takes float32 (n, {layer.channels}, {dims} spatial dimensions), but was given "
            f"{x.dtype} {x.shape}.",
            fix="Pass an array of that shape and dtype.",
            assurance=NOTHING_COMPUTED,
        )
    return _plain(x)


def embedding_input(layer: SparseEmbedding, x: Array) -> Array:
    """Return the requested rows, flat, from 0 to the last."""
    rows, _ = matrix_shape(layer.weight)
    if x.dtype.kind not in "iu" or (x.size and not (-rows <= x.min() and x.max() < rows)):
        raise InputError(
            f"a sparse embedding takes integers from {-rows} to {rows - 1}, but was given {x.dtype}"
            + (f" from {x.min()} to {x.max()}" if x.size else "")
            + ".",
            fix="Pass indices in that range.",
            assurance=NOTHING_COMPUTED,
        )
    flat = x.reshape(-1).astype(np.intp)
    return np.where(flat < 0, flat + rows, flat)


def recurrent_input(layer: SparseRecurrent, x: Array, states: tuple[Array | None, ...]) -> tuple[Array, list[Array]]:
    """Return x as contiguous (length, batch, in), and copied states (directions, batch, hidden), zeros for None."""
    if x.dtype != _FLOAT32 or x.ndim != 3 or x.shape[2] != layer.columns:
        raise InputError(
            f"a sparse recurrent layer takes float32 (length, batch, {layer.columns}), but was given {x.dtype} "
            f"{x.shape}.",
            fix="Pass an array of that shape and dtype.",
            assurance=NOTHING_COMPUTED,
        )
    shape = (layer.directions, x.shape[1], layer.hidden)
    for state in states:
        if state is not None and (state.dtype != np.float32 or state.shape != shape):
            raise InputError(
                f"a sparse recurrent layer takes initial states of float32 {shape}, but was given {state.dtype} "
                f"{state.shape}.",
                fix="Pass arrays of that shape and dtype.",
                assurance=NOTHING_COMPUTED,
            )
    if len(states) > layer.states:
        raise InputError(
            f"a sparse recurrent layer with the cell {layer.cell!r} takes {layer.states} initial state(s), but was "
            f"given {len(states)}.",
            fix="Pass no more.",
            assurance=NOTHING_COMPUTED,
        )
    given = [*states, *[None] * (layer.states - len(states))]
    begin = [np.zeros(shape, np.float32) if state is None else np.array(state, order="C") for state in given]
    return _plain(x), begin


def _plain(x: Array) -> Array:
    """Return x as a contiguous, aligned and writeable array: compiled loops would be recompiled for any other kind."""
    return x if x.flags.carray else np.require(x, requirements=("C", "A", "W"))
