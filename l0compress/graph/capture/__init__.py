"""Capture: a PyTorch module becomes a graph.

``tracing`` runs ``torch.export`` and ``captured`` is its outcome. Before it, ``instance_state``, ``own_writes`` (by the
source that ``assignments`` reads), ``history`` and ``caches`` see to it that the model's earlier calls leave no trace;
``dynamic`` and ``batch`` choose the free sizes. After it, ``functional``, ``einsum``, ``folding``, ``cells`` and
``rnn_layers`` rewrite what labels cannot see through.
"""

from __future__ import annotations

from l0compress.graph.capture.captured import CapturedGraph, check_captured, propagate_shapes
from l0compress.graph.capture.tracing import USER_CODE_ERRORS, capture

__all__ = ["USER_CODE_ERRORS", "CapturedGraph", "capture", "check_captured", "propagate_shapes"]
