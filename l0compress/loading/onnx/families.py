"""Imports every family of operators, so that they are in the table."""

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
    """Return the operator as of a version of the operators, or None if it is unknown.

    Examples:
        >>> find("Softmax", 17).since, find("Softmax", 9).since, find("NoSuchOperator", 17)
        (13, 1, None)
    """
    return lookup(name, opset)
