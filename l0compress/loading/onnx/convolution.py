"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.spatial import Ints, is_symmetric, padded, pads_of
from l0compress.loading.onnx.values import Refusal

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Conv", weights=(1, 2))
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    kernel, count = _kernel(weight, kernel_shape), weight.dim() - 2
    steps, holes = strides or (1,) * count, dilations or (1,) * count
    before, after = pads_of(x, kernel, steps, holes, (pads, auto_pad))
    function = _dimensions(_CONVOLUTIONS, count)
    if is_symmetric(before, after):
        return function(x, weight, bias, steps, tuple(before), holes, group)
    return function(padded(x, before, after), weight, bias, steps, 0, holes, group)


@operator("ConvTranspose", weights=(1, 2))
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Transposed convolution; uneven padding is cut from the result."""
    kernel, count = _kernel(weight, kernel_shape), weight.dim() - 2
    steps, holes, more = strides or (1,) * count, dilations or (1,) * count, output_padding or (0,) * count
    function = _dimensions(_TRANSPOSED, count)
    if output_shape is None and auto_pad in ("NOTSET", "VALID"):
        before, after = pads_of(x, kernel, steps, holes, (pads, auto_pad))
    else:
        wanted = (
            output_shape[-count:]
            if output_shape
            else [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
        )
        before, after = _pads_for(x, wanted, (kernel, steps, holes, more), upper=auto_pad == "SAME_UPPER")
    if is_symmetric(before, after):
        return function(x, weight, bias, steps, tuple(before), more, group, holes)
    whole = function(x, weight, bias, steps, 0, more, group, holes)
    for dim, (left, right) in enumerate(zip(before, after, strict=True), start=2):
        whole = whole.narrow(dim, left, whole.shape[dim] - left - right)
    return whole


def _pads_for(
    x: Tensor, wanted: Any, how: tuple[Ints, Ints, Ints, Ints], *, upper: bool
) -> tuple[list[Any], list[Any]]:
    """Return the padding that gives the wanted sizes. Source: the reference text of ONNX, ConvTranspose."""
    before, after = [], []
    for size, target, width, step, hole, extra in zip(x.shape[2:], wanted, *how, strict=True):
        total = step * (size - 1) + extra + (width - 1) * hole + 1 - target
        if isinstance(total, int) and total < 0:
            raise Refusal(f"it requires an output of {target}, but the result is {target + total}")
        less = total // 2
        before.append(less if upper else total - less)
        after.append(total - less if upper else less)
    return before, after


def _kernel(weight: Tensor, given: Ints | None) -> Ints:
    kernel = tuple(weight.shape[2:])
    if given is not None and tuple(given) != kernel:
        raise Refusal(f"its kernel_shape is {tuple(given)}, but its weight is for {kernel}")
    return kernel


def _dimensions(functions: dict[int, Any], count: int) -> Any:
    if count not in functions:
        raise Refusal(f"it convolves over {count} dimensions, and PyTorch does so over 1 to 3")
    return functions[count]
