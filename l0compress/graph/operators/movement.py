"""Pure data movement: the operator is run on the labels themselves, so no operator here needs a rule of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from l0compress.graph.labels.values import Value, varying
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.record import Operator, Result, register
from l0compress.graph.operators.step import Step

aten = torch.ops.aten

_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")


def movement(step: Step) -> Result:
    value: Value = step.args[0]
    if step.node.target is torch.ops.aten.view.dtype:  # the same bits as other numbers, perhaps more or fewer of them
        step.freeze(value, "its bits are read as another type")
        return Value(step.shape)
    return moved(step, value)


def moved(step: Step, value: Value) -> Result:
    move = _mover(step)
    if len(step.shapes) == 1 and not step.returns_list:
        moved = value.mapped(move, step.shape)
        if step.name in _RESHAPES:
            moved = _folded(step, value, moved).mapped(move, step.shape)
        return step.space.disjoint(moved, step.node)
    moved = [move(plane) for plane in value.planes]
    return tuple(value_of_part(shape, [parts[i] for parts in moved]) for i, shape in enumerate(step.shapes))


def _folded(step: Step, value: Value, moved: Value) -> Value:
    """Two kinds of channel that are folded into one dimension are rows and columns of one arrangement from here on."""
    firm = [(i, plane) for i, plane in enumerate(moved.planes) if not step.space.is_soft(plane)]
    met = {i for i, p in firm for j, q in firm if i != j and varying(p) & varying(q)}
    if len(met) < 2:
        return value
    parts = [plane for i, plane in enumerate(value.planes) if i in met]
    whole = step.space.fresh_plane(frozenset().union(*(varying(plane) for plane in parts)), value.shape)
    for part in parts:
        step.space.tie_any_(part, whole)
    return Value(value.shape, (*(plane for i, plane in enumerate(value.planes) if i not in met), whole))


def value_of_part(shape: tuple[int, ...], planes: list[Tensor]) -> Value:
    return Value(shape, tuple(planes)).mapped(lambda plane: plane, shape)


def _mover(step: Step) -> Callable[[Tensor], Any]:
    if step.name in _RESHAPES:
        return lambda plane: plane.reshape(step.shape)
    target: Any = step.node.target
    rest = step.args[1:]
    if any(isinstance(argument, Value) for argument in rest):  # repeat_interleave by a tensor of counts
        return lambda plane: plane.new_zeros(()).expand(step.shape)
    kwargs = {key: argument for key, argument in step.kwargs.items() if key not in ("memory_format", "output_size")}
    return lambda plane: target(plane, *rest, **kwargs)


def reshape_as(step: Step) -> Result:
    """The other operand gives the shape, so both have to lose the same elements."""
    value, other = step.args[:2]
    moved = step.space.disjoint(value.mapped(lambda plane: plane.reshape(step.shape), step.shape), step.node)
    return step.space.merge([moved, other], step.shape, step.node)


def expand_as(step: Step) -> Result:
    """Elements are repeated along the other operand's dimensions, so they go when the other operand's do."""
    value, other = step.args[:2]
    return step.space.merge([value, other], step.shape, step.node)


def expand(step: Step) -> Result:
    """A stretched dimension of literal size holds equal elements, so it may follow the channels that it meets."""
    value = step.args[0]
    moved = value.mapped(lambda plane: plane.expand(step.shape), step.shape)
    offset = len(step.shape) - len(value.shape)
    sizes: Any = step.node.args[1]
    planes = list(moved.planes)
    for dim, size in enumerate(sizes):
        if isinstance(size, int) and size > 1 and (dim < offset or value.shape[dim - offset] == 1):
            plane = step.space.fresh_plane(frozenset({dim}), step.shape)
            step.space.mark_soft_(plane)
            planes.append(plane)
    return Value(step.shape, tuple(planes))


def sizes_left(cut: Cut, sizes: list[Any], first: int = 0) -> list[Any]:
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
            kept[dim] = cut.emit(operator.floordiv, cut.emit(operator.mul, size, small), dense)
    return kept


def cut_sizes(cut: Cut) -> None:
    """A cut tensor may no longer be viewable without a copy, so a view becomes a reshape."""
    cut.become(aten.reshape.default, cut.node.args[0], sizes_left(cut, list(cut.argument(1))))


def cut_view_as(cut: Cut) -> None:
    """As for ``view``, with the shape of another operand."""
    cut.become(aten.reshape_as.default, *cut.node.args)


def keep_dimensions(cut: Cut) -> None:
    """A dimension that the plan leaves one channel of is no dimension to drop."""
    if len(cut.arguments) == 1:
        dims = [dim for dim, size in enumerate(cut.operands[0].dense) if size == 1]
        cut.become(aten.squeeze.dims, cut.node.args[0], dims)


def cut_expanded(cut: Cut) -> None:
    cut.node.update_arg(1, sizes_left(cut, list(cut.argument(1))))


def drop_output_size(cut: Cut) -> None:
    """The size that it promises is the dense one; the operator finds the small one by itself."""
    cut.node.kwargs = {key: value for key, value in cut.node.kwargs.items() if key != "output_size"}


def cut_unflattened(cut: Cut) -> None:
    dim = cut.arguments[1] % len(cut.operands[0].dense)
    cut.node.update_arg(2, sizes_left(cut, list(cut.argument(2)), first=dim))


def select_shuffled(cut: Cut) -> None:
    """On fewer channels the positions are other ones, so the shuffle becomes a selection."""
    keep, count = cut.operands[0].indices[1], cut.operands[0].dense[1]
    if keep is not None:
        order = torch.arange(count).view(cut.arguments[1], -1).t().reshape(-1)
        cut.select(1, order[torch.isin(order, keep)], keep)


_REARRANGING = Operator(label=movement, moves=True, rearranges=True)
_MOVING = Operator(label=movement, moves=True)
_TRANSPOSING = replace(_MOVING, transposes=True)

register(replace(_REARRANGING, rewrite=cut_sizes), "view", "reshape", "_unsafe_view")
register(replace(_REARRANGING, rewrite=cut_unflattened), "unflatten")
register(replace(_REARRANGING, rewrite=keep_dimensions), "squeeze")
register(_REARRANGING, "flatten")
register(replace(_REARRANGING, any_rows=True), "unsqueeze")
register(replace(_REARRANGING, transposes=True), "permute", "transpose", "t")
register(_TRANSPOSING, "numpy_T", "mT", "swapaxes", "swapdims")
register(_MOVING, "movedim", "moveaxis", "flip", "repeat")
register(Operator(label=movement), "tile", "pixel_shuffle", "pixel_unshuffle")
register(Operator(label=movement, rewrite=drop_output_size), "repeat_interleave")
register(Operator(label=movement, rewrite=select_shuffled), "channel_shuffle")
register(Operator(label=reshape_as, rewrite=cut_view_as), "view_as")
register(Operator(label=reshape_as), "reshape_as")
register(Operator(label=expand_as), "expand_as")
register(Operator(label=expand, rewrite=cut_expanded, moves=True), "expand")
register(Operator(label=expand, rewrite=cut_expanded), "broadcast_to")
