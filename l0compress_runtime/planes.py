"""Values as planes of bytes, rounded to what a storage holds and widened again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def narrowed(values: Array, storage: str) -> Array:
    """Return floats as a storage holds them, rounded to nearest.

    Raises:
        OverflowError: a value is beyond the range of the storage.
    """
    if storage == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        narrow = (rounded >> 16).astype(np.uint16)
        overflows = ((narrow & 0x7F80) == 0x7F80) & np.isfinite(values)
    else:
        with np.errstate(over="ignore"):
            narrow = values.astype(storage)
        overflows = np.isfinite(values) & ~np.isfinite(narrow) if narrow.dtype.kind == "f" else np.False_
    if np.any(overflows):
        raise OverflowError(f"a value is beyond the range of {storage}")
    return narrow


def widened(raw: Array, storage: str, dtype: str) -> Array:
    """Return the bytes of stored values as values of ``dtype``."""
    if storage == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.dtype(storage)).astype(dtype, copy=False)


def planes(values: Array) -> Array:
    """Return uint8 (bytes a value, values): byte k of every value is in row k."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(len(values), values.itemsize).T)
