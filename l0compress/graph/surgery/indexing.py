"""Constant indices point at other positions once channels are gone; what is written in parts is joined of parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l0compress.errors import SurgeryError
from l0compress.graph.surgery.registry import Cut, rewrites

aten = torch.ops.aten


@rewrites("index", "_unsafe_index")
def index(cut: Cut) -> None:
    given: Any = cut.dense.args[1]
    indexed = [d for d, part in enumerate(given) if part is not None]
    if len(indexed) == 1 and cut.operands[0].indices[indexed[0]] is not None:
        dim = indexed[0]
        positions = _positions(cut, given[dim], dim)
        cut.node.update_arg(1, [*[None] * dim, cut.constant(positions, "index")])


@rewrites("index_select")
def index_select(cut: Cut) -> None:
    dim = cut.arguments[1] % len(cut.operands[0].dense)
    if cut.operands[0].indices[dim] is not None:
        cut.node.update_arg(2, cut.constant(_positions(cut, cut.dense.args[2], dim), "index"))


def _positions(cut: Cut, argument: object, dim: int) -> Tensor:
    """Where the small operand holds what is left of the elements that a constant index picks along ``dim``."""
    source = cut.operands[0]
    wanted, keep = cut.constant_index(argument, source.dense[dim]), source.along(dim)
    if wanted is None:
        raise SurgeryError(_changed(cut))
    for offset in range(wanted.dim()):
        wanted = wanted.index_select(offset, cut.result.along(dim + offset))
    if not bool(torch.isin(wanted, keep).all()):
        raise SurgeryError(_changed(cut))
    return torch.searchsorted(keep, wanted)


@rewrites("slice_scatter")
def slice_scatter(cut: Cut) -> None:
    """What is overwritten may have lost other channels than what is written, so the result is joined anew."""
    dim, start, end, stride = (*cut.arguments[2:], None, None, None, None)[:4]
    dim = (dim or 0) % len(cut.result.dense)
    if any(keep is not None for keep in (cut.operands[0].indices[dim], cut.result.indices[dim])):
        _join_(cut, dim, torch.arange(cut.result.dense[dim])[slice(start, end, stride)])


@rewrites("select_scatter")
def select_scatter(cut: Cut) -> None:
    dim = cut.arguments[2] % len(cut.result.dense)
    if any(keep is not None for keep in (cut.operands[0].indices[dim], cut.result.indices[dim])):
        with cut.network.graph.inserting_before(cut.node):
            row = cut.network.graph.call_function(aten.unsqueeze.default, (cut.node.args[1], dim))
        cut.node.update_arg(1, row)
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
    with cut.network.graph.inserting_before(cut.node):
        both = cut.network.graph.call_function(aten.cat.default, (list(cut.node.args[:2]), dim))
    cut.become(aten.index_select.default, both, dim, cut.constant(picked, "order"))


def _changed(cut: Cut) -> str:
    return (
        f"the constant index of {cut.dense.name} is not the one that the plan was made with. Nothing was changed. "
        "Make the plan with find_groups(graph) of this very graph."
    )
