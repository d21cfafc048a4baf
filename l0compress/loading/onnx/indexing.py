"""Selecting, writing and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.values import (
    SYMBOLIC,
    Refusal,
    as_tensor,
    axis_of,
    has_symbols,
    host,
    is_host,
    number,
    numbers,
    operand,
)

Axes = tuple[int, ...] | None
# What exporters write for "to the end".
_END = 2**31 - 1


@operator("Gather", indices=(1,), folds=True)
def gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    if is_host(x, indices) and has_symbols(indices):
        x, indices = as_tensor(x), as_tensor(indices)
    if is_host(x):
        chosen = np.array(numbers(indices), dtype=np.int64).reshape(host(indices).shape)
        return host(np.take(host(x), chosen, axis))
    dim = axis_of(axis, x.dim())
    if is_host(indices):
        places = host(indices)
        if places.ndim == 0:
            return x.select(dim, number(places))
        if places.size == 1 and places.ndim == 1 and isinstance(number(places), int) and number(places) >= 0:
            return x.narrow(dim, number(places), 1)
        found = [place + x.shape[dim] if place < 0 else place for place in numbers(places)]
        indices = as_tensor(host(found).reshape(places.shape)).to(x.device)
    if dim == 0 and isinstance(x, nn.Parameter) and x.dim() == 2:
        return F.embedding(indices, x)
    if indices.dim() == 0:
        return x.index_select(dim, indices.reshape(1)).squeeze(dim)
    if indices.dim() == 1:
        return x.index_select(dim, indices)
    return x[(slice(None),) * dim + (indices,)]


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def _wrapped(indices: Tensor, size: Any) -> Tensor:
    """Convert negative indices, which count from the end."""
    return torch.where(indices < 0, indices + size, indices)


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    picked = tuple(indices.unbind(-1))
    if not batch_dims:
        return x[picked]
    # One range per batch dimension, shaped to broadcast with the indices.
    rest = indices.dim() - 1
    ranges = tuple(
        torch.arange(x.shape[dim], device=x.device).reshape([-1 if other == dim else 1 for other in range(rest)])
        for dim in range(batch_dims)
    )
    return x[ranges + picked]


_REDUCTIONS = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}


@operator("ScatterElements")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, _REDUCTIONS[reduction], include_self=True)


@operator("Scatter")
def scatter(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    """ScatterElements under its name up to version 10 of the operators."""
    return scatter_elements(x, indices, updates, axis=axis)


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    places = tuple(indices.unbind(-1))
    if reduction not in ("none", "add"):
        raise Refusal(f"its reduction is {reduction!r}")
    return torch.index_put(x, places, updates, accumulate=reduction == "add")


@operator("Slice", since=10, sizes=(1, 2, 3, 4), folds=True)
def slice_(x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first, last = numbers(starts), numbers(ends)
    if is_host(x) and has_symbols((*first, *last)):
        x = as_tensor(x)
    rank = host(x).ndim if is_host(x) else x.dim()
    dims = [axis_of(int(a), rank) for a in numbers(axes)] if axes is not None else list(range(len(first)))
    strides = [int(step) for step in numbers(steps)] if steps is not None else [1] * len(first)
    for dim, start, end, step in zip(dims, first, last, strides, strict=True):
        x = _sliced_numbers(host(x), dim, (start, end, step)) if is_host(x) else _sliced(x, dim, start, end, step)
    return x


@operator("Slice", folds=True)
def attribute_slice(x: Any, *, starts: tuple[int, ...], ends: tuple[int, ...], axes: Axes = None) -> Any:
    """Slice as up to version 9 of the operators, with everything but the data as attributes."""
    return slice_(x, starts, ends, axes)


def _sliced_numbers(x: np.ndarray, dim: int, part: tuple[Any, Any, int]) -> np.ndarray:
    start, end, step = (int(number) for number in part)
    if step < 0 and end < -x.shape[dim]:
        return x[(slice(None),) * dim + (slice(start, None, step),)]
    return x[(slice(None),) * dim + (slice(start, end, step),)]


def _sliced(x: Tensor, dim: int, start: Any, end: Any, step: int) -> Tensor:
    """Slice one dimension; a backward slice is a slice of the flipped tensor."""
    if step < 0:
        size, step = x.shape[dim], -step
        x, start, end = x.flip(dim), _mirrored(start, size), _mirrored(end, size)
        if not _is_zero(start):  # one that starts before the first element starts with it
            start = torch.sym_min(start, size - 1)
    if isinstance(end, int) and end >= _END:
        end = None
    if isinstance(start, int) and start == 0 and end is None and step == 1:
        return x
    return torch.ops.aten.slice.Tensor(x, dim, start, end, step)


def _mirrored(place: Any, size: Any) -> Any:
    """Return a position counted from the other end."""
    if isinstance(place, int) and place < 0:
        return _END if place <= -_END else -place - 1
    if isinstance(place, int) and place >= _END:
        return 0
    return torch.sym_max(size - 1 - place, 0)


@operator("Pad", sizes=(1, 2, 3))
def pad(
    x: Tensor,
    given: Any = None,
    constant: Any = None,
    axes: Any = None,
    *,
    mode: str = "constant",
    pads: tuple[int, ...] | None = None,
    value: float = 0.0,
) -> Tensor:
    """Pad; the amounts are an attribute up to version 10 of the operators, and negative ones crop."""
    amounts = list(pads or ()) if given is None else numbers(given)
    dims = list(range(x.dim())) if axes is None else [axis_of(int(axis), x.dim()) for axis in numbers(axes)]
    before, after = [0] * x.dim(), [0] * x.dim()
    for position, dim in enumerate(dims):
        before[dim], after[dim] = amounts[position], amounts[position + len(dims)]
    padded = [d for d in range(x.dim()) if not (_is_zero(before[d]) and _is_zero(after[d]))]
    if not padded:
        return x
    first = padded[0]
    pairs = [amount for dim in reversed(range(first, x.dim())) for amount in (before[dim], after[dim])]
    fill = value if constant is None or not numbers(constant) else number(constant)
    if mode == "constant":
        return F.pad(x, pairs, value=fill)
    return _padded_by_values(x, first, pairs, {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


def _is_zero(amount: Any) -> bool:
    return not isinstance(amount, SYMBOLIC) and amount == 0


def _padded_by_values(x: Tensor, first: int, pairs: list[Any], mode: str) -> Tensor:
    """Pad by values of the tensor; PyTorch does so on the last dimensions of tensors with two more in front."""
    count = x.dim() - first
    if count > 3:
        raise Refusal(f"it pads {count} dimensions by {mode!r} values")
    front = x.shape[:first]
    lifted = x.reshape(1, -1, *x.shape[first:]) if first != 2 else x
    out = F.pad(lifted, pairs, mode=mode)
    return out if first == 2 else out.reshape(*front, *out.shape[2:])


@operator("OneHot", sizes=(1, 2))
def one_hot(indices: Tensor, depth: Any, values: Any, *, axis: int = -1) -> Tensor:
    count, (off, on) = number(depth), numbers(values)
    dim = axis_of(axis, indices.dim() + 1)
    places = _wrapped(indices.long(), count).unsqueeze(dim)
    wanted = torch.arange(count, device=indices.device).reshape([-1 if d == dim else 1 for d in range(places.dim())])
    like = torch.float32 if isinstance(on, float) else torch.int64
    return torch.where(places == wanted, operand(on, places), operand(off, places)).to(like)
