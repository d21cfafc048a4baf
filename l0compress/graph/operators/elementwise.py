"""Elementwise operators: every operand loses the same elements."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from l0compress.graph.labels.values import Value
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.record import OfConstant, Operator, Result, register
from l0compress.graph.operators.step import Step, elementwise


def unary(step: Step) -> Result:
    """The result has the layout of the first operand, whatever values it holds."""
    return Value(step.shape, step.args[0].planes)


def glu(step: Step) -> Result:
    """One half gates the other: both lose the same channels."""
    value = step.args[0]
    dim = int(step.get(1, "dim", -1)) % len(value.shape)
    half = step.shape[dim]
    if value.shape[dim] != 2 * half or step.is_dynamic(0, dim):
        step.freeze(value, "its halves are joined along a dimension of free size")
        return Value(step.shape)
    halves = [value.mapped(partial(torch.narrow, dim=dim, start=i * half, length=half), step.shape) for i in (0, 1)]
    return step.space.merge(halves, step.shape, step.node)


def bucketize(step: Step) -> Result:
    value, boundaries = step.args[:2]
    step.freeze(boundaries, "its values are searched")
    return Value(step.shape, value.planes)


def drop_nothing(cut: Cut) -> None:
    """Of a constant, one draw would drop the same channel of every sample."""
    cut.become(torch.ops.aten.alias.default, cut.node.args[0])


_CAST = Operator(label=unary, of_constant=OfConstant(keeps_zero=True), moves=True)
_DROPOUT = Operator(label=unary, of_constant=OfConstant(keeps_zero=True, rewrite=drop_nothing))

register(
    Operator(label=elementwise),
    *("masked_fill", "where", "rsub", "add", "sub", "mul", "div", "pow", "maximum", "minimum", "relu6"),
    *("hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "selu", "celu", "mish", "softplus", "log_sigmoid"),
    *("softsign", "softshrink", "hardshrink", "square", "__and__", "__or__", "lerp", "addcmul", "addcdiv"),
    *("copy", "floor_divide", "divide", "multiply", "subtract", "true_divide", "greater", "greater_equal"),
    *("less", "less_equal", "not_equal", "absolute", "negative", "clip", "isclose", "fix", "arctan", "arctan2"),
    *("arcsin", "arccos", "special_expit", "special_erf", "__xor__"),
)
register(Operator(label=elementwise, any_rows=True), "silu", "gelu")
register(Operator(label=elementwise, any_rows=True, of_constant=OfConstant(keeps_zero=True)), "relu")
register(_CAST, "_to_copy", "detach")
register(replace(_CAST, rearranges=True), "contiguous", "clone", "alias")
register(replace(_CAST, rearranges=True, any_rows=True), "to")
register(replace(_DROPOUT, any_rows=True), "dropout")
register(_DROPOUT, "feature_dropout", "alpha_dropout")
register(
    Operator(label=unary),
    *("float", "lift_fresh_copy", "type_as", "feature_alpha_dropout", "bernoulli", "zeros_like", "ones_like"),
    *("full_like", "empty_like", "rand_like", "randn_like", "fill", "zero"),
)
register(Operator(label=glu), "glu")
register(Operator(label=bucketize), "bucketize")
