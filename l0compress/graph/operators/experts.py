"""Mixtures of experts: stacked weights of which each token meets those of its experts, and the way there and back."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from l0compress.graph.labels.space import ReadFact
from l0compress.graph.labels.values import Value, along, flattened, varying
from l0compress.graph.operators.contraction import product_macs
from l0compress.graph.operators.record import EmptySum, Operator, Result, Weights, register
from l0compress.graph.operators.step import Step

_CHOSEN = "its experts are chosen at run time"


def grouped_product(step: Step) -> Result:
    """``x [tokens, k]`` in runs of tokens by ``weight [experts, k, m]``: all experts lose the same channels."""
    x, weight = step.args[:2]
    if step.name != "transformers::grouped_mm_fallback":
        step.record_macs(product_macs(step.node), ())
        return step.frozen("its kernel accepts only widths that are multiples of 16 bytes")[0]
    channels, columns, rows = _line(step, x, 1), _line(step, weight, 1), _line(step, weight, 2)
    if channels is None or columns is None:
        step.freeze_labels((channels, columns), "the other side of the product stays whole")
    else:
        step.space.unite_(columns, channels)
        step.space.reads.append(ReadFact(step.node, 1, along(columns, 1, weight.shape), None))
    lines = tuple(labels for labels in (columns, rows) if labels is not None)
    step.record_macs(product_macs(step.node), lines)
    return Value(step.shape, () if rows is None else (along(rows, 1, step.shape),))


def _line(step: Step, value: Value, dim: int) -> Tensor | None:
    """The labels of an operand along one dimension. Experts and tokens are no channels."""
    found = value.plane_along(dim)
    for plane in value.planes:
        if (varying(plane) & {0}) or (plane is found and varying(plane) != {dim}):
            step.space.freeze_(plane, step.node, _CHOSEN)
    return flattened(found) if found is not None and varying(found) == {dim} else None


_GROUPED = Operator(label=grouped_product, macs=product_macs, weights=Weights((1,)))
register(_GROUPED, "_grouped_mm")
register(replace(_GROUPED, empty_sum=EmptySum()), "transformers::grouped_mm_fallback")
