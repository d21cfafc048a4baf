"""Tensors that the graph makes itself."""

from __future__ import annotations

from l0compress.graph.labels.values import Value
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.movement import sizes_left
from l0compress.graph.operators.record import Operator, Result, register
from l0compress.graph.operators.step import Step


def filled(step: Step) -> Result:
    """Every element is the same, so any dimension of literal size may follow the channels that it meets."""
    sizes = step.node.args[1] if step.name.startswith("new_") else step.node.args[0]
    if not isinstance(sizes, (list, tuple)):
        return Value(step.shape)
    literal = [d for d, size in enumerate(sizes) if isinstance(size, int) and size > 1]
    planes = tuple(step.space.fresh_plane(frozenset({d}), step.shape) for d in literal)
    for plane in planes:
        step.space.mark_soft_(plane)
    return Value(step.shape, planes)


def unlabelled(step: Step) -> Result:
    return Value(step.shape)


def cut_filled(cut: Cut) -> None:
    cut.node.update_arg(0, sizes_left(cut, list(cut.argument(0))))


def cut_filled_like(cut: Cut) -> None:
    cut.node.update_arg(1, sizes_left(cut, list(cut.argument(1))))


register(Operator(label=filled, rewrite=cut_filled), "zeros", "ones", "full", "empty")
register(Operator(label=filled, rewrite=cut_filled_like), "new_zeros", "new_ones", "new_full", "new_empty")
register(
    Operator(label=unlabelled),
    *("arange", "scalar_tensor", "linspace", "eye", "tril_indices", "triu_indices", "rand", "randn"),
)
