"""Values on the host: sizes, and what a model computes from sizes, as arrays of Python or symbolic numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Refusal(ValueError):
    """Why a node is not supported; whoever runs the node adds which one it is."""


SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
# Larger values are never kept as numbers: no shape or list of axes is that long.
MOST_ON_HOST = 256


def is_host(*values: Any) -> bool:
    """Return whether all of these are numbers, or arrays of numbers, and none is a tensor.

    Examples:
        >>> is_host(3, (1, 2)), is_host(3, torch.zeros(2))
        (True, False)
    """
    return not any(isinstance(value, Tensor) for value in values)


def host(value: Any) -> np.ndarray:
    """Return a value as an array of Python or symbolic numbers.

    Examples:
        >>> host((1, 2)) + host(3)
        array([4, 5], dtype=object)

    Raises:
        Refusal: it is a tensor, computed from the model's inputs.
    """
    if isinstance(value, Tensor):
        raise Refusal("its sizes or axes are computed from the values of the model's inputs, not from their shapes")
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value
    if isinstance(value, np.ndarray):
        return np.array(value.tolist(), dtype=object).reshape(value.shape)
    if isinstance(value, (tuple, list)):
        return np.array(value, dtype=object)
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def numbers(value: Any) -> list[Any]:
    """Return the numbers of a value on the host, in order.

    Examples:
        >>> numbers(((1, 2), (3, 4))), numbers(5)
        ([1, 2, 3, 4], [5])
    """
    return list(host(value).reshape(-1))


def has_symbols(value: Any) -> bool:
    """Return whether a value on the host contains a free size."""
    return any(isinstance(item, SYMBOLIC) for item in numbers(value))


def number(value: Any) -> Any:
    """Return the single number of a value on the host.

    Raises:
        Refusal: there is none, or more than one.
    """
    found = numbers(value)
    if len(found) != 1:
        raise Refusal(f"{len(found)} numbers are given where one is expected")
    return found[0]


def on_host(function: Callable[..., Any], *values: Any) -> np.ndarray:
    """Apply a function of numbers elementwise, with broadcasting.

    Examples:
        >>> on_host(max, (1, 5), 3)
        array([3, 5], dtype=object)
    """
    arrays = [host(value) for value in values]
    return host(np.frompyfunc(function, len(arrays), 1)(*arrays))


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """Return a value as a tensor: int64, float32 or bool, or with the type and device of ``like`` if both are floating.

    Examples:
        >>> as_tensor((1, 2)), as_tensor(0.5, like=torch.zeros(1, dtype=torch.float64)).dtype
        (tensor([1, 2]), torch.float64)
    """
    if isinstance(value, Tensor):
        return value
    array = host(value)
    found = list(array.reshape(-1))
    dtype = _dtype_of(found)
    if like is not None and dtype.is_floating_point == like.is_floating_point() and dtype is not torch.bool:
        dtype = like.dtype
    device = None if like is None else like.device
    if any(isinstance(item, SYMBOLIC) for item in found):
        parts = [torch.scalar_tensor(item, dtype=dtype, device=device) for item in found]
        return torch.stack(parts).reshape(array.shape)
    return torch.tensor(found, dtype=dtype, device=device).reshape(array.shape)


def _dtype_of(found: list[Any]) -> torch.dtype:
    if any(isinstance(item, (float, torch.SymFloat)) for item in found):
        return torch.float32
    if found and all(isinstance(item, (bool, torch.SymBool)) for item in found):
        return torch.bool
    return torch.int64


def operand(value: Any, like: Tensor) -> Any:
    """Return a value as an operand for ``like``: a single number stays one, unless it adds dimensions."""
    if isinstance(value, Tensor):
        return value
    array = host(value)
    return number(array) if array.size == 1 and array.ndim <= like.dim() else as_tensor(array, like)


def operands(left: Any, right: Any) -> tuple[Any, Any]:
    """Return two operands, at least one of which is a tensor."""
    if isinstance(left, Tensor):
        return left, operand(right, left)
    return operand(left, right), right


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front.

    Examples:
        >>> axis_of(-1, 4)
        3
    """
    return axis + rank if axis < 0 else axis
