"""Shapes, and data movement that neither mixes nor selects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.values import (
    MOST_ON_HOST,
    SYMBOLIC,
    Refusal,
    as_tensor,
    axis_of,
    host,
    is_host,
    number,
    numbers,
    on_host,
)

Axes = tuple[int, ...] | None


def is_number(value: Any, wanted: int) -> bool:
    """Return whether a size is known to be this number; comparing a symbolic one would fix it."""
    return not isinstance(value, SYMBOLIC) and value == wanted


@operator("Identity", folds=True)
def identity(x: Any) -> Any:
    return x


@operator("Shape", folds=True)
def shape(x: Any, *, start: int = 0, end: int | None = None) -> np.ndarray:
    sizes = host(x).shape if is_host(x) else x.shape
    return host(tuple(sizes)[start:end])


@operator("Size", folds=True)
def size(x: Any) -> np.ndarray:
    return host(host(x).size if is_host(x) else math.prod(x.shape))


@operator("Reshape", sizes=(1,), folds=True)
def reshape(x: Any, given: Any, *, allowzero: int = 0) -> Any:
    """Reshape; a 0 keeps the input's size, unless zeros are allowed."""
    wanted = numbers(given)
    if is_host(x):
        return host(x).reshape([int(count) for count in wanted])
    if not allowzero:
        wanted = [x.shape[dim] if is_number(count, 0) else count for dim, count in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten to two dimensions."""
    first = axis_of(axis, x.dim())
    if first == 0:
        return x.reshape(1, -1)
    if first == 1:
        return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    rest = x.flatten(first) if first < x.dim() else x.unsqueeze(-1)
    return rest.flatten(0, first - 1)


@operator("Squeeze", sizes=(1,), folds=True)
def squeeze(x: Any, given: Any = None, *, axes: Axes = None) -> Any:
    """Squeeze; the axes are an attribute up to version 12 of the operators."""
    chosen = axes if given is None else tuple(int(axis) for axis in numbers(given))
    if is_host(x):
        return host(x).reshape(-1)[0:1].reshape(()) if chosen is None else host(np.squeeze(host(x), chosen))
    if chosen is None:
        chosen = tuple(dim for dim, count in enumerate(x.shape) if is_number(count, 1))
    for dim in sorted((axis_of(axis, x.dim()) for axis in chosen), reverse=True):
        x = x.squeeze(dim)
    return x


@operator("Unsqueeze", sizes=(1,), folds=True)
def unsqueeze(x: Any, given: Any = None, *, axes: Axes = None) -> Any:
    """Unsqueeze; the axes are an attribute up to version 12 of the operators."""
    chosen = [int(axis) for axis in (axes or () if given is None else numbers(given))]
    rank = (host(x).ndim if is_host(x) else x.dim()) + len(chosen)
    for dim in sorted(axis_of(axis, rank) for axis in chosen):
        x = np.expand_dims(host(x), dim) if is_host(x) else x.unsqueeze(dim)
    return x


@operator("Transpose", folds=True)
def transpose(x: Any, *, perm: Axes = None) -> Any:
    if is_host(x):
        return np.transpose(host(x), perm)
    return x.permute(perm or tuple(reversed(range(x.dim()))))


@operator("Concat", folds=True)
def concat(*parts: Any, axis: int) -> Any:
    if is_host(*parts):
        return np.concatenate([host(part) for part in parts], axis)
    like = next(part for part in parts if isinstance(part, Tensor))
    return torch.cat([as_tensor(part, like) for part in parts], axis)


@operator("Split", sizes=(1,), many=True, folds=True)
def split(x: Any, given: Any = None, *, num_outputs: int = 1, axis: int = 0, split: Axes = None) -> tuple[Any, ...]:
    """Split, into equal parts (the last may be smaller) if no sizes are given."""
    sizes = list(split or ()) if given is None else numbers(given)
    if is_host(x):
        values = host(x)
        sizes = sizes or [math.ceil(len(values) / num_outputs)] * num_outputs
        return tuple(np.split(values, np.cumsum(sizes)[:-1].tolist(), axis))
    if sizes:
        return torch.split(x, sizes, axis)
    return torch.split(x, (x.shape[axis] + num_outputs - 1) // num_outputs, axis)


@operator("Expand", sizes=(1,))
def expand(x: Tensor, given: Any) -> Tensor:
    """Broadcast in both directions: sizes of 1 on either side are expanded."""
    wanted, sizes = numbers(given), list(x.shape)
    rank = max(len(wanted), len(sizes))
    wanted, sizes = [1] * (rank - len(wanted)) + wanted, [1] * (rank - len(sizes)) + sizes
    missing = rank - x.dim()
    # If neither size is 1 they are equal, and -1 says so without comparing free ones.
    chosen = [
        target if is_number(own, 1) else (-1 if dim >= missing else own)
        for dim, (target, own) in enumerate(zip(wanted, sizes, strict=True))
    ]
    return x.expand(chosen)


@operator("Tile", sizes=(1,))
def tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(numbers(repeats))


@operator("Cast", folds=True)
def cast(x: Any, *, to: torch.dtype, saturate: int = 1, round_mode: str = "up") -> Any:
    del saturate, round_mode  # for 8-bit types, which are refused
    if not is_host(x):
        return x.to(to)
    if to.is_floating_point:
        return on_host(torch.sym_float, x)
    return on_host(lambda value: value if type(value) is bool and to is torch.bool else _cast(value, to), x)


def _cast(value: Any, to: torch.dtype) -> Any:
    return value != 0 if to is torch.bool else torch.sym_int(value)


@operator("CastLike", folds=True)
def cast_like(x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    other = as_tensor(like)
    return cast(x, to=other.dtype, saturate=saturate, round_mode=round_mode)


@operator("ConstantOfShape", sizes=(0,), folds=True)
def constant_of_shape(given: Any, *, value: float | int | bool = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    """Fill a shape; a few integers stay on the host, since they are shapes themselves."""
    sizes = numbers(given)
    free = any(isinstance(count, SYMBOLIC) for count in sizes)
    if not free and len(sizes) == 1 and not dtype.is_floating_point and 0 <= sizes[0] <= MOST_ON_HOST:
        return host((value,) * sizes[0])
    return torch.full(sizes, value, dtype=dtype)


@operator("Range", folds=True)
def number_range(start: Any, limit: Any, delta: Any) -> Tensor:
    return torch.arange(number(start), number(limit), number(delta))


@operator("Trilu", sizes=(1,))
def triangle(x: Tensor, diagonal: Any = None, *, upper: int = 1) -> Tensor:
    shift = 0 if diagonal is None else number(diagonal)
    return torch.triu(x, shift) if upper else torch.tril(x, shift)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = x.shape
    rest = channels // blocksize**2
    if mode == "CRD":
        parts = x.reshape(batch, rest, blocksize, blocksize, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(batch, blocksize, blocksize, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, rest, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode != "DCR":
        raise Refusal(f"its mode is {mode!r}")
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    moved = parts.permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(batch, channels * blocksize**2, height // blocksize, width // blocksize)


@operator("EyeLike")
def eye_like(x: Tensor, *, k: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
    return torch.triu(torch.tril(ones, k), k)
