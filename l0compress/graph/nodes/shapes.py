"""Shapes of traced tensors, as the numbers that they have in the example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

Shape = tuple[int, ...]


def concrete(size: Any) -> Any:
    """A symbolic size as the number that it has in the example; one that depends on the data counts as 1."""
    if not isinstance(size, torch.SymInt):
        return size
    return 1 if size.node.hint is None else int(size.node.hint)


def shape_of(tensor: Tensor) -> Shape:
    """The shape of a tensor, symbolic sizes as numbers.

    >>> shape_of(torch.zeros(2, 3))
    (2, 3)
    """
    return tuple(int(concrete(size)) for size in tensor.shape)


def node_shape(node: object) -> Shape:
    """The shape of the tensor that a node returns.

    Raises:
        TypeError: ``node`` is not a node of a graph.
    """
    if not isinstance(node, fx.Node):
        raise TypeError(f"expected a node of the graph, got {node!r}")
    return shape_of(node.meta["val"])
