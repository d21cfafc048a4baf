"""Scratch memory of the calling thread, kept between calls: fresh pages would cost more than the work done in them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What one thread packs at a time should stay in its second-level cache.
PACKED_FLOATS = 1 << 17

# A vector that straddles two cache lines takes twice as long to load.
_LINE = 16

# The number of ways to divide the memory that are kept for reuse.
_KEPT = 64


class _Workspace(threading.local):
    """The state of one thread: the memory, and the arrays that it was divided into, by their sizes."""

    def __init__(self) -> None:
        self.memory: NDArray[Any] = np.empty(0, np.float32)
        self.divided: dict[tuple[int, ...], tuple[NDArray[Any], ...]] = {}


_workspace = _Workspace()


def scratch(*sizes: int) -> tuple[NDArray[Any], ...]:
    """Return uninitialised float32 arrays of these sizes, each at the start of a cache line.

    They belong to the calling thread and are valid until it calls this again.

    Example:
        >>> [part.size for part in scratch(3, 5)]
        [3, 5]
    """
    found = _workspace.divided.get(sizes)
    return _divided(_workspace, sizes) if found is None else found


def _divided(workspace: _Workspace, sizes: tuple[int, ...]) -> tuple[NDArray[Any], ...]:
    rounded = [-(-size // _LINE) * _LINE for size in sizes]
    total = sum(rounded)
    if workspace.memory.size < total:
        raw = np.empty(total + _LINE, np.float32)
        first = -raw.ctypes.data % (_LINE * raw.itemsize) // raw.itemsize
        workspace.memory = raw[first : first + total]
        workspace.divided.clear()
    if len(workspace.divided) >= _KEPT:
        workspace.divided.clear()
    ends = np.cumsum(rounded).tolist()
    parts = tuple(
        workspace.memory[end - length : end - length + size]
        for end, length, size in zip(ends, rounded, sizes, strict=True)
    )
    workspace.divided[sizes] = parts
    return parts
