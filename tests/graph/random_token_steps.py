"""Steps over sequences, (batch, 5, features)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from random_steps import ANYWHERE, Maker, Place, Step, activation, wide
from torch import Tensor, nn


def plain(draw: st.DrawFn, at: Place) -> Step:
    act, out = activation(draw), wide(draw)
    layer = nn.Linear(at.width, out, bias=draw(st.booleans()))
    return Step(lambda s, past: act(getattr(s, at.name)(past[-1])), out, {at.name: layer})


def scale(_: st.DrawFn, at: Place) -> Step:
    return Step(lambda s, past: getattr(s, at.name)(past[-1].mT).mT, at.width, {at.name: nn.BatchNorm1d(at.width)})


def layer_norm(draw: st.DrawFn, at: Place) -> Step:
    layer = nn.LayerNorm(at.width, elementwise_affine=draw(st.booleans()))
    return Step(lambda s, past: getattr(s, at.name)(past[-1]), at.width, {at.name: layer})


COUNTING: list[Callable[[Tensor], Tensor]] = [
    lambda h: h * h.softmax(-1),
    lambda h: h - h.amax(-1, keepdim=True),
    lambda h: h / (1 + h.var(-1, keepdim=True)),
]


def counting(draw: st.DrawFn, at: Place) -> Step:
    """What sees the zeros of dead channels."""
    function = draw(st.sampled_from(COUNTING))
    return Step(lambda _, past: function(past[-1]), at.width, {})


def along_tokens(draw: st.DrawFn, at: Place) -> Step:
    """A convolution along the sequence, with a neighbour on each side."""
    layer = nn.Conv1d(at.width, at.width, 3, padding=1, groups=draw(st.sampled_from([1, at.width])))
    return Step(lambda s, past: getattr(s, at.name)(past[-1].mT).mT, at.width, {at.name: layer})


def mlp(draw: st.DrawFn, at: Place) -> Step:
    """A residual branch, which may go as a whole; with a norm before it, or as a gated unit."""
    inner, gated, norm = wide(draw), draw(st.booleans()), draw(st.sampled_from(["none", "layer", "by hand"]))
    layers: dict[str, nn.Module | nn.Parameter] = {
        f"{at.name}u": nn.Linear(at.width, inner),
        f"{at.name}d": nn.Linear(inner, at.width, bias=draw(st.booleans())),
    }
    layers.update({f"{at.name}g": nn.Linear(at.width, inner)} if gated else {})
    layers.update({f"{at.name}n": nn.LayerNorm(at.width)} if norm == "layer" else {})

    def forward(s: Any, past: list[Tensor]) -> Tensor:
        x = getattr(s, f"{at.name}n")(past[-1]) if norm == "layer" else past[-1]
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) if norm == "by hand" else x
        h = F.silu(getattr(s, f"{at.name}u")(x))
        h = h * getattr(s, f"{at.name}g")(x) if gated else h
        return past[-1] + getattr(s, f"{at.name}d")(h)

    return Step(forward, at.width, layers)


def attention(draw: st.DrawFn, at: Place) -> Step:
    """Heads by view or by folding them into the batch, keys shared or not, by operator or by hand."""
    num_heads, key_size = draw(st.sampled_from([(2, 3), (4, 2), (3, 2)]))
    size, key_heads = draw(st.sampled_from([2, 4])), draw(st.sampled_from([num_heads, 1 if num_heads == 3 else 2]))
    hand, folded, native = (draw(st.booleans()) for _ in range(3))
    layers: dict[str, nn.Module | nn.Parameter] = {
        f"{at.name}q": nn.Linear(at.width, num_heads * key_size),
        f"{at.name}k": nn.Linear(at.width, key_heads * key_size),
        f"{at.name}v": nn.Linear(at.width, key_heads * size),
        f"{at.name}o": nn.Linear(num_heads * size, at.width, bias=draw(st.booleans())),
    }

    norms: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda heads: heads,
        "rms": lambda heads: F.rms_norm(heads, (key_size,)),
        "layer": lambda heads: F.layer_norm(heads, (key_size,)),
    }
    norm = norms[draw(st.sampled_from(sorted(norms)))]

    def attend(s: Any, past: list[Tensor]) -> Tensor:
        x, times = past[-1], num_heads // key_heads
        query = getattr(s, f"{at.name}q")(x).unflatten(-1, (num_heads, key_size)).transpose(1, 2)
        key = getattr(s, f"{at.name}k")(x).unflatten(-1, (key_heads, key_size)).transpose(1, 2)
        value = getattr(s, f"{at.name}v")(x).unflatten(-1, (key_heads, size)).transpose(1, 2)
        query, key = norm(query), norm(key)
        if native and not hand and not folded:
            mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=times > 1)
            return x + getattr(s, f"{at.name}o")(mixed.transpose(1, 2).flatten(2))
        key, value = (part.repeat_interleave(times, 1) for part in (key, value))
        if folded:
            query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        mixed = (query @ key.mT).softmax(-1) @ value if hand else F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.unflatten(0, (-1, num_heads)) if folded else mixed
        return x + getattr(s, f"{at.name}o")(mixed.transpose(1, 2).flatten(2))

    return Step(attend, at.width, layers)


def einsum(draw: st.DrawFn, at: Place) -> Step:
    """Heads by einsum: there, through an activation, and back."""
    heads, size, out, act = draw(st.integers(1, 3)), draw(st.integers(1, 3)), wide(draw), activation(draw)
    layers: dict[str, nn.Module | nn.Parameter] = {
        f"{at.name}i": nn.Parameter(torch.zeros(at.width, heads, size)),
        f"{at.name}o": nn.Parameter(torch.zeros(heads, size, out)),
    }

    def forward(s: Any, past: list[Tensor]) -> Tensor:
        inner = act(torch.einsum("bld,dhk->bhlk", past[-1], getattr(s, f"{at.name}i")))
        return torch.einsum("bhlk,hkd->bld", inner, getattr(s, f"{at.name}o"))

    return Step(forward, out, layers)


def recurrent(draw: st.DrawFn, at: Place) -> Step:
    kind, hidden = draw(st.sampled_from([nn.LSTM, nn.GRU])), draw(st.integers(2, 4))
    both, layers = draw(st.booleans()), draw(st.integers(1, 2))
    layer = kind(at.width, hidden, layers, batch_first=True, bidirectional=both, bias=draw(st.booleans()))
    return Step(lambda s, past: getattr(s, at.name)(past[-1])[0], hidden * (1 + both), {at.name: layer})


def pooled(draw: st.DrawFn, at: Place) -> Step:
    """What all positions have in common is added to each."""
    layer = nn.Linear(at.width, at.width, bias=draw(st.booleans()))
    return Step(
        lambda s, past: past[-1] + getattr(s, at.name)(past[-1].mean(1, keepdim=True)), at.width, {at.name: layer}
    )


TOKEN_STEPS: dict[str, tuple[Maker, Callable[[Place], bool]]] = {
    **ANYWHERE,
    "linear": (plain, lambda _: True),
    "batch norm": (scale, lambda _: True),
    "layer norm": (layer_norm, lambda at: at.width > 1),
    "counting": (counting, lambda at: at.width > 1),
    "conv1d": (along_tokens, lambda _: True),
    "mlp": (mlp, lambda _: True),
    "attention": (attention, lambda _: True),
    "einsum heads": (einsum, lambda _: True),
    "recurrent": (recurrent, lambda _: True),
    "pooled": (pooled, lambda _: True),
}
