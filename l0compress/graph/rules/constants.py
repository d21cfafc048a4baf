"""Tensors that the graph makes itself."""

from __future__ import annotations

from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.values import Value


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
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


@rule("arange", "scalar_tensor", "linspace", "eye", "tril_indices", "triu_indices", "rand", "randn")
def unlabelled(step: Step) -> Result:
    return Value(step.shape)
