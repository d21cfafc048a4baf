"""Attention in ONNX: two products and a softmax, and nothing that their shapes make superfluous.

The converter's own translation computes the shape of the keys to transpose them through three dimensions, scales
queries and keys apart, and looks for NaN after every softmax under a mask, which its finite fill value never makes.
ONNX Runtime 1.32 fuses none of that. With the masks of :mod:`l0compress.export.ranges` and the shapes of
:mod:`l0compress.export.reshaping`, MiniLM cut to a seventh had 304 kernels, of 2 to 4 microseconds each beside their
arithmetic; without all this, a cut MiniLM has 198. ONNX Runtime does fuse a transposition of the last two dimensions
and one constant factor into the product (``FusedMatMul``).

requires: attention over tensors of equal rank, at least 2.
ensures:  :data:`ATTENTION`, for the ``custom_translation_table`` of ``torch.onnx.export``. A row that a Boolean mask
          leaves nothing is zero, as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.onnx_types import FLOAT

op: Any = opset18


def _attention(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    attn_mask: FLOAT | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate ``aten.scaled_dot_product_attention`` in eval mode; a causal mask allows every row its first key."""
    del dropout_p
    heads: tuple[Any, Any, Any] = (query, key, value)
    return _weighted_values(*_of_equal_heads(*heads, enable_gqa), attn_mask, is_causal, scale)


def _of_equal_heads(query: Any, key: Any, value: Any, grouped: bool) -> tuple[Any, Any, Any]:
    if not grouped:
        return query, key, value
    num_heads = int(query.shape[-3])
    return query, _repeated(key, num_heads), _repeated(value, num_heads)


def _weighted_values(query: Any, key: Any, value: Any, mask: Any, is_causal: bool, scale: float | None) -> Any:
    factor = _default_scale(query) if scale is None else _constant(scale, query)
    rank = len(query.shape)
    columns = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.Mul(op.MatMul(query, columns), factor)
    if is_causal:
        mask = _causal(query, key)
    if mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if mask.dtype != ir.DataType.BOOL:
        return op.MatMul(op.Softmax(op.Add(scores, mask), axis=-1), value)
    zero, lowest = _constant(0.0, query), _constant(float(query.dtype.min), query)
    weights = op.Softmax(op.Add(scores, op.Where(mask, zero, lowest)), axis=-1)
    # Which rows have a key is computed once for all layers that share a mask. With a finite fill value a row without
    # any is the mean of all values.
    open_rows = op.Cast(op.ReduceMax(op.Cast(mask, to=ir.DataType.INT32), [-1], keepdims=1), to=ir.DataType.BOOL)
    return op.Where(open_rows, op.MatMul(weights, value), zero)


def _default_scale(query: Any) -> Any:
    width = query.shape[-1]
    if isinstance(width, int):
        return _constant(1 / math.sqrt(width), query)
    return op.Reciprocal(op.Sqrt(op.Cast(op.Shape(query, start=-1), to=query.dtype)))


def _constant(number: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(number, dtype=like.dtype))


def _causal(query: Any, key: Any) -> Any:
    """Return the lowest number above the diagonal and zero elsewhere, of shape (queries, keys)."""
    sizes = op.Concat(op.Shape(query, start=-2, end=-1), op.Shape(key, start=-2, end=-1), axis=0)
    everywhere = op.Expand(_constant(float(query.dtype.min), query), sizes)
    return op.Trilu(everywhere, op.Constant(value=ir.tensor(np.array(1, np.int64))), upper=1)


def _repeated(heads: Any, num_heads: int) -> Any:
    """Repeat each of the heads until there are as many as queries have."""
    times = num_heads // int(heads.shape[-3])
    if times == 1:
        return heads
    rank, width = len(heads.shape), int(heads.shape[-1])
    apart = op.Expand(op.Unsqueeze(heads, [-3]), [1] * (rank - 2) + [times, 1, 1])
    return op.Reshape(apart, [0] * (rank - 3) + [num_heads, -1, width])


ATTENTION: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}
