"""Every way of moving, splitting, joining and mixing channels: shrunk computes what masked does, at any batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import captured, changes, image, scattered, tokens, vector, worst_error_of
from torch import Tensor, nn

from l0compress.graph import KeepPlan, cost, find_groups, masked, shrink

pytestmark = pytest.mark.slow

Form = Callable[[Tensor], Tensor]


def check(function: Callable[..., Any], x: Tensor, **layers: Any) -> None:
    graph = captured(function, x, **layers)
    groups = find_groups(graph)
    plans = [KeepPlan.random(groups, density, seed) for seed, density in enumerate((0.8, 0.5, 0.0))]
    plans += [scattered(groups, share, seed) for seed, share in enumerate((0.1, 0.4, 1.0))]
    for plan in plans:
        shrunk = shrink(graph, plan)
        assert worst_error_of(shrunk, graph, plan) < 1e-10
        assert cost(shrunk) == plan.cost
    assert any(changes(graph, plan) for plan in plans)


def overwritten(h: Tensor, part: Any) -> Tensor:
    h = h * 2
    h[part] = 0.5
    return h


def seen_through_a_view(h: Tensor) -> Tensor:
    h = h * 2
    view = h.view(-1, 2, 4)
    h.relu_()
    return view.flatten(1)


# Between two linear layers of width 8: the form, and the width that it leaves.
VECTOR_FORMS: dict[str, tuple[Form, int]] = {
    "one channel against all": (lambda h: h * h[:, 3:4], 8),
    "one channel by index": (lambda h: h + h[:, -2].unsqueeze(1), 8),
    "slice": (lambda h: h[:, 2:-1], 5),
    "strided slice": (lambda h: h[:, 1::3], 3),
    "narrow of a narrow": (lambda h: h.narrow(1, 2, 5).narrow(1, 1, 3), 3),
    "narrow from the end": (lambda h: h.narrow(1, -4, 3), 3),
    "narrow": (lambda h: h.narrow(1, 3, 4), 4),
    "flip": (lambda h: h.flip(1), 8),
    "roll": (lambda h: h.roll(3, 1), 8),
    "roll over everything": (lambda h: h.roll(3), 8),
    "repeat": (lambda h: h.repeat(1, 2), 16),
    "repeat each": (lambda h: h.repeat_interleave(2, 1), 16),
    "repeat each to a size": (lambda h: h.repeat_interleave(2, 1, output_size=16), 16),
    "tile": (lambda h: torch.tile(h, (1, 3)), 24),
    "chunks swapped": (lambda h: torch.cat(h.chunk(3, 1)[::-1], 1), 8),
    "split swapped": (lambda h: torch.cat(h.split([2, 5, 1], 1)[::-1], 1), 8),
    "split at positions": (lambda h: torch.cat(h.tensor_split((2, 5), 1)[::-1], 1), 8),
    "joined with itself": (lambda h: torch.cat([h, h.flip(1), h * h], 1), 24),
    "joined with a constant": (lambda h: torch.cat([h, h.new_ones(h.shape[0], 2)], 1), 10),
    "unflattened and unbound": (lambda h: torch.mul(*h.unflatten(1, (2, 4)).unbind(1)), 4),
    "stacked inside": (lambda h: torch.stack([h, h**2], -1).flatten(1), 16),
    "stacked outside": (lambda h: torch.stack([h, h**2], 1).sum(1), 8),
    "padded": (lambda h: F.pad(h, (2, 1), value=1.5), 11),
    "cut by padding": (lambda h: F.pad(h, (-2, 0)), 6),
    "expanded to another": (lambda h: h + h[:, :1].expand_as(h), 8),
    "expanded": (lambda h: h + h.mean(1, keepdim=True).expand(-1, 8), 8),
    "windows": (lambda h: h.unfold(1, 3, 1).flatten(1), 18),
    "pairs": (lambda h: h.unfold(1, 2, 2).flatten(1), 8),
    "diagonal": (lambda h: (h.unsqueeze(2) * h.new_ones(8)).diagonal(dim1=1, dim2=2), 8),
    "outer product": (lambda h: (h[:, :4].unsqueeze(2) * h[:, 4:].unsqueeze(1)).flatten(1), 16),
    "outer product by matmul": (lambda h: (h[:, :4].unsqueeze(2) @ h[:, 4:].unsqueeze(1)).flatten(1), 16),
    "chosen where": (lambda h: torch.where(h > 0, h, torch.zeros(1, dtype=h.dtype)), 8),
    "gated linear unit": (lambda h: F.glu(h, 1), 4),
    "softmax": (lambda h: h.softmax(1), 8),
    "attention of channels": (
        lambda h: F.scaled_dot_product_attention(*[h.unsqueeze(2)] * 3).squeeze(2),
        8,
    ),
    "sorted": (lambda h: h.sort(1)[0], 8),
    "written slice": (lambda h: overwritten(h, (slice(None), slice(4))), 8),
    "written strided slice": (lambda h: overwritten(h, (slice(None), slice(None, None, 2))), 8),
    "written channel": (lambda h: overwritten(h, (slice(None), 2)), 8),
    "seen through a view": (seen_through_a_view, 8),
    "reshaped as another": (lambda h: (h.flatten().reshape_as(h) * 2).reshape(-1, 4).view_as(h), 8),
    "shaped as a constant": (lambda h: h.reshape(-1, 2, 4).reshape_as(h.new_ones(h.shape[0], 2, 4)).flatten(1), 8),
    "by other names": (lambda h: torch.multiply(h, h).subtract(h).divide(3).negative().absolute(), 8),
    "in place": (lambda h: h.mul_(2).relu_().add_(1), 8),
    "mantissa and exponent": (lambda h: torch.frexp(h)[0], 8),
}


@pytest.mark.parametrize("form", VECTOR_FORMS)
def test_between_linear_layers(form: str) -> None:
    function, width = VECTOR_FORMS[form]
    check(lambda s, x: s.b(function(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(width, 4))


def yolo_shuffle(h: Tensor) -> Tensor:
    y = h.reshape(h.shape[0] * 4, 2, 64).permute(1, 0, 2).reshape(2, -1, 4, 8, 8)
    return torch.cat((y[0], y[1]), 1)


# Between two 1x1 convolutions of eight channels on 8x8 positions.
IMAGE_FORMS: dict[str, tuple[Form, int]] = {
    "rolled positions": (lambda h: torch.roll(h, (1, 2), (2, 3)), 8),
    "rolled channels and positions": (lambda h: torch.roll(h, (1, 2), (-3, 3)), 8),
    "flipped positions": (lambda h: h.flip((2,)) + h.flip((-3,)), 8),
    "shuffled": (lambda h: h.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(h.shape), 8),
    "shuffled by operator": (lambda h: F.channel_shuffle(h, 2), 8),
    "shuffled and transposed": (lambda h: h.view(-1, 2, 4, 8, 8).permute(0, 2, 1, 4, 3).reshape(h.shape), 8),
    "shuffled through two shapes": (
        lambda h: h.view(-1, 2, 4, 64).transpose(1, 2).reshape(-1, 4, 2, 8, 8).flatten(1, 2),
        8,
    ),
    "shuffled through the batch": (yolo_shuffle, 8),
    "pixel shuffle": (lambda h: F.pixel_shuffle(h, 2), 2),
    "pixel unshuffle": (lambda h: F.pixel_unshuffle(h, 2), 32),
    "channel last": (lambda h: h.permute(0, 2, 3, 1).mul(2).permute(0, 3, 1, 2), 8),
    "pooled and resized": (lambda h: F.interpolate(F.max_pool2d(h, 2), scale_factor=2, mode="bilinear"), 8),
    "instance norm": (lambda h: F.instance_norm(h), 8),
    "group norm": (lambda h: F.group_norm(h, 4), 8),
    "channel softmax": (lambda h: h.softmax(1), 8),
    "response norm": (lambda h: F.local_response_norm(h, 3), 8),
    "maximum over channels": (lambda h: h - h.amax(1, keepdim=True), 8),
    "padded by reflection": (lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect"), 8),
    "grouped": (lambda h: F.conv2d(h, h.new_ones(12, 2, 1, 1), groups=4), 12),
    "padded channels": (lambda h: F.pad(h, (0, 0, 0, 0, 1, 2)), 11),
}


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_between_convolutions(form: str) -> None:
    function, width = IMAGE_FORMS[form]
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(width, 6, 1), "h": nn.Linear(6, 4)}
    check(lambda s, x: s.h(F.gelu(s.b(function(s.a(x)))).mean((2, 3))), image(), **layers)


@pytest.mark.parametrize(
    "flatten",
    [
        lambda h: h.squeeze(),
        lambda h: h.squeeze((2, 3)),
        lambda h: h.flatten(1),
        lambda h: h[:, :, 0, 0],
        lambda h: h.view(-1, 2, 4, 1, 1).transpose(1, 2).reshape(-1, 8),
    ],
)
def test_pooled_channels_become_features(flatten: Form) -> None:
    """Down to one channel, which ``squeeze`` must not take for a dimension to drop."""
    graph = captured(
        lambda s, x: s.b(flatten(F.adaptive_avg_pool2d(F.gelu(s.a(x)), 1))),
        image(),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Linear(8, 3),
    )
    groups = find_groups(graph)
    for density in (0.5, 0.0):
        plan = KeepPlan.random(groups, density, 1)
        small, dense = shrink(graph, plan).module(), masked(graph, plan)
        assert torch.allclose(small(*graph.example_args), dense(*graph.example_args), rtol=1e-12, atol=1e-12)
        assert density > 0 or small.state_dict()["a.weight"].shape[0] == 1


def rotary_table() -> Tensor:
    """A rotary table that no parameter is in: positions by width, the same for all heads."""
    return torch.arange(1.0, 21.0).view(5, 4).cos()


# What happens to queries, keys and values of shape (batch, head, position, width).
ATTENTION_FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "by hand": lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v,
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "scaled": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "linear": lambda q, k, v: F.elu(q) @ (F.elu(k).mT @ v),
    "over channels": lambda q, k, v: ((q.mT @ k).softmax(-1) @ v.mT).mT,
    "softmax over heads": lambda q, k, v: (q @ k.mT).softmax(1) @ v,
    "normalised": lambda q, k, v: F.scaled_dot_product_attention(F.layer_norm(q, (4,)), F.normalize(k, dim=-1), v),
    "one normalised": lambda q, k, v: F.scaled_dot_product_attention(F.rms_norm(q, (4,)), k, v),
    "mixed heads": lambda q, k, v: (q @ k.mT).transpose(1, 3).roll(1, 3).transpose(1, 3).softmax(-1) @ v,
    "einsum": lambda q, k, v: torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1), v),
    "positions by width": lambda q, k, v: F.scaled_dot_product_attention(q * rotary_table(), k * rotary_table(), v),
    "shared key": lambda q, k, v: (q @ k[:, :1].mT).softmax(-1) @ v,
    "one key and value for all heads": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1]),
    "one key for all heads": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v),
    "every head twice": lambda q, k, v: (q.repeat(1, 2, 1, 1) @ k.repeat(1, 2, 1, 1).mT)[:, :4].softmax(-1) @ v,
}


@pytest.mark.parametrize("form", ATTENTION_FORMS)
def test_inside_attention(form: str) -> None:
    def attention(s: nn.Module, x: Tensor) -> Tensor:
        parts = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.o(ATTENTION_FORMS[form](*parts).transpose(1, 2).flatten(2))

    check(attention, tokens(), **{name: nn.Linear(12, 16) for name in "qkv"}, o=nn.Linear(16, 3))


def test_heads_that_keep_different_widths() -> None:
    def attention(s: nn.Module, x: Tensor) -> Tensor:
        heads = zip(*(layer(x).chunk(3, -1) for layer in (s.q, s.k, s.v)), strict=True)
        return s.o(torch.cat([torch.softmax(q @ k.mT, -1) @ v for q, k, v in heads], -1))

    check(attention, tokens(), **{name: nn.Linear(12, 12) for name in "qkv"}, o=nn.Linear(12, 3))


# Whole networks over a vector of six inputs.
NETWORKS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "a layer used twice": (
        lambda s, x: s.b(F.gelu(s.m(F.gelu(s.m(F.gelu(s.a(x))))))),
        {"a": nn.Linear(6, 8), "m": nn.Linear(8, 8), "b": nn.Linear(8, 3)},
    ),
    "tied autoencoder": (lambda s, x: F.gelu(x @ s.w.T) @ s.w, {"w": nn.Parameter(torch.zeros(8, 6))}),
    "chunks of one weight": (
        lambda s, x: s.o(torch.addcmul(*(F.linear(x, part) for part in s.w.chunk(3)))),
        {"w": nn.Parameter(torch.zeros(24, 6)), "o": nn.Linear(8, 3)},
    ),
    "vector of weights": (
        lambda s, x: (F.gelu(s.a(x)) @ s.v).unsqueeze(1),
        {"a": nn.Linear(6, 8), "v": nn.Parameter(torch.ones(8))},
    ),
    "weights alone": (
        lambda s, x: x * ((s.u * 2) @ s.w @ s.v),
        {"u": nn.Parameter(torch.ones(8)), "w": nn.Parameter(torch.zeros(8, 7)), "v": nn.Parameter(torch.ones(7))},
    ),
    "channels as indices": (
        lambda s, x: s.b(s.e((s.a(x) * 3).long().clamp(0, 9)).sum(2)),
        {"a": nn.Linear(6, 8), "e": nn.Embedding(10, 5), "b": nn.Linear(8, 3)},
    ),
    "channels as advanced indices": (
        lambda s, x: s.b(s.t[(s.a(x) * 3).long().clamp(0, 9)].sum(2)),
        {"a": nn.Linear(6, 8), "t": nn.Parameter(torch.zeros(10, 5)), "b": nn.Linear(8, 3)},
    ),
    "bilinear": (
        lambda s, x: s.b(s.m(s.a(x), s.c(x))),
        {"a": nn.Linear(6, 4), "c": nn.Linear(6, 5), "m": nn.Bilinear(4, 5, 7), "b": nn.Linear(7, 3)},
    ),
    "per-channel slope": (
        lambda s, x: s.b(s.p(s.a(x))) + s.c(x),
        {"a": nn.Linear(6, 8), "p": nn.PReLU(8), "b": nn.Linear(8, 3), "c": nn.Linear(6, 3)},
    ),
    "recurrent": (
        lambda s, x: s.b(s.r(F.gelu(s.a(x)))),
        {"a": nn.Linear(6, 8), "r": nn.GRUCell(8, 5), "b": nn.Linear(5, 3)},
    ),
    "chosen by a mask": (
        lambda s, x: s.b(s.a(x)[x[:, 0] > -9]) + s.c(x),
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "c": nn.Linear(6, 3)},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(name: str) -> None:
    function, layers = NETWORKS[name]
    check(function, vector(), **layers)
