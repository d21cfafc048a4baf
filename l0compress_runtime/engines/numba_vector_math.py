"""Activations in plain float32 arithmetic without branches, so that the compiler can vectorise them.

NaN stays NaN. Compared with exact values in float64 the error is below 4e-7, absolute where the
value is below 1 and relative above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from l0compress_runtime.layers import ACTIVATIONS

NUMBERS: dict[str | None, int] = {name: number for number, name in enumerate((None, *ACTIVATIONS))}

_NONE, _RELU, _GELU, _GELU_TANH, _SILU, _SIGMOID, _TANH = range(7)

# Constants must be float32, or all arithmetic with them would be in float64.
_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
# Above 88.7 the power is infinite, as it should be; below the lowest it is kept above zero and normal.
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88.9)
_LOG2_E = np.float32(1 / np.log(2))
# The logarithm of 2 in two parts: the first has so few digits that its multiples are exact.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(np.log(2) - 0.693359375)
_E1, _E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / value) for value in (1, 2, 6, 24, 120, 720, 5040))

_SQRT_HALF = np.float32(np.sqrt(0.5))
_TANH_SLOPE, _TANH_CUBE = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(2 * np.sqrt(2 / np.pi) * 0.044715)
# erfc(z) = t exp(-z²) (C0 + C1 t + ...) with t = 1 / (1 + z/2): the fit with the least largest relative error, 4e-8,
# for z up to 9.5.
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8 = (
    np.float32(value)
    for value in (
        0.28208768367767334,
        0.2823534905910492,
        0.2432609647512436,
        0.20207004249095917,
        -0.02517823688685894,
        0.27597901225090027,
        -0.4853844940662384,
        0.2837023437023163,
        -0.05889085680246353,
    )
)

# Division by zero gives infinity: a check for it would keep the loop from being vectorised.
inlined = numba.njit(nogil=True, inline="always", error_model="numpy")
# Part of its caller, but with rules of its own: sums may be taken in another order, and products fused with them.
reordered = numba.njit(nogil=True, forceinline=True, error_model="numpy", fastmath={"contract", "reassoc"})


@inlined
def _power_parts(x):
    """Return exp(x) = scale * (1 + small) in two parts: a power of two, and the rest."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    whole = np.floor(x * _LOG2_E + _HALF)
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    small = r * (_E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * _E7))))))
    scale = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return scale, small


@inlined
def _exp(x):
    scale, small = _power_parts(x)
    return scale * (_ONE + small)


@inlined
def _sigmoid(x):
    return _ONE / (_ONE + _exp(-x))


@inlined
def _tanh(x):
    scale, small = _power_parts(-_TWO * np.abs(x))
    below = scale * small + (scale - _ONE)  # exp(-2|x|) - 1, exact to the last digits near zero
    positive = -below / (_TWO + below)
    return -positive if x < _ZERO else positive


@inlined
def _gelu(x):
    z = np.abs(x) * _SQRT_HALF
    t = _ONE / (_ONE + _HALF * z)
    series = _C0 + t * (_C1 + t * (_C2 + t * (_C3 + t * (_C4 + t * (_C5 + t * (_C6 + t * (_C7 + t * _C8)))))))
    tail = _HALF * t * series * _exp(-z * z)
    return x * (tail if x < _ZERO else _ONE - tail)


@inlined
def _gelu_tanh(x):
    return x * _sigmoid(x * (_TANH_SLOPE + _TANH_CUBE * x * x))


def compiled(function: Callable[..., Any]) -> Any:
    """Compile the function to machine code that runs without the interpreter's lock, cached on disk if possible."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def activate_(line, activation):
    """Apply the activation of this number to a contiguous float32 line, in place."""
    if activation == _RELU:
        for i in range(line.size):
            line[i] = _ZERO if line[i] < _ZERO else line[i]
    elif activation == _GELU:
        for i in range(line.size):
            line[i] = _gelu(line[i])
    elif activation == _GELU_TANH:
        for i in range(line.size):
            line[i] = _gelu_tanh(line[i])
    elif activation == _SILU:
        for i in range(line.size):
            line[i] *= _sigmoid(line[i])
    elif activation == _SIGMOID:
        for i in range(line.size):
            line[i] = _sigmoid(line[i])
    elif activation == _TANH:
        for i in range(line.size):
            line[i] = _tanh(line[i])
