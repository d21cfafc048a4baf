"""Steps over images of equal size, (batch, channels, 5, 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from random_steps import ANYWHERE, NARROW_ENOUGH, SIZE, Maker, Place, Step, activation, divisor, wide
from torch import Tensor, nn


def plain(draw: st.DrawFn, at: Place) -> Step:
    act, out, bias = activation(draw), wide(draw), draw(st.booleans())
    layer = nn.Conv2d(at.width, out, draw(st.sampled_from([1, 3])), padding="same", bias=bias)
    return Step(lambda s, past: act(getattr(s, at.name)(past[-1])), out, {at.name: layer})


def transposed(draw: st.DrawFn, at: Place) -> Step:
    count = draw(st.sampled_from([c for c in (1, 2, at.width) if at.width % c == 0]))
    out = count * draw(st.integers(1, 3 if count < 4 else 1))
    layer = nn.ConvTranspose2d(at.width, out, 3, padding=1, groups=count, bias=draw(st.booleans()))
    return Step(lambda s, past: getattr(s, at.name)(past[-1]), out, {at.name: layer})


def grouped(draw: st.DrawFn, at: Place) -> Step:
    count, times = divisor(draw, at.width), draw(st.sampled_from([1, 2]))
    act, out = activation(draw), at.width * times
    layer = nn.Conv2d(at.width, out, 3, padding=1, groups=count, bias=draw(st.booleans()))
    return Step(lambda s, past: act(getattr(s, at.name)(past[-1])), out, {at.name: layer})


def batch_norm(draw: st.DrawFn, at: Place) -> Step:
    act = activation(draw)
    return Step(lambda s, past: act(getattr(s, at.name)(past[-1])), at.width, {at.name: nn.BatchNorm2d(at.width)})


def group_norm(draw: st.DrawFn, at: Place) -> Step:
    layer = nn.GroupNorm(draw(st.sampled_from([1, divisor(draw, at.width)])), at.width)
    return Step(lambda s, past: getattr(s, at.name)(past[-1]), at.width, {at.name: layer})


def excite(draw: st.DrawFn, at: Place) -> Step:
    inner = wide(draw)
    layer = nn.Sequential(nn.Conv2d(at.width, inner, 1), nn.SiLU(), nn.Conv2d(inner, at.width, 1), nn.Sigmoid())
    return Step(
        lambda s, past: past[-1] * getattr(s, at.name)(past[-1].mean((2, 3), keepdim=True)), at.width, {at.name: layer}
    )


def residual(draw: st.DrawFn, at: Place) -> Step:
    """A branch that may go as a whole."""
    inner, inplace, act = wide(draw), draw(st.booleans()), activation(draw)
    layers: list[nn.Module] = [nn.Conv2d(at.width, inner, 1), nn.ReLU(inplace)]
    layers += [nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.SiLU()] if draw(st.booleans()) else []
    layers += [nn.Conv2d(inner, at.width, 3, padding=1, bias=draw(st.booleans()))]
    layers += [nn.BatchNorm2d(at.width)] if draw(st.booleans()) else []

    def forward(s: Any, past: list[Tensor]) -> Tensor:
        y = getattr(s, at.name)(past[-1])
        if inplace:
            y += past[-1]
            return act(y)
        return act(past[-1] + y)

    return Step(forward, at.width, {at.name: nn.Sequential(*layers)})


def branches(draw: st.DrawFn, at: Place) -> Step:
    """Two ways, joined."""
    inner, left, right = wide(draw), wide(draw), wide(draw)
    layers = {
        f"{at.name}a": nn.Conv2d(at.width, left, 1),
        f"{at.name}b": nn.Conv2d(at.width, inner, 1),
        f"{at.name}c": nn.Conv2d(inner, right, 3, padding=1, bias=draw(st.booleans())),
    }

    def forward(s: Any, past: list[Tensor]) -> Tensor:
        b = F.relu(getattr(s, f"{at.name}b")(past[-1]))
        return torch.cat([F.silu(getattr(s, f"{at.name}a")(past[-1])), getattr(s, f"{at.name}c")(b)], 1)

    return Step(forward, left + right, layers)


def shuffle(draw: st.DrawFn, at: Place) -> Step:
    count = divisor(draw, at.width)
    if draw(st.booleans()):
        return Step(lambda _, past: F.channel_shuffle(past[-1], count), at.width, {})
    return Step(
        lambda _, past: past[-1].view(-1, count, at.width // count, SIZE, SIZE).transpose(1, 2).reshape(past[-1].shape),
        at.width,
        {},
    )


def einsum(draw: st.DrawFn, at: Place) -> Step:
    out = wide(draw)
    weight = nn.Parameter(torch.zeros(out, at.width))
    return Step(lambda s, past: torch.einsum("bchw,dc->bdhw", past[-1], getattr(s, at.name)), out, {at.name: weight})


def pool(draw: st.DrawFn, at: Place) -> Step:
    function = draw(st.sampled_from([F.avg_pool2d, F.max_pool2d]))
    return Step(lambda _, past: function(past[-1], 3, 1, 1), at.width, {})


IMAGE_STEPS: dict[str, tuple[Maker, Callable[[Place], bool]]] = {
    **ANYWHERE,
    "convolution": (plain, lambda _: True),
    "transposed": (transposed, lambda _: True),
    "grouped": (grouped, lambda at: 1 < at.width <= NARROW_ENOUGH),
    "batch norm": (batch_norm, lambda _: True),
    "group norm": (group_norm, lambda at: at.width > 1),
    "excite": (excite, lambda _: True),
    "residual": (residual, lambda _: True),
    "branches": (branches, lambda _: True),
    "shuffle": (shuffle, lambda at: at.width > 1),
    "einsum": (einsum, lambda _: True),
    "pool": (pool, lambda _: True),
}
