"""Reductions and normalised exponentials: most read what they reduce, others freeze it, and all else passes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.labels.values import Shape, Value, varying
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.filling import filled_operand, missing_along, narrow_
from l0compress.graph.operators.reading import read_over
from l0compress.graph.operators.record import EmptySum, Operator, Result, register
from l0compress.graph.operators.step import Step, one_or_many

aten = torch.ops.aten


def dims_of(value: Value, given: Any) -> frozenset[int]:
    rank = len(value.shape)
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return frozenset(range(rank))
    listed = given if isinstance(given, (list, tuple)) else [given]
    return frozenset(int(dim) % max(rank, 1) for dim in listed)


def reduction(step: Step) -> Result:
    value = step.args[0]
    given = step.get(1, "dim")
    if isinstance(given, Value):  # the two-operand form of max and min is elementwise
        return step.space.merge(step.tensors(), step.shape, step.node)
    if isinstance(given, bool):  # var(x, unbiased)
        given = None
    return _reduced(step, dims_of(value, given))


def summed(step: Step) -> Result:
    """A sum over channels reads them, as a product with ones would: what is dead has to contribute nothing."""
    return _read(step, dims_of(step.args[0], step.get(1, "dim")))


def vector_norm(step: Step) -> Result:
    """A norm of non-negative order does not see zeros, so it reads channels as a sum does."""
    value, order = step.args[0], step.get(1, "p" if step.name == "norm" else "ord")
    dims = dims_of(value, step.get(2, "dim"))
    if order is None or (isinstance(order, (int, float)) and order >= 0 and (len(dims) == 1 or order == 2)):
        return _read(step, dims)
    return _reduced(step, dims)


def counting(step: Step) -> Result:
    """What sees zeros has them filled in by surgery."""
    given = step.get(1, "dim")
    return _read(step, dims_of(step.args[0], None if isinstance(given, bool) else given), counts=True)  # var(x, False)


def _read(step: Step, dims: frozenset[int], *, counts: bool = False) -> Result:
    value, source = step.args[0], step.node.args[0]
    # Gates are floating-point factors, and an integer sum would not stay one.
    if not isinstance(source, fx.Node) or not source.meta["val"].is_floating_point():
        return _reduced(step, dims)
    pairs = read_over(step, value, dims, _reason(step), counts=counts)
    planes = [left for _, left in pairs if left is not None]
    return one_or_many(
        tuple(Value(shape, tuple(_cut(plane, dims, shape) for plane in planes)) for shape in step.shapes)
    )


def _reason(step: Step) -> str:
    return f"{step.name} is taken over it"


def _reduced(step: Step, dims: frozenset[int]) -> Result:
    value = step.args[0]
    planes = step.passed(value, dims, _reason(step))
    results = tuple(Value(shape, tuple(_cut(plane, dims, shape) for plane in planes)) for shape in step.shapes)
    return one_or_many(results)


def _cut(plane: Tensor, dims: frozenset[int], shape: Shape) -> Tensor:
    for dim in dims:
        plane = plane.narrow(dim, 0, 1)
    return plane.reshape(shape)


def softmax(step: Step) -> Result:
    """A channel that is dead takes its share as a zero does, which surgery fills in."""
    value = step.args[0]
    dim = int(step.get(1, "dim", -1)) % max(len(value.shape), 1)
    pairs = read_over(step, value, frozenset({dim}), _reason(step))
    return Value(step.shape, tuple(plane for plane, _ in pairs))


def along_one_dimension(step: Step) -> Result:
    value = step.args[0]
    position = 2 if step.name == "topk" else 1
    dim = int(step.get(position, "dim", -1)) % max(len(value.shape), 1)
    planes = step.passed(value, frozenset({dim}), _reason(step))
    results = tuple(
        Value(shape, tuple(plane.narrow(dim, 0, 1).expand(shape) for plane in planes)) for shape in step.shapes
    )
    return one_or_many(results)


def triangle(step: Step) -> Result:
    value = step.args[0]
    last = frozenset({len(value.shape) - 2, len(value.shape) - 1})
    return Value(step.shape, step.passed(value, last, f"{step.name} depends on the position in it"))


def spatial_planes(step: Step, value: Value, num_spatial: int) -> tuple[Any, ...]:
    """Planes that stay clear of the last ``num_spatial`` dimensions."""
    last = frozenset(range(len(value.shape) - num_spatial, len(value.shape)))
    return tuple(plane for plane in step.passed(value, last, f"{step.name} mixes its positions") if varying(plane))


def keep_dense_mean(cut: Cut) -> None:
    """A mean over channels still divides by how many the dense model had."""
    source = cut.operands[0]
    given: Any = cut.arguments[1] if len(cut.arguments) > 1 else cut.node.kwargs.get("dim")
    listed = given if isinstance(given, (list, tuple)) else [given] if isinstance(given, int) else []
    dims = [dim % len(source.dense) for dim in listed] or range(len(source.dense))
    share = math.prod(source.shape[dim] / source.dense[dim] for dim in dims)
    if share != 1:
        smaller = cut.emit(cut.node.target, *cut.node.args, **cut.node.kwargs)
        cut.become(aten.mul.Tensor, smaller, share)


def fill_softmax(cut: Cut) -> None:
    missing = missing_along(cut, [cut.argument(1, "dim")])
    if missing:
        filled = filled_operand(cut, missing)
        normal = cut.emit(cut.node.target, filled, *cut.node.args[1:], **cut.node.kwargs)
        narrow_(cut, cut.node, normal, missing)


def fill_counted(cut: Cut) -> None:
    given = cut.argument(1, "dim")
    dims = [] if given is None or isinstance(given, bool) else [given] if isinstance(given, int) else list(given)
    missing = missing_along(cut, dims or range(len(cut.operands[0].dense)))
    if missing:
        cut.node.update_arg(0, filled_operand(cut, missing))


register(
    Operator(label=reduction),
    *("prod", "any", "all", "argmax", "argmin", "max", "min", "median", "nanmedian", "mode", "nansum", "nanmean"),
    *("count_nonzero", "aminmax"),
)
register(Operator(label=summed, empty_sum=EmptySum()), "sum")
register(Operator(label=summed, empty_sum=EmptySum(), rewrite=keep_dense_mean), "mean")
register(Operator(label=vector_norm, empty_sum=EmptySum()), "linalg_vector_norm")
register(Operator(label=vector_norm), "norm", "linalg_norm")
register(
    Operator(label=counting, rewrite=fill_counted),
    *("amax", "amin", "logsumexp", "var", "std", "var_mean", "std_mean"),
)
register(Operator(label=softmax, rewrite=fill_softmax), "softmax", "_softmax", "log_softmax", "_log_softmax")
register(
    Operator(label=along_one_dimension),
    *("softmin", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort", "topk"),
)
register(Operator(label=triangle), "tril", "triu")
