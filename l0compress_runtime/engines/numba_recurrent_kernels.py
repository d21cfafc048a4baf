"""The compiled loop over the steps of a sequence. The notes at the head of numba_kernels apply here as well.

Samples lie side by side, ``width`` of them, or there is just one: unit j of sample i is at ``j * width + i``. A
gate is then a line of numbers like the state, and everything but the products goes line by line.
"""

from __future__ import annotations

import numpy as np

from l0compress_runtime.engines.numba_kernels import (
    WIDEST,
    Weights,
    batch_sums,
    copy_,
    dot,
    pack_,
    tile_width,
    unpack_,
)
from l0compress_runtime.engines.numba_vector_math import NUMBERS, activate_, compiled, inlined
from l0compress_runtime.layers import GATES

CELLS = {cell: number for number, cell in enumerate(GATES)}

_LSTM, _GRU, _GRU_RESET_AFTER, _RNN_TANH, _ = range(5)
# With literal numbers as arguments numba would compile the callee once for each of them.
_ZERO = np.int64(0)
_SIGMOID, _TANH, _RELU = (np.int64(NUMBERS[name]) for name in ("sigmoid", "tanh", "relu"))


@compiled
def enter_(x, begin, count, width, packed):
    """Lay samples side by side."""
    if width == 1:
        copy_(x.reshape(-1), begin * x.shape[1], packed, 0, x.shape[1])
    else:
        pack_(x, begin, count, width, packed)


@compiled
def leave_(packed, width, y, begin, count):
    """Undo :func:`enter_`."""
    if width == 1:
        copy_(packed, 0, y.reshape(-1), begin * y.shape[1], y.shape[1])
    else:
        unpack_(packed, width, y, begin, count, (_ZERO, y.shape[1]))


@compiled
def sums_(weights, first, last, width, state, sums):
    """Compute rows first to last of the product with the state."""
    if width > 1:
        batch_sums(weights, first, last, width, state, sums)
        return
    for row in range(first, last):
        sums[row - first] = dot(weights, row, state)


@compiled
def add_(addend, total):
    """Add line to line."""
    for i in range(total.size):
        total[i] += addend[i]


@compiled
def lstm_(sums, hidden, carried):
    """Compute the next states from the sums of the gates."""
    size = hidden.size
    activate_(sums[: 3 * size], _SIGMOID)
    activate_(sums[3 * size :], _TANH)
    i, o, f, new = sums[:size], sums[size : 2 * size], sums[2 * size : 3 * size], sums[3 * size :]
    for k in range(size):
        carried[k] = f[k] * carried[k] + i[k] * new[k]
        hidden[k] = carried[k]
    activate_(hidden, _TANH)
    for k in range(size):
        hidden[k] *= o[k]


@compiled
def gates_(from_input, sums, hidden, reset):
    """Compute the update and reset gates of a GRU from their sums; reset becomes the state times it."""
    size = hidden.size
    gates = sums[: 2 * size]
    add_(from_input[: 2 * size], gates)
    activate_(gates, _SIGMOID)
    for k in range(size):
        reset[k] = hidden[k] * gates[size + k]


@compiled
def update_(sums, hidden):
    """Compute the next state of a GRU from its update gate and the sums of the new state."""
    size = hidden.size
    update, new = sums[:size], sums[2 * size :]
    activate_(new, _TANH)
    for k in range(size):
        hidden[k] = new[k] + update[k] * (hidden[k] - new[k])


@compiled
def reset_after_(from_input, sums, size):
    """Reset the state's product, and add the input's."""
    for k in range(2 * size, 3 * size):
        sums[k] = sums[k] * sums[k - size] + from_input[k]


@inlined
def step_(weights, cell, width, lines):
    """Run one step. lines: the input's product, the sums, the hidden state, and the cell state or what was reset."""
    from_input, sums, hidden, carried = lines
    rows = weights.starts.size - 1
    if cell == _GRU:
        of_gates = rows // 3 * 2
        sums_(weights, _ZERO, of_gates, width, hidden, sums)
        gates_(from_input, sums, hidden, carried)
        new = sums[of_gates * width :]
        sums_(weights, of_gates, rows, width, carried, new)
        add_(from_input[of_gates * width :], new)
        update_(sums, hidden)
        return
    sums_(weights, _ZERO, rows, width, hidden, sums)
    if cell == _GRU_RESET_AFTER:
        gates_(from_input, sums, hidden, carried)
        reset_after_(from_input, sums, hidden.size)
        update_(sums, hidden)
        return
    add_(from_input, sums)
    if cell == _LSTM:
        lstm_(sums, hidden, carried)
    else:
        activate_(sums, _TANH if cell == _RNN_TANH else _RELU)
        hidden[:] = sums


@compiled
def recur(weights, cell, part, x, memory, states, y):
    """Run all steps of one direction, for a range of the batch.

    Args:
        weights: of the recurrent product.
        cell: one of CELLS.
        part: the range, the direction's index in the states and in y, and whether it starts at the end.
        x: (length, batch, rows), the input's product.
        memory: scratch for two states, as wide as the widest tile, and twice for all rows.
        states: hidden and cell state, (directions, batch, hidden) each; overwritten with the last ones.
        y: (length, directions, batch, hidden), every hidden state.
    """
    held, (begin, end, side, backward) = Weights(*weights), part
    length, rows, units = x.shape[0], x.shape[2], y.shape[3]
    widest = min(WIDEST, memory[0].size // units)
    while begin < end:
        width = 1 if end - begin == 1 else tile_width(end - begin, widest)
        count = min(width, end - begin)
        hidden, carried = memory[0][: units * width], memory[1][: units * width]
        sums, from_input = memory[2][: rows * width], memory[3][: rows * width]
        enter_(states[0][side], begin, count, width, hidden)
        enter_(states[1][side], begin, count, width, carried)
        for step in range(length):
            at = length - 1 - step if backward else step
            enter_(x[at], begin, count, width, from_input)
            step_(held, cell, width, (from_input, sums, hidden, carried))
            leave_(hidden, width, y[at, side], begin, count)
        leave_(hidden, width, states[0][side], begin, count)
        leave_(carried, width, states[1][side], begin, count)
        begin += count
