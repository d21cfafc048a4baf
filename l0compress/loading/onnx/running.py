"""Run one node: the function behind every call in the graph of a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from l0compress.errors import ModelError
from l0compress.loading.onnx.families import find
from l0compress.loading.onnx.refused import reason_against
from l0compress.loading.onnx.registry import Operator
from l0compress.loading.onnx.values import Refusal, as_tensor, is_host


def run(name: str, opset: int, label: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Compute one node.

    Args:
        name: the operator's.
        opset: the version of the operators.
        label: how messages call the node.
        inputs: tensors, or numbers on the host.
        attributes: by name.

    Raises:
        ModelError: the node requires something that is not supported.

    Examples:
        >>> import torch
        >>> run("Add", 17, "sum", (torch.ones(2), 1.0), {})
        tensor([2., 2.])
    """
    found = find(name, opset)
    try:
        if found is None:
            raise Refusal(reason_against(name))
        return found.function(*_coerced(found, inputs), **attributes)
    except Refusal as reason:
        raise ModelError(
            f"The ONNX model cannot be computed: node {label!r} ({name}): {reason}.",
            fix="Export the model without that, or give the original PyTorch module as .pt2.",
        ) from reason


def _coerced(found: Operator, inputs: Sequence[Any]) -> Sequence[Any]:
    """Return the inputs, with numbers converted to tensors if the function takes nothing else."""
    if found.folds:
        return inputs
    like = next((value for value in inputs if isinstance(value, Tensor)), None)
    return [
        value if _stays(found, position, value) else as_tensor(value).to(None if like is None else like.device)
        for position, value in enumerate(inputs)
    ]


def _stays(found: Operator, position: int, value: Any) -> bool:
    if value is None or position in found.sizes or position in found.scalars or not is_host(value):
        return True
    return isinstance(value, tuple) and not is_host(*value)  # a list of weights


class OnnxTracer(fx.Tracer):
    """Keeps the calls of :func:`run` when a module is rebuilt from its code, as pickle does."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(run, as_tensor))
