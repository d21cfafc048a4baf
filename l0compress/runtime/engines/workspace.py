"""Scratch memory of the calling thread, kept between calls: fresh pages would cost more than what is done in them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What one thread packs at a time should stay in its cache of the second level.
PACKED_FLOATS = 1 << 17

# A vector that straddles two cache lines takes twice as long to load.
_LINE = 16

_threads = threading.local()


def scratch(*sizes: int) -> list[NDArray[Any]]:
    """Uninitialised float32 arrays of these sizes, each at the start of a cache line.

    They belong to the calling thread and are valid until it asks again.

    Example:
        >>> [part.size for part in scratch(3, 5)]
        [3, 5]
    """
    rounded = [-(-size // _LINE) * _LINE for size in sizes]
    total = sum(rounded)
    memory: NDArray[Any] | None = getattr(_threads, "memory", None)
    if memory is None or memory.size < total:
        raw = np.empty(total + _LINE, np.float32)
        first = -raw.ctypes.data % (_LINE * raw.itemsize) // raw.itemsize
        memory = _threads.memory = raw[first : first + total]
    parts, at = [], 0
    for size, length in zip(sizes, rounded, strict=True):
        parts.append(memory[at : at + size])
        at += length
    return parts
