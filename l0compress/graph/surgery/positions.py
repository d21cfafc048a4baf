"""Operators that name positions of channels: slices, selections, splits, shuffles and paddings."""

from __future__ import annotations

from typing import Any

import torch

from l0compress.graph.mutation import unwritten_until
from l0compress.graph.network import op_name
from l0compress.graph.surgery.registry import Cut, rewrites

aten = torch.ops.aten


@rewrites("slice")
def slice_(cut: Cut) -> None:
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
    _slice_kept_(cut, dim, first, last)


@rewrites("narrow")
def narrow(cut: Cut) -> None:
    dim, start, length = cut.arguments[1] % len(cut.operands[0].dense), *cut.arguments[2:4]
    if cut.operands[0].indices[dim] is not None:
        first = start + cut.operands[0].dense[dim] if start < 0 else start
        _slice_kept_(cut, dim, first, first + length)


def _slice_kept_(cut: Cut, dim: int, first: int, last: int) -> None:
    """Become a slice of what is left of the dense positions from ``first`` up to ``last``."""
    keep, taken = cut.operands[0].along(dim), cut.argument(0)
    begin, stop = int((keep < first).sum()), int((keep < last).sum())
    if op_name(taken) == "slice" and len(taken.args) == 4 and unwritten_until(taken, cut.node):
        whole, along, start, end = taken.args
        if along == dim and isinstance(start, int) and isinstance(end, int) and min(start, end) >= 0:
            taken, begin, stop = whole, begin + start, min(stop + start, end)
    cut.become(aten.slice.Tensor, taken, dim, begin, stop)


@rewrites("select")
def select(cut: Cut) -> None:
    source, dim = cut.operands[0], cut.arguments[1] % len(cut.operands[0].dense)
    keep = source.indices[dim]
    if keep is not None:
        wanted = cut.arguments[2] % source.dense[dim]
        cut.become(aten.select.int, cut.node.args[0], dim, int((keep < wanted).sum()))


@rewrites("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(cut: Cut) -> None:
    source = cut.operands[0]
    given: Any = cut.arguments[2] if len(cut.arguments) > 2 else cut.node.kwargs.get("dim", 0)
    dim = given % len(source.dense)
    if source.indices[dim] is not None:
        sizes = [part.shape[dim] for part in cut.results]
        cut.become(aten.split_with_sizes.default, cut.node.args[0], sizes, dim)


@rewrites("channel_shuffle")
def channel_shuffle(cut: Cut) -> None:
    """On fewer channels the positions are other ones, so the shuffle becomes a selection."""
    keep, count = cut.operands[0].indices[1], cut.operands[0].dense[1]
    if keep is not None:
        order = torch.arange(count).view(cut.arguments[1], -1).t().reshape(-1)
        cut.select(1, order[torch.isin(order, keep)], keep)


@rewrites("roll")
def roll(cut: Cut) -> None:
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
        with cut.network.graph.inserting_before(cut.node):
            taken = cut.network.graph.call_function(aten.index_select.default, (taken, dim, index))
    if rest:
        cut.become(aten.roll.default, taken, *(list(column) for column in zip(*rest, strict=True)))
    else:
        cut.become(aten.alias.default, taken)


@rewrites("pad", "constant_pad_nd")
def pad(cut: Cut) -> None:
    widths, rank = list(cut.arguments[1]), len(cut.result.dense)
    for dim, keep in enumerate(cut.result.indices):
        position = 2 * (rank - 1 - dim)
        if keep is None or position >= len(widths) or not (widths[position] or widths[position + 1]):
            continue
        before, inner = widths[position], cut.operands[0].dense[dim]
        widths[position] = int((keep < before).sum())
        widths[position + 1] = int((keep >= before + inner).sum())
    cut.node.update_arg(1, widths)
