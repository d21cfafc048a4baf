"""Small networks whose hidden channels have a dead half: whoever finds it can leave it out and change nothing at all.

Weights of dead channels are zero wherever they are written and read, so that every score of magnitude puts them last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, SIDE, HEADS, HEAD = 16, 4, 4, 4
PADDING = 4
Dead = tuple[str, int, tuple[int, ...]]


def half(copies: int = 1, *, each: int = 1, first: int = 0) -> tuple[int, ...]:
    """The first half of the hidden channels in several copies of them, one behind the other, each of some elements.

    >>> half() == (0, 1, 2, 3, 4, 5, 6, 7)
    True
    >>> half(2)[8:], half(first=4)[0]
    ((16, 17, 18, 19, 20, 21, 22, 23), 4)
    """
    length = WIDTH * each
    return tuple(first + copy * length + index for copy in range(copies) for index in range(length // 2))


@dataclass(frozen=True, eq=False)
class Network:
    """Attributes:
    name: what is between the layers that are cut.
    build: makes it with a hidden width.
    example: an input.
    dead: parameters with a dimension of hidden channels, and which indices of it are dead.
    heads: names of the projections that have heads; their hidden width is cut by whole heads.
    """

    name: str
    build: Callable[[int], nn.Module]
    example: Tensor
    dead: tuple[Dead, ...]
    heads: tuple[str, ...] = ()

    def half_dead(self) -> nn.Module:
        """The network with its first half of channels dead."""
        torch.manual_seed(0)
        module = self.build(WIDTH).eval()
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, dim, dead in self.dead:
                parameters[name].movedim(dim, 0)[list(dead)] = 0
        return module

    @property
    def left(self) -> int:
        """Parameters without the dead half."""
        return sum(parameter.numel() for parameter in self.build(WIDTH // 2).parameters())


class Wired(nn.Module):
    """Named layers, and how they are connected."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class RawProduct(nn.Module):
    """A parameter of its own in place of a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, width))
        self.b = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(x @ self.weight))


def _conv(width_in: int, width: int, **more: int) -> nn.Module:
    return nn.Conv2d(width_in, width, 3, padding=1, **more)


def _viewed(width: int) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.b(F.relu(m.a(x)).view(-1, WIDTH * SIDE * SIDE))

    def narrow(m: nn.Module, x: Tensor) -> Tensor:
        return m.b(F.relu(m.a(x)).flatten(1))

    layers = {"a": _conv(3, width), "b": nn.Linear(width * SIDE * SIDE, 4)}
    return Wired(forward if width == WIDTH else narrow, **layers)


def _attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _attention_of_four(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(*x.shape[:2], HEADS, HEAD).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], HEADS * HEAD))


def _projections(width: int) -> dict[str, nn.Module]:
    return {**{name: nn.Linear(8, width) for name in "qkv"}, "o": nn.Linear(width, 8)}


_FLAT, _IMAGE, _TOKENS = torch.randn(2, 8), torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 5, 8)
_A, _B = ("a.weight", 0, half()), ("a.bias", 0, half())
_C = ("c.weight", 0, half()), ("c.bias", 0, half())
_READ, _READ_PIXELS = ("b.weight", 1, half()), ("b.weight", 1, half(each=SIDE * SIDE))
_HEADED = (*((f"{name}.{kind}", 0, half()) for name in "qkv" for kind in ("weight", "bias")), ("o.weight", 1, half()))
# Four channels of each group of eight.
_QUARTERS = (*range(4), *range(8, 12))

NETWORKS: tuple[Network, ...] = (
    Network(
        "two linear layers",
        lambda w: Wired(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(8, w), b=nn.Linear(w, 4)),
        _FLAT,
        (_A, _B, _READ),
    ),
    Network(
        "a matrix of its own, not a layer",
        RawProduct,
        _FLAT,
        (("weight", 1, half()), _READ),
    ),
    Network(
        "a convolution, flattened into a linear layer",
        lambda w: Wired(lambda m, x: m.b(F.relu(m.a(x)).flatten(1)), a=_conv(3, w), b=nn.Linear(w * SIDE * SIDE, 4)),
        _IMAGE,
        (_A, _B, _READ_PIXELS),
    ),
    Network("the same by a view with the width in the code", _viewed, _IMAGE, (_A, _B, _READ_PIXELS)),
    Network(
        "chunk, one half the gate of the other",
        lambda w: Wired(lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, -1))), a=nn.Linear(8, 2 * w), b=nn.Linear(w, 4)),
        _FLAT,
        (("a.weight", 0, half(2)), ("a.bias", 0, half(2)), _READ),
    ),
    Network(
        "concatenation of two convolutions",
        lambda w: Wired(
            lambda m, x: m.b(torch.cat([m.a(x), m.c(x)], 1)), a=_conv(3, w), c=_conv(3, w), b=_conv(2 * w, 4)
        ),
        _IMAGE,
        (_A, _B, *_C, ("b.weight", 1, half(2))),
    ),
    Network(
        "a residual stream",
        lambda w: Wired(
            lambda m, x: m.b(F.relu(m.a(x) + m.c(F.relu(m.a(x))))), a=_conv(3, w), c=_conv(w, w), b=_conv(w, 4)
        ),
        _IMAGE,
        (_A, _B, *_C, ("c.weight", 1, half()), _READ),
    ),
    Network(
        "a residual stream padded with zero channels",
        lambda w: Wired(
            lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, PADDING, PADDING)) + m.c(F.relu(m.a(x)))),
            a=_conv(3, w),
            c=_conv(w, w + 2 * PADDING),
            b=_conv(w + 2 * PADDING, 4),
        ),
        _IMAGE,
        (
            *(_A, _B, ("c.weight", 1, half())),
            *((name, dim, half(first=PADDING)) for name, dim in (("c.weight", 0), ("c.bias", 0), ("b.weight", 1))),
        ),
    ),
    Network(
        "a convolution in two groups",
        lambda w: Wired(
            lambda m, x: m.b(F.relu(m.c(F.relu(m.a(x))))), a=_conv(3, w), c=_conv(w, w, groups=2), b=_conv(w, 4)
        ),
        _IMAGE,
        (
            *((f"{name}.{kind}", 0, _QUARTERS) for name in "ac" for kind in ("weight", "bias")),
            *(("c.weight", 1, (*range(4),)), ("b.weight", 1, _QUARTERS)),
        ),
    ),
    Network(
        "a depthwise convolution",
        lambda w: Wired(
            lambda m, x: m.b(F.relu(m.c(F.relu(m.a(x))))), a=_conv(3, w), c=_conv(w, w, groups=w), b=_conv(w, 4)
        ),
        _IMAGE,
        (_A, _B, *_C, _READ),
    ),
    Network(
        "a layer norm over the channels",
        lambda w: Wired(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Linear(8, w), norm=nn.LayerNorm(w), b=nn.Linear(w, 4)),
        _FLAT,
        (_A, _B, ("norm.weight", 0, half()), ("norm.bias", 0, half()), _READ),
    ),
    Network(
        "heads of attention",
        lambda w: Wired(_attention, **_projections(w)),
        _TOKENS,
        _HEADED,
        heads=("q", "k", "v"),
    ),
    Network(
        "heads of attention, their number in the code",
        lambda w: Wired(_attention_of_four, **_projections(w)),
        _TOKENS,
        _HEADED,
        heads=("q", "k", "v"),
    ),
    Network(
        "units of an LSTM",
        lambda w: Wired(lambda m, x: m.b(m.a(x)[0]), a=nn.LSTM(8, w, batch_first=True), b=nn.Linear(w, 4)),
        _TOKENS,
        (
            *((f"a.{name}_l0", 0, half(4)) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
            ("a.weight_hh_l0", 1, half()),
            _READ,
        ),
    ),
)
