"""MKL's sparse product, through torch's CSR tensors, for machines where torch is installed anyway.

The only module of the runtime that imports torch, and only once a layer is compiled with it.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.engines.inputs import linear_input
from l0compress_runtime.errors import NOTHING_COMPUTED, NOTHING_RUN, InputError
from l0compress_runtime.layers import Layer, SparseLinear, float_weight

Array = NDArray[Any]

_set_threads = threading.Lock()

# The process that first ran several threads of torch. A process forked from it would wait for them forever: OpenMP
# believes that they still exist.
_process_of_threads: int | None = None


@dataclass(frozen=True)
class TorchEngine:
    """Linear layers by MKL; its threads are torch's own."""

    name: str = "torch"

    def available(self) -> bool:
        """Return whether torch is installed."""
        return find_spec("torch") is not None

    def supports(self, layer: Layer) -> bool:
        """Return True for linear layers with at least one nonzero."""
        return isinstance(layer, SparseLinear) and layer.weight.nnz > 0

    def compile(self, layer: Layer, *, threads: int) -> Callable[[Array], Array]:
        """Compile a layer; see :class:`l0compress_runtime.engines.Engine`.

        Raises:
            InputError: the layer is not a linear one with nonzeros, or torch cannot be imported.
        """
        if not isinstance(layer, SparseLinear) or not layer.weight.nnz:
            raise InputError(
                f"the engine 'torch' runs linear layers with nonzeros, but was given {type(layer).__name__}.",
                fix="Choose another engine for it.",
                assurance=NOTHING_RUN,
            )
        torch = _torch()
        bias = None if layer.bias is None else torch.tensor(layer.bias)
        return partial(_linear, layer, (_csr_tensor(torch, layer), bias), threads, torch)


def _torch() -> ModuleType:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            f"the engine 'torch' cannot run here: {error}.",
            fix="Install torch, or choose another engine.",
            assurance=NOTHING_RUN,
        ) from error


def _csr_tensor(torch: ModuleType, layer: SparseLinear) -> Any:
    weight = float_weight(layer)
    parts = (weight.indptr.astype(np.int32), weight.indices.astype(np.int32), weight.data)
    with warnings.catch_warnings():
        # The warning that the format is in beta is of no use to someone who chose this engine by measurement.
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(*map(torch.from_numpy, parts), size=layer.shape)


def _linear(layer: SparseLinear, tensors: tuple[Any, Any], threads: int, torch: ModuleType, x: Array) -> Array:
    weight, bias = tensors
    if threads > 1:
        _check_process()
    samples = linear_input(layer, x)
    if min(samples.strides) < 0:  # of a single row or column, still contiguous; torch accepts no negative strides
        samples = samples.copy()
    with torch.inference_mode(), _threads(torch, threads):
        batch = torch.from_numpy(samples)
        one = len(samples) == 1
        sums = torch.mv(weight, batch[0])[None] if one else (weight @ batch.T.contiguous()).T.contiguous()
        if bias is not None:
            sums += bias
        out = _activated(torch, layer.activation, sums)
    return out.numpy().reshape(*x.shape[:-1], layer.shape[0])


def _check_process() -> None:
    global _process_of_threads
    here = os.getpid()
    if _process_of_threads is None:
        _process_of_threads = here
    if _process_of_threads != here:
        raise InputError(
            "the engine 'torch' cannot use several threads in a process that was forked from one where it did.",
            fix="Load the bundle there with threads=1 or another engine, or start the process with spawn.",
            assurance=NOTHING_COMPUTED,
        )


def _activated(torch: ModuleType, activation: str | None, sums: Any) -> Any:
    if activation is None:
        return sums
    if activation.startswith("gelu"):
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        return torch.nn.functional.gelu(sums, approximate=approximate)
    functions = {
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    return functions[activation](sums)


@contextmanager
def _threads(torch: ModuleType, count: int) -> Iterator[None]:
    """Set torch's process-wide number of threads; if it must differ, one caller at a time has it."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    with _set_threads:
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
