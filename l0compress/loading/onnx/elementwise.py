"""Elementwise operators."""

from __future__ import annotations

import math
import operator as op
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import EVERY, operator, register
from l0compress.loading.onnx.values import as_tensor, is_host, number, on_host, operand, operands

PAIR = {"scalars": (0, 1), "folds": True}

for _name, _function in {
    "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Tan": torch.tan, "Tanh": torch.tanh, "Relu": F.relu,
    "Sigmoid": torch.sigmoid, "Softsign": F.softsign, "Softplus": F.softplus, "HardSwish": F.hardswish, "Mish": F.mish,
    "Reciprocal": torch.reciprocal, "IsNaN": torch.isnan, "Round": torch.round, "BitwiseNot": torch.bitwise_not,
}.items():  # fmt: skip
    register(_name, _function)


def _paired(left: Any, right: Any, on_tensors: Callable[..., Tensor], on_numbers: Callable[..., Any]) -> Any:
    if is_host(left, right):
        return on_host(on_numbers, left, right)
    first, second = operands(left, right)
    return on_tensors(first, second)


@operator("Add", **PAIR)
def add(left: Any, right: Any) -> Any:
    return _paired(left, right, op.add, op.add)


@operator("Sub", **PAIR)
def sub(left: Any, right: Any) -> Any:
    return _paired(left, right, op.sub, op.sub)


@operator("Mul", **PAIR)
def mul(left: Any, right: Any) -> Any:
    return _paired(left, right, op.mul, op.mul)


@operator("Div", **PAIR)
def div(left: Any, right: Any) -> Any:
    """Divide; integers are rounded towards zero."""
    return _paired(left, right, _div_tensors, _div_numbers)


def _div_tensors(left: Any, right: Any) -> Tensor:
    tensor = left if isinstance(left, Tensor) else right
    return op.truediv(left, right) if tensor.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _div_numbers(left: Any, right: Any) -> Any:
    if isinstance(left, (float, torch.SymFloat)) or isinstance(right, (float, torch.SymFloat)):
        return left / right
    # Symbolic numbers are sizes, which are not negative.
    if isinstance(left, int) and isinstance(right, int):
        return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    return left // right


@operator("Pow", **PAIR)
def power(left: Any, right: Any) -> Any:
    return _paired(left, right, _pow_tensors, op.pow)


def _pow_tensors(left: Any, right: Any) -> Tensor:
    # The result has the type of the base.
    result = torch.pow(left, right)
    return result.to(left.dtype) if isinstance(left, Tensor) and result.dtype != left.dtype else result


@operator("Mod", **PAIR)
def mod(left: Any, right: Any, *, fmod: int = 0) -> Any:
    """Return the remainder with the sign of the divisor, or with ``fmod`` that of the dividend."""
    if fmod:
        return _paired(left, right, torch.fmod, math.fmod)
    return _paired(left, right, torch.remainder, op.mod)


@operator("Equal", **PAIR)
def equal(left: Any, right: Any) -> Any:
    return _paired(left, right, op.eq, op.eq)


@operator("Less", **PAIR)
def less(left: Any, right: Any) -> Any:
    return _paired(left, right, op.lt, op.lt)


@operator("LessOrEqual", **PAIR)
def less_or_equal(left: Any, right: Any) -> Any:
    return _paired(left, right, op.le, op.le)


@operator("Greater", **PAIR)
def greater(left: Any, right: Any) -> Any:
    return _paired(left, right, op.gt, op.gt)


@operator("GreaterOrEqual", **PAIR)
def greater_or_equal(left: Any, right: Any) -> Any:
    return _paired(left, right, op.ge, op.ge)


@operator("And", folds=True)
def logical_and(left: Any, right: Any) -> Any:
    return _paired(as_bools(left, right)[0], as_bools(left, right)[1], torch.logical_and, lambda a, b: a and b)


@operator("Or", folds=True)
def logical_or(left: Any, right: Any) -> Any:
    return _paired(as_bools(left, right)[0], as_bools(left, right)[1], torch.logical_or, lambda a, b: a or b)


@operator("Xor", folds=True)
def logical_xor(left: Any, right: Any) -> Any:
    return _paired(as_bools(left, right)[0], as_bools(left, right)[1], torch.logical_xor, op.ne)


def as_bools(left: Any, right: Any) -> tuple[Any, Any]:
    """Return two booleans, both tensors if one is: PyTorch's logical operators take no Python ones."""
    return (left, right) if is_host(left, right) else (as_tensor(left), as_tensor(right))


@operator("Not", folds=True)
def logical_not(x: Any) -> Any:
    return on_host(op.not_, x) if is_host(x) else torch.logical_not(x)


register("BitwiseAnd", torch.bitwise_and)
register("BitwiseOr", torch.bitwise_or)
register("BitwiseXor", torch.bitwise_xor)


@operator("Neg", folds=True)
def neg(x: Any) -> Any:
    return on_host(op.neg, x) if is_host(x) else torch.neg(x)


@operator("Abs", folds=True)
def absolute(x: Any) -> Any:
    return on_host(abs, x) if is_host(x) else torch.abs(x)


@operator("Floor", folds=True)
def floor(x: Any) -> Any:
    return on_host(lambda v: torch.sym_float(math.floor(v)), x) if is_host(x) else torch.floor(x)


@operator("Ceil", folds=True)
def ceil(x: Any) -> Any:
    return on_host(lambda v: torch.sym_float(math.ceil(v)), x) if is_host(x) else torch.ceil(x)


@operator("Sqrt", folds=True)
def sqrt(x: Any) -> Any:
    return on_host(lambda v: torch.sym_sqrt(v) if v >= 0 else math.nan, x) if is_host(x) else torch.sqrt(x)


def _folded(parts: tuple[Any, ...], on_tensors: Callable[..., Tensor], on_numbers: Callable[..., Any]) -> Any:
    result = parts[0]
    for part in parts[1:]:
        result = _paired(result, part, on_tensors, on_numbers)
    return result


@operator("Sum", scalars=EVERY, folds=True)
def total(*parts: Any) -> Any:
    return _folded(parts, op.add, op.add)


@operator("Mean", scalars=EVERY)
def mean(*parts: Any) -> Tensor:
    return _folded(parts, op.add, op.add) / len(parts)


@operator("Max", scalars=EVERY, folds=True)
def maximum(*parts: Any) -> Any:
    return _folded(parts, _largest, torch.sym_max)


@operator("Min", scalars=EVERY, folds=True)
def minimum(*parts: Any) -> Any:
    return _folded(parts, _smallest, torch.sym_min)


def _largest(left: Any, right: Any) -> Tensor:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        tensor, bound = (left, right) if isinstance(left, Tensor) else (right, left)
        return torch.clamp(tensor, min=bound)
    return torch.maximum(left, right)


def _smallest(left: Any, right: Any) -> Tensor:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        tensor, bound = (left, right) if isinstance(left, Tensor) else (right, left)
        return torch.clamp(tensor, max=bound)
    return torch.minimum(left, right)


@operator("Where", scalars=(1, 2), folds=True)
def where(condition: Any, left: Any, right: Any) -> Any:
    if is_host(condition, left, right):
        return on_host(lambda chosen, a, b: a if chosen else b, condition, left, right)
    mask = as_tensor(condition)
    tensor = next((value for value in (left, right) if isinstance(value, Tensor)), None)
    like = mask if tensor is None else tensor
    chosen, other = (operand(v, like) if tensor is not None else as_tensor(v) for v in (left, right))
    return torch.where(mask, chosen, other)


@operator("Clip", sizes=(1, 2))
def clip(
    x: Tensor, lowest: Any = None, highest: Any = None, *, min: float | None = None, max: float | None = None
) -> Tensor:
    """Clip; the bounds are attributes up to version 6 of the operators, and inputs later."""
    low = min if lowest is None else number(lowest)
    high = max if highest is None else number(highest)
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return torch.isinf(x)
    return torch.isposinf(x) if detect_positive else torch.isneginf(x)


@operator("BitShift")
def bit_shift(x: Tensor, amount: Tensor, *, direction: str) -> Tensor:
    return x << amount if direction == "LEFT" else x >> amount
