"""Every family of operators, imported so that it is in the table."""

from __future__ import annotations

from l0compress.loading.onnx import (
    activations,
    attention,
    contraction,
    convolution,
    elementwise,
    indexing,
    movement,
    normalization,
    pooling,
    reduction,
    resizing,
    rnn,
    scikit,
)
from l0compress.loading.onnx.registry import Operator, lookup

FAMILIES = (
    activations,
    attention,
    contraction,
    convolution,
    elementwise,
    indexing,
    movement,
    normalization,
    pooling,
    rnn,
    reduction,
    resizing,
    scikit,
)


def find(name: str, opset: int) -> Operator | None:
    """The operator as it is in a version of the operators, or None where it is unknown.

    Examples:
        >>> find("Softmax", 17).since, find("Softmax", 9).since, find("NoSuchOperator", 17)
        (13, 1, None)
    """
    return lookup(name, opset)
