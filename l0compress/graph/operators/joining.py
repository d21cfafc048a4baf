"""Concatenation, stacking and padding."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, fx

from l0compress.graph.labels.space import FROZEN
from l0compress.graph.labels.values import Shape, Value, compressed, core, varying
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.record import EmptySum, Operator, Result, register
from l0compress.graph.operators.step import Step


def cat(step: Step) -> Result:
    parts = [part for part in step.args[0] if part.shape != (0,)]  # an empty vector joins anything
    dim = int(step.get(1, "dim", 0)) % max(len(step.shape), 1)
    return joined(step, parts, dim)


def stack(step: Step) -> Result:
    dim = int(step.get(1, "dim", 0)) % len(step.shape)
    parts = [
        Value((*part.shape[:dim], 1, *part.shape[dim:]), tuple(plane.unsqueeze(dim) for plane in part.planes))
        for part in step.args[0]
    ]
    return joined(step, parts, dim)


def joined(step: Step, parts: list[Value], dim: int) -> Value:
    """Labels are concatenated along ``dim``; along every other dimension the parts must agree."""
    agreeing: list[Value] = []
    joining: list[Tensor | None] = []
    for part in parts:
        plane = part.plane_along(dim)
        joining.append(plane)
        rest = tuple(other for other in part.planes if other is not plane)
        shape = tuple(1 if d == dim else size for d, size in enumerate(part.shape))
        agreeing.append(Value(shape, tuple(other.narrow(dim, 0, 1) for other in rest)))
    outer = {varying(plane) - {dim} for plane in joining if plane is not None}
    planes: list[Tensor] = []
    if outer and outer != {frozenset()} and (len(outer) > 1 or any(plane is None for plane in joining)):
        for plane in joining:
            if plane is not None:
                step.space.freeze_(plane, step.node, "its channels are laid out differently in what it is joined with")
    elif outer:
        planes.append(_concatenated(parts, joining, dim, step.shape))
    common_shape = tuple(1 if d == dim else size for d, size in enumerate(step.shape))
    common = step.space.merge(agreeing, common_shape, step.node)
    planes.extend(plane.expand(step.shape) for plane in common.planes)
    return step.space.disjoint(Value(step.shape, tuple(planes)), step.node)


def _concatenated(parts: list[Value], planes: list[Tensor | None], dim: int, shape: Shape) -> Tensor:
    dims = frozenset({dim}).union(*(varying(plane) for plane in planes if plane is not None))
    pieces = []
    for part, plane in zip(parts, planes, strict=True):
        size = [part.shape[d] if d in dims else 1 for d in range(len(shape))]
        small = torch.full(size, FROZEN) if plane is None else core(plane).expand(size)
        pieces.append(small)
    return compressed(torch.cat(pieces, dim).expand(shape))


def pad(step: Step) -> Result:
    """Padded positions hold a constant: along a channel dimension each is a channel of its own, free to go."""
    value, widths = step.args[0], [int(width) for width in step.args[1]]
    constant = step.name != "pad" or step.get(2, "mode", "constant") == "constant"
    rank = len(step.shape)
    padded = {rank - 1 - i // 2: widths[i - i % 2 : i - i % 2 + 2] for i in range(len(widths)) if widths[i]}
    planes: list[Tensor] = []
    for plane in value.planes:
        dims = varying(plane) & frozenset(padded)
        if not dims:
            planes.append(core(plane).expand(step.shape))
        elif constant and len(dims) == 1 and min(padded[min(dims)]) >= 0:
            planes.append(_padded(step, plane, min(dims), padded[min(dims)]))
        else:
            step.space.freeze_(plane, step.node, "it is padded by values that depend on its neighbours")
    return Value(step.shape, tuple(planes))


def _padded(step: Step, plane: Tensor, dim: int, widths: list[int]) -> Tensor:
    outer, small = varying(plane) - {dim}, core(plane)
    if outer:  # heads x width: what is put behind the width goes with its head
        rows = step.space.fresh_plane(outer, plane.shape)
        step.space.tie_any_(rows, plane)
        before, after = (core(rows).expand_as(small.narrow(dim, 0, 1)).repeat_interleave(n, dim) for n in widths)
    else:
        size = [-1 if d == dim else 1 for d in range(small.dim())]
        before, after = (step.space.fresh(width).view(size) for width in widths)
    return torch.cat([before, small, after], dim).expand(step.shape)


def cut_padding(cut: Cut) -> None:
    widths, rank = list(cut.arguments[1]), len(cut.result.dense)
    for dim, keep in enumerate(cut.result.indices):
        position = 2 * (rank - 1 - dim)
        if keep is None or position >= len(widths) or not (widths[position] or widths[position + 1]):
            continue
        before, inner = widths[position], cut.operands[0].dense[dim]
        widths[position] = int((keep < before).sum())
        widths[position + 1] = int((keep >= before + inner).sum())
    cut.node.update_arg(1, widths)


def _pads_zeros(node: fx.Node, _: Container[str]) -> bool:
    """Nothing that is filled up with zeros is zero."""
    return bool([*node.args, 0][2] == 0)


register(Operator(label=cat, joins=True, moves=True), "cat", "concat")
register(Operator(label=cat, joins=True), "concatenate")
register(Operator(label=stack, moves=True), "stack")
register(Operator(label=pad, rewrite=cut_padding), "pad")
register(Operator(label=pad, rewrite=cut_padding, empty_sum=EmptySum(holds=_pads_zeros)), "constant_pad_nd")
