"""Layers that name counts of channels: convolution groups, head widths, selected inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.network import GraphNetwork, attribute, op_name
from l0compress.graph.surgery.registry import Cut, rewrites

aten = torch.ops.aten


@rewrites("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(cut: Cut) -> None:
    """A grouped convolution keeps the groups that still have rows: outputs, or inputs where it is transposed."""
    conv_groups = cut.arguments[6] if len(cut.arguments) > 6 else 1
    weight = cut.operands[1]
    if conv_groups > 1 and not weight.whole:
        width = weight.dense[0] // conv_groups
        live = len(torch.unique(weight.along(0) // width))
        cut.node.update_arg(6, live)


@rewrites("mean")
def mean(cut: Cut) -> None:
    """A mean over channels still divides by how many the dense model had."""
    source = cut.operands[0]
    given: Any = cut.arguments[1] if len(cut.arguments) > 1 else cut.node.kwargs.get("dim")
    listed = given if isinstance(given, (list, tuple)) else [given] if isinstance(given, int) else []
    dims = [dim % len(source.dense) for dim in listed] or range(len(source.dense))
    share = math.prod(source.shape[dim] / source.dense[dim] for dim in dims)
    if share != 1:
        smaller = cut.emit(cut.node.target, *cut.node.args, **cut.node.kwargs)
        cut.become(aten.mul.Tensor, smaller, share)


@rewrites("linear")
def linear(cut: Cut) -> None:
    """A weight that has dropped some of the model's raw inputs picks the rest."""
    source, wanted = cut.operands[0], cut.operands[1].indices[1]
    if wanted is None or source.indices[-1] is not None:
        return
    taken, dim = cut.node.args[0], len(source.dense) - 1
    earlier = _earlier_selection(cut.network, taken, dim)
    if earlier is not None:
        taken, positions = earlier
        wanted = positions[wanted]
    index = cut.constant(wanted, "inputs")
    cut.node.update_arg(0, cut.emit(aten.index_select.default, taken, dim, index))


def _earlier_selection(network: GraphNetwork, node: Any, dim: int) -> tuple[fx.Node, Tensor] | None:
    """Where the input is a selection already, what it selects from and which positions."""
    if not isinstance(node, fx.Node) or op_name(node) != "index_select" or node.args[1] != dim:
        return None
    source, index = node.args[0], node.args[2]
    if not isinstance(source, fx.Node) or not isinstance(index, fx.Node) or index.op != "get_attr":
        return None
    return source, attribute(network, str(index.target))


@rewrites("scaled_dot_product_attention")
def attention(cut: Cut) -> None:
    """The default scale speaks of the dense head width, so it is written down."""
    query = cut.operands[0]
    if query.indices[-1] is not None and cut.node.kwargs.get("scale") is None:
        kwargs = dict(cut.node.kwargs)
        cut.node.kwargs = {**kwargs, "scale": 1 / math.sqrt(query.dense[-1])}
