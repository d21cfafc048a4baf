"""Mixtures of experts: stacked weights of which each token meets those of its experts, and the way there and back."""

from __future__ import annotations

from math import prod

from torch import Tensor

from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.space import MacsFact, ReadFact
from l0compress.graph.values import Value, along, flattened, varying

_CHOSEN = "its experts are chosen at run time"


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_product(step: Step) -> Result:
    """``x [tokens, k]`` in runs of tokens by ``weight [experts, k, m]``: all experts lose the same channels."""
    x, weight = step.args[:2]
    if step.name != "transformers::grouped_mm_fallback":
        for value in step.tensors():
            step.freeze(value, "its kernel takes widths of whole 16 bytes alone")
        step.space.macs.append(MacsFact(step.node, prod(step.shape) * x.shape[-1] / step.batch_size, ()))
        return Value(step.shape)
    channels, columns, rows = _line(step, x, 1), _line(step, weight, 1), _line(step, weight, 2)
    if channels is None or columns is None:
        for labels in (channels, columns):
            if labels is not None:
                step.space.freeze_(labels, step.node, "the other side of the product stays whole")
    else:
        step.space.unite_(columns, channels)
        step.space.reads.append(ReadFact(step.node, 1, along(columns, 1, weight.shape), None))
    lines = tuple(labels for labels in (columns, rows) if labels is not None)
    whole = prod(step.shape) * x.shape[1] / prod(labels.numel() for labels in lines)
    step.space.macs.append(MacsFact(step.node, whole / step.batch_size, lines))
    return Value(step.shape, () if rows is None else (along(rows, 1, step.shape),))


def _line(step: Step, value: Value, dim: int) -> Tensor | None:
    """The labels of an operand along one dimension. Experts and tokens are no channels."""
    found = value.plane_along(dim)
    for plane in value.planes:
        if (varying(plane) & {0}) or (plane is found and varying(plane) != {dim}):
            step.space.freeze_(plane, step.node, _CHOSEN)
    return flattened(found) if found is not None and varying(found) == {dim} else None
