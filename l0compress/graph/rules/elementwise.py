"""Elementwise operators: every operand loses the same elements."""

from __future__ import annotations

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
    # Other names of the same, which PyTorch does not tag as pointwise.
    "multiply",
    "divide",
    "subtract",
    "negative",
    "absolute",
    "floor_divide",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "not_equal",
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
