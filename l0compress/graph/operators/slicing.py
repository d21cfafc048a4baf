"""Operators that pick elements by position: slices, selections, splits and rolls."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx

from l0compress.graph.labels.values import Value
from l0compress.graph.nodes.mutation import unwritten_until
from l0compress.graph.nodes.network import op_name
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.movement import moved
from l0compress.graph.operators.record import Operator, Result, register
from l0compress.graph.operators.step import Step

aten = torch.ops.aten

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


def by_position(step: Step) -> Result:
    """Positions that overlap, or that are known only at run time, are no channels: nothing may go along them."""
    value: Value = step.args[0]
    dims = frozenset(dim for dim in _picked(step, len(value.shape)) if _is_bound(step, dim))
    planes = step.passed(value, dims, f"{step.name} picks positions of it that a smaller tensor does not have")
    return moved(step, Value(value.shape, planes))


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


def slice_kept(cut: Cut) -> None:
    source = cut.operands[0]
    dim, start, end, step = (*cut.arguments[1:], None, None, None, None)[:4]
    dim = (dim or 0) % len(source.dense)
    keep = source.indices[dim]
    if keep is None:
        return
    chosen = torch.arange(source.dense[dim])[slice(start, end, step)]
    if step not in (None, 1):
        cut.select(dim, chosen[torch.isin(chosen, keep)], keep)
        return
    first, last = (int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else (0, 0)
    _become_slice_(cut, dim, first, last)


def narrow_kept(cut: Cut) -> None:
    dim, start, length = cut.arguments[1] % len(cut.operands[0].dense), *cut.arguments[2:4]
    if cut.operands[0].indices[dim] is not None:
        first = start + cut.operands[0].dense[dim] if start < 0 else start
        _become_slice_(cut, dim, first, first + length)


def _become_slice_(cut: Cut, dim: int, first: int, last: int) -> None:
    """Become a slice of what is left of the dense positions from ``first`` up to ``last``."""
    keep, taken = cut.operands[0].along(dim), cut.argument(0)
    begin, stop = int((keep < first).sum()), int((keep < last).sum())
    if op_name(taken) == "slice" and len(taken.args) == 4 and unwritten_until(taken, cut.node):
        whole, along, start, end = taken.args
        if along == dim and isinstance(start, int) and isinstance(end, int) and min(start, end) >= 0:
            taken, begin, stop = whole, begin + start, min(stop + start, end)
    cut.become(aten.slice.Tensor, taken, dim, begin, stop)


def select_kept(cut: Cut) -> None:
    source, dim = cut.operands[0], cut.arguments[1] % len(cut.operands[0].dense)
    keep = source.indices[dim]
    if keep is not None:
        wanted = cut.arguments[2] % source.dense[dim]
        cut.become(aten.select.int, cut.node.args[0], dim, int((keep < wanted).sum()))


def split_kept(cut: Cut) -> None:
    source = cut.operands[0]
    given: Any = cut.arguments[2] if len(cut.arguments) > 2 else cut.node.kwargs.get("dim", 0)
    dim = given % len(source.dense)
    if source.indices[dim] is not None:
        sizes = [part.shape[dim] for part in cut.results]
        cut.become(aten.split_with_sizes.default, cut.node.args[0], sizes, dim)


def roll_kept(cut: Cut) -> None:
    """Channels roll by selection, since their positions are other ones now; whole dimensions roll as before."""
    source, taken, rest = cut.operands[0], cut.node.args[0], []
    for shift, given in zip(*cut.arguments[1:3], strict=True):
        dim = given % len(source.dense)
        keep = source.indices[dim]
        if keep is None:
            rest.append((shift, dim))
            continue
        order = torch.arange(source.dense[dim]).roll(shift)
        index = cut.constant(torch.searchsorted(keep, order[torch.isin(order, keep)]), "index")
        taken = cut.emit(aten.index_select.default, taken, dim, index)
    if rest:
        cut.become(aten.roll.default, taken, *(list(column) for column in zip(*rest, strict=True)))
    else:
        cut.become(aten.alias.default, taken)


register(Operator(label=by_position, rewrite=slice_kept, moves=True), "slice")
register(Operator(label=by_position, rewrite=narrow_kept, moves=True), "narrow")
register(Operator(label=by_position, rewrite=select_kept, moves=True), "select")
register(Operator(label=by_position, moves=True), "unbind")
register(Operator(label=by_position, rewrite=split_kept, moves=True), "split", "split_with_sizes", "chunk")
register(Operator(label=by_position, rewrite=split_kept), "tensor_split", "unsafe_split", "unsafe_chunk")
register(Operator(label=by_position, rewrite=roll_kept), "roll")
register(Operator(label=by_position), "unfold", "diagonal")
register(Operator(moves=True, any_rows=True), "getitem")  # its label is one of those that the list has
