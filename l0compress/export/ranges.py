"""What is certain of integers and Booleans whatever the input: masks that hide nothing, indices that never vary.

A model that is called without a mask makes one of ones (``arange(length) >= 0`` in Hugging Face's), and ids of a single
type where none are given. ONNX Runtime computes them in every call, adds a mask of zeros in every layer (6 microseconds
at 32 tokens) and gathers the same row for every token.

requires: a traced network whose nodes know their shapes.
ensures:  the same outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.nodes.network import GraphNetwork, op_name

aten = torch.ops.aten

# The least and the largest element; numbers of Booleans are 0 and 1.
Range = tuple[float, float]
_UNKNOWN: Range = (-math.inf, math.inf)
# Operators whose elements are elements of their first operand.
_MOVES = frozenset(
    (
        *("alias", "clone", "contiguous", "detach", "expand", "flatten", "gather", "index_select", "permute"),
        *("repeat", "reshape", "select", "slice", "squeeze", "transpose", "unflatten", "unsqueeze", "view"),
    )
)


def simplify_known_(network: GraphNetwork) -> None:
    """Drop masks of attention that are true throughout, and look up a row once that every position would look up."""
    known: dict[fx.Node, Range] = {}
    buffers = dict(network.named_buffers())
    for node in list(network.graph.nodes):
        known[node] = _range(node, known, buffers)
        if op_name(node) == "scaled_dot_product_attention":
            _drop_open_mask_(node, known)
        elif op_name(node) == "embedding":
            _look_up_once_(network.graph, node, known)
    # What has no tensor as its value may be a check, which nothing reads.
    network.graph.eliminate_dead_code(lambda node: node.is_impure() or not _is_tensor(node))
    network.recompile()


def _range(node: fx.Node, known: Mapping[fx.Node, Range], buffers: Mapping[str, Tensor]) -> Range:
    """Return between which numbers every element of a node's value lies.

    Example:
        >>> graph = fx.Graph()
        >>> count = graph.call_function(aten.arange.default, (graph.placeholder("length"),))
        >>> true = graph.call_function(aten.ge.Scalar, (count, 0))
        >>> counted = _range(count, {}, {})
        >>> counted, _range(true, {count: counted}, {})
        ((0, inf), (1, 1))
    """
    if node.op == "get_attr":
        return _range_of_buffer(buffers.get(str(node.target)))
    if node.op != "call_function":
        return _UNKNOWN
    name = op_name(node)
    operands = [_range_of_operand(arg, known) for arg in node.args]
    if name == "arange":
        return _range_of_arange(node)
    if name in _MOVES:
        return operands[0]
    if name == "add" and not node.kwargs.get("alpha"):
        return operands[0][0] + operands[1][0], operands[0][1] + operands[1][1]
    return _range_of_comparison(name, operands[0], operands[1]) if name in ("ge", "gt", "le", "lt") else _UNKNOWN


def _range_of_operand(operand: Any, known: Mapping[fx.Node, Range]) -> Range:
    if isinstance(operand, fx.Node):
        return known.get(operand, _UNKNOWN)
    return (operand, operand) if isinstance(operand, int | float) else _UNKNOWN


def _range_of_buffer(found: Tensor | None) -> Range:
    if found is None or found.is_floating_point() or found.is_complex() or not found.numel():
        return _UNKNOWN
    return float(found.min()), float(found.max())


def _range_of_arange(node: fx.Node) -> Range:
    numbers: Any = node.args if len(node.args) > 1 else (0, *node.args)
    start, step = numbers[0], numbers[2] if len(numbers) > 2 else 1
    return (start, math.inf) if isinstance(start, int | float) and step == 1 else _UNKNOWN


def _range_of_comparison(name: str, left: Range, right: Range) -> Range:
    if name in ("le", "lt"):
        name, left, right = {"le": "ge", "lt": "gt"}[name], right, left
    always = left[0] >= right[1] if name == "ge" else left[0] > right[1]
    return (1, 1) if always else (0, 1)


def _drop_open_mask_(attention: fx.Node, known: Mapping[fx.Node, Range]) -> None:
    mask = attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")
    if not isinstance(mask, fx.Node) or known[mask][0] != 1 or _dtype(mask) is not torch.bool:
        return
    if len(attention.args) == 4:
        attention.args = attention.args[:3]
    elif len(attention.args) > 4:
        attention.update_arg(3, None)
    else:
        attention.kwargs = {name: value for name, value in attention.kwargs.items() if name != "attn_mask"}


def _look_up_once_(graph: fx.Graph, embedding: fx.Node, known: Mapping[fx.Node, Range]) -> None:
    """Replace rows that are all one row by that row, where whatever reads them adds it to something as large."""
    table, indices = embedding.args[:2]
    if not isinstance(table, fx.Node) or not isinstance(indices, fx.Node):
        return
    low, high = known[indices]
    if low == high and all(_adds(user, embedding) for user in embedding.users):
        with graph.inserting_before(embedding):
            row = graph.call_function(aten.select.int, (table, 0, int(low)))
        embedding.replace_all_uses_with(row)


def _adds(user: fx.Node, term: fx.Node) -> bool:
    others: list[Any] = [arg for arg in user.args if arg is not term]
    return (
        op_name(user) == "add"
        and len(others) == 1
        and isinstance(others[0], fx.Node)
        and _is_tensor(others[0])
        and str(others[0].meta["val"].shape) == str(term.meta["val"].shape)
    )


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None
