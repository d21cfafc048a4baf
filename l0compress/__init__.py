"""Compress a trained PyTorch model to a budget by constrained L0 fine-tuning, and prove what came out.

The whole line in one call::

    result = l0.compress(model, data, target={"macs": 0.5})
    l0.export_onnx(result.small, "small.onnx")      # or export_bundle(result.small, "small.l0c"): sparse, without torch

In a training loop of your own, verb by verb, each documented where it is defined:

>>> import torch, l0compress as l0
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
>>> x, y = torch.randn(64, 8), torch.randint(3, (64,))
>>> graph = l0.capture(model, (x[:2],))             # a CapturedGraph
>>> gated = l0.gate(graph)                          # an nn.Module; l0.find_groups(graph) says what has gates, and why
>>> budget = l0.Budget(gated, {"macs": 0.5})        # penalty() joins the loss, step() follows the optimizer's
>>> optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-3, weight_decay=0.01))
>>> for _ in range(10):
...     loss = torch.nn.functional.cross_entropy(gated(x), y) + budget.penalty()
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
...     budget.step()
>>> plan = l0.harden(gated, budget)
>>> small = gated.shrink(plan)                      # a smaller CapturedGraph with the trained weights
>>> l0.cost(small).macs <= budget.target
True
>>> l0.verify(small, l0.masked(l0.fold(gated, plan), plan)).max_relative < 1e-5    # equal, or an error that says where
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from l0compress.old_names import LEFT as _LEFT
from l0compress.old_names import PUBLIC as _OLD_NAMES

if TYPE_CHECKING:
    from l0compress.data import Batch, Data, Split, StreamSplit
    from l0compress.errors import L0Error
    from l0compress.export.bundle import BundleSettings, export_bundle
    from l0compress.export.module.shrinking import shrink_module_
    from l0compress.export.onnx import export_onnx
    from l0compress.export.pt2 import export_pt2
    from l0compress.export.quantize import quantize_onnx
    from l0compress.gates.attach import gate
    from l0compress.gates.folding import fold
    from l0compress.graph import (
        CapturedGraph,
        Cost,
        KeepPlan,
        Operator,
        capture,
        cost,
        find_groups,
        masked,
        nonzero_cost,
        register_operator,
        register_rule,
        shrink,
    )
    from l0compress.loading import DataSource, load_data, load_model
    from l0compress.pipeline.artifacts import load
    from l0compress.pipeline.compress import compress
    from l0compress.pipeline.family import compress_family
    from l0compress.pipeline.huggingface import export_huggingface, export_onnx_with_past
    from l0compress.training.budget import Budget
    from l0compress.training.finetune import finetune
    from l0compress.training.harden import harden
    from l0compress.training.latency_targets import latency_target
    from l0compress.training.settings import FinetuneSettings
    from l0compress.verification.equality import verify

__version__ = "0.1.0"

# Resolved on first use: importing the package alone loads neither torch nor onnx.
_HOMES = {
    "Batch": "l0compress.data",
    "Budget": "l0compress.training.budget",
    "BundleSettings": "l0compress.export.bundle",
    "CapturedGraph": "l0compress.graph",
    "Cost": "l0compress.graph",
    "Data": "l0compress.data",
    "DataSource": "l0compress.loading",
    "FinetuneSettings": "l0compress.training.settings",
    "KeepPlan": "l0compress.graph",
    "L0Error": "l0compress.errors",
    "Operator": "l0compress.graph",
    "Split": "l0compress.data",
    "StreamSplit": "l0compress.data",
    "capture": "l0compress.graph",
    "compress": "l0compress.pipeline.compress",
    "compress_family": "l0compress.pipeline.family",
    "cost": "l0compress.graph",
    "export_bundle": "l0compress.export.bundle",
    "export_huggingface": "l0compress.pipeline.huggingface",
    "export_onnx": "l0compress.export.onnx",
    "export_onnx_with_past": "l0compress.pipeline.huggingface",
    "export_pt2": "l0compress.export.pt2",
    "find_groups": "l0compress.graph",
    "finetune": "l0compress.training.finetune",
    "fold": "l0compress.gates.folding",
    "gate": "l0compress.gates.attach",
    "harden": "l0compress.training.harden",
    "latency_target": "l0compress.training.latency_targets",
    "load": "l0compress.pipeline.artifacts",
    "load_data": "l0compress.loading",
    "load_model": "l0compress.loading",
    "masked": "l0compress.graph",
    "nonzero_cost": "l0compress.graph",
    "quantize_onnx": "l0compress.export.quantize",
    "register_operator": "l0compress.graph",
    "register_rule": "l0compress.graph",
    "shrink": "l0compress.graph",
    "shrink_module_": "l0compress.export.module.shrinking",
    "verify": "l0compress.verification.equality",
}

__all__ = [
    "Batch",
    "Budget",
    "BundleSettings",
    "CapturedGraph",
    "Cost",
    "Data",
    "DataSource",
    "FinetuneSettings",
    "KeepPlan",
    "L0Error",
    "Operator",
    "Split",
    "StreamSplit",
    "__version__",
    "capture",
    "compress",
    "compress_family",
    "cost",
    "export_bundle",
    "export_huggingface",
    "export_onnx",
    "export_onnx_with_past",
    "export_pt2",
    "find_groups",
    "finetune",
    "fold",
    "gate",
    "harden",
    "latency_target",
    "load",
    "load_data",
    "load_model",
    "masked",
    "nonzero_cost",
    "quantize_onnx",
    "register_operator",
    "register_rule",
    "shrink",
    "shrink_module_",
    "verify",
]


def __getattr__(name: str) -> Any:
    name = _OLD_NAMES.get(name, name)
    home = _HOMES.get(name) or _LEFT.get(name)
    if home is None:
        raise AttributeError(f"module 'l0compress' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
