"""Tensors of whatever holds numbers: arrays, lists, numbers of Python.

Class labels become int64, whatever type they came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0compress.errors import DataError

_NUMBERS = "biuf"
# What torch has no arithmetic for.
_WIDER = {"u2": np.int32, "u4": np.int64, "u8": np.int64}


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor of a tensor, an array or a list of numbers; ``what`` is what messages call it.

    Example:
        >>> as_tensor(np.arange(3, dtype=">u2"), "the labels")
        tensor([0, 1, 2], dtype=torch.int32)
        >>> as_tensor([[1, 2], [3]], "input 0")
        Traceback (most recent call last):
        ...
        l0compress.errors.DataError: input 0 is a list whose rows have different lengths. Nothing was changed. Pad them
        to one length.

    Raises:
        DataError: it holds something else than numbers, or rows of different lengths.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        return stacked(value, what)
    try:
        array = np.asarray(value)
    except ValueError as reason:
        raise DataError(
            f"{what} is a {type(value).__name__} whose rows have different lengths.", fix="Pad them to one length."
        ) from reason
    if array.dtype.kind not in _NUMBERS or array.dtype.itemsize > 8:
        kind = {"U": "text", "S": "text", "O": "objects"}.get(array.dtype.kind, str(array.dtype))
        held = f"holds {kind}" if array.ndim else f"is a {type(value).__name__}"
        raise DataError(
            f"{what} {held}, but numbers are needed.",
            fix="Encode classes with numpy.unique(y, return_inverse=True)[1], sentences with a tokenizer.",
        )
    # As torch does it: numbers of Python are single precision, arrays keep what they have.
    from_python = array.dtype == np.float64 and isinstance(value, list | tuple | float)
    return tensor_of(array.astype(np.float32) if from_python else array)


def tensor_of(array: np.ndarray) -> Tensor:
    """A tensor of an array of numbers, of any byte order and any memory layout.

    Unsigned integers of more than a byte, with which torch does not count, become the next wider signed ones.

    Example:
        >>> tensor_of(np.array([7], dtype="<u4")).dtype
        torch.int64
    """
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    wider = _WIDER.get(native.dtype.str[1:])
    whole = np.ascontiguousarray(native if wider is None else native.astype(wider)).reshape(native.shape)
    return torch.from_numpy(whole if whole.flags.writeable else whole.copy())


def as_targets(value: Any, what: str = "the target") -> Tensor:
    """Targets as a tensor: whole numbers and yes/no as int64 classes, decimal numbers as they are.

    Example:
        >>> as_targets(np.array([True, False])), as_targets(torch.tensor([0.5]))
        (tensor([1, 0]), tensor([0.5000]))

    Raises:
        DataError: as :func:`as_tensor` says.
    """
    targets = as_tensor(value, what)
    return targets if targets.is_floating_point() or targets.is_complex() else targets.long()


def class_labels(targets: Tensor | None) -> Tensor | None:
    """Targets as classes, int64 ``(n,)``: whole numbers, one a sample; None of any others.

    >>> class_labels(torch.tensor([[1], [0]])), class_labels(torch.tensor([0.5]))
    (tensor([1, 0]), None)
    """
    if targets is None or targets.is_floating_point() or targets.is_complex():
        return None
    return targets.flatten().long() if targets.ndim == 1 or targets.shape[1:] == (1,) else None


def is_array(value: Any) -> bool:
    """Whether it is a tensor or an array."""
    return isinstance(value, Tensor | np.ndarray)


def stacked(rows: Sequence[Tensor], what: str) -> Tensor:
    """Tensors of one shape along a new first dimension; ``what`` is what messages call them.

    Raises:
        DataError: their shapes differ.
    """
    _check_shapes([row.shape for row in rows], what)
    return torch.stack(tuple(rows))


def concatenated(pieces: Sequence[Tensor], what: str) -> Tensor:
    """Tensors along their first dimension; ``what`` is what messages call them.

    Raises:
        DataError: their other sizes differ.
    """
    _check_shapes([piece.shape[1:] for piece in pieces], what)
    return torch.cat(tuple(pieces))


def _check_shapes(found: Iterable[torch.Size], what: str) -> None:
    shapes = sorted(set(map(tuple, found)))
    if len(shapes) > 1:
        raise DataError(
            f"{what} has samples of different shapes, {shapes[0]} and {shapes[-1]}.",
            fix="Resize them to one size, or give a DataLoader with a collate_fn that pads them.",
        )
