"""Zeros in the place of channels that are gone, for operators that count channels.

What is left of the channels, of the weight and of the bias is filled up with zeros to the dense size, normalised by
the same operator as before, and cut again: ``constant_pad_nd``, ``layer_norm``, ``slice``. It is one kernel still, the
zeros stay out of every parameter, and a second cut merges with the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import fx

from l0compress.graph.nodes.mutation import unwritten_until
from l0compress.graph.nodes.network import op_name
from l0compress.graph.operators.cut import Cut

aten = torch.ops.aten


def missing_along(cut: Cut, dims: Iterable[int]) -> dict[int, int]:
    chosen = {dim % len(cut.operands[0].dense) for dim in dims}
    return {dim: size for dim, size in missing_from(cut, 0).items() if dim in chosen}


def missing_from(cut: Cut, first: int) -> dict[int, int]:
    """How much is gone of the operand's dimensions from ``first`` on, by dimension."""
    source = cut.operands[0]
    return {
        dim: source.dense[dim] - source.shape[dim]
        for dim, keep in enumerate(source.indices)
        if dim >= first and keep is not None
    }


def filled_arguments(cut: Cut, missing: Mapping[int, int], first: int) -> tuple[Any, ...]:
    """Operand, shape (or number of groups), weight and bias with the dense sizes."""
    behind = {dim - first: size for dim, size in missing.items()}
    vectors = []
    for place, name in ((2, "weight"), (3, "bias")):
        vector = cut.argument(place, name)
        if vector is not None:
            dims = vector.meta["val"].dim()
            vector = _filled(cut, vector, [behind.get(dim, 0) for dim in range(dims)])
        vectors.append(vector)
    return (filled_operand(cut, missing), cut.argument(1), *vectors)


def filled_operand(cut: Cut, missing: Mapping[int, int]) -> fx.Node:
    return _filled(cut, cut.argument(0), [missing.get(dim, 0) for dim in range(len(cut.operands[0].dense))])


def _filled(cut: Cut, node: fx.Node, sizes: list[int]) -> fx.Node:
    """A tensor with so many zeros behind each dimension; those that it has been filled up with before are joined."""
    widths = [width for size in reversed(sizes) for width in (0, size)]
    if _pads_zeros(node) and unwritten_until(node, cut.node):
        whole: Any = node.args
        node, widths = whole[0], [width + more for width, more in zip_longest(widths, whole[1], fillvalue=0)]
    while len(widths) > 2 and not any(widths[-2:]):
        del widths[-2:]
    return cut.emit(aten.constant_pad_nd.default, node, widths)


def _pads_zeros(node: fx.Node) -> bool:
    if op_name(node) != "constant_pad_nd":
        return False
    _, widths, value = [*node.args, 0][:3]
    return bool(value == 0) and isinstance(widths, list) and all(isinstance(n, int) and n >= 0 for n in widths)


def narrow_(cut: Cut, node: fx.Node, normal: fx.Node, dims: Iterable[int]) -> None:
    """``node`` becomes what is left of a filled-up result."""
    source = cut.operands[0]
    *before, last = dims
    for dim in before:
        with node.graph.inserting_before(node):
            normal = node.graph.call_function(aten.slice.Tensor, (normal, dim, 0, source.shape[dim]))
    node.target, node.args, node.kwargs = aten.slice.Tensor, (normal, last, 0, source.shape[last]), {}
