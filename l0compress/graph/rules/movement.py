"""Pure data movement: the operator is run on the labels themselves, so no operator here needs a rule of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.values import Value, varying

_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")


@rule(
    *_RESHAPES,
    "permute",
    "transpose",
    "t",
    "numpy_T",
    "mT",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "flip",
    "repeat",
    "tile",
    "repeat_interleave",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
)
def movement(step: Step) -> Result:
    value: Value = step.args[0]
    if step.node.target is torch.ops.aten.view.dtype:  # the same bits as other numbers, perhaps more or fewer of them
        step.freeze(value, "its bits are read as another type")
        return Value(step.shape)
    return _moved(step, value)


# Where operators that pick elements by position say along which dimension.
_DIM_POSITION = {
    "slice": 1,
    "narrow": 1,
    "select": 1,
    "unbind": 1,
    "unfold": 1,
    "split": 2,
    "split_with_sizes": 2,
    "unsafe_split": 2,
    "chunk": 2,
    "unsafe_chunk": 2,
    "tensor_split": 2,
    "roll": 2,
    "diagonal": 2,
}


@rule(*_DIM_POSITION)
def by_position(step: Step) -> Result:
    """Positions that overlap, or that are known only at run time, are no channels: nothing may go along them."""
    value: Value = step.args[0]
    dims = frozenset(dim for dim in _picked(step, len(value.shape)) if _is_bound(step, dim))
    planes = step.passed(value, dims, f"{step.name} picks positions of it that a smaller tensor does not have")
    return _moved(step, Value(value.shape, planes))


def _picked(step: Step, rank: int) -> list[int]:
    """The dimensions along which an operator picks."""
    given = step.get(_DIM_POSITION[step.name], "dims" if step.name == "roll" else "dim", 0)
    if step.name == "diagonal":
        given = [step.get(2, "dim1", 0), step.get(3, "dim2", 1)]
    if step.name == "roll" and not given:  # over the flattened tensor
        given = list(range(rank))
    return [dim % max(rank, 1) for dim in (given if isinstance(given, (list, tuple)) else [given])]


def _is_bound(step: Step, dim: int) -> bool:
    """Whether what is picked along ``dim`` hangs on more than literal positions of channels."""
    if step.name in ("unfold", "diagonal") or (step.name == "roll" and not step.get(2, "dims")):
        return True
    source, *rest = step.node.args
    if step.name == "slice" and [*step.args[2:], None, None][0] in (None, 0) and _to_the_end(step):
        return False
    sizes = source.meta["val"].shape if isinstance(source, fx.Node) else ()
    return isinstance(sizes[dim], torch.SymInt) or any(isinstance(argument, fx.Node) for argument in rest)


def _to_the_end(step: Step) -> bool:
    end, stride = [*step.args[3:], None, None][:2]
    return (end is None or end == sys.maxsize) and stride in (None, 1)


def _moved(step: Step, value: Value) -> Result:
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


@rule("view_as", "reshape_as")
def reshape_as(step: Step) -> Result:
    """The other operand gives the shape, so both have to lose the same elements."""
    value, other = step.args[:2]
    moved = step.space.disjoint(value.mapped(lambda plane: plane.reshape(step.shape), step.shape), step.node)
    return step.space.merge([moved, other], step.shape, step.node)


@rule("expand_as")
def expand_as(step: Step) -> Result:
    """Elements are repeated along the other operand's dimensions, so they go when the other operand's do."""
    value, other = step.args[:2]
    return step.space.merge([value, other], step.shape, step.node)


@rule("expand", "broadcast_to")
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
