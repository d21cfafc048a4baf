"""Reductions and normalised exponentials: a labelled dimension that is reduced freezes, the others pass."""

from __future__ import annotations

from typing import Any

from l0compress.graph.rules.registry import Result, Step, one_or_many, rule
from l0compress.graph.values import Value, varying


def _dims(value: Value, given: Any) -> frozenset[int]:
    rank = len(value.shape)
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return frozenset(range(rank))
    listed = given if isinstance(given, (list, tuple)) else [given]
    return frozenset(int(dim) % max(rank, 1) for dim in listed)


@rule("mean", "sum", "amax", "amin", "prod", "any", "all", "logsumexp", "var", "std", "argmax", "argmin", "max", "min")
def reduction(step: Step) -> Result:
    value = step.args[0]
    given = step.get(1, "dim")
    if isinstance(given, Value):  # the two-operand form of max and min is elementwise
        return step.space.merge(step.tensors(), step.shape, step.node)
    if isinstance(given, bool):  # var(x, unbiased)
        given = None
    return _reduced(step, _dims(value, given))


@rule("linalg_vector_norm")
def vector_norm(step: Step) -> Result:
    return _reduced(step, _dims(step.args[0], step.get(2, "dim")))


def _reduced(step: Step, dims: frozenset[int]) -> Result:
    value = step.args[0]
    planes = step.passed(value, dims, f"{step.name} is taken over it")

    def cut(plane: Any, shape: tuple[int, ...]) -> Any:
        for dim in dims:
            plane = plane.narrow(dim, 0, 1)
        return plane.reshape(shape)

    results = tuple(Value(shape, tuple(cut(plane, shape) for plane in planes)) for shape in step.shapes)
    return one_or_many(results)


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin", "cumsum", "cumprod", "sort", "argsort", "topk")
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
