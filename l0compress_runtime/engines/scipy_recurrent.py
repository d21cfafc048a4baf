"""Recurrent layers of the scipy engine: the sequence's product with the input at once, then a loop over its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from l0compress_runtime.engines.inputs import recurrent_input
from l0compress_runtime.layers import SparseRecurrent, float_weight, matrix_shape
from l0compress_runtime.recurrence import OneDirection, directions_of

Array = NDArray[Any]
Project = Callable[[Array], Array]


class ScipyRecurrent:
    """The kernel of a recurrent layer.

    Args:
        layer: the layer.
        compiled: builds a kernel of each direction's product with the input.
    """

    def __init__(self, layer: SparseRecurrent, compiled: Callable[[Any], Project]) -> None:
        self._layer = layer
        directions = directions_of(layer)
        self._projects = [compiled(direction.input) for direction in directions]
        self._loops = [_Loop(layer.cell, direction) for direction in directions]

    def __call__(self, x: Array, *states: Array | None) -> tuple[Array, ...]:
        x, states_now = recurrent_input(self._layer, x, states)
        length, batch, _ = x.shape
        y = np.empty((length, self._layer.directions, batch, self._layer.hidden), np.float32)
        for side, (project, loop) in enumerate(zip(self._projects, self._loops, strict=True)):
            loop(project(x), [state[side] for state in states_now], y[:, side])
        return (y, *states_now)


class _Loop:
    """The steps of one direction. States are columns, one per sample, as a sparse product needs them."""

    def __init__(self, cell: str, direction: OneDirection) -> None:
        self._cell, self._backward = cell, direction.backward
        self._csr = float_weight(direction.recurrent)
        bias = direction.recurrent.bias
        self._bias = None if bias is None else bias[:, None]

    def __call__(self, projected: Array, states: Sequence[Array], y: Array) -> None:
        """Run over ``projected`` (length, batch, rows); fill y and overwrite the states with the last ones."""
        steps = {"lstm": self._lstm, "gru": self._gru, "gru_reset_after": self._gru_reset_after}
        step = steps.get(self._cell, self._rnn)
        now = [np.ascontiguousarray(state.T) for state in states]
        order = range(len(projected))
        for at in reversed(order) if self._backward else order:
            step(projected[at].T, now)
            y[at] = now[0].T
        for state, last in zip(states, now, strict=True):
            state[...] = last.T

    @cached_property
    def _csc(self) -> Any:
        return self._csr.tocsc()

    @cached_property
    def _halves(self) -> tuple[Any, Any]:
        """The rows of a GRU's gates, and those of its new state."""
        rows = 2 * matrix_shape(self._csr)[0] // 3
        return self._csr[:rows], self._csr[rows:]

    def _sums(self, hidden: Array) -> Array:
        """Return the state's product, as a new array; in CSC for several samples, see the engine."""
        sums = (self._csr if hidden.shape[1] == 1 else self._csc) @ hidden
        if self._bias is not None:
            sums += self._bias
        return sums

    def _lstm(self, from_input: Array, states: list[Array]) -> None:
        hidden, carried = states
        sums = self._sums(hidden)
        sums += from_input
        rows = len(hidden)
        i, o, f, new = (sums[at : at + rows] for at in range(0, 4 * rows, rows))
        expit(sums[: 3 * rows], out=sums[: 3 * rows])
        np.tanh(new, out=new)
        carried *= f
        new *= i
        carried += new
        np.tanh(carried, out=hidden)
        hidden *= o

    def _gru_reset_after(self, from_input: Array, states: list[Array]) -> None:
        (hidden,) = states
        sums, rows = self._sums(hidden), len(hidden)
        gates, new = sums[: 2 * rows], sums[2 * rows :]
        gates += from_input[: 2 * rows]
        expit(gates, out=gates)
        new *= gates[rows:]
        new += from_input[2 * rows :]
        _update_(hidden, gates[:rows], new)

    def _gru(self, from_input: Array, states: list[Array]) -> None:
        (hidden,), rows = states, len(states[0])
        of_gates, of_new = self._halves
        gates = of_gates @ hidden
        gates += from_input[: 2 * rows]
        expit(gates, out=gates)
        gates[rows:] *= hidden
        new = of_new @ gates[rows:]
        new += from_input[2 * rows :]
        _update_(hidden, gates[:rows], new)

    def _rnn(self, from_input: Array, states: list[Array]) -> None:
        (hidden,) = states
        sums = self._sums(hidden)
        sums += from_input
        if self._cell == "rnn_relu":
            np.maximum(sums, 0, out=hidden)
        else:
            np.tanh(sums, out=hidden)


def _update_(hidden: Array, update: Array, new: Array) -> None:
    """Set hidden = (1 - update) * tanh(new) + update * hidden, overwriting new."""
    np.tanh(new, out=new)
    hidden -= new
    hidden *= update
    hidden += new
