"""Reductions and normalised exponentials: sums read what they reduce, others freeze it, and all else passes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from l0compress.graph.rules.registry import Result, Step, one_or_many, rule
from l0compress.graph.space import ReadFact
from l0compress.graph.values import Shape, Value, varying


def dims_of(value: Value, given: Any) -> frozenset[int]:
    rank = len(value.shape)
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return frozenset(range(rank))
    listed = given if isinstance(given, (list, tuple)) else [given]
    return frozenset(int(dim) % max(rank, 1) for dim in listed)


@rule(
    "amax",
    "amin",
    "prod",
    "any",
    "all",
    "logsumexp",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "argmax",
    "argmin",
    "max",
    "min",
    "median",
    "nanmedian",
    "mode",
    "nansum",
    "nanmean",
    "count_nonzero",
    "aminmax",
)
def reduction(step: Step) -> Result:
    value = step.args[0]
    given = step.get(1, "dim")
    if isinstance(given, Value):  # the two-operand form of max and min is elementwise
        return step.space.merge(step.tensors(), step.shape, step.node)
    if isinstance(given, bool):  # var(x, unbiased)
        given = None
    return _reduced(step, dims_of(value, given))


@rule("sum", "mean")
def summed(step: Step) -> Result:
    """A sum over channels reads them, as a product with ones would: what is dead has to contribute nothing."""
    return _read(step, dims_of(step.args[0], step.get(1, "dim")))


@rule("linalg_vector_norm", "norm", "linalg_norm")
def vector_norm(step: Step) -> Result:
    """A norm of non-negative order does not see zeros, so it reads channels as a sum does."""
    value, order = step.args[0], step.get(1, "p" if step.name == "norm" else "ord")
    dims = dims_of(value, step.get(2, "dim"))
    if order is None or (isinstance(order, (int, float)) and order >= 0 and (len(dims) == 1 or order == 2)):
        return _read(step, dims)
    return _reduced(step, dims)


def _read(step: Step, dims: frozenset[int]) -> Result:
    value, source = step.args[0], step.node.args[0]
    # Gates are floating-point factors, and an integer sum would not stay one.
    if not isinstance(source, fx.Node) or not source.meta["val"].is_floating_point():
        return _reduced(step, dims)
    planes = []
    for plane in value.planes:
        inner = varying(plane) & dims
        if not inner:
            planes.append(plane)
            continue
        survivors = None
        if varying(plane) - inner:
            survivors = step.space.fresh_plane(varying(plane) - inner, value.shape)
            step.space.tie_any_(survivors, plane)
            planes.append(survivors)
        step.space.reads.append(ReadFact(step.node, 0, plane, survivors))
    return Value(step.shape, tuple(_cut(plane, dims, step.shape) for plane in planes))


def _reduced(step: Step, dims: frozenset[int]) -> Result:
    value = step.args[0]
    planes = step.passed(value, dims, f"{step.name} is taken over it")
    results = tuple(Value(shape, tuple(_cut(plane, dims, shape) for plane in planes)) for shape in step.shapes)
    return one_or_many(results)


def _cut(plane: Tensor, dims: frozenset[int], shape: Shape) -> Tensor:
    for dim in dims:
        plane = plane.narrow(dim, 0, 1)
    return plane.reshape(shape)


@rule(
    "softmax",
    "_softmax",
    "log_softmax",
    "_log_softmax",
    "softmin",
    "cumsum",
    "cumprod",
    "cummax",
    "cummin",
    "logcumsumexp",
    "sort",
    "argsort",
    "topk",
)
def along_one_dimension(step: Step) -> Result:
    value = step.args[0]
    position = 2 if step.name == "topk" else 1
    dim = int(step.get(position, "dim", -1)) % max(len(value.shape), 1)
    planes = step.passed(value, frozenset({dim}), f"{step.name} is taken over it")
    results = tuple(
        Value(shape, tuple(plane.narrow(dim, 0, 1).expand(shape) for plane in planes)) for shape in step.shapes
    )
    return one_or_many(results)


@rule("tril", "triu")
def triangle(step: Step) -> Result:
    value = step.args[0]
    last = frozenset({len(value.shape) - 2, len(value.shape) - 1})
    return Value(step.shape, step.passed(value, last, f"{step.name} depends on the position in it"))


def spatial_planes(step: Step, value: Value, num_spatial: int) -> tuple[Any, ...]:
    """Planes that stay clear of the last ``num_spatial`` dimensions."""
    last = frozenset(range(len(value.shape) - num_spatial, len(value.shape)))
    return tuple(plane for plane in step.passed(value, last, f"{step.name} mixes its positions") if varying(plane))
