"""Compress a trained PyTorch model to a budget by constrained L0 fine-tuning, and prove what came out.

The verbs, each documented where it is defined::

    graph  = l0.capture(model, args)                    # a CapturedGraph
    groups = l0.find_groups(graph)                      # what is cut together, and what is frozen and why
    gated  = l0.gate(graph)                             # an nn.Module: train it your own way
    budget = l0.Budget(gated, macs=0.5)                 # penalty() joins the loss, step() follows the optimizer's
    plan   = l0.harden(gated, budget)
    small  = l0.shrink(graph, plan)                     # a smaller CapturedGraph
    l0.verify(small, l0.masked(graph, plan))            # equal, or an error that says where not
    l0.export_onnx(small, "small.onnx")

    result = l0.compress(model, data, target={"macs": 0.5})     # the whole line in one call
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l0compress.data import Batch as Batch, Data as Data, Split as Split, StreamSplit as StreamSplit
    from l0compress.errors import L0Error as L0Error
    from l0compress.export.onnx import export_onnx as export_onnx
    from l0compress.export.pt2 import export_pt2 as export_pt2
    from l0compress.gates.attach import fold as fold, gate as gate
    from l0compress.graph import (
        CapturedGraph as CapturedGraph,
        Cost as Cost,
        KeepPlan as KeepPlan,
        capture as capture,
        cost as cost,
        find_groups as find_groups,
        masked as masked,
        shrink as shrink,
        unshrink_state as unshrink_state,
    )
    from l0compress.loading import load_data as load_data, load_model as load_model
    from l0compress.pipeline.artifacts import load as load
    from l0compress.pipeline.compress import compress as compress
    from l0compress.training.budget import Budget as Budget
    from l0compress.training.finetune import finetune as finetune
    from l0compress.training.harden import harden as harden
    from l0compress.training.settings import FinetuneSettings as FinetuneSettings
    from l0compress.verify import verify as verify

__version__ = "0.1.0"

# Resolved on first use: importing the package alone loads neither torch nor onnx.
_EXPORTS = {
    "Batch": "l0compress.data",
    "Budget": "l0compress.training.budget",
    "CapturedGraph": "l0compress.graph",
    "Cost": "l0compress.graph",
    "Data": "l0compress.data",
    "FinetuneSettings": "l0compress.training.settings",
    "KeepPlan": "l0compress.graph",
    "L0Error": "l0compress.errors",
    "Split": "l0compress.data",
    "StreamSplit": "l0compress.data",
    "capture": "l0compress.graph",
    "compress": "l0compress.pipeline.compress",
    "cost": "l0compress.graph",
    "export_onnx": "l0compress.export.onnx",
    "export_pt2": "l0compress.export.pt2",
    "find_groups": "l0compress.graph",
    "finetune": "l0compress.training.finetune",
    "fold": "l0compress.gates.attach",
    "gate": "l0compress.gates.attach",
    "harden": "l0compress.training.harden",
    "load": "l0compress.pipeline.artifacts",
    "load_data": "l0compress.loading",
    "load_model": "l0compress.loading",
    "masked": "l0compress.graph",
    "shrink": "l0compress.graph",
    "unshrink_state": "l0compress.graph",
    "verify": "l0compress.verify",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'l0compress' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
