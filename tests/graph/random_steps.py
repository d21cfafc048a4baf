"""The steps that random networks are built of: each takes all earlier tensors, the newest last, to a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIZE = 5  # of images and of sequences


@dataclass(frozen=True)
class Step:
    """One step of a network: what it does to all earlier tensors, the width of its result, its layers by name."""

    function: Callable[[Any, list[Tensor]], Tensor]
    width: int
    layers: Mapping[str, nn.Module | nn.Parameter]
    kind: str = "first"


@dataclass(frozen=True)
class Place:
    """Where a step is put.

    Attributes:
        name: of its layers.
        widths: of all earlier tensors.
        dim: the dimension of the channels.
    """

    name: str
    widths: tuple[int, ...]
    dim: int

    @property
    def width(self) -> int:
        return self.widths[-1]


Maker = Callable[[st.DrawFn, Place], Step]

ACTIVATIONS = [F.gelu, torch.tanh, F.silu, lambda h: h, lambda h: F.relu(h) + 0.1 * h]
WIDE = [2, 3, 4, 6, 8]
NARROW_ENOUGH = 20


def activation(draw: st.DrawFn) -> Callable[[Tensor], Tensor]:
    return draw(st.sampled_from(ACTIVATIONS))


def wide(draw: st.DrawFn) -> int:
    return draw(st.sampled_from(WIDE))


def divisor(draw: st.DrawFn, width: int) -> int:
    """A number of equal parts, more than one."""
    return draw(st.sampled_from([count for count in range(2, width + 1) if width % count == 0]))


def add(draw: st.DrawFn, at: Place) -> Step:
    act = activation(draw)
    other = draw(st.sampled_from([i for i, width in enumerate(at.widths[:-1]) if width == at.width]))
    return Step(lambda _, past: past[-1] + act(past[other]), at.width, {})


def cat(draw: st.DrawFn, at: Place) -> Step:
    swap = draw(st.booleans())
    order = [-1, -2] if swap else [-2, -1]
    return Step(lambda _, past: torch.cat([past[i] for i in order], at.dim), at.width + at.widths[-2], {})


def chunks(draw: st.DrawFn, at: Place) -> Step:
    act = activation(draw)
    return Step(lambda _, past: torch.cat([act(p) for p in past[-1].chunk(2, at.dim)[::-1]], at.dim), at.width, {})


def split(draw: st.DrawFn, at: Place) -> Step:
    """Parts of unequal widths, of which one goes through an activation."""
    act, first = activation(draw), draw(st.integers(1, at.width - 1))

    def apart(_: Any, past: list[Tensor]) -> Tensor:
        a, b = past[-1].split([first, at.width - first], at.dim)
        return torch.cat([act(b), a], at.dim)

    return Step(apart, at.width, {})


def gate(_: st.DrawFn, at: Place) -> Step:
    return Step(lambda _, past: torch.mul(*past[-1].tensor_split(2, at.dim)), at.width // 2, {})


def glu(_: st.DrawFn, at: Place) -> Step:
    return Step(lambda _, past: F.glu(past[-1], at.dim), at.width // 2, {})


def roll(_: st.DrawFn, at: Place) -> Step:
    return Step(lambda _, past: torch.roll(past[-1], (1, 2), (1, 2)), at.width, {})


def piece(draw: st.DrawFn, at: Place) -> Step:
    start, stride = draw(st.integers(0, 1)), draw(st.integers(1, 2))
    kept = len(range(at.width)[start::stride])

    def cut(_: Any, past: list[Tensor]) -> Tensor:
        return past[-1][:, start::stride] if at.dim == 1 else past[-1][..., start::stride]

    return Step(cut, kept, {})


def index(draw: st.DrawFn, at: Place) -> Step:
    """Channels picked by a literal list, some of them twice and some not at all."""
    picked = draw(st.lists(st.integers(0, at.width - 1), min_size=2, max_size=8))
    return Step(lambda _, past: past[-1][:, picked] if at.dim == 1 else past[-1][..., picked], len(picked), {})


def over_channels(draw: st.DrawFn, at: Place) -> Step:
    """A factor from a sum, a mean or a norm over all channels."""
    how = draw(st.sampled_from(["sum", "mean", "norm"]))

    def scaled(_: Any, past: list[Tensor]) -> Tensor:
        x = past[-1]
        if how == "norm":
            return F.normalize(x, dim=at.dim)
        total = x.sum(at.dim, keepdim=True) if how == "sum" else x.mean(at.dim, keepdim=True)
        return x * torch.sigmoid(total)

    return Step(scaled, at.width, {})


def by_hand(_: st.DrawFn, at: Place) -> Step:
    """A layer norm written with means."""

    def normed(_: Any, past: list[Tensor]) -> Tensor:
        x = past[-1] - past[-1].mean(at.dim, keepdim=True)
        return x * torch.rsqrt(x.square().mean(at.dim, keepdim=True) + 0.1)

    return Step(normed, at.width, {})


def write(draw: st.DrawFn, at: Place) -> Step:
    """Part of a copy is overwritten by part of another tensor."""
    other = draw(st.sampled_from(range(len(at.widths))))
    count = draw(st.integers(1, min(at.width, at.widths[other])))
    start = draw(st.integers(0, at.width - count))

    def written(_: Any, past: list[Tensor]) -> Tensor:
        made = past[-1].clone()
        made.narrow(at.dim, start, count).copy_(torch.tanh(past[other].narrow(at.dim, 0, count)))
        return made

    return Step(written, at.width, {})


def padded(draw: st.DrawFn, at: Place) -> Step:
    before, after = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    widths = (0, 0) * (1 if at.dim == 2 else 2) if at.dim == 1 else ()
    return Step(lambda _, past: F.pad(past[-1], (*widths, before, after)), at.width + before + after, {})


ANYWHERE: dict[str, tuple[Maker, Callable[[Place], bool]]] = {
    "add": (add, lambda at: at.width in at.widths[:-1]),
    "cat": (cat, lambda at: len(at.widths) > 1 and at.width + at.widths[-2] <= NARROW_ENOUGH),
    "chunks": (chunks, lambda at: at.width % 2 == 0),
    "split": (split, lambda at: at.width > 1),
    "gate": (gate, lambda at: at.width % 2 == 0),
    "glu": (glu, lambda at: at.width % 2 == 0),
    "roll": (roll, lambda _: True),
    "slice": (piece, lambda at: at.width > 2),
    "index": (index, lambda _: True),
    "over channels": (over_channels, lambda _: True),
    "norm by hand": (by_hand, lambda at: at.width > 1),
    "write": (write, lambda _: True),
    "pad": (padded, lambda at: at.width + 4 <= NARROW_ENOUGH),
}


@st.composite
def steps(draw: st.DrawFn, makers: dict[str, tuple[Maker, Callable[[Place], bool]]], at: Place) -> Step:
    """A step of any kind that fits."""
    kind = draw(st.sampled_from([kind for kind, (_, fits) in makers.items() if fits(at)]))
    made = makers[kind][0](draw, at)
    return Step(made.function, made.width, made.layers, kind)
