"""Where tensors are: devices of modules, constants on other devices, random states of devices.

The package's rule: captured graphs, groups, plans, files and exported artifacts are on the CPU. Networks that are
trained or run (``graph.module()``, a ``GatedNetwork``) go where ``.to(device)`` sends them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

CPU = torch.device("cpu")
_WITHOUT_FLOAT64 = ("mps",)
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

# By constant tensor: its copies by device and dtype. They go when the constant does.
_COPIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def widest_float(device: torch.device | str) -> torch.dtype:
    """The widest floating-point dtype that a device computes in.

    >>> widest_float("cpu"), widest_float("mps")
    (torch.float64, torch.float32)
    """
    return torch.float32 if torch.device(device).type in _WITHOUT_FLOAT64 else torch.float64


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device, in float32 where it is float64 and the device has none.

    >>> moved(torch.zeros(2, dtype=torch.float64), "cpu").dtype
    torch.float64
    """
    if tensor.dtype == torch.float64 and widest_float(device) != torch.float64:
        tensor = tensor.float()
    # What is pinned cannot be swapped away while it is being copied.
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda" and tensor.is_pinned())


def constant_on(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor that never changes, on a device; it is copied there once, however often it is asked for.

    >>> index = torch.arange(3)
    >>> constant_on(index, torch.device("cpu")) is index
    True
    """
    dtype = tensor.dtype if dtype is None else dtype
    if tensor.device == device and tensor.dtype == dtype:
        return tensor
    copies: dict[tuple[torch.device, torch.dtype], Tensor] = _COPIES.get(tensor) or {}
    if (device, dtype) not in copies:
        with torch.inference_mode(False), torch.no_grad():
            copy = tensor.to(device=device, dtype=dtype)
        if isinstance(copy, torch._subclasses.FakeTensor):  # while something is traced there are no values to keep
            return copy
        copies = {**copies, (device, dtype): copy}
        _COPIES[tensor] = copies
    return copies[device, dtype]


def device_of(module: nn.Module) -> torch.device | None:
    """The device of a module's first parameter or buffer; None where it has neither.

    >>> device_of(nn.Linear(2, 1)), device_of(nn.ReLU())
    (device(type='cpu'), None)
    """
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return None


def device_state(device: torch.device | str) -> Tensor | None:
    """The random state of a device's own generator; None of the CPU, whose state is torch's.

    >>> device_state("cpu") is None
    True
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if kind == "mps" else None


def set_device_state_(device: torch.device | str, state: Tensor) -> None:
    """Put back what :func:`device_state` returned."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state.cpu().contiguous(), device)
    else:
        torch.mps.set_rng_state(state.cpu().contiguous())


@contextmanager
def forked_randomness(device: torch.device | str = "cpu") -> Iterator[None]:
    """Leave torch's random state, and those of all devices of the given one's kind, as they were.

    >>> before = torch.get_rng_state()
    >>> with forked_randomness():
    ...     _ = torch.rand(1)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    mps = torch.device(device).type == "mps"
    state = device_state(device) if mps else None
    # Seeding reaches every GPU, so that every one is put back. torch warns where they are not named.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(gpus), device_type="cuda"):
        try:
            yield
        finally:
            if state is not None:
                set_device_state_(device, state)


@contextmanager
def repeatable(device: torch.device | str) -> Iterator[None]:
    """Let CUDA add up in the same order each time, so that a run that goes on ends in the same bits.

    What PyTorch can only do in any order is done so, with PyTorch's warning. Other devices repeat themselves as it is.

    >>> with repeatable("cuda"):
    ...     torch.are_deterministic_algorithms_enabled()
    True
    >>> torch.are_deterministic_algorithms_enabled()
    False
    """
    if torch.device(device).type != "cuda" or torch.are_deterministic_algorithms_enabled():
        yield
        return
    deterministic: Any = torch.utils.deterministic
    workspace, filled = os.environ.get(_WORKSPACE), deterministic.fill_uninitialized_memory
    # Without fixed workspaces cuBLAS promises nothing, and PyTorch warns at every product.
    os.environ[_WORKSPACE] = workspace or ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(False)
        if workspace is None:
            del os.environ[_WORKSPACE]


def synchronize(device: torch.device | None) -> None:
    """Wait until a device has done what it was given; the CPU always has."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()
