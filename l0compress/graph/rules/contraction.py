"""Contractions: linear, the matmul family and attention are one rule.

Both operands are laid out over one joint index space ``[..., n, m, k]`` and merged there as an elementwise product
would be. What varies along the summed dimension ``k`` is *read*: a dead channel must contribute nothing, so the read is
recorded and the gates multiply it. A plane over ``k`` and outer dimensions (heads x width) leaves an outer label behind
that is alive exactly if any of its ``k`` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from l0compress.graph.rules.normalization import channel_vector, channels_along
from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.space import MacsFact, ReadFact
from l0compress.graph.values import Shape, Value, along, core, flattened, narrowed, varying


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
    """Sum over the last joint dimension. ``shape`` is the joint shape without it."""
    rank = len(shape) + 1
    last = rank - 1
    a, b = left.joint(rank), right.joint(rank)
    joint_shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
    a, b = _selected_input(step, a, b, last)
    merged = step.space.merge([a, b], joint_shape, step.node)
    step.space.macs.append(_macs(step, merged, joint_shape))
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


def _macs(step: Step, merged: Value, joint_shape: Shape) -> MacsFact:
    labelled = prod(core(plane).numel() for plane in merged.planes)
    return MacsFact(step.node, prod(joint_shape) / labelled / step.batch_size, merged.planes)


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


@rule("linear")
def linear(step: Step) -> Result:
    x, weight = step.args[0], step.args[1]
    bias = step.get(2, "bias")
    rank = len(x.shape) + 1
    left = Operand(x, (*range(rank - 2), rank - 1), 0)
    right = Operand(weight, (rank - 2, rank - 1), 1)
    return channel_vector(step, contract(step, left, right, step.shape), bias, len(step.shape) - 1)


@rule("bilinear")
def bilinear(step: Step) -> Result:
    """``x1 W x2`` for each output: the weight is read along both of its inner dimensions."""
    weight, last = step.args[2], len(step.shape) - 1
    for position, dim in ((0, 1), (1, 2)):
        x = step.args[position]
        channels = channels_along(step, x, len(x.shape) - 1, "a bilinear product pairs its positions")
        column = weight.plane_along(dim)
        if channels is None or column is None:
            for labels in (channels, column):
                if labels is not None:
                    step.space.freeze_(labels, step.node, "the other factor of the bilinear product cannot be cut")
            continue
        step.space.unite_(flattened(column), channels)
        step.space.reads.append(ReadFact(step.node, 2, column, None))
    joint = prod(step.shape[:-1]) * prod(weight.shape)
    labelled = prod(core(plane).numel() for plane in weight.planes)
    step.space.macs.append(MacsFact(step.node, joint / labelled / step.batch_size, weight.planes))
    row = weight.plane_along(0)
    result = Value(step.shape, () if row is None else (along(flattened(row), last, step.shape),))
    return channel_vector(step, result, step.get(3, "bias"), last)


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(step: Step) -> Result:
    left, right, shape = _matmul_operands(step.args[0], step.args[1], (0, 1))
    return _as_shape(contract(step, left, right, shape), step.shape)


@rule("addmm", "baddbmm")
def addmm(step: Step) -> Result:
    left, right, shape = _matmul_operands(step.args[1], step.args[2], (1, 2))
    product = _as_shape(contract(step, left, right, shape), step.shape)
    return step.space.merge([product, step.args[0]], step.shape, step.node)


@rule("scaled_dot_product_attention")
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
