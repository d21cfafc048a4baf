"""Where a factor on channels is multiplied, and how its gradient is summed, so that a gate costs as little as it can.

A linear layer or convolution that reads gated channels computes the same whether its weight or its input carries the
factor. The one with fewer elements does: in front of a wide layer on a small batch the input is the smaller by far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from l0compress.graph.nodes.network import op_name

# Layers that sum over dimension 1 of their second argument, and over the same channels of their first.
_CHANNELS_OF_INPUT = {"linear": -1, "conv1d": 1, "conv2d": 1, "conv3d": 1}
_BLOCK = 2**16


def may_scale_input(node: fx.Node) -> bool:
    """Return whether a factor on the columns of the node's weight, its second argument, may go on its input instead."""
    return op_name(node) in _CHANNELS_OF_INPUT


def scaled_input(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """Return what a layer with this ``weight`` is to read instead of ``x``, see :func:`scaled_weight`.

    >>> x, factor = torch.ones(1, 2, requires_grad=True), torch.tensor([[1.0, 0.0]])
    >>> weight = torch.ones(3, 2)
    >>> scaled_input(x, weight, factor).tolist(), scaled_weight(x, weight, factor) is weight
    ([[1.0, 0.0]], True)
    """
    if not _input_is_smaller(x, weight, factor):
        return x
    return scaled(x, factor.flatten() if weight.dim() == 2 else factor)


def scaled_weight(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """Return what a layer that reads ``x`` is to have as its weight where ``factor`` scales the weight's columns.

    Either this is the weight times ``factor``, or :func:`scaled_input` is the input times it, whichever has fewer
    elements.
    """
    return weight if _input_is_smaller(x, weight, factor) else scaled(weight, factor)


def _input_is_smaller(x: Tensor, weight: Tensor, factor: Tensor) -> bool:
    # What needs no gradient would need one for the sake of the factor: another product.
    # Of a grouped convolution the factor may vary from row to row, and a single image has no dimension for the batch.
    columns = (1, weight.shape[1], *[1] * (weight.dim() - 2))
    fits = weight.dim() == 2 or (x.dim() == weight.dim() and x.shape[1] == weight.shape[1])
    # An export would fix the batch by asking how large the input is.
    if torch.compiler.is_exporting():
        return False
    return x.requires_grad and fits and _padded(factor, weight.dim()) == columns and x.numel() < weight.numel()


def _padded(factor: Tensor, dims: int) -> tuple[int, ...]:
    return (*[1] * (dims - factor.dim()), *factor.shape)


def scaled(value: Tensor, factor: Tensor) -> Tensor:
    """Return ``value * factor`` for a factor that broadcasts; the gradients are those of the plain product.

    On the CPU both gradients come out of one pass over a large value, block by block: the plain product's backward
    writes ``gradient * value`` out and reads it again to sum it.
    """
    summed_rows = factor.dim() < value.dim() or factor.shape[0] == 1
    if value.device.type != "cpu" or value.dtype != factor.dtype or value.numel() <= _BLOCK or not summed_rows:
        return value * factor
    if torch.compiler.is_compiling():  # what it generates is one pass already
        return value * factor
    return _Scaled.apply(value, factor)


class _Scaled(torch.autograd.Function):
    """A product whose factor is constant along the first dimension of the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(value, factor)
        return value * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (value, factor) = gradients, ctx.saved_tensors
        rows = max(_BLOCK * len(value) // value.numel(), 1)
        of_value = torch.empty_like(gradient) if ctx.needs_input_grad[0] else None
        total = torch.zeros_like(value[:rows], memory_format=torch.contiguous_format)
        for start in range(0, len(value), rows):
            part = slice(start, start + rows)
            here = gradient[part]
            total[: len(here)].addcmul_(here, value[part])
            if of_value is not None:
                torch.mul(here, factor, out=of_value[part])
        return of_value, total.sum_to_size(factor.shape)
