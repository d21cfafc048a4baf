"""Elementwise operators: every operand loses the same elements."""

from __future__ import annotations

from functools import partial

import torch

from l0compress.graph.rules.registry import Result, Step, one_or_many, rule
from l0compress.graph.values import Value


@rule(
    "pointwise",
    "masked_fill",
    "where",
    "rsub",
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "maximum",
    "minimum",
    "silu",
    "gelu",
    "relu",
    "relu6",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "mish",
    "softplus",
    "log_sigmoid",
    "softsign",
    "softshrink",
    "hardshrink",
    "square",
    "__and__",
    "__or__",
    "lerp",
    "addcmul",
    "addcdiv",
    "copy",
    "floor_divide",
    "divide",
    "multiply",
    "subtract",
    "true_divide",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "not_equal",
    "absolute",
    "negative",
    "clip",
    "isclose",
    "fix",
    "arctan",
    "arctan2",
    "arcsin",
    "arccos",
    "special_expit",
    "special_erf",
    "__xor__",
)
def elementwise(step: Step) -> Result:
    merged = step.space.merge(step.tensors(), step.shape, step.node)
    return one_or_many(tuple(merged for _ in step.shapes))


@rule(
    "to",
    "_to_copy",
    "float",
    "contiguous",
    "clone",
    "alias",
    "detach",
    "lift_fresh_copy",
    "type_as",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "bernoulli",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "fill",
    "zero",
)
def unary(step: Step) -> Result:
    """The result has the layout of the first operand, whatever values it holds."""
    return Value(step.shape, step.args[0].planes)


@rule("glu")
def glu(step: Step) -> Result:
    """One half gates the other: both lose the same channels."""
    value = step.args[0]
    dim = int(step.get(1, "dim", -1)) % len(value.shape)
    half = step.shape[dim]
    if value.shape[dim] != 2 * half or step.is_dynamic(0, dim):
        step.freeze(value, "its halves meet along a dimension of free size")
        return Value(step.shape)
    halves = [value.mapped(partial(torch.narrow, dim=dim, start=i * half, length=half), step.shape) for i in (0, 1)]
    return step.space.merge(halves, step.shape, step.node)


@rule("bucketize")
def bucketize(step: Step) -> Result:
    value, boundaries = step.args[:2]
    step.freeze(boundaries, "its values are searched")
    return Value(step.shape, value.planes)
