"""Reads of activations: operators that take several channels together, in which the dead ones count as zeros."""

from __future__ import annotations

from torch import Tensor

from l0compress.graph.labels.space import ReadFact
from l0compress.graph.labels.values import Value, varying
from l0compress.graph.operators.step import Step


def read_over(
    step: Step, value: Value, dims: frozenset[int], reason: str, *, counts: bool = True
) -> list[tuple[Tensor, Tensor | None]]:
    """Record that the channels of the first operand along ``dims`` are read.

    What reaches beyond (heads x width, read over the width) is needed as long as the head lives.

    Args:
        reason: why channels are frozen along a dimension of free size, where nobody knows how many zeros to fill in.
        counts: whether the operator sees zeros, so that surgery has to fill them in.

    Returns:
        Every plane that is left, and the plane of what each of its elements is taken into: itself where it does not
        vary along ``dims``, None where one result is for all of it.
    """
    pairs: list[tuple[Tensor, Tensor | None]] = []
    for plane in value.planes:
        inner, outer = varying(plane) & dims, varying(plane) - dims
        if not inner:
            pairs.append((plane, plane))
        elif counts and any(step.is_dynamic(0, dim) for dim in inner):
            pairs.extend((kept, kept) for kept in step.passed(Value(value.shape, (plane,)), dims, reason))
        else:
            survivors = step.space.fresh_plane(outer, value.shape) if outer else None
            if survivors is not None:
                step.space.tie_any_(survivors, plane)
            step.space.reads.append(ReadFact(step.node, 0, plane, survivors))
            pairs.append((plane, survivors))
    return pairs
