"""Between which numbers an operator's result lies, given where its operands do: a rule for each family.

Source: Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models", 2018,
section 3. Of n values with mean 0 and variance 1 none is above sqrt(n - 1): Samuelson, "How Deviant Can You Be?", 1968.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.groups.intervals.interval import (
    ANYTHING,
    ROUNDINGS,
    ZERO,
    Interval,
    Operands,
    scaled,
    shifted,
    sum_of,
    times,
    widened,
)
from l0compress.graph.groups.intervals.products import argument, convolution, linear
from l0compress.graph.nodes.network import op_name
from l0compress.graph.nodes.shapes import node_shape

Rule = Callable[[Operands, fx.Node], Interval]
# What a normalisation is off by at most, relatively.
_NORM_EPS = 1e-5


# What they return is one of the numbers that float32 and float64 share, or what they were given.
_EXACT = frozenset({"relu", "relu6"})


def rising(operands: Operands, node: fx.Node) -> Interval:
    """An elementwise operator that never falls takes bounds to bounds."""
    if len(node.all_input_nodes) > 1:
        return ANYTHING
    x, run = operands.of(node.args[0]), _runner(node)
    low, high = run(x.low), run(x.high)
    return Interval(low, high) if op_name(node) in _EXACT else widened(low, high)


def _runner(node: fx.Node) -> Callable[[Tensor], Tensor]:
    run: Any = node.target
    return lambda bound: run(bound.clone(), *node.args[1:], **node.kwargs)


# The least value of operators that fall to it and then rise.
_LOWEST = {"gelu": -0.17005, "silu": -0.27847, "mish": -0.30885, "hardswish": -0.37501}
_FAR = 1e6


def dipping(operands: Operands, node: fx.Node) -> Interval:
    """An operator with one valley is highest at an end of an interval, and nowhere below its lowest point."""
    x, run, lowest = operands.of(node.args[0]), _runner(node), _LOWEST[op_name(node)]
    left, right = (run(bound.clamp(min=-_FAR)) for bound in (x.low, x.high))
    low, high = torch.minimum(left, right), torch.maximum(left, right)
    # Where the interval does not touch the valley the ends are all that counts.
    outside = (x.low >= 0) | ((x.high <= -3) & (op_name(node) == "hardswish"))
    return widened(torch.where(outside, low, low.clamp(max=lowest)), high)


def leaky(operands: Operands, node: fx.Node) -> Interval:
    """A slope below zero would turn the order round."""
    slope = argument(node, 1, "negative_slope", 0.01)
    return rising(operands, node) if isinstance(slope, int | float) and slope >= 0 else ANYTHING


def threshold(operands: Operands, node: fx.Node) -> Interval:
    """What is at most the threshold becomes the value, everything else stays."""
    x, (least, value) = operands.of(node.args[0]), node.args[1:3]
    if not isinstance(least, int | float) or not isinstance(value, int | float):
        return ANYTHING
    replaced = torch.full_like(x.low, float(value))
    below, reaches = x.high <= least, x.low <= least
    low, high = torch.minimum(x.low.clamp(min=least), replaced), torch.maximum(x.high, replaced)
    return Interval(
        torch.where(below, replaced, torch.where(reaches, low, x.low)),
        torch.where(below, replaced, torch.where(reaches, high, x.high)),
    )


def share(operands: Operands, node: fx.Node) -> Interval:
    """Shares lie between 0 and 1."""
    del operands, node
    return Interval.of(0.0, 1.0 + _NORM_EPS)


def unchanged(operands: Operands, node: fx.Node) -> Interval:
    """The first operand."""
    return operands.of(node.args[0])


def negative(operands: Operands, node: fx.Node) -> Interval:
    """The bounds change places."""
    x = operands.of(node.args[0])
    return Interval(-x.high, -x.low)


def added(operands: Operands, node: fx.Node) -> Interval:
    """A sum, or a difference, with a factor of the second operand."""
    alpha = node.kwargs.get("alpha", 1)
    if not isinstance(alpha, int | float):
        return ANYTHING
    factor = torch.tensor(-alpha if op_name(node) == "sub" else alpha, dtype=torch.float64)
    one, other = operands.of(node.args[0]), scaled(factor, operands.of(node.args[1]))
    return Interval(-sum_of(-one.low, -other.low), sum_of(one.high, other.high))


def multiplied(operands: Operands, node: fx.Node) -> Interval:
    """A product lies between the products of the bounds."""
    one, other = operands.of(node.args[0]), operands.of(node.args[1])
    products = [times(left, right) for left in (one.low, one.high) for right in (other.low, other.high)]
    low, high = torch.stack(torch.broadcast_tensors(*products)).aminmax(dim=0)
    return widened(low, high)


def divided(operands: Operands, node: fx.Node) -> Interval:
    """A quotient by what is surely above zero or surely below it."""
    x, by = operands.of(node.args[0]), operands.of(node.args[1])
    if node.kwargs or bool(((by.low <= 0) & (by.high >= 0)).any()):
        return ANYTHING
    quotients = [times(1 / right, left) for left in (x.low, x.high) for right in (by.low, by.high)]
    low, high = torch.stack(torch.broadcast_tensors(*quotients)).aminmax(dim=0)
    return widened(low, high, 2)


def _factor_and_shift(operands: Operands, node: fx.Node, position: int) -> tuple[Tensor, Tensor] | None:
    """The weight and the bias of a normalisation, at ``position`` and behind it; None where one is computed."""
    given = argument(node, position, "weight"), argument(node, position + 1, "bias")
    factor, shift = (operands.weight(each) for each in given)
    if any(each is not None and found is None for each, found in zip(given, (factor, shift), strict=True)):
        return None
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return one if factor is None else factor, zero if shift is None else shift


def batch_norm(operands: Operands, node: fx.Node) -> Interval:
    """By stored statistics it is a factor and a shift for each channel."""
    mean, variance = operands.weight(node.args[3]), operands.weight(node.args[4])
    given, eps = _factor_and_shift(operands, node, 1), node.args[7]
    if node.args[5] is not False or mean is None or variance is None or given is None:
        return ANYTHING
    factor, shape = given[0] * (variance + float(str(eps))).rsqrt(), node_shape(node.args[0])
    found = shifted(factor, operands.of(node.args[0]).along(1, shape), -factor * mean, given[1])
    return Interval(*(bound.view(-1, *[1] * (len(shape) - 2)) for bound in (found.low, found.high)))


def layer_norm(operands: Operands, node: fx.Node) -> Interval:
    """What has mean 0 and variance 1 has a largest element by Samuelson's inequality."""
    sizes: Any = node.args[1]
    given = _factor_and_shift(operands, node, 2)
    if given is None or not all(isinstance(size, int) for size in sizes):
        return ANYTHING
    most = math.sqrt(max(math.prod(sizes) - 1, 0)) * (1 + _NORM_EPS)
    return shifted(given[0], Interval.of(-most, most), given[1])


def looked_up(operands: Operands, node: fx.Node) -> Interval:
    """Each column of a table between its least and its largest element."""
    table = operands.weight(node.args[0])
    return ANYTHING if table is None else Interval(table.amin(0), table.amax(0))


def mean(operands: Operands, node: fx.Node) -> Interval:
    """A mean lies between the least and the largest, and so do these themselves."""
    dims, shape = argument(node, 1, "dim"), node_shape(node.args[0])
    x = operands.of(node.args[0]).with_rank(len(shape))
    listed = list(range(len(shape))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    found = x.over([dim % len(shape) for dim in listed])
    if not argument(node, 2, "keepdim", False):
        found = Interval(*(bound.squeeze([d % len(shape) for d in listed]) for bound in (found.low, found.high)))
    return widened(found.low, found.high, ROUNDINGS)


def pooled(operands: Operands, node: fx.Node) -> Interval:
    """Over positions, the least and the largest there are, or a zero of the padding."""
    dims = next(count for count in (1, 2, 3) if f"{count}d" in op_name(node))
    shape = node_shape(node.args[0])
    x = operands.of(node.args[0]).with_rank(len(shape)).over(range(len(shape) - dims, len(shape)))
    x = x.hull(ZERO) if "avg" in op_name(node) else x
    return widened(x.low, x.high, ROUNDINGS)


_RISING = (
    *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "sigmoid", "tanh", "hardsigmoid", "elu", "selu"),
    *("celu", "softplus", "exp", "erf", "atan"),
)
_POOLS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_RISING, rising),
    **dict.fromkeys(_LOWEST, dipping),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), unchanged),
    **dict.fromkeys(("add", "sub"), added),
    **dict.fromkeys(("linear", "addmm"), linear),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **{f"{pool}{dims}d": pooled for pool in _POOLS for dims in (1, 2, 3)},
    **dict.fromkeys(("softmax", "_softmax"), share),
    **dict.fromkeys(("mean", "amax", "amin"), mean),
    "leaky_relu": leaky,
    "threshold": threshold,
    "neg": negative,
    "mul": multiplied,
    "div": divided,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "embedding": looked_up,
}
