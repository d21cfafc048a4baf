"""Reductions, sorting and cumulative sums."""

from __future__ import annotations

import functools
import operator as op
from typing import Any

import torch
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.values import axis_of, host, is_host, number, numbers

Axes = tuple[int, ...] | None
# The axes are an attribute in older versions of the operators, and an input in newer ones.
REDUCTION: dict[str, Any] = {"sizes": (1,)}


def dims_of(x: Tensor, given: Any, axes: Axes, noop: int) -> list[int]:
    """Return the dimensions to reduce: all if none are given, unless that means none."""
    chosen = list(axes or ()) if given is None else numbers(given)
    if not chosen:
        return [] if noop else list(range(x.dim()))
    return [axis_of(int(axis), x.dim()) for axis in chosen]


@operator("ReduceSum", **REDUCTION)
def reduce_sum(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    dims = dims_of(x, given, axes, noop_with_empty_axes)
    return x.sum(dims, bool(keepdims), dtype=x.dtype) if dims else x


@operator("ReduceMean", **REDUCTION)
def reduce_mean(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    dims = dims_of(x, given, axes, noop_with_empty_axes)
    return x.mean(dims, bool(keepdims)) if dims else x


@operator("ReduceMax", **REDUCTION)
def reduce_max(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    dims = dims_of(x, given, axes, noop_with_empty_axes)
    return torch.amax(x, dims, bool(keepdims)) if dims else x


@operator("ReduceMin", **REDUCTION)
def reduce_min(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    dims = dims_of(x, given, axes, noop_with_empty_axes)
    return torch.amin(x, dims, bool(keepdims)) if dims else x


@operator("ReduceProd", sizes=(1,), folds=True)
def reduce_prod(
    x: Any, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Any:
    if is_host(x):
        values = host(x)
        product = functools.reduce(op.mul, numbers(values), 1)
        return host((product,)) if keepdims and values.ndim else host(product)
    for dim in sorted(dims_of(x, given, axes, noop_with_empty_axes), reverse=True):
        x = torch.prod(x, dim, keepdim=bool(keepdims), dtype=x.dtype)
    return x


@operator("ReduceL1", **REDUCTION)
def reduce_l1(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return reduce_sum(x.abs(), given, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


@operator("ReduceL2", **REDUCTION)
def reduce_l2(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    dims = dims_of(x, given, axes, noop_with_empty_axes)
    return torch.linalg.vector_norm(x, 2, dims, bool(keepdims)) if dims else x.abs()


@operator("ReduceSumSquare", **REDUCTION)
def reduce_sum_square(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return reduce_sum(x * x, given, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


@operator("ReduceLogSum", **REDUCTION)
def reduce_log_sum(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    return reduce_sum(x, given, axes=axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes).log()


@operator("ReduceLogSumExp", **REDUCTION)
def reduce_log_sum_exp(
    x: Tensor, given: Any = None, *, axes: Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    dims = dims_of(x, given, axes, noop_with_empty_axes)
    return torch.logsumexp(x, dims, bool(keepdims)) if dims else x


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        last = torch.argmax(x.flip(axis), axis, bool(keepdims))
        return x.shape[axis] - 1 - last
    return torch.argmax(x, axis, bool(keepdims))


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        last = torch.argmin(x.flip(axis), axis, bool(keepdims))
        return x.shape[axis] - 1 - last
    return torch.argmin(x, axis, bool(keepdims))


@operator("TopK", sizes=(1,), many=True)
def top_k(
    x: Tensor, given: Any = None, *, k: int | None = None, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the largest values; how many is an attribute up to version 9 of the operators."""
    count = number(k if given is None else given)
    values, positions = torch.topk(x, count, axis, bool(largest), bool(sorted))
    return values, positions


@operator("CumSum", sizes=(1,))
def cumulative_sum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = axis_of(int(number(axis)), x.dim())
    source = x.flip(dim) if reverse else x
    total = torch.cumsum(source, dim, dtype=x.dtype)
    if exclusive:
        total = total - source
    return total.flip(dim) if reverse else total
