"""Indexing, gathering and scattering.

Where the index is known before the model runs, labels follow it. Where it is not, the indexed dimension stays whole and
the others pass.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.errors import NOTHING_CHANGED, SurgeryError
from l0compress.graph.labels.values import Shape, Value, core, varying
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.record import Operator, Result, register
from l0compress.graph.operators.step import Step

_INDEX = "its values are used as indices"
_INDEXED = "it is indexed at run time"

aten = torch.ops.aten


def index(step: Step) -> Result:
    """Indexed dimensions freeze; the others keep their channels, wherever advanced indexing moves them."""
    value, indices = step.args[0], step.args[1]
    given: Any = step.node.args[1]
    indexed = [d for d, part in enumerate(indices) if isinstance(part, Value)]
    if len(indexed) == 1 and (known := _known(step, given[indexed[0]], indexed[0])) is not None:
        return _picked(step, value, indexed[0], known)
    return _layout(_indexed(step, value, indices), indices, step.shape)


def index_select(step: Step) -> Result:
    value, dim = step.args[0], step.args[1] % max(len(step.args[0].shape), 1)
    known = _known(step, step.node.args[2], dim)
    if known is not None:
        return _picked(step, value, dim, known)
    step.freeze(step.args[2], _INDEX)
    planes = step.passed(value, frozenset({dim}), _INDEXED)
    return Value(step.shape, tuple(plane.narrow(dim, 0, 1).expand(step.shape) for plane in planes))


def _known(step: Step, argument: object, dim: int) -> Tensor | None:
    if not step.args[0].shape or step.is_dynamic(0, dim):
        return None
    found = step.constant_index(argument)
    return None if found is None else found % step.args[0].shape[dim]


def _picked(step: Step, value: Value, dim: int, known: Tensor) -> Value:
    """The labels of the channels that a constant index picks, each as often as it picks them."""

    def pick(plane: Tensor) -> Tensor:
        small = core(plane)
        if small.shape[dim] > 1:
            small = small.index_select(dim, known.reshape(-1)).unflatten(dim, known.shape) if known.dim() else small
            small = small.select(dim, int(known)) if not known.dim() else small
        else:
            small = small.reshape(*small.shape[:dim], *(1,) * known.dim(), *small.shape[dim + 1 :])
        return small.expand(step.shape)

    return value.mapped(pick, step.shape)


def _indexed(step: Step, value: Value, indices: Any) -> Value:
    for part in indices:
        if isinstance(part, Value):
            step.freeze(part, _INDEX)
    dims = frozenset(d for d, part in enumerate(indices) if isinstance(part, Value))
    return Value(value.shape, step.passed(value, dims, _INDEXED))


def _layout(value: Value, indices: Any, shape: Shape | None = None) -> Value:
    """The planes of a value where advanced indexing moves them."""
    stand_in = [None if part is None else torch.zeros(part.shape, dtype=torch.long) for part in indices]
    moved = torch.ops.aten.index.Tensor(torch.zeros((), dtype=torch.long).expand(value.shape), stand_in).shape
    return value.mapped(lambda plane: torch.ops.aten.index.Tensor(plane, stand_in), shape or tuple(moved))


def index_put(step: Step) -> Result:
    """What is written has the channels of what it is written into, along every dimension without an index."""
    value, indices, written = step.args[:3]
    given: Any = step.node.args[1]
    parts = [part for part in indices if isinstance(part, Value)]
    if any(node is not None and node.meta["val"].dtype is torch.bool for node in given):
        if len(parts) == 1 and parts[0].shape == value.shape and torch.Size(written.shape).numel() == 1:
            return step.space.merge([value, parts[0]], step.shape, step.node)
        return step.frozen("it is written under a mask known only at run time")[0]
    passed = _indexed(step, value, indices)
    place = _layout(passed, indices)
    step.space.merge([place, written], place.shape, step.node)
    return passed


def gather(step: Step) -> Result:
    """Elements are picked along one dimension; along the others, what is picked and the index go together."""
    value, picked = step.args[0], step.args[2]
    if not value.shape or len(picked.shape) != len(value.shape):
        return step.frozen("it is gathered at run time")[0]
    dim = step.args[1] % len(value.shape)
    planes = step.passed(value, frozenset({dim}), "it is gathered at run time")
    shape = tuple(1 if d == dim else size for d, size in enumerate(picked.shape))
    met = Value(shape, tuple(_corner(plane, shape) for plane in planes))
    return step.space.merge([met, picked], step.shape, step.node)


def scatter(step: Step) -> Result:
    """Elements are written along one dimension; along the others everything goes together."""
    return _written(step, [step.args[0], step.args[2], *_tensors(step.args[3:4])], _dim(step), _INDEXED)


def index_add(step: Step) -> Result:
    step.freeze(step.args[2], _INDEX)
    return _written(step, [step.args[0], *_tensors(step.args[3:4])], _dim(step), _INDEXED)


def _dim(step: Step) -> int:
    return step.args[1] % max(len(step.shape), 1)


def _tensors(arguments: Any) -> list[Value]:
    return [argument for argument in arguments if isinstance(argument, Value) and argument.shape]


def _written(step: Step, operands: list[Value], dim: int, reason: str) -> Value:
    """Operands that agree in all dimensions but the one that is written along, which stays whole."""
    shape = tuple(1 if d == dim else size for d, size in enumerate(step.shape))
    if any(tuple(1 if d == dim else size for d, size in enumerate(part.shape)) != shape for part in operands):
        return step.frozen("it is written in parts")[0]
    parts = [
        Value(shape, tuple(_corner(plane, shape) for plane in step.passed(part, frozenset({dim}), reason)))
        for part in operands
    ]
    merged = step.space.merge(parts, shape, step.node)
    return Value(step.shape, tuple(plane.expand(step.shape) for plane in merged.planes))


def _corner(plane: Tensor, shape: Shape) -> Tensor:
    """The first ``shape`` elements of a plane."""
    for dim, size in enumerate(shape):
        plane = plane.narrow(dim, 0, size)
    return plane


def slice_scatter(step: Step) -> Result:
    """What is written brings its own labels; the rest keeps what it had."""
    value, part = step.args[:2]
    if not prod(part.shape):
        return value
    dim = int(step.get(2, "dim", 0)) % len(step.shape)
    bounds = (step.get(3, "start"), step.get(4, "end"), step.get(5, "step", 1))
    if step.is_dynamic(0, dim) or any(isinstance(bound, fx.Node) for bound in step.node.args[3:]):
        return _written(step, [value, part], dim, "it is written in parts")
    return _placed(step, part, dim, torch.arange(step.shape[dim])[slice(*bounds)])


def select_scatter(step: Step) -> Result:
    value, part = step.args[:2]
    if not prod(part.shape):
        return value
    dim = int(step.args[2]) % len(step.shape)
    single = (*part.shape[:dim], 1, *part.shape[dim:])
    row = Value(single, tuple(core(plane).unsqueeze(dim).expand(single) for plane in part.planes))
    if step.is_dynamic(0, dim) or not isinstance(step.node.args[3], int):
        return _written(step, [value, row], dim, "it is written in parts")
    return _placed(step, row, dim, torch.arange(step.shape[dim])[step.args[3]].view(1))


def _placed(step: Step, part: Value, dim: int, written: Tensor) -> Value:
    """``part`` at the positions ``written`` along ``dim``. What has no channels there gets labels of its own.

    Surgery picks the elements that are left from both operands, so each position along ``dim`` may go by itself.
    """
    value, reason = step.args[0], "its channels are laid out differently in what is written into it"
    whole = value.plane_along(dim)
    first = whole if whole is not None else part.plane_along(dim)
    dims = frozenset({dim}) | (varying(first) if first is not None else frozenset())
    inner = [plane for plane in part.planes if varying(plane) & dims]
    rest = [plane for plane in part.planes if not varying(plane) & dims]
    if len(inner) > 1 or dims - {dim} != (varying(inner[0]) - {dim} if inner else frozenset()):
        for plane in inner if whole is None else (whole, *inner):
            step.space.freeze_(plane, step.node, reason)
        along: list[Tensor] = []
    else:
        table = _table(step, whole, dims, value.shape).clone()
        table.index_copy_(dim, written, _table(step, inner[0] if inner else None, dims, part.shape))
        along = [table.expand(step.shape)]
    shape = tuple(1 if d == dim else size for d, size in enumerate(step.shape))
    outside = [plane for plane in value.planes if plane is not whole]
    sides = [Value(shape, tuple(_corner(plane, shape) for plane in planes)) for planes in (outside, rest)]
    merged = step.space.merge(sides, shape, step.node)
    planes = [*along, *(plane.expand(step.shape) for plane in merged.planes)]
    return step.space.disjoint(Value(step.shape, tuple(planes)), step.node)


def _table(step: Step, plane: Tensor | None, dims: frozenset[int], shape: Shape) -> Tensor:
    sizes = [size if d in dims else 1 for d, size in enumerate(shape)]
    return step.space.fresh(prod(sizes)).view(sizes) if plane is None else core(plane).expand(sizes)


def follow_index(cut: Cut) -> None:
    given: Any = cut.dense.args[1]
    indexed = [d for d, part in enumerate(given) if part is not None]
    if len(indexed) == 1 and cut.operands[0].indices[indexed[0]] is not None:
        dim = indexed[0]
        positions = _positions(cut, given[dim], dim)
        cut.node.update_arg(1, [*[None] * dim, cut.constant(positions, "index")])


def follow_index_select(cut: Cut) -> None:
    dim = cut.arguments[1] % len(cut.operands[0].dense)
    if cut.operands[0].indices[dim] is not None:
        cut.node.update_arg(2, cut.constant(_positions(cut, cut.dense.args[2], dim), "index"))


def _positions(cut: Cut, argument: object, dim: int) -> Tensor:
    """Where the small operand holds what is left of the elements that a constant index picks along ``dim``."""
    source = cut.operands[0]
    wanted, keep = cut.constant_index(argument, source.dense[dim]), source.along(dim)
    if wanted is None:
        raise _changed(cut)
    for offset in range(wanted.dim()):
        wanted = wanted.index_select(offset, cut.result.along(dim + offset))
    if not bool(torch.isin(wanted, keep).all()):
        raise _changed(cut)
    return torch.searchsorted(keep, wanted)


def join_slice(cut: Cut) -> None:
    """What is overwritten may have lost other channels than what is written, so the result is joined anew."""
    dim, start, end, stride = (*cut.arguments[2:], None, None, None, None)[:4]
    dim = (dim or 0) % len(cut.result.dense)
    if any(keep is not None for keep in (cut.operands[0].indices[dim], cut.result.indices[dim])):
        _join_(cut, dim, torch.arange(cut.result.dense[dim])[slice(start, end, stride)])


def join_row(cut: Cut) -> None:
    dim = cut.arguments[2] % len(cut.result.dense)
    if any(keep is not None for keep in (cut.operands[0].indices[dim], cut.result.indices[dim])):
        cut.node.update_arg(1, cut.emit(aten.unsqueeze.default, cut.node.args[1], dim))
        _join_(cut, dim, torch.arange(cut.result.dense[dim])[[cut.arguments[3]]])


def _join_(cut: Cut, dim: int, written: Tensor) -> None:
    """Join the two operands and pick, for every position that is left, the element that the dense model has there."""
    order, size = torch.arange(cut.result.dense[dim]), cut.result.dense[dim]
    order[written] = size + torch.arange(len(written))
    rows = (
        torch.arange(len(written)) if len(cut.operands[1].dense) < len(cut.result.dense) else cut.operands[1].along(dim)
    )
    held = torch.cat([cut.operands[0].along(dim), size + rows])
    picked = torch.searchsorted(held, order[cut.result.along(dim)])
    both = cut.emit(aten.cat.default, list(cut.node.args[:2]), dim)
    cut.become(aten.index_select.default, both, dim, cut.constant(picked, "order"))


def _changed(cut: Cut) -> SurgeryError:
    return SurgeryError(
        f"the constant index of {cut.dense.name} is not the one that the plan was made with.",
        fix="Make the plan with find_groups(graph) for this graph.",
        assurance=NOTHING_CHANGED,
    )


register(Operator(label=index, rewrite=follow_index, any_rows=True), "index")
register(Operator(label=index, rewrite=follow_index), "_unsafe_index")
register(Operator(label=index_select, rewrite=follow_index_select), "index_select")
register(Operator(label=index_put), "index_put", "_unsafe_index_put", "_index_put_impl")
register(Operator(label=gather), "gather")
register(Operator(label=scatter), "scatter", "scatter_add", "scatter_reduce")
register(Operator(label=index_add), "index_add", "index_copy", "index_fill", "index_reduce")
register(Operator(label=slice_scatter, rewrite=join_slice), "slice_scatter")
register(Operator(label=select_scatter, rewrite=join_row), "select_scatter")
