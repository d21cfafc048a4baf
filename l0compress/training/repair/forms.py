"""Contractions as matrix products: rows of inputs times a matrix of weights are rows of outputs, one matrix a group.

Every form turns an input into rows ``(groups, rows, unknowns)``, an output into rows ``(groups, rows, outputs)``, and a
weight into matrices ``(groups, unknowns, outputs)`` and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """A linear layer or a product with a matrix; the last dimension holds the channels.

    Attributes:
        outputs_first: whether the weight is ``(outputs, inputs)``, as that of a linear layer is.

    >>> form = Product(outputs_first=True)
    >>> x, weight = torch.randn(2, 5, 3), torch.randn(4, 3)
    >>> y = form.inputs(x, (2, 5), None) @ form.matrices(weight)
    >>> torch.allclose(y, form.outputs(F.linear(x, weight), None), atol=1e-6)
    True
    """

    outputs_first: bool

    def row_shape(self, output: Sequence[int]) -> tuple[int, ...]:
        """What an output of this shape has rows for."""
        return tuple(output[:-1])

    def inputs(self, x: Tensor, row_shape: Sequence[int], chosen: Tensor | None) -> Tensor:
        return _chosen(x.expand(*row_shape, x.shape[-1]).reshape(-1, x.shape[-1]), chosen).unsqueeze(0)

    def outputs(self, y: Tensor, chosen: Tensor | None) -> Tensor:
        return _chosen(y.reshape(-1, y.shape[-1]), chosen).unsqueeze(0)

    def matrices(self, weight: Tensor) -> Tensor:
        return (weight.mT if self.outputs_first else weight).unsqueeze(0)

    def weight(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        return (matrices[0].mT if self.outputs_first else matrices[0]).reshape(tuple(shape))

    def bias(self, bias: Tensor) -> Tensor:
        """A bias as ``(groups, 1, outputs)``."""
        return bias.view(1, 1, -1)


@dataclass(frozen=True)
class Convolution:
    """A convolution over any number of dimensions, grouped, depthwise, strided, dilated, transposed.

    A transposed one is a plain one over its input with zeros between the positions, with the kernel turned round.

    Attributes:
        kernel, stride, dilation, output_padding: one number a spatial dimension.
        padding: how much is added before and after, for each spatial dimension.

    >>> form = Convolution(2, (3,), (2,), (1,), ((1, 1),), (0,), transposed=False)
    >>> x, weight = torch.randn(2, 4, 9), torch.randn(6, 2, 3)
    >>> y = F.conv1d(x, weight, None, 2, 1, 1, 2)
    >>> rows = form.inputs(x, form.row_shape(y.shape), None) @ form.matrices(weight)
    >>> torch.allclose(rows, form.outputs(y, None), atol=1e-6)
    True
    """

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    output_padding: tuple[int, ...]
    transposed: bool

    def row_shape(self, output: Sequence[int]) -> tuple[int, ...]:
        """What an output of this shape has rows for."""
        return (output[0], *output[2:])

    def inputs(self, x: Tensor, row_shape: Sequence[int], chosen: Tensor | None) -> Tensor:
        """The patches that the chosen positions of the output see: only those are ever made."""
        padded = self._padded(x).movedim(1, -1)
        places = _places(row_shape, chosen, x.device)
        steps = (1,) * len(self.kernel) if self.transposed else self.stride
        flat = places[0].unsqueeze(1)
        offsets = _grid(self.kernel, x.device)
        for place, step, offset, dilation, size in zip(
            places[1:], steps, offsets, self.dilation, padded.shape[1:-1], strict=True
        ):
            flat = flat * size + place.unsqueeze(1) * step + offset.unsqueeze(0) * dilation
        patches = padded.reshape(-1, x.shape[1])[flat]  # (rows, kernel, channels)
        grouped = patches.unflatten(2, (self.groups, -1)).permute(2, 0, 3, 1)
        return grouped.reshape(self.groups, len(flat), -1)

    def _padded(self, x: Tensor) -> Tensor:
        if not self.transposed:
            return F.pad(x, [size for pair in reversed(self.padding) for size in pair])
        sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], self.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        spread[(..., *(slice(None, None, step) for step in self.stride))] = x
        around = [
            (step * (k - 1) - before, step * (k - 1) - after + more)
            for k, step, (before, after), more in zip(
                self.kernel, self.dilation, self.padding, self.output_padding, strict=True
            )
        ]
        return F.pad(spread, [size for pair in reversed(around) for size in pair])

    def outputs(self, y: Tensor, chosen: Tensor | None) -> Tensor:
        rows = _chosen(y.movedim(1, -1).reshape(-1, y.shape[1]), chosen)
        return rows.unflatten(1, (self.groups, -1)).transpose(0, 1)

    def matrices(self, weight: Tensor) -> Tensor:
        """From ``(outputs, inputs / groups, *kernel)``, transposed ``(inputs, outputs / groups, *kernel)``."""
        parts = weight.unflatten(0, (self.groups, -1))
        if self.transposed:
            parts = parts.flip(*range(3, parts.dim())).movedim(2, 1)
        return parts.flatten(2).mT

    def weight(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        if not self.transposed:
            return matrices.mT.reshape(tuple(shape))
        parts = matrices.mT.unflatten(2, (-1, *self.kernel)).movedim(2, 1)
        return parts.flip(*range(3, parts.dim())).reshape(tuple(shape))

    def bias(self, bias: Tensor) -> Tensor:
        """A bias as ``(groups, 1, outputs)``."""
        return bias.view(self.groups, 1, -1)


Form = Product | Convolution


def _chosen(rows: Tensor, chosen: Tensor | None) -> Tensor:
    return rows if chosen is None else rows[chosen]


def _places(row_shape: Sequence[int], chosen: Tensor | None, device: torch.device) -> list[Tensor]:
    """The coordinates of the chosen rows, a tensor a dimension."""
    flat = torch.arange(prod(row_shape), device=device) if chosen is None else chosen
    places: list[Tensor] = []
    for size in reversed(row_shape):
        places.insert(0, flat % size)
        flat = flat // size
    return places


def _grid(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """The coordinates of every place of a kernel, a tensor a dimension."""
    return [axis.flatten() for axis in torch.meshgrid(*(torch.arange(n, device=device) for n in sizes), indexing="ij")]
