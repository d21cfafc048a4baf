"""Intervals of products with weights: linear layers and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.groups.intervals.interval import ANYTHING, EPS, ZERO, Interval, Operands, times
from l0compress.graph.nodes.network import op_name
from l0compress.graph.nodes.shapes import node_shape


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a node, wherever it is given."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _highest(weight: Tensor, x: Interval, bias: Tensor | None) -> Tensor:
    """The most that ``weight @ x + bias`` can be, for a weight ``(..., outputs, inputs, taps)``."""
    upward = times(weight.clamp(min=0).sum(-1), x.high)
    downward = times(weight.clamp(max=0).sum(-1), x.low)
    shift = torch.zeros_like(upward[..., 0]) if bias is None else bias.view(upward.shape[:-1])
    rounding = (weight.shape[-1] * weight.shape[-2] + 2) * EPS * ((upward.abs() + downward.abs()).sum(-1) + shift.abs())
    high = (upward + downward).sum(-1) + shift + rounding
    # A sum of terms none of which is above zero is not either, however it is rounded.
    none_above = ((upward <= 0) & (downward <= 0)).all(-1) & (shift <= 0)
    return torch.where(none_above, high.clamp(max=0), high).flatten()


def product(weight: Tensor, x: Interval, bias: Tensor | None) -> Interval:
    """``weight @ x + bias`` for a weight ``(groups, outputs, inputs, taps)`` and ``x`` of ``(groups, 1, inputs)``."""
    return Interval(-_highest(-weight, x, None if bias is None else -bias), _highest(weight, x, bias))


def linear(operands: Operands, node: fx.Node) -> Interval:
    """``x W' + b``, and ``b + x W``."""
    if op_name(node) == "addmm":
        source, given, shift = node.args[1], operands.weight(node.args[2]), node.args[0]
        weight = None if given is None or node.kwargs else given.T
    else:
        source, weight, shift = node.args[0], operands.weight(node.args[1]), argument(node, 2, "bias")
    bias = operands.weight(shift)
    if weight is None or weight.dim() != 2 or (shift is not None and (bias is None or bias.dim() != 1)):
        return ANYTHING
    x = operands.of(source).along(-1, node_shape(source))
    return product(weight.view(1, *weight.shape, 1), Interval(x.low.view(1, 1, -1), x.high.view(1, 1, -1)), bias)


def convolution(operands: Operands, node: fx.Node) -> Interval:
    """A convolution of one to three dimensions, which may read zeros beside its input."""
    weight, shift, padding = operands.weight(node.args[1]), argument(node, 2, "bias"), argument(node, 4, "padding", 0)
    bias, groups = operands.weight(shift), argument(node, 6, "groups", 1)
    if weight is None or (shift is not None and bias is None):
        return ANYTHING
    shape, taps = node_shape(node.args[0]), weight.dim() - 2
    x = operands.of(node.args[0]).along(-taps - 1, shape)
    if isinstance(padding, str) or any(padding if isinstance(padding, list | tuple) else [padding]):
        x = x.hull(ZERO)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    found = product(grouped, Interval(x.low.reshape(groups, 1, -1), x.high.reshape(groups, 1, -1)), bias)
    return Interval(*(bound.view(-1, *[1] * taps) for bound in (found.low, found.high)))
