"""Ternary values: rows of -s, 0 and s, as a scale a row and two bits a value, or a bit for each that is not zero.

A code of two bits is 0 for zero, 1 for the scale and 2 for its negative; the first value of a byte is in its lowest
bits. A sign is one bit, 1 for negative; the first value of a byte is in its highest bit. What is left of a last byte
is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.archive import FormatError

Array = NDArray[Any]

TERNARY = "ternary"
_PER_BYTE = 4
_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)
_MEANS = np.array([0, 1, -1], np.int8)


def signs_and_scale(tensor: Array, axis: int) -> tuple[Array, Array] | None:
    """Return a tensor's signs and a scale for each index of ``axis``, or None unless they make up the tensor exactly.

    The signs are int8 of the tensor's shape, the scales of its dtype; that of nothing but zeros is 0.

    Example:
        >>> signs, scale = signs_and_scale(np.array([[0, 0.5, -0.5], [2, 0, 0]], np.float32), 0)
        >>> signs.tolist(), scale.tolist()
        ([[0, 1, -1], [1, 0, 0]], [0.5, 2.0])
        >>> signs_and_scale(np.array([[0, 0.5, -0.25]], np.float32), 0) is None
        True
    """
    others = tuple(dim for dim in range(tensor.ndim) if dim != axis)
    magnitudes = np.abs(tensor)
    scale = magnitudes.max(axis=others, initial=0)
    along = scale.reshape([-1 if dim == axis else 1 for dim in range(tensor.ndim)])
    if not ((magnitudes == along) | (tensor == 0)).all():
        return None
    return np.sign(tensor).astype(np.int8), scale


def packed_codes(signs: Array) -> Array:
    """Return a vector of signs, -1, 0 or 1, as uint8 with four of them each.

    Example:
        >>> packed_codes(np.array([1, -1, 0, 0, -1])).tolist()
        [9, 2]
    """
    codes = np.zeros(-(-len(signs) // _PER_BYTE) * _PER_BYTE, np.uint8)
    codes[: len(signs)] = np.where(signs < 0, 2, signs)
    return np.bitwise_or.reduce(codes.reshape(-1, _PER_BYTE) << _SHIFTS, axis=1)


def code_bytes(count: int) -> int:
    """Return how many bytes so many codes take."""
    return -(-count // _PER_BYTE)


def unpacked_codes(packed: Array, count: int) -> Array:
    """Return the int8 signs that :func:`packed_codes` packed.

    Raises:
        FormatError: a code means nothing, or the last byte does not end in zeros.

    Example:
        >>> unpacked_codes(np.array([9, 2], np.uint8), 5).tolist()
        [1, -1, 0, 0, -1]
    """
    codes = ((packed[:, None] >> _SHIFTS) & 3).ravel()
    if (codes == 3).any() or codes[count:].any():
        raise FormatError("holds two bits that are no ternary value")
    return _MEANS[codes[:count]]


def unpacked_signs(packed: Array, count: int) -> Array:
    """Return int8 values of 1, and -1 where a bit of ``packed`` is set, as :func:`numpy.packbits` packs them.

    Raises:
        FormatError: the last byte does not end in zeros.

    Example:
        >>> unpacked_signs(np.packbits([True, False, True]), 3).tolist()
        [-1, 1, -1]
    """
    bits = np.unpackbits(packed)
    if bits[count:].any():
        raise FormatError("holds more signs than values")
    return 1 - 2 * bits[:count].astype(np.int8)
