"""Operators: what the package knows of each, one family per file.

Every file registers records (:class:`~l0compress.graph.operators.record.Operator`) that say how labels pass through an
operator, what it costs, which weights it reads, what is left of it at width zero, and how its node is rewritten when
operands get smaller. To teach the package an operator is to add one record, here or with
:func:`~l0compress.graph.operators.custom.register_operator`.
"""

from __future__ import annotations

from l0compress.graph.operators import (
    attention,
    contraction,
    convolution,
    creation,
    elementwise,
    embedding,
    experts,
    indexing,
    joining,
    movement,
    normalization,
    recurrent,
    reduction,
    slicing,
    spatial,
)
from l0compress.graph.operators.cut import Cut, Kept, rewrite_
from l0compress.graph.operators.record import EmptySum, OfConstant, Operator, Weights, operator_of
from l0compress.graph.operators.step import Step, apply_rule

__all__ = [
    "Cut",
    "EmptySum",
    "Kept",
    "OfConstant",
    "Operator",
    "Step",
    "Weights",
    "apply_rule",
    "attention",
    "contraction",
    "convolution",
    "creation",
    "elementwise",
    "embedding",
    "experts",
    "indexing",
    "joining",
    "movement",
    "normalization",
    "operator_of",
    "recurrent",
    "reduction",
    "rewrite_",
    "slicing",
    "spatial",
]
