"""A second device that computes on the CPU: the tensors on it are real, and operators that mix devices are refused.

It is a backend of PyTorch's own (``PrivateUse1``) written in Python. Its rules are those of CUDA: an operator takes
tensors of one device, but for numbers (no dimensions), copies, and indices on the CPU. So what runs here has values,
gradients and optimizers, which a fake CUDA device has not. A process that imports this has the device for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Backend(_DummyBackendModule):
    """What PyTorch asks a backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


NAME = "simulated"
_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)

_CPU = torch.device("cpu")
_refused: set[torch.dtype] = set()
_MAY_MIX = {"copy_", "_to_copy", "_copy_from", "index", "index_put_", "index_put", "_index_put_impl_"}


class SimulatedTensor(Tensor):
    """A tensor on the simulated device; ``raw`` holds its values on the CPU."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> SimulatedTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.raw})"


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator on the CPU, once its tensors are found to be on one device; the result is where it belongs."""
    name = func._schema.name.partition("::")[2]
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    mine = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    others = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor) and tensor.dim()]
    if others and (mine or _named(leaves)) and (name not in _MAY_MIX or _indexes_cpu(name, args)):
        raise RuntimeError(f"{func}: expected all tensors on one device, but found {DEVICE} and cpu")
    if name == "_copy_from":
        _raw(args[1]).copy_(_raw(args[0]))
        return args[1]
    plain = [_CPU if isinstance(leaf, torch.device) else _raw(leaf) for leaf in leaves]
    plain_args, plain_kwargs = pytree.tree_unflatten(plain, spec)
    compute = _FUSED.get(name, func)
    result = compute(*plain_args, **plain_kwargs)
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    here = wanted[0].type == NAME if wanted else bool(mine)
    known = {id(_raw(tensor)): tensor for tensor in tensors}

    def wrapped(tensor: Tensor) -> Tensor:
        if here and tensor.dtype in _refused:
            raise TypeError(f"{func}: {DEVICE} has no {tensor.dtype}")
        return known.get(id(tensor)) if id(tensor) in known else SimulatedTensor(tensor) if here else tensor

    return pytree.tree_map_only(Tensor, wrapped, result)


@contextmanager
def without_float64() -> Iterator[None]:
    """Be a device like ``mps``, which refuses float64."""
    _refused.add(torch.float64)
    try:
        yield
    finally:
        _refused.clear()


def _raw(leaf: Any) -> Any:
    return leaf.raw if isinstance(leaf, SimulatedTensor) else leaf


def _named(leaves: list[Any]) -> bool:
    return any(isinstance(leaf, torch.device) and leaf.type == NAME for leaf in leaves)


def _indexes_cpu(name: str, args: Any) -> bool:
    """Indices may be on the CPU, but what they index may not be while they are here."""
    return "index" in name and not isinstance(args[0], SimulatedTensor)


def _lstm_cell(
    igates: Tensor, hgates: Tensor, cx: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    total = igates + hgates
    for bias in (input_bias, hidden_bias):
        total = total if bias is None else total + bias
    i, f, g, o = total.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(
    grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, workspace: Tensor, _has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = workspace.chunk(4, 1)
    grad_hy = torch.zeros_like(cx) if grad_hy is None else grad_hy
    squashed = cy.tanh()
    grad = grad_hy * o * (1 - squashed**2) + (0 if grad_cy is None else grad_cy)
    parts = (grad * g * i * (1 - i), grad * cx * f * (1 - f), grad * i * (1 - g**2), grad_hy * squashed * o * (1 - o))
    gates = torch.cat(parts, 1)
    return gates, grad * f, gates.sum(0)


# Operators that only GPUs have; the CPU runs recurrent cells by others.
_FUSED = {"_thnn_fused_lstm_cell": _lstm_cell, "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward}

_library = torch.library.Library("_", "IMPL")
_library.fallback(_run, "PrivateUse1")
