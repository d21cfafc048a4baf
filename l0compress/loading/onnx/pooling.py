"""Pooling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.spatial import Ints, is_symmetric, padded, pads_of
from l0compress.loading.onnx.values import Refusal

_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE_AVERAGES = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@operator("MaxPool", many=True)
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    wanted: int = 1,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
) -> tuple[Tensor]:
    del storage_order  # of the indices output, which is refused
    if wanted > 1:
        raise Refusal("it returns the positions of the maxima")
    count = len(kernel_shape)
    steps, holes = strides or (1,) * count, dilations or (1,) * count
    before, after = pads_of(x, kernel_shape, steps, holes, (pads, auto_pad))
    halves = all(2 * pad <= width for pad, width in zip(before, kernel_shape, strict=True))
    if is_symmetric(before, after) and halves:
        return (_MAXIMA[count](x, kernel_shape, steps, tuple(before), holes, bool(ceil_mode)),)
    return (_MAXIMA[count](padded(x, before, after, -math.inf), kernel_shape, steps, 0, holes, bool(ceil_mode)),)


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    count = len(kernel_shape)
    if dilations is not None and set(dilations) != {1}:
        raise Refusal("it averages over a dilated window")
    steps = strides or (1,) * count
    before, after = pads_of(x, kernel_shape, steps, (1,) * count, (pads, auto_pad))
    halves = all(2 * pad <= width for pad, width in zip(before, kernel_shape, strict=True))
    pool = _AVERAGES[count]
    if is_symmetric(before, after) and halves:
        return pool(x, kernel_shape, steps, tuple(before), bool(ceil_mode), bool(count_include_pad))
    mean = pool(padded(x, before, after), kernel_shape, steps, 0, bool(ceil_mode))
    if count_include_pad:
        return mean
    present = pool(padded(torch.ones_like(x), before, after), kernel_shape, steps, 0, bool(ceil_mode))
    return mean / present


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Return the p-norm of every window, from the mean of the powers."""
    mean = average_pool(
        x.abs() ** p,
        kernel_shape=kernel_shape,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=1,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    return (mean * math.prod(kernel_shape)) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    count = x.dim() - 2
    if count in _ADAPTIVE_AVERAGES:
        return _ADAPTIVE_AVERAGES[count](x, 1)
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return torch.linalg.vector_norm(x, p, list(range(2, x.dim())), keepdim=True)
