"""Normalisations over channels: their statistics go on counting the channels that are gone, as zeros.

What is left of the channels is filled up with zeros to the dense size, normalised without weights, and cut again:
``x -> constant_pad_nd -> layer_norm -> slice -> mul -> add``. It is one kernel still, the zeros stay out of every
parameter, and what is cut once more is filled up once more.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import fx

from l0compress.graph.network import op_name
from l0compress.graph.surgery.registry import Cut, rewrites

aten = torch.ops.aten

_Call = tuple[Any, tuple[Any, ...]]  # an operator, and its arguments after the first


@rewrites("layer_norm")
def layer_norm(cut: Cut) -> None:
    shape: Any = cut.argument(1)
    dims = _cut_dims(cut, len(cut.operands[0].dense) - len(shape))
    if dims:
        arguments = (padded(cut, dims), shape, None, None, cut.argument(4, "eps", 1e-5))
        normal = cut.emit(aten.layer_norm.default, *arguments)
        _chain_(cut.node, normal, [*_cuts(cut, dims), *_affine(cut)])


@rewrites("native_layer_norm")
def native_layer_norm(cut: Cut) -> None:
    """As ``layer_norm``; the statistics that it returns as well are those of the dense count from the start."""
    shape: Any = cut.argument(1)
    dims = _cut_dims(cut, len(cut.operands[0].dense) - len(shape))
    if not dims:
        return
    calls = [*_cuts(cut, dims), *_affine(cut)]
    cut.become(cut.node.target, padded(cut, dims), shape, None, None, cut.argument(4))
    for user in [user for user in cut.node.users if user.args[1] == 0]:
        with cut.network.graph.inserting_before(user):
            normal = cut.network.graph.call_function(operator.getitem, (cut.node, 0))
        _chain_(user, normal, calls)


@rewrites("group_norm")
def group_norm(cut: Cut) -> None:
    """One group is normalised as it was; of several whole ones go, and those that are left keep their width."""
    source, num_groups = cut.operands[0], cut.arguments[1]
    if num_groups > 1:
        if source.indices[1] is not None:
            cut.node.update_arg(1, source.shape[1] * num_groups // source.dense[1])
        return
    dims = _cut_dims(cut, 1)
    if dims:
        scale = _affine(cut, [-1] + [1] * (len(source.dense) - 2))
        arguments = (padded(cut, dims), 1, None, None, cut.argument(4, "eps", 1e-5))
        normal = cut.emit(aten.group_norm.default, *arguments)
        _chain_(cut.node, normal, [*_cuts(cut, dims), *scale])


@rewrites("rms_norm")
def rms_norm(cut: Cut) -> None:
    """The mean of squares still divides by how many channels the dense model had.

    ``x / sqrt(s / dense + eps)`` is ``c * x / sqrt(s / live + eps * c**2)`` with ``c = sqrt(dense / live)``.
    """
    source, shape = cut.operands[0], list(cut.argument(1))
    first = len(source.dense) - len(shape)
    dims = _cut_dims(cut, first)
    if not dims:
        return
    for dim in dims:
        shape[dim - first] = source.shape[dim]
    share = math.prod(source.dense[dim] / source.shape[dim] for dim in dims)
    given = cut.argument(3, "eps")
    eps = torch.finfo(cut.dense.meta["val"].dtype).eps if given is None else given
    arguments = (cut.argument(0), shape, cut.argument(2, "weight"), eps * share)
    cut.become(aten.mul.Tensor, cut.emit(aten.rms_norm.default, *arguments), math.sqrt(share))


def padded(cut: Cut, dims: Iterable[int]) -> fx.Node:
    """The first operand filled up with zeros along ``dims`` to its dense size; zeros that are there already count."""
    source, widths = cut.operands[0], [0] * (2 * len(cut.operands[0].dense))
    for dim in dims:
        widths[2 * (len(source.dense) - 1 - dim) + 1] = source.dense[dim] - source.shape[dim]
    taken: Any = cut.argument(0)
    # Only right before this node is it sure that nothing is written in between.
    if taken.next is cut.node and _pads_zeros(taken):
        taken, earlier = taken.args[:2]
        widths = [width + more for width, more in zip_longest(widths, earlier, fillvalue=0)]
    while len(widths) > 2 and not any(widths[-2:]):
        del widths[-2:]
    return cut.emit(aten.constant_pad_nd.default, taken, widths)


def _pads_zeros(node: fx.Node) -> bool:
    if op_name(node) != "constant_pad_nd":
        return False
    _, widths, value = (*node.args, 0)[:3]
    return bool(value == 0) and isinstance(widths, list) and all(isinstance(n, int) and n >= 0 for n in widths)


def _cut_dims(cut: Cut, first: int) -> list[int]:
    """The dimensions from ``first`` on along which something is gone."""
    return [dim for dim, keep in enumerate(cut.operands[0].indices) if dim >= first and keep is not None]


def _cuts(cut: Cut, dims: Iterable[int]) -> list[_Call]:
    return [(aten.slice.Tensor, (dim, 0, cut.operands[0].shape[dim])) for dim in dims]


def _affine(cut: Cut, shape: list[int] | None = None) -> list[_Call]:
    """Times the weight and plus the bias, viewed as ``shape`` where they are not along the last dimensions.

    Weights of another precision than the operand leave the precision of the result as the kernel leaves it.
    """
    given = ((aten.mul.Tensor, cut.argument(2, "weight")), (aten.add.Tensor, cut.argument(3, "bias")))
    vectors = [(target, vector) for target, vector in given if vector is not None]
    calls: list[_Call] = [
        (target, (vector if shape is None else cut.emit(aten.reshape.default, vector, shape),))
        for target, vector in vectors
    ]
    dense: Any = cut.dense.args[0]
    dtype = dense.meta["val"].dtype
    promoted = any(vector.meta["val"].dtype != dtype for _, vector in vectors)
    return [*calls, (aten.to.dtype, (dtype,))] if promoted else calls


def _chain_(node: fx.Node, first: fx.Node, calls: list[_Call]) -> None:
    """``node`` becomes the last of ``calls``, each of which takes the result of the one before."""
    *before, (target, rest) = calls
    for earlier, arguments in before:
        with node.graph.inserting_before(node):
            first = node.graph.call_function(earlier, (first, *arguments))
    node.target, node.args, node.kwargs = target, (first, *rest), {}
