"""Norms over some of the channels whose statistics are those of all of them, the others being zero.

A dropped channel is a zero that still counts in a norm's mean and variance. ``torch.nn.LayerNorm`` over what is left
divides by another number, and no weight makes up for that, so the layer is replaced by a subclass of its own.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Norm = TypeVar("Norm", bound="NarrowLayerNorm | NarrowRMSNorm")


class NarrowLayerNorm(nn.LayerNorm):
    """A layer norm over ``dense_width`` channels of which only those in ``normalized_shape`` are not zero.

    >>> x = torch.randn(2, 3)
    >>> norm = narrowed(NarrowLayerNorm, nn.LayerNorm(5), 3)
    >>> with torch.no_grad():
    ...     norm.weight.data, norm.bias.data = norm.weight[:3], norm.bias[:3]
    >>> dense = nn.functional.layer_norm(nn.functional.pad(x, (0, 2)), (5,))[:, :3]
    >>> torch.allclose(norm(x), dense, atol=1e-6)
    True
    """

    dense_width: int

    def forward(self, input: Tensor) -> Tensor:
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        zeros = self.dense_width - x.shape[-1]
        mean = x.sum(-1, keepdim=True) / self.dense_width
        centred = x - mean
        variance = (centred.square().sum(-1, keepdim=True) + zeros * mean.square()) / self.dense_width
        normed = (centred * torch.rsqrt(variance + self.eps)).to(input.dtype)
        if not self.elementwise_affine:
            return normed
        scaled = normed * self.weight
        return scaled if self.bias is None else scaled + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dense_width={self.dense_width}"


class NarrowRMSNorm(nn.RMSNorm):
    """As :class:`NarrowLayerNorm`, for the root mean square."""

    dense_width: int

    def forward(self, x: Tensor) -> Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        square = wide.square().sum(-1, keepdim=True) / self.dense_width
        normed = (wide * torch.rsqrt(square + eps)).to(x.dtype)
        return normed if self.weight is None else normed * self.weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dense_width={self.dense_width}"


def narrowed(kind: type[Norm], norm: nn.Module, width: int) -> Norm:
    """``norm`` as a narrow one over ``width`` channels, with the same parameters, hooks and settings."""
    narrow = kind.__new__(kind)
    narrow.__dict__.update(norm.__dict__)
    narrow.dense_width = int(narrow.normalized_shape[-1])
    narrow.normalized_shape = (width,)
    return narrow
