"""Compress a trained PyTorch model to a budget by constrained L0 fine-tuning, and prove what came out.

The verbs, each documented where it is defined::

    graph  = l0.capture(model, args)                    # a CapturedGraph
    groups = l0.find_groups(graph)                      # what is cut together, and what is frozen and why
    gated  = l0.gate(graph)                             # an nn.Module: train it your own way
    budget = l0.Budget(gated, macs=0.5)                 # penalty() joins the loss, step() follows the optimizer's
    plan   = l0.harden(gated, budget)
    small  = l0.shrink(graph, plan)                     # a smaller CapturedGraph
    l0.verify(small, l0.masked(graph, plan))            # equal, or an error that says where not
    l0.export_onnx(small, "small.onnx")                 # or export_csr(small, "small.l0c"): sparse, without torch

    result = l0.compress(model, data, target={"macs": 0.5})     # the whole line in one call
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l0compress.data import Batch, Data, Split, StreamSplit
    from l0compress.errors import L0Error
    from l0compress.export.csr import CsrSettings, export_csr
    from l0compress.export.onnx import export_onnx
    from l0compress.export.pt2 import export_pt2
    from l0compress.export.quantize import quantize_onnx
    from l0compress.gates.attach import fold, gate
    from l0compress.graph import (
        CapturedGraph,
        Cost,
        KeepPlan,
        capture,
        cost,
        find_groups,
        masked,
        nonzero_cost,
        register_rule,
        shrink,
        unshrink_state,
    )
    from l0compress.loading import DataSource, load_data, load_model
    from l0compress.pipeline.artifacts import load
    from l0compress.pipeline.compress import compress
    from l0compress.training.budget import Budget
    from l0compress.training.finetune import finetune
    from l0compress.training.harden import harden
    from l0compress.training.settings import FinetuneSettings
    from l0compress.training.sparsity import keep_zeros_
    from l0compress.verify import verify

__version__ = "0.1.0"

# Resolved on first use: importing the package alone loads neither torch nor onnx.
_HOMES = {
    "Batch": "l0compress.data",
    "Budget": "l0compress.training.budget",
    "CapturedGraph": "l0compress.graph",
    "Cost": "l0compress.graph",
    "CsrSettings": "l0compress.export.csr",
    "Data": "l0compress.data",
    "DataSource": "l0compress.loading",
    "FinetuneSettings": "l0compress.training.settings",
    "KeepPlan": "l0compress.graph",
    "L0Error": "l0compress.errors",
    "Split": "l0compress.data",
    "StreamSplit": "l0compress.data",
    "capture": "l0compress.graph",
    "compress": "l0compress.pipeline.compress",
    "cost": "l0compress.graph",
    "export_csr": "l0compress.export.csr",
    "export_onnx": "l0compress.export.onnx",
    "export_pt2": "l0compress.export.pt2",
    "find_groups": "l0compress.graph",
    "finetune": "l0compress.training.finetune",
    "fold": "l0compress.gates.attach",
    "gate": "l0compress.gates.attach",
    "harden": "l0compress.training.harden",
    "keep_zeros_": "l0compress.training.sparsity",
    "load": "l0compress.pipeline.artifacts",
    "load_data": "l0compress.loading",
    "load_model": "l0compress.loading",
    "masked": "l0compress.graph",
    "nonzero_cost": "l0compress.graph",
    "quantize_onnx": "l0compress.export.quantize",
    "register_rule": "l0compress.graph",
    "shrink": "l0compress.graph",
    "unshrink_state": "l0compress.graph",
    "verify": "l0compress.verify",
}

__all__ = [
    "Batch",
    "Budget",
    "CapturedGraph",
    "Cost",
    "CsrSettings",
    "Data",
    "DataSource",
    "FinetuneSettings",
    "KeepPlan",
    "L0Error",
    "Split",
    "StreamSplit",
    "__version__",
    "capture",
    "compress",
    "cost",
    "export_csr",
    "export_onnx",
    "export_pt2",
    "find_groups",
    "finetune",
    "fold",
    "gate",
    "harden",
    "keep_zeros_",
    "load",
    "load_data",
    "load_model",
    "masked",
    "nonzero_cost",
    "quantize_onnx",
    "register_rule",
    "shrink",
    "unshrink_state",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'l0compress' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing a submodule binds it in its package; that must not hide a verb of the same name (``verify``)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
