"""Keep plans: how they are made, what they refuse, and how a small model's weights find their dense places again."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from networks import captured, image, table, tokens, vector
from torch import Tensor, nn

from l0compress.errors import PlanError
from l0compress.graph import CapturedGraph, KeepPlan, find_groups, masked, match_moves, shrink, unshrink_state


def perceptron() -> CapturedGraph:
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 5), "c": nn.Linear(5, 3)}
    return captured(lambda s, x: s.c(F.gelu(s.b(F.gelu(s.a(x))))), vector(), **layers)


def attention() -> CapturedGraph:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(12, 16), "k": nn.Linear(12, 16), "v": nn.Linear(12, 24), "o": nn.Linear(24, 3)}
    return captured(forward, tokens(), **layers)


def grouped_convolution() -> CapturedGraph:
    layers = {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(12, 8, 3, groups=4), "c": nn.Conv2d(8, 4, 1)}
    return captured(lambda s, x: s.c(F.gelu(s.b(s.a(x)))), image(), **layers)


GRAPHS = [perceptron, attention, grouped_convolution]


@pytest.mark.parametrize(("density", "counts"), [(1.0, [8, 6, 5]), (0.5, [4, 3, 2]), (0.0, [1, 1, 1])])
def test_a_random_plan_keeps_a_share_of_every_group_and_never_nothing(density: float, counts: list[int]) -> None:
    kept = KeepPlan.random(find_groups(perceptron()), density).kept()
    assert list(kept) == ["a channels", "a inputs", "b channels"]
    assert [len(positions) for positions in kept.values()] == counts


def test_a_random_plan_is_drawn_by_its_seed() -> None:
    groups = find_groups(perceptron())
    plans = [KeepPlan.random(groups, 0.5, seed).keep for seed in (0, 0, 1)]
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


@pytest.mark.parametrize("density", [-0.1, 1.5])
def test_a_density_that_is_none_is_refused(density: float) -> None:
    groups = find_groups(perceptron())
    message = rf"^density must lie between 0 and 1, but it is {density}\. Nothing was changed\.$"
    with pytest.raises(PlanError, match=message):
        KeepPlan.random(groups, density)


@pytest.mark.parametrize("build", GRAPHS)
def test_keep_lists_describe_a_plan(build) -> None:
    groups = find_groups(build())
    for seed in range(5):
        plan = KeepPlan.random(groups, 0.4, seed)
        assert torch.equal(KeepPlan.from_kept(groups, plan.kept()).keep, plan.keep)
        assert torch.equal(KeepPlan.from_keep(groups, plan.keep).keep, plan.keep)


def test_a_group_that_is_not_named_stays_whole() -> None:
    groups = find_groups(perceptron())
    kept = KeepPlan.from_kept(groups, {"b channels": [3]}).kept()
    assert kept == {"a channels": list(range(8)), "a inputs": list(range(6)), "b channels": [3]}
    assert bool(KeepPlan.everything(groups).keep.all())


def test_the_last_width_of_all_heads_cannot_go() -> None:
    groups = find_groups(attention())
    assert table(groups)["q width"] == 4
    with pytest.raises(PlanError, match=r"^this plan would leave '\w+' without any channel, and the output would no "):
        KeepPlan.from_kept(groups, {"q width": []})


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            {"d channels": [0]},
            "there is no group 'd channels'. Nothing was changed. The groups are a channels, a inputs, b channels.",
        ),
        (
            {"b channels": [5]},
            "group 'b channels' has 5 moves, so it cannot keep number 5. Nothing was changed. Count them from 0.",
        ),
        (
            {"b channels": []},
            "this plan would leave 'b_weight' without any channel, and the output would no longer depend on the input. "
            "Nothing was changed. Keep at least one move of every group that cannot vanish.",
        ),
    ],
)
def test_keep_lists_that_do_not_fit_are_refused(kept: dict[str, list[int]], message: str) -> None:
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        KeepPlan.from_kept(find_groups(perceptron()), kept)


@pytest.mark.parametrize(
    ("keep", "found"),
    [
        (torch.ones(3, dtype=torch.bool), r"torch.bool of shape \(3,\)"),
        (torch.ones(19), r"torch.float32 of shape \(19,\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(keep: Tensor, found: str) -> None:
    message = (
        rf"^a keep mask must be bool of shape \(19,\), one entry per move, but it is {found}\. Nothing was changed\.$"
    )
    with pytest.raises(PlanError, match=message):
        KeepPlan.from_keep(find_groups(perceptron()), keep)


@pytest.mark.parametrize("build", GRAPHS)
def test_dropping_in_order_keeps_a_floor_of_one_where_a_group_cannot_vanish(build) -> None:
    groups = find_groups(build())
    plan = KeepPlan.without(groups, range(groups.num_moves))
    assert all(group.can_vanish or any(bool(plan.keep[move]) for move in group.moves) for group in groups.groups)
    first = KeepPlan.without(groups, [3, 0]).keep
    assert not first[3] and not first[0] and int((~first).sum()) == 2


def test_parameter_keeps_say_where_each_weight_is_cut() -> None:
    groups = find_groups(perceptron())
    keeps = KeepPlan.from_kept(groups, {"a channels": [7, 1], "a inputs": [0, 5]}).parameter_keeps()
    assert {name: [None if part is None else part.tolist() for part in parts] for name, parts in keeps.items()} == {
        "a.weight": [[1, 7], [0, 5]],
        "a.bias": [[1, 7]],
        "b.weight": [None, [1, 7]],
        "b.bias": [None],
        "c.weight": [None, None],
        "c.bias": [None],
    }


@pytest.mark.mostly_slow
@pytest.mark.parametrize("build", GRAPHS)
def test_fine_tuned_weights_go_back_to_their_dense_places(build) -> None:
    graph = build()
    plan = KeepPlan.random(find_groups(graph), 0.5, 3)
    small = shrink(graph, plan)
    generator = torch.Generator().manual_seed(0)
    trained = {name for name, _ in small.module().named_parameters()}
    tuned = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor) if name in trained else tensor
        for name, tensor in small.state().items()
    }
    dense = graph.with_state(unshrink_state(plan, tuned))
    expected = small.with_state(tuned).module()(*graph.example_args)
    assert torch.allclose(masked(dense, plan)(*graph.example_args), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(shrink(dense, plan).state()[name], tuned[name]) for name in trained)


def test_dead_places_keep_the_dense_values() -> None:
    graph = perceptron()
    plan = KeepPlan.from_kept(find_groups(graph), {"a channels": [1]})
    dense = unshrink_state(plan, {"a.bias": torch.tensor([9.0])})
    expected = graph.state()["a.bias"].clone()
    expected[1] = 9
    assert torch.equal(dense["a.bias"], expected)
    assert torch.equal(dense["c.weight"], graph.state()["c.weight"])


@pytest.mark.parametrize("build", GRAPHS)
def test_moves_are_found_again_after_a_cut(build) -> None:
    """Cutting twice is cutting once, when the second plan is written in the moves of the first graph."""
    graph = build()
    groups = find_groups(graph)
    first = KeepPlan.random(groups, 0.7, 1)
    once = shrink(graph, first)
    left = find_groups(once)
    old = match_moves(groups, first, left)
    assert bool((old >= 0).all())
    assert [left.moves[i].label.rpartition("[")[0] for i in range(left.num_moves)] == [
        groups.moves[int(move)].label.rpartition("[")[0] for move in old
    ]
    second = KeepPlan.random(left, 0.6, 2)
    combined = first.keep.clone()
    combined[old[~second.keep]] = False
    twice, direct = shrink(once, second), shrink(graph, KeepPlan.from_keep(groups, combined))
    for name in ("a.weight", "q.weight", "c.weight", "o.weight"):
        if name in direct.state():
            assert torch.equal(twice.state()[name], direct.state()[name])
    assert torch.allclose(twice.module()(*graph.example_args), direct.module()(*graph.example_args), atol=1e-12)
