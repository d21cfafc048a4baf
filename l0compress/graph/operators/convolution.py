"""Convolutions, plain, grouped and depthwise, in one to three dimensions."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.labels.space import ReadFact
from l0compress.graph.labels.values import Value, along, flattened, varying
from l0compress.graph.nodes.shapes import node_shape
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.normalization import channel_vector, channels_along
from l0compress.graph.operators.record import EmptySum, Operator, Result, Weights, operator_of, register
from l0compress.graph.operators.step import Step

_OTHER_SIDE = "the other side of the grouped convolution cannot be cut"


def convolution(step: Step) -> Result:
    x, weight = step.args[0], step.args[1]
    num_spatial = len(weight.shape) - 2
    conv_groups = int(step.get(6, "groups", 1))
    channel_dim = len(x.shape) - num_spatial - 1
    channels = channels_along(step, x, channel_dim, "a convolution slides over it")
    rows, columns = _weight_labels(step, weight)
    if conv_groups == 1:
        _plain(step, channels, columns, weight, reading=1)
    else:
        _grouped(step, channels, rows, columns, conv_groups)
    step.record_macs(convolution_macs(step.node), tuple(labels for labels in (rows, columns) if labels is not None))
    planes = () if rows is None else (along(rows, channel_dim, step.shape),)
    return channel_vector(step, Value(step.shape, planes), step.get(2, "bias"), channel_dim)


def transposed_convolution(step: Step) -> Result:
    """The weight is laid out ``(inputs, outputs of a group, kernel)``, so its rows are what reads."""
    x, weight = step.args[0], step.args[1]
    channel_dim = len(x.shape) - (len(weight.shape) - 2) - 1
    conv_groups = int(step.get(6, "groups", 1))
    channels = channels_along(step, x, channel_dim, "a convolution slides over it")
    rows, columns = _weight_labels(step, weight)
    if conv_groups == 1:
        _plain(step, channels, rows, weight, reading=0)
        outputs = columns
    else:
        outputs = _grouped_transposed(step, channels, rows, columns, conv_groups)
    step.record_macs(transposed_macs(step.node), tuple(labels for labels in (rows, columns) if labels is not None))
    planes = () if outputs is None else (along(outputs, channel_dim, step.shape),)
    return channel_vector(step, Value(step.shape, planes), step.get(2, "bias"), channel_dim)


def _weight_labels(step: Step, weight: Value) -> tuple[Tensor | None, Tensor | None]:
    """Labels of the weight's rows (dimension 0) and of its columns (dimension 1)."""
    result: list[Tensor | None] = [None, None]
    for plane in weight.planes:
        dims = varying(plane)
        if dims == {0}:
            result[0] = flattened(plane)
        elif dims == {1}:
            result[1] = flattened(plane)
        else:
            step.space.freeze_(plane, step.node, "kernel positions are not channels")
    return result[0], result[1]


def _plain(step: Step, channels: Tensor | None, columns: Tensor | None, weight: Value, *, reading: int) -> None:
    """``columns`` are the labels along the weight's dimension ``reading``, which meets the input channels."""
    if columns is None and channels is not None:
        step.space.freeze_(channels, step.node, "the weight that reads it cannot be cut along its input")
    elif columns is not None and channels is None:
        source = "the model's input" if step.reads_input(step.node.args[0]) else "an input without channels"
        step.space.freeze_(columns, step.node, f"it reads {source}")
    elif columns is not None and channels is not None:
        step.space.unite_(columns, channels)
        step.space.reads.append(ReadFact(step.node, 1, along(columns, reading, weight.shape), None))


def _grouped(
    step: Step, channels: Tensor | None, rows: Tensor | None, columns: Tensor | None, conv_groups: int
) -> None:
    """A group is alive while any of its inputs is, and equally while any of its outputs is."""
    space, node, weight = step.space, step.node, step.args[1]
    if channels is None and rows is not None and len(rows) > conv_groups:
        # The input stays whole, so all groups do; each may lose the same outputs.
        outputs = rows.view(conv_groups, -1)
        space.unite_(outputs, outputs[:1])
        rows = None
    if channels is None or rows is None:
        step.freeze_labels((channels, rows, columns), _OTHER_SIDE)
        return
    inputs, outputs = channels.view(conv_groups, -1), rows.view(conv_groups, -1)
    alive = space.fresh(conv_groups).view(conv_groups, 1)
    space.tie_any_(alive.expand_as(inputs), inputs)
    space.tie_any_(alive.expand_as(outputs), outputs)
    if columns is not None:
        space.tie_any_(columns.view(1, -1).expand_as(inputs), inputs)
    elif inputs.shape[1] > 1:
        space.freeze_(inputs, node, "the grouped weight that reads it cannot be cut along its input")
    num_rows, width = weight.shape[0], inputs.shape[1]
    read = inputs.repeat_interleave(num_rows // conv_groups, 0).view(num_rows, width, *[1] * (len(weight.shape) - 2))
    survivors = rows.view(-1, *[1] * (len(weight.shape) - 1))
    space.reads.append(ReadFact(node, 1, read.expand(weight.shape), survivors.expand(weight.shape)))


def _grouped_transposed(
    step: Step, channels: Tensor | None, rows: Tensor | None, columns: Tensor | None, conv_groups: int
) -> Tensor | None:
    """Labels of the outputs: a group of them is alive while the group of its inputs is."""
    space, node, weight = step.space, step.node, step.args[1]
    width = weight.shape[1]
    if channels is None or rows is None or (columns is None and width > 1):
        step.freeze_labels((channels, rows, columns), _OTHER_SIDE)
        return None
    space.unite_(rows, channels)
    inputs, outputs = channels.view(conv_groups, -1), space.fresh(conv_groups * width).view(conv_groups, width)
    alive = space.fresh(conv_groups).view(conv_groups, 1)
    space.tie_any_(alive.expand_as(inputs), inputs)
    space.tie_any_(alive.expand_as(outputs), outputs)
    if columns is not None:
        space.tie_any_(columns.view(1, -1).expand_as(outputs), outputs)
    fed = along(alive.expand_as(inputs).reshape(-1), 0, weight.shape)
    space.reads.append(ReadFact(node, 1, along(rows, 0, weight.shape), fed))
    return outputs.reshape(-1)


def keep_live_groups(cut: Cut) -> None:
    """A grouped convolution keeps the groups that still have rows: outputs, or inputs where it is transposed."""
    conv_groups = cut.arguments[6] if len(cut.arguments) > 6 else 1
    weight = cut.operands[1]
    if conv_groups > 1 and not weight.whole:
        width = weight.dense[0] // conv_groups
        live = len(torch.unique(weight.along(0) // width))
        cut.node.update_arg(6, live)


def convolution_macs(node: fx.Node) -> int:
    """Each element of the result is a product with the whole kernel of its channel."""
    return prod(node_shape(node)) * prod(node_shape(node.args[1])[1:])


def transposed_macs(node: fx.Node) -> int:
    """Each element of the input is multiplied by the whole row of the kernel that reads it."""
    return prod(node_shape(node.args[0])) * prod(node_shape(node.args[1])[1:])


def _channel_dim(node: fx.Node) -> int:
    weight: Any = node.args[1]
    return node.meta["val"].dim() - weight.meta["val"].dim() + 1


_CONVOLUTION = Operator(
    label=convolution,
    macs=convolution_macs,
    weights=Weights((1,), axis=0),
    empty_sum=EmptySum(bias=2, dim=_channel_dim),
    rewrite=keep_live_groups,
)
_TRANSPOSED = replace(_CONVOLUTION, label=transposed_convolution, macs=transposed_macs, weights=Weights((1,), axis=1))
register(_CONVOLUTION, "conv1d", "conv2d", "conv3d")
register(_TRANSPOSED, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def is_convolution(node: fx.Node) -> bool:
    """Whether a node convolves, transposed or not."""
    return operator_of(node) in (_CONVOLUTION, _TRANSPOSED)


def is_transposed(node: fx.Node) -> bool:
    """Whether a node is a transposed convolution, whose weight is laid out ``(inputs, outputs of a group, kernel)``."""
    return operator_of(node) is _TRANSPOSED
