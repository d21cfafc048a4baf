"""Operators that count channels: they go on counting those that are gone, as zeros.

What is left of the channels, of the weight and of the bias is filled up with zeros to the dense size, normalised by
the same operator as before, and cut again: ``constant_pad_nd``, ``layer_norm``, ``slice``. It is one kernel still, the
zeros stay out of every parameter, and a second cut merges with the first.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import fx

from l0compress.graph.mutation import unwritten_until
from l0compress.graph.network import op_name
from l0compress.graph.surgery.registry import Cut, rewrites

aten = torch.ops.aten


@rewrites("layer_norm")
def layer_norm(cut: Cut) -> None:
    shape: Any = cut.argument(1)
    first = len(cut.operands[0].dense) - len(shape)
    missing = _missing(cut, first)
    if missing:
        arguments = _filled_arguments(cut, missing, first)
        normal = cut.emit(aten.layer_norm.default, *arguments, cut.argument(4, "eps", 1e-5))
        _narrow_(cut, cut.node, normal, missing)


@rewrites("native_layer_norm")
def native_layer_norm(cut: Cut) -> None:
    """As ``layer_norm``; the statistics that it returns as well are those of the dense count from the start."""
    shape: Any = cut.argument(1)
    first = len(cut.operands[0].dense) - len(shape)
    missing = _missing(cut, first)
    if not missing:
        return
    cut.become(cut.node.target, *_filled_arguments(cut, missing, first), cut.argument(4))
    for user in [user for user in cut.node.users if user.args[1] == 0]:
        with cut.network.graph.inserting_before(user):
            normal = cut.network.graph.call_function(operator.getitem, (cut.node, 0))
        _narrow_(cut, user, normal, missing)


@rewrites("group_norm")
def group_norm(cut: Cut) -> None:
    """One group is normalised as it was; of several whole ones go, and those that are left keep their width."""
    source, num_groups = cut.operands[0], cut.arguments[1]
    if num_groups > 1:
        if source.indices[1] is not None:
            cut.node.update_arg(1, source.shape[1] * num_groups // source.dense[1])
        return
    missing = _missing(cut, 1)
    if missing:
        arguments = _filled_arguments(cut, missing, 1)
        normal = cut.emit(aten.group_norm.default, *arguments, cut.argument(4, "eps", 1e-5))
        _narrow_(cut, cut.node, normal, missing)


@rewrites("rms_norm")
def rms_norm(cut: Cut) -> None:
    """The mean of squares still divides by how many channels the dense model had.

    ``x / sqrt(s / dense + eps)`` is ``c * x / sqrt(s / live + eps * c**2)`` with ``c = sqrt(dense / live)``.
    """
    source, shape = cut.operands[0], list(cut.argument(1))
    first = len(source.dense) - len(shape)
    missing = _missing(cut, first)
    if not missing:
        return
    for dim in missing:
        shape[dim - first] = source.shape[dim]
    share = math.prod(source.dense[dim] / source.shape[dim] for dim in missing)
    given = cut.argument(3, "eps")
    eps = torch.finfo(cut.dense.meta["val"].dtype).eps if given is None else given
    arguments = (cut.argument(0), shape, cut.argument(2, "weight"), eps * share)
    cut.become(aten.mul.Tensor, cut.emit(aten.rms_norm.default, *arguments), math.sqrt(share))


@rewrites("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(cut: Cut) -> None:
    missing = _missing_along(cut, [cut.argument(1, "dim")])
    if missing:
        filled = _filled_operand(cut, missing)
        normal = cut.emit(cut.node.target, filled, *cut.node.args[1:], **cut.node.kwargs)
        _narrow_(cut, cut.node, normal, missing)


@rewrites("amax", "amin", "logsumexp", "var", "std", "var_mean", "std_mean")
def counting(cut: Cut) -> None:
    given = cut.argument(1, "dim")
    dims = [] if given is None or isinstance(given, bool) else [given] if isinstance(given, int) else list(given)
    missing = _missing_along(cut, dims or range(len(cut.operands[0].dense)))
    if missing:
        cut.node.update_arg(0, _filled_operand(cut, missing))


def _missing_along(cut: Cut, dims: Iterable[int]) -> dict[int, int]:
    chosen = {dim % len(cut.operands[0].dense) for dim in dims}
    return {dim: size for dim, size in _missing(cut, 0).items() if dim in chosen}


def _missing(cut: Cut, first: int) -> dict[int, int]:
    """How much is gone of the operand's dimensions from ``first`` on, by dimension."""
    source = cut.operands[0]
    return {
        dim: source.dense[dim] - source.shape[dim]
        for dim, keep in enumerate(source.indices)
        if dim >= first and keep is not None
    }


def _filled_arguments(cut: Cut, missing: Mapping[int, int], first: int) -> tuple[Any, ...]:
    """Operand, shape (or number of groups), weight and bias with the dense sizes."""
    behind = {dim - first: size for dim, size in missing.items()}
    vectors = []
    for place, name in ((2, "weight"), (3, "bias")):
        vector = cut.argument(place, name)
        if vector is not None:
            dims = vector.meta["val"].dim()
            vector = _filled(cut, vector, [behind.get(dim, 0) for dim in range(dims)])
        vectors.append(vector)
    return (_filled_operand(cut, missing), cut.argument(1), *vectors)


def _filled_operand(cut: Cut, missing: Mapping[int, int]) -> fx.Node:
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


def _narrow_(cut: Cut, node: fx.Node, normal: fx.Node, dims: Iterable[int]) -> None:
    """``node`` becomes what is left of a filled-up result."""
    source = cut.operands[0]
    *before, last = dims
    for dim in before:
        with node.graph.inserting_before(node):
            normal = node.graph.call_function(aten.slice.Tensor, (normal, dim, 0, source.shape[dim]))
    node.target, node.args, node.kwargs = aten.slice.Tensor, (normal, last, 0, source.shape[last]), {}
