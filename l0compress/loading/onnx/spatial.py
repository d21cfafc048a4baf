"""What convolutions and poolings share: padding, given as numbers or by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.values import Refusal

Ints = tuple[int, ...]


def pads_of(
    x: Tensor, kernel: Sequence[int], strides: Ints, dilations: Ints, given: tuple[Ints | None, str]
) -> tuple[list[Any], list[Any]]:
    """Return the padding before and after each spatial dimension.

    Args:
        given: ``pads`` and ``auto_pad`` of the node.
    """
    pads, rule = given
    count = len(kernel)
    if rule == "NOTSET":
        values = list(pads or (0,) * (2 * count))
        if len(values) != 2 * count:
            raise Refusal(f"it has {len(values)} pads for {count} dimensions")
        return values[:count], values[count:]
    if rule == "VALID":
        return [0] * count, [0] * count
    totals = [
        _same(size, width, stride, dilation)
        for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (smaller, larger) if rule == "SAME_UPPER" else (larger, smaller)


def _same(size: Any, width: int, stride: int, dilation: int) -> Any:
    """Return the padding that leaves ``ceil(size / stride)`` positions."""
    positions = (size + stride - 1) // stride
    missing = (positions - 1) * stride + (width - 1) * dilation + 1 - size
    return missing if stride == 1 else max(missing, 0)


def padded(x: Tensor, before: Sequence[Any], after: Sequence[Any], value: float = 0.0) -> Tensor:
    """Pad the spatial dimensions of a tensor."""
    amounts = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    return F.pad(x, amounts, value=value)


def is_symmetric(before: Sequence[Any], after: Sequence[Any]) -> bool:
    return all(left is right or left == right for left, right in zip(before, after, strict=True))
