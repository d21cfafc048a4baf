"""Attention: two contractions with a softmax between them."""

from __future__ import annotations

import math
from collections.abc import Container
from math import prod
from typing import Any

from torch import Tensor, fx

from l0compress.graph.labels.values import Value, core
from l0compress.graph.nodes.shapes import node_shape
from l0compress.graph.operators.contraction import Operand, contract
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.record import EmptySum, Operator, Result, register
from l0compress.graph.operators.step import Step


def attention(step: Step) -> Result:
    """``softmax(q k^T) v``: the head of a score is alive while its q.k and its values are."""
    query, key, value = step.args[:3]
    heads = query.shape[-3] if len(query.shape) > 3 else 1
    grouped = len(query.shape) > 3 and key.shape[-3] not in (1, heads)  # a single one is broadcast
    key_read, value_read = (_repeated(key, heads), _repeated(value, heads)) if grouped else (key, value)
    batch = len(query.shape) - 2
    n, m, last = batch, batch + 1, batch + 2
    scores_shape = (*query.shape[:-1], key.shape[-2])
    left = Operand(query, (*range(batch), n, last), 0)
    right = Operand(key_read, (*range(batch), m, last), None if grouped else 1)
    scores = contract(step, left, right, scores_shape)
    mask = step.get(3, "attn_mask")
    if isinstance(mask, Value):
        scores = step.space.merge([scores, mask], scores_shape, step.node)
    positions = frozenset({len(scores_shape) - 2, len(scores_shape) - 1})
    scores = Value(scores_shape, step.passed(scores, positions, "softmax is taken over it"))
    weights = Operand(scores, (*range(batch), n, last), None)
    values = Operand(value_read, (*range(batch), last, m), None)
    return contract(step, weights, values, step.shape)


def _repeated(value: Value, heads: int) -> Value:
    """Grouped-query attention: each key and value head serves several query heads."""
    times = heads // value.shape[-3]
    shape = (*value.shape[:-3], heads, *value.shape[-2:])

    def repeat(plane: Tensor) -> Tensor:
        small = core(plane)
        return (small.repeat_interleave(times, -3) if small.shape[-3] > 1 else small).expand(shape)

    return value.mapped(repeat, shape)


def write_scale(cut: Cut) -> None:
    """Write the scale down where the width of heads is cut: by default it follows from that width."""
    query = cut.operands[0]
    if query.indices[-1] is not None and cut.node.kwargs.get("scale") is None:
        kwargs = dict(cut.node.kwargs)
        cut.node.kwargs = {**kwargs, "scale": 1 / math.sqrt(query.dense[-1])}


def attention_macs(node: fx.Node) -> int:
    """Queries times keys, and scores times values."""
    query, key, value = (node_shape(node.args[i]) for i in range(3))
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _loses_values(node: fx.Node, hollow: Container[str]) -> bool:
    """Without queries and keys it is a mean of the values; without values nothing is left."""
    values: Any = node.args[2]
    return values.name in hollow


register(
    Operator(label=attention, macs=attention_macs, empty_sum=EmptySum(holds=_loses_values), rewrite=write_scale),
    "scaled_dot_product_attention",
)
