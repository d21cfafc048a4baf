"""Operators that name the sizes of their result."""

from __future__ import annotations

import operator
from typing import Any

import torch

from l0compress.graph.surgery.registry import Cut, rewrites

aten = torch.ops.aten


def _sizes(cut: Cut, sizes: list[Any], first: int = 0) -> list[Any]:
    """Literal and symbolic sizes of a result whose dimensions, from ``first`` on, have been cut."""
    kept, free = list(sizes), -1 not in sizes
    for dim, size in enumerate(sizes):
        dense, small = cut.result.dense[first + dim], cut.result.shape[first + dim]
        if small == dense or (isinstance(size, int) and size == -1):
            continue
        if isinstance(size, int):
            kept[dim] = small
        elif free:
            kept[dim], free = -1, False
        else:  # a batch with channels folded in: it scales with what is kept of the channels
            with cut.network.graph.inserting_before(cut.node):
                scaled = cut.network.graph.call_function(operator.mul, (size, small))
                kept[dim] = cut.network.graph.call_function(operator.floordiv, (scaled, dense))
    return kept


@rewrites("view", "reshape", "_unsafe_view")
def reshape(cut: Cut) -> None:
    """A cut tensor may no longer be viewable without a copy, so a view becomes a reshape."""
    cut.become(aten.reshape.default, cut.node.args[0], _sizes(cut, list(cut.argument(1))))


@rewrites("view_as")
def view_as(cut: Cut) -> None:
    """As for ``view``, with the shape of another operand."""
    cut.become(aten.reshape_as.default, *cut.node.args)


@rewrites("squeeze")
def squeeze(cut: Cut) -> None:
    """A dimension that the plan leaves one channel of is no dimension to drop."""
    if len(cut.arguments) == 1:
        dims = [dim for dim, size in enumerate(cut.operands[0].dense) if size == 1]
        cut.become(aten.squeeze.dims, cut.node.args[0], dims)


@rewrites("expand", "broadcast_to")
def expand(cut: Cut) -> None:
    cut.node.update_arg(1, _sizes(cut, list(cut.argument(1))))


@rewrites("repeat_interleave")
def repeat_interleave(cut: Cut) -> None:
    """The size that it promises is the dense one; the operator finds the small one by itself."""
    cut.node.kwargs = {key: value for key, value in cut.node.kwargs.items() if key != "output_size"}


@rewrites("unflatten")
def unflatten(cut: Cut) -> None:
    dim = cut.arguments[1] % len(cut.operands[0].dense)
    cut.node.update_arg(2, _sizes(cut, list(cut.argument(2)), first=dim))


@rewrites("zeros", "ones", "full", "empty")
def filled(cut: Cut) -> None:
    cut.node.update_arg(0, _sizes(cut, list(cut.argument(0))))


@rewrites("new_zeros", "new_ones", "new_full", "new_empty")
def filled_like(cut: Cut) -> None:
    cut.node.update_arg(1, _sizes(cut, list(cut.argument(1))))
