"""Contractions: linear layers and the matmul family. Attention is two of them, see :mod:`~.attention`.

Both operands are laid out over one joint index space ``[..., n, m, k]`` and merged there as an elementwise product
would be. What varies along the summed dimension ``k`` is *read*: a dead channel must contribute nothing, so the read is
recorded and the gates multiply it. A plane over ``k`` and outer dimensions (heads x width) leaves an outer label behind
that is alive exactly if any of its ``k`` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.labels.space import ReadFact
from l0compress.graph.labels.values import Shape, Value, along, core, flattened, narrowed, varying
from l0compress.graph.nodes.network import GraphNetwork, attribute, op_name
from l0compress.graph.nodes.shapes import node_shape
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.normalization import channel_vector, channels_along
from l0compress.graph.operators.record import EmptySum, Operator, Result, Weights, register
from l0compress.graph.operators.step import Step

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Operand:
    """One side of a contraction.

    Attributes:
        value: planes in the argument's own layout.
        dims: the joint dimension that each of the argument's own dimensions becomes.
        arg: the argument's position, None where it cannot be multiplied in place.
    """

    value: Value
    dims: tuple[int, ...]
    arg: int | None

    def joint(self, rank: int) -> Value:
        order = sorted(range(len(self.dims)), key=lambda own: self.dims[own])
        shape = tuple(self.value.shape[self.dims.index(d)] if d in self.dims else 1 for d in range(rank))
        planes = tuple(
            core(plane).permute(order).reshape(self._core_shape(plane, rank)).expand(shape)
            for plane in self.value.planes
        )
        return Value(shape, planes)

    def _core_shape(self, plane: Tensor, rank: int) -> Shape:
        small = core(plane).shape
        return tuple(small[self.dims.index(d)] if d in self.dims else 1 for d in range(rank))

    def own(self, plane: Tensor) -> Tensor:
        """A joint plane in the argument's own layout (it must not vary along dimensions that the argument lacks)."""
        rest = [d for d in range(plane.dim()) if d not in self.dims]
        own = core(plane).permute(*self.dims, *rest)
        return own.reshape(own.shape[: len(self.dims)]).expand(self.value.shape)


def contract(step: Step, left: Operand, right: Operand, shape: Shape) -> Value:
    """Sum over the last joint dimension. ``shape`` is the joint shape without it.

    Worked example: a linear layer, ``x (2, 5, 4)`` times ``weight (8, 4)``. The joint space is ``[n, t, out, in]``::

                      n  t  out  in      planes before       after
        x            (2, 5,  1,   4)     in:  c0 … c3        columns and channels are united, and read: the read is
        weight       (1, 1,  8,   4)     in:  k0 … k3        recorded at the weight, which gates multiply there
                                         out: r0 … r7        r0 … r7 pass on
        result       (2, 5,  8)                              out: r0 … r7

    The scores of attention, ``q (2, 3, 5, 4)`` times ``k (2, 3, 7, 4)`` for three heads of width four, over ``[n, head,
    query, key, width]``: both operands have one plane over head x width, whose twelve labels are united pairwise. The
    sum runs over the width, so a label per head is left behind, which is alive exactly if any of its four is::

        q, k         (2, 3, 5|7, 4)      head x width: 12 labels
        scores       (2, 3, 5, 7)        head: 3 labels, each tied to four of the twelve
    """
    rank = len(shape) + 1
    last = rank - 1
    a, b = left.joint(rank), right.joint(rank)
    joint_shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
    a, b = _selected_input(step, a, b, last)
    merged = step.space.merge([a, b], joint_shape, step.node)
    step.record_macs(prod(joint_shape), merged.planes)
    outer: list[Tensor] = []
    for plane in merged.planes:
        dims = varying(plane)
        if last not in dims:
            outer.append(narrowed(plane, last))
            continue
        survivors = None
        if dims - {last}:
            survivors = step.space.fresh_plane(dims - {last}, joint_shape)
            step.space.tie_any_(survivors, plane)
            outer.append(narrowed(survivors, last))
        _record_read(step, (left, right), plane, survivors)
    return Value(shape, tuple(outer))


def _selected_input(step: Step, a: Value, b: Value, last: int) -> tuple[Value, Value]:
    """A weight that reads the model's raw input may pick the features it wants: its columns are free labels."""
    source = step.node.args[0]
    if step.name != "linear" or a.plane_along(last) is not None or not step.reads_input(source):
        return a, b
    columns = b.plane_along(last)
    if columns is None or varying(columns) != {last}:
        return a, b
    # The input lends the weight's own labels, so that they merge without freezing and without touching the input.
    return Value(a.shape, (*a.planes, core(columns).expand(a.shape))), b


def _record_read(step: Step, operands: Sequence[Operand], plane: Tensor, survivors: Tensor | None) -> None:
    """Multiply a weight where a weight carries the whole plane, the left operand otherwise."""
    last = plane.dim() - 1
    candidates = []
    for operand in operands:
        along_k = operand.joint(plane.dim()).plane_along(last)
        if operand.arg is not None and along_k is not None and varying(along_k) == varying(plane):
            candidates.append((not step.is_parameter(operand.arg), operand.arg, operand, along_k))
    if not candidates:
        step.space.freeze_(plane, step.node, "neither operand of the product carries the whole channel layout")
        return
    _, arg, operand, along_k = min(candidates, key=lambda candidate: candidate[:2])
    own_survivors = None if survivors is None else operand.own(survivors)
    step.space.reads.append(ReadFact(step.node, arg, operand.own(along_k), own_survivors))


def _matmul_operands(a: Value, b: Value, args: tuple[int, int]) -> tuple[Operand, Operand, Shape]:
    """``a [..., n, k] @ b [..., k, m]`` with NumPy's treatment of vectors, as operands over ``[..., n, m, k]``."""
    batch = max(len(a.shape) - 2, len(b.shape) - 2, 0)
    rank = batch + 3
    n, m, k = rank - 3, rank - 2, rank - 1
    outer_a, outer_b = max(len(a.shape) - 2, 0), max(len(b.shape) - 2, 0)
    dims_a = (k,) if len(a.shape) == 1 else (*range(batch - outer_a, batch), n, k)
    dims_b = (k,) if len(b.shape) == 1 else (*range(batch - outer_b, batch), k, m)
    left, right = Operand(a, dims_a, args[0]), Operand(b, dims_b, args[1])
    joint = torch.broadcast_shapes(left.joint(rank).shape, right.joint(rank).shape)
    return left, right, tuple(joint[:-1])


def _as_shape(value: Value, shape: Shape) -> Value:
    return Value(shape, tuple(plane.reshape(shape) for plane in value.planes))


def linear(step: Step) -> Result:
    x, weight = step.args[0], step.args[1]
    bias = step.get(2, "bias")
    rank = len(x.shape) + 1
    left = Operand(x, (*range(rank - 2), rank - 1), 0)
    right = Operand(weight, (rank - 2, rank - 1), 1)
    return channel_vector(step, contract(step, left, right, step.shape), bias, len(step.shape) - 1)


def bilinear(step: Step) -> Result:
    """``x1 W x2`` for each output: the weight is read along both of its inner dimensions."""
    weight, last = step.args[2], len(step.shape) - 1
    for position, dim in ((0, 1), (1, 2)):
        x = step.args[position]
        channels = channels_along(step, x, len(x.shape) - 1, "a bilinear product pairs its positions")
        column = weight.plane_along(dim)
        if channels is None or column is None:
            step.freeze_labels((channels, column), "the other factor of the bilinear product cannot be cut")
            continue
        step.space.unite_(flattened(column), channels)
        step.space.reads.append(ReadFact(step.node, 2, column, None))
    step.record_macs(prod(step.shape[:-1]) * prod(weight.shape), weight.planes)
    row = weight.plane_along(0)
    result = Value(step.shape, () if row is None else (along(flattened(row), last, step.shape),))
    return channel_vector(step, result, step.get(3, "bias"), last)


def matmul(step: Step) -> Result:
    left, right, shape = _matmul_operands(step.args[0], step.args[1], (0, 1))
    return _as_shape(contract(step, left, right, shape), step.shape)


def addmm(step: Step) -> Result:
    left, right, shape = _matmul_operands(step.args[1], step.args[2], (1, 2))
    product = _as_shape(contract(step, left, right, shape), step.shape)
    return step.space.merge([product, step.args[0]], step.shape, step.node)


def drop_inputs(cut: Cut) -> None:
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


def product_macs(node: fx.Node, *, left: int = 0) -> int:
    """Each element of the result sums over the last dimension of the operand at position ``left``."""
    return prod(node_shape(node)) * node_shape(node.args[left])[-1]


def _bilinear_macs(node: fx.Node) -> int:
    return prod(node_shape(node)[:-1]) * prod(node_shape(node.args[2]))


register(
    Operator(
        label=linear,
        macs=product_macs,
        weights=Weights((1,), axis=0),
        empty_sum=EmptySum(bias=2),
        rewrite=drop_inputs,
        any_rows=True,
    ),
    "linear",
)
register(
    Operator(label=bilinear, macs=_bilinear_macs, weights=Weights((2,)), empty_sum=EmptySum(bias=3)),
    "bilinear",
)
register(
    Operator(label=matmul, macs=product_macs, weights=Weights((1, 0), axis=-1), empty_sum=EmptySum()),
    *("matmul", "mm", "bmm"),
)
register(
    Operator(label=matmul, macs=product_macs, weights=Weights((1, 0)), empty_sum=EmptySum()),
    *("mv", "dot"),
)
register(
    Operator(
        label=addmm, macs=partial(product_macs, left=1), weights=Weights((2, 1), axis=-1), empty_sum=EmptySum(bias=0)
    ),
    "addmm",
)
register(
    Operator(label=addmm, macs=partial(product_macs, left=1), weights=Weights((2, 1)), empty_sum=EmptySum(bias=0)),
    "baddbmm",
)
