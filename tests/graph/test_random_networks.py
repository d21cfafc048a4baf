"""Random networks and random plans: in float64, what is shrunk equals what is masked, and costs what was predicted.

``L0COMPRESS_EXAMPLES=1000 pytest tests/graph/test_random_networks.py`` looks at more of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks import captured, image, scattered, tokens, worst_error
from torch import Tensor, nn

from l0compress.errors import NothingToPruneError
from l0compress.graph import KeepPlan, cost, find_groups, shrink

EXAMPLES = int(os.environ.get("L0COMPRESS_EXAMPLES", "40"))
ORDINARY = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@dataclass(frozen=True)
class Step:
    """One step of a network: what it does to all earlier tensors, the newest last, and the width of its result."""

    function: Callable[[nn.Module, list[Tensor]], Tensor]
    width: int
    layers: dict[str, nn.Module]


ACTIVATIONS = [F.gelu, torch.tanh, F.silu, lambda h: h, lambda h: F.relu(h) + 0.1 * h]


@st.composite
def image_steps(draw: st.DrawFn, number: int, widths: list[int]) -> Step:
    """A step over images of equal size, named by its number."""
    width, name = widths[-1], f"layer{number}"
    kinds = ["plain", "norm", "depthwise", "excite", "roll"]
    kinds += ["grouped", "shuffle", "split", "gate"] if width % 2 == 0 else []
    kinds += ["add"] if widths.count(width) > 1 else []
    kinds += ["cat"] if len(widths) > 1 and width + widths[-2] <= 16 else []
    kind = draw(st.sampled_from(kinds))
    act = draw(st.sampled_from(ACTIVATIONS))
    wide = draw(st.sampled_from([2, 3, 4, 6, 8]))
    if kind == "plain":
        layer = nn.Conv2d(width, wide, draw(st.sampled_from([1, 3])), padding="same")
        return Step(lambda s, past: act(getattr(s, name)(past[-1])), wide, {name: layer})
    if kind == "norm":
        return Step(lambda s, past: act(getattr(s, name)(past[-1])), width, {name: nn.BatchNorm2d(width)})
    if kind in ("depthwise", "grouped"):
        conv_groups = width if kind == "depthwise" else 2
        layer = nn.Conv2d(width, width * 2, 3, padding=1, groups=conv_groups)
        return Step(lambda s, past: act(getattr(s, name)(past[-1])), width * 2, {name: layer})
    if kind == "excite":
        layer = nn.Sequential(nn.Conv2d(width, wide, 1), nn.SiLU(), nn.Conv2d(wide, width, 1), nn.Sigmoid())
        return Step(
            lambda s, past: past[-1] * getattr(s, name)(past[-1].mean((2, 3), keepdim=True)), width, {name: layer}
        )
    if kind == "add":
        other = len(widths) - 2 - widths[:-1][::-1].index(width)
        return Step(lambda _, past: act(past[-1] + past[other]), width, {})
    if kind == "cat":
        return Step(lambda _, past: torch.cat([past[-1], past[-2]], 1), width + widths[-2], {})
    if kind == "shuffle":
        return Step(
            lambda _, past: past[-1].view(-1, 2, width // 2, 5, 5).transpose(1, 2).reshape(past[-1].shape), width, {}
        )
    if kind == "split":
        return Step(lambda _, past: torch.cat([act(p) for p in past[-1].chunk(2, 1)[::-1]], 1), width, {})
    if kind == "gate":
        return Step(lambda _, past: torch.mul(*past[-1].tensor_split(2, 1)), width // 2, {})
    return Step(lambda _, past: torch.roll(past[-1], (1, 2), (1, 3)), width, {})


@st.composite
def token_steps(draw: st.DrawFn, number: int, widths: list[int]) -> Step:
    """A step over sequences of features."""
    width, name = widths[-1], f"layer{number}"
    kinds = ["plain", "plain", "scale", "attention"]
    kinds += ["split", "gate"] if width % 2 == 0 else []
    kinds += ["add"] if widths.count(width) > 1 else []
    kinds += ["cat"] if len(widths) > 1 and width + widths[-2] <= 24 else []
    kind = draw(st.sampled_from(kinds))
    act = draw(st.sampled_from(ACTIVATIONS))
    wide = draw(st.sampled_from([3, 4, 6, 8]))
    if kind == "plain":
        return Step(lambda s, past: act(getattr(s, name)(past[-1])), wide, {name: nn.Linear(width, wide)})
    if kind == "scale":
        layer = nn.BatchNorm1d(width)
        return Step(lambda s, past: getattr(s, name)(past[-1].mT).mT, width, {name: layer})
    if kind == "attention":
        return draw(attention_steps(width, name))
    if kind == "add":
        other = len(widths) - 2 - widths[:-1][::-1].index(width)
        return Step(lambda _, past: past[-1] + act(past[other]), width, {})
    if kind == "cat":
        return Step(lambda _, past: torch.cat([past[-2], past[-1]], -1), width + widths[-2], {})
    if kind == "split":
        return Step(lambda _, past: torch.cat([act(p) for p in past[-1].chunk(2, -1)[::-1]], -1), width, {})
    return Step(lambda _, past: torch.mul(*past[-1].tensor_split(2, -1)), width // 2, {})


@st.composite
def attention_steps(draw: st.DrawFn, width: int, name: str) -> Step:
    """Heads by view or by folding them into the batch, keys shared or not, by operator or by hand."""
    heads, size = draw(st.sampled_from([(2, 3), (4, 2), (3, 2)])), draw(st.sampled_from([2, 4]))
    num_heads, key_size = heads
    key_heads = draw(st.sampled_from([num_heads, 1 if num_heads == 3 else 2]))
    by_hand, folded, normed = (draw(st.booleans()) for _ in range(3))
    layers = {
        f"{name}q": nn.Linear(width, num_heads * key_size),
        f"{name}k": nn.Linear(width, key_heads * key_size),
        f"{name}v": nn.Linear(width, key_heads * size),
        f"{name}o": nn.Linear(num_heads * size, width),
    }

    def attend(s: nn.Module, past: list[Tensor]) -> Tensor:
        x, times = past[-1], num_heads // key_heads
        query = getattr(s, f"{name}q")(x).unflatten(-1, (num_heads, key_size)).transpose(1, 2)
        key = getattr(s, f"{name}k")(x).unflatten(-1, (key_heads, key_size)).transpose(1, 2)
        value = getattr(s, f"{name}v")(x).unflatten(-1, (key_heads, size)).transpose(1, 2)
        key, value = (part.repeat_interleave(times, 1) for part in (key, value))
        query = F.rms_norm(query, (key_size,)) if normed else query
        if folded:
            query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        mixed = (query @ key.mT).softmax(-1) @ value if by_hand else F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.unflatten(0, (-1, num_heads)) if folded else mixed
        return x + getattr(s, f"{name}o")(mixed.transpose(1, 2).flatten(2))

    return Step(attend, width, layers)


@st.composite
def networks(draw: st.DrawFn, steps: Callable[..., st.SearchStrategy[Step]], first: Step, x: Tensor) -> Any:
    """A network of random steps between a first layer and a last one, over example input ``x``."""
    widths, chosen, layers = [first.width], [first], dict(first.layers)
    for number in range(draw(st.integers(1, 6))):
        step = draw(steps(number, widths))
        chosen.append(step)
        widths.append(step.width)
        layers.update(step.layers)

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        past = [first.function(s, [x])]
        for step in chosen[1:]:
            past.append(step.function(s, past))
        features = past[-1] if past[-1].dim() == 3 else past[-1].flatten(2).mT
        return s.last(features)

    return captured(forward, x, **layers, last=nn.Linear(widths[-1], 3))


FIRST_IMAGE = Step(lambda s, past: s.first(past[-1]), 6, {"first": nn.Conv2d(3, 6, 1)})
FIRST_TOKEN = Step(lambda s, past: s.first(past[-1]), 6, {"first": nn.Linear(4, 6)})


def check(graph: Any, density: float, seed: int) -> None:
    try:
        groups = find_groups(graph)
    except NothingToPruneError:
        assume(False)
        return
    assert groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)) == cost(graph)
    for plan in (KeepPlan.random(groups, density, seed), scattered(groups, 1 - density, seed)):
        assert worst_error(graph, plan) < 1e-10
        assert cost(shrink(graph, plan)) == plan.cost


DENSITIES, SEEDS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9]), st.integers(0, 1000)


@ORDINARY
@given(networks(image_steps, FIRST_IMAGE, image(3, 5)), DENSITIES, SEEDS)
def test_random_image_networks(graph: Any, density: float, seed: int) -> None:
    check(graph, density, seed)


@ORDINARY
@given(networks(token_steps, FIRST_TOKEN, tokens(4, 5)), DENSITIES, SEEDS)
def test_random_token_networks(graph: Any, density: float, seed: int) -> None:
    check(graph, density, seed)
