"""Look-ups: the width of a table is a channel dimension, its rows are not."""

from __future__ import annotations

from l0compress.graph.labels.values import Value, along, flattened, varying
from l0compress.graph.operators.record import Operator, Result, Weights, register
from l0compress.graph.operators.step import Step

_INDEX = "its values are used as indices"


def embedding(step: Step) -> Result:
    table = step.args[0]
    step.freeze(step.args[1], _INDEX)
    planes = step.passed(table, frozenset({0}), "its rows are chosen by index at run time")
    return Value(
        step.shape,
        tuple(along(flattened(plane), len(step.shape) - 1, step.shape) for plane in planes if varying(plane)),
    )


def embedding_bag(step: Step) -> Result:
    """Bags of rows are summed, averaged or maximised inside each channel of the table."""
    table = step.args[0]
    for operand in step.tensors():
        if operand is not table:
            step.freeze(operand, _INDEX)
    planes = step.passed(table, frozenset({0}), "its rows are chosen by index at run time")
    bags = Value(step.shape, tuple(along(flattened(plane), 1, step.shape) for plane in planes if varying(plane)))
    return (bags, *(Value(shape) for shape in step.shapes[1:]))


_TABLE = Weights((0,), looked_up=True)
register(Operator(label=embedding, weights=_TABLE), "embedding")
register(
    Operator(label=embedding_bag, weights=_TABLE),
    *("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"),
)
