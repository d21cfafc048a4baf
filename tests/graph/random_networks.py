"""Random networks and random plans, and what has to hold of every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from closures import check_closure
from hypothesis import assume
from hypothesis import strategies as st
from networks import image, randomised, scattered, tokens, worst_error_of
from random_image_steps import IMAGE_STEPS
from random_steps import SIZE, Maker, Place, Step, steps
from random_token_steps import TOKEN_STEPS
from torch import Tensor, nn

from l0compress.errors import NothingToPruneError
from l0compress.graph import CapturedGraph, Groups, KeepPlan, capture, cost, find_groups, masked, shrink
from l0compress.graph.cut.plan import cut, unshrink_state

TOLERANCE = 1e-10
FIRST_WIDTH = 6


@dataclass(frozen=True, eq=False)
class Network:
    """A captured network, the kinds of its steps, and the module itself."""

    graph: CapturedGraph
    kinds: tuple[str, ...]
    module: nn.Module

    def __repr__(self) -> str:
        return f"Network({', '.join(self.kinds)})\n{self.graph.graph_module.code}"


@dataclass
class Tally:
    """What a run has looked at."""

    networks: int = 0
    frozen: int = 0
    plans: int = 0
    moves: int = 0
    cut: int = 0
    vanished: int = 0
    again: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


@st.composite
def networks(
    draw: st.DrawFn, makers: dict[str, tuple[Maker, Callable[[Place], bool]]], first: nn.Module, x: Tensor, dim: int
) -> Network:
    """A network of one to six random steps between a first layer and a last one, over example input ``x``."""
    widths: list[int] = [FIRST_WIDTH]
    chosen: list[Step] = []
    layers: dict[str, Any] = {"first": first}
    for number in range(draw(st.integers(1, 6))):
        step = draw(steps(makers, Place(f"layer{number}", tuple(widths), dim)))
        chosen.append(step)
        widths.append(step.width)
        layers.update(step.layers)

    def forward(s: Any, x: Tensor) -> Tensor:
        past = [s.first(x)]
        for step in chosen:
            past.append(step.function(s, past))
        return s.last(past[-1] if dim == 2 else past[-1].flatten(2).mT)

    module = randomised(forward, **layers, last=nn.Linear(widths[-1], 3))
    graph = capture(module, (x,)).to(torch.float64)
    return Network(graph, tuple(step.kind for step in chosen), module)


def image_networks() -> st.SearchStrategy[Network]:
    return networks(IMAGE_STEPS, nn.Conv2d(3, FIRST_WIDTH, 1), image(3, SIZE), 1)


def token_networks() -> st.SearchStrategy[Network]:
    return networks(TOKEN_STEPS, nn.Linear(4, FIRST_WIDTH), tokens(4, SIZE), 2)


@dataclass(frozen=True)
class Draw:
    """What plans are drawn by."""

    density: float
    seed: int


def draws() -> st.SearchStrategy[Draw]:
    return st.builds(Draw, st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9]), st.integers(0, 1000))


def emptied(groups: Groups, draw: Draw) -> KeepPlan:
    """Groups that can vanish go as a whole, half of them by chance; of the others go single moves."""
    generator = torch.Generator().manual_seed(draw.seed)
    whole = [group for group in groups.groups if group.can_vanish and torch.rand(1, generator=generator) < 0.5]
    first = [move for group in whole for move in group.moves]
    thin = torch.rand(groups.num_moves, generator=generator) > draw.density
    plan = KeepPlan.everything(groups)
    for group in whole:
        plan = KeepPlan.further(plan, group.moves)
    return KeepPlan.further(plan, [move for move in thin.nonzero().flatten().tolist() if move not in first])


def check(network: Network, draw: Draw, tally: Tally) -> None:
    """Exact and costed exactly at several plans, and again on what they leave."""
    graph = network.graph
    try:
        groups = find_groups(graph)
    except NothingToPruneError:
        tally.frozen += 1
        assume(False)
        return
    tally.networks += 1
    tally.kinds.update(set(network.kinds))
    assert groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)) == cost(graph)
    plans = [
        KeepPlan.random(groups, draw.density, draw.seed),
        scattered(groups, 1 - draw.density, draw.seed),
        emptied(groups, draw),
    ]
    small = [check_plan(plan, tally) for plan in plans]
    for seed, share in enumerate((0.1, 0.4, 0.8)):
        generator = torch.Generator().manual_seed(draw.seed + seed)
        check_closure(groups, (torch.rand(groups.num_moves, generator=generator) >= share).tolist())
    check_again(small[draw.seed % 3], draw, tally)


def check_plan(plan: KeepPlan, tally: Tally) -> CapturedGraph:
    graph = plan.groups.graph
    small = shrink(graph, plan)
    error = worst_error_of(small, graph, plan)
    assert error <= TOLERANCE, (error, plan.kept())
    assert cost(small) == plan.cost, plan.kept()
    assert all(0 not in tensor.shape for tensor in small.state().values())
    check_dead_is_dead(plan, small)
    tally.plans += 1
    tally.moves += len(plan.keep)
    tally.cut += int((~plan.keep).sum())
    tally.vanished += bool(plan.groups.fate_of(plan.alive).hollow)
    return small


def check_dead_is_dead(plan: KeepPlan, small: CapturedGraph) -> None:
    """What the plan drops may hold any number: the masked model computes the same, and every parameter is cut alike."""
    graph = plan.groups.graph
    generator = torch.Generator().manual_seed(7)
    noise = {
        name: torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5
        if tensor.is_floating_point()
        else tensor
        for name, tensor in graph.state().items()
    }
    keeps, state = plan.parameter_keeps(), graph.state()
    alive = {name: cut(tensor, keeps[name]) if name in keeps else tensor for name, tensor in state.items()}
    assert all(torch.equal(tensor, alive[name]) for name, tensor in small.state().items() if name in alive)
    noisy = graph.with_state(noise)
    scrambled = masked(graph.with_state(unshrink_noise(plan, noisy, alive)), plan)
    with torch.no_grad():
        found, expected = scrambled(*graph.example_args), masked(graph, plan)(*graph.example_args)
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max()), plan.kept()


def unshrink_noise(plan: KeepPlan, noisy: CapturedGraph, alive: dict[str, Tensor]) -> dict[str, Tensor]:
    """``alive`` scattered into dense shapes that hold noise everywhere else."""
    groups = plan.groups
    elsewhere = Groups(**{**{name: getattr(groups, name) for name in groups.__dataclass_fields__}, "graph": noisy})
    return unshrink_state(KeepPlan(elsewhere, plan.keep), alive)


def check_again(small: CapturedGraph, draw: Draw, tally: Tally) -> None:
    """What is left can be cut once more."""
    try:
        groups = find_groups(small)
    except NothingToPruneError:
        return
    tally.again += 1
    assert groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)) == cost(small)
    check_plan(KeepPlan.random(groups, 0.5, draw.seed), tally)
    check_plan(emptied(groups, draw), tally)
