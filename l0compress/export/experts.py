"""Products of runs of tokens by stacked experts in ONNX: one slice of the tokens and one ``MatMul`` per expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxscript import opset18
from onnxscript.onnx_types import FLOAT, INT32

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import op_name

op: Any = opset18


def expert_translations(graph: CapturedGraph) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` of ``torch.onnx.export`` for the expert operators in ``graph``.

    transformers brings an operator of its own, which exists only once that library is imported.
    """
    found: dict[Callable[..., Any], Callable[..., Any]] = {}
    for node in graph.nodes():
        if op_name(node) in ("_grouped_mm", "transformers::grouped_mm_fallback") and callable(node.target):
            found[node.target] = _grouped_product
    return found


def _grouped_product(input: FLOAT, weight: FLOAT, offs: INT32) -> Any:
    return _by_expert(input, weight, op.Cast(offs, to=7))


def _by_expert(x: Any, weight: Any, ends: Any) -> Any:
    """Multiply by expert; tokens are sorted by expert, and ``ends`` says where the run of each expert ends."""
    parts, start = [], op.Constant(value_ints=[0])
    for expert in range(int(weight.shape[0])):
        end = op.Slice(ends, [expert], [expert + 1], [0])
        own = op.Squeeze(op.Slice(weight, [expert], [expert + 1], [0]), [0])
        parts.append(op.MatMul(op.Slice(x, start, end, [0]), own))
        start = end
    return op.Concat(*parts, axis=0)
