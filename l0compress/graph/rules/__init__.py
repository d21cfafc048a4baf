"""How labels pass through each kind of operator: one file a kind, one function a rule.

A rule takes a :class:`~l0compress.graph.rules.registry.Step` and returns the value of the result. It may unite, tie or
freeze labels on the way. An operator without a rule freezes what it touches, which is always right and never prunable.
"""

from __future__ import annotations

from l0compress.graph.rules import (
    constants,
    contraction,
    convolution,
    elementwise,
    embedding,
    experts,
    indexing,
    joining,
    movement,
    normalization,
    recurrent,
    reduction,
    spatial,
)
from l0compress.graph.rules.registry import Step, apply_rule

__all__ = [
    "Step",
    "apply_rule",
    "constants",
    "contraction",
    "convolution",
    "elementwise",
    "embedding",
    "experts",
    "indexing",
    "joining",
    "movement",
    "normalization",
    "recurrent",
    "reduction",
    "spatial",
]
