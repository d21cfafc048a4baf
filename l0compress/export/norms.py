"""Norms over very many values, for ONNX Runtime: their means are computed in two steps.

ONNX Runtime adds everything that an ``InstanceNormalization`` or a ``LayerNormalization`` covers into a few float32
sums. Over the 200,000 values of a 64 x 56 x 56 image that is off by up to 5e-05, more than ``verify`` allows. A mean of
means is a hundred times closer and, from two samples on, faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from l0compress.graph.nodes.network import GraphNetwork, op_name

# The most values to accumulate in one float32 sum.
MANY = 1024


def split_norms_(network: GraphNetwork) -> None:
    """Replace norms over more than :data:`MANY` values by functions that compute their means in two steps."""
    for node in network.graph.nodes:
        if op_name(node) not in ("group_norm", "layer_norm"):
            continue
        source, over = cast(Any, node.args[:2])
        if op_name(node) == "group_norm" and _many(source, 1) > MANY * over:
            node.target = group_norm
        elif op_name(node) == "layer_norm" and len(over) > 1 and _many(source, -len(over)) > MANY:
            node.target = layer_norm
    network.recompile()


def _many(source: fx.Node, first: int) -> float:
    """Return the number of values from dimension ``first`` on, per element of those before; many if a size is free."""
    sizes = source.meta["val"].shape[first:]
    return math.prod(size if isinstance(size, int) else math.inf for size in sizes)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Like ``aten.group_norm``, for x of shape (batch, channels, size, ...).

    Example:
        >>> x = torch.rand(2, 6, 4, 5)
        >>> bool(torch.allclose(group_norm(x, 3), torch.nn.functional.group_norm(x, 3), atol=1e-6))
        True
    """
    del cudnn_enabled
    groups = x.flatten(2).unflatten(1, (num_groups, -1))
    normal = _normal(groups, eps).flatten(1, 2).unflatten(2, x.shape[2:])
    along_channels = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        normal = normal * weight.view(along_channels)
    return normal if bias is None else normal + bias.view(along_channels)


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Like ``aten.layer_norm``, for a shape of at least two dimensions.

    Example:
        >>> x = torch.rand(2, 6, 4, 5)
        >>> expected = torch.nn.functional.layer_norm(x, (6, 4, 5))
        >>> bool(torch.allclose(layer_norm(x, (6, 4, 5)), expected, atol=1e-6))
        True
    """
    del cudnn_enable
    second = x.dim() - len(shape) + 1
    normal = _normal(x.flatten(second), eps).unflatten(second, x.shape[second:])
    if weight is not None:
        normal = normal * weight
    return normal if bias is None else normal + bias


def _normal(x: Tensor, eps: float) -> Tensor:
    """Normalise to mean zero and variance one over the last two dimensions."""
    centred = x - _mean(x)
    return centred * torch.rsqrt(_mean(centred * centred) + eps)


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True).mean(-2, keepdim=True)
