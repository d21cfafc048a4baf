"""Look-ups: the width of a table is a channel dimension, its rows are not."""

from __future__ import annotations

import torch

from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.values import Value, along, flattened, varying

_INDEX = "its values are used as indices"


@rule("embedding")
def embedding(step: Step) -> Result:
    table = step.args[0]
    step.freeze(step.args[1], _INDEX)
    planes = step.passed(table, frozenset({0}), "its rows are chosen by index at run time")
    return Value(
        step.shape,
        tuple(along(flattened(plane), len(step.shape) - 1, step.shape) for plane in planes if varying(plane)),
    )


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(step: Step) -> Result:
    """Bags of rows are summed, averaged or maximised inside each channel of the table."""
    table = step.args[0]
    for operand in step.tensors():
        if operand is not table:
            step.freeze(operand, _INDEX)
    planes = step.passed(table, frozenset({0}), "its rows are chosen by index at run time")
    bags = Value(step.shape, tuple(along(flattened(plane), 1, step.shape) for plane in planes if varying(plane)))
    return (bags, *(Value(shape) for shape in step.shapes[1:]))


@rule("index")
def index(step: Step) -> Result:
    """Indexed dimensions freeze; the others keep their channels, wherever advanced indexing moves them."""
    value, indices = step.args[0], step.args[1]
    for part in indices:
        if isinstance(part, Value):
            step.freeze(part, _INDEX)
    indexed = frozenset(d for d, part in enumerate(indices) if isinstance(part, Value))
    planes = step.passed(value, indexed, "it is indexed at run time")
    return _moved(Value(value.shape, planes), indices, step)


def _moved(value: Value, indices: list[Value | None], step: Step) -> Value:
    stand_in = [None if part is None else torch.zeros(part.shape, dtype=torch.long) for part in indices]
    return value.mapped(lambda plane: torch.ops.aten.index.Tensor(plane, stand_in), step.shape)


@rule("index_select", "gather")
def index_select(step: Step) -> Result:
    value, dim = step.args[0], step.args[1] % max(len(step.args[0].shape), 1)
    step.freeze(step.args[2], _INDEX)
    if step.name == "gather":
        step.freeze(value, "it is gathered at run time")
        return Value(step.shape)
    planes = step.passed(value, frozenset({dim}), "it is indexed at run time")
    return Value(step.shape, tuple(plane.narrow(dim, 0, 1).expand(step.shape) for plane in planes))
