"""Hardening keeps to the exact integer budget: against brute force on networks small enough to enumerate."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from l0compress.errors import PlanError, TargetMissedError
from l0compress.gates.attach import gate
from l0compress.graph.capture import capture
from l0compress.graph.groups import Groups, find_groups
from l0compress.training.budget import Budget, FixedPenalty
from l0compress.training.harden import harden, round_to_budget
from l0compress.training.limits import Limits

UNITS = ("params", "macs", "bytes")


@cache
def tiny() -> Groups:
    """3 inputs, 4 and 3 hidden units: 10 moves, 1,024 plans."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return find_groups(capture(model, (torch.zeros(2, 3),)))


@cache
def wide() -> Groups:
    """24 inputs and 40, 30 hidden units: no single move costs 3 % of a budget of a third or more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    return find_groups(capture(model, (torch.zeros(2, 24),)))


@cache
def uneven() -> Groups:
    """A narrow expensive layer beside a wide cheap one: a channel of the first costs far more than 3 % of the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 30, 1),
                          nn.ReLU(), nn.Conv2d(30, 1, 1))  # fmt: skip
    return find_groups(capture(model, (torch.zeros(2, 1, 6, 6),)))


@cache
def every_cost(groups: Groups, unit: str) -> dict[tuple[bool, ...], int]:
    """The true cost of every plan that leaves no layer empty."""
    costs = {}
    for keep in itertools.product((False, True), repeat=groups.num_moves):
        try:
            costs[keep] = groups.cost_of(torch.tensor(keep)).get(unit)
        except PlanError:
            continue
    return costs


def scores_of(seed: int, groups: Groups) -> Tensor:
    return torch.randn(groups.num_moves, generator=torch.Generator().manual_seed(seed))


def is_closed(groups: Groups, keep: Tensor) -> bool:
    return torch.equal(groups.close(keep), keep)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.2, 0.95), st.sampled_from(UNITS))
def test_the_result_fits_exactly_and_leaves_out_nothing_that_would_still_fit(seed, share, unit):
    groups = tiny()
    costs = every_cost(groups, unit)
    target = int(share * max(costs.values()))
    assume(min(costs.values()) <= target)
    plan = round_to_budget(Limits.counted(groups, {unit: target}), scores_of(seed, groups))
    kept = tuple(plan.keep.tolist())
    assert is_closed(groups, plan.keep)
    assert costs[kept] <= target
    for move in range(groups.num_moves):
        with_it = (*kept[:move], True, *kept[move + 1 :])
        assert kept[move] or costs[with_it] > target or not is_closed(groups, torch.tensor(with_it))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(UNITS))
def test_an_unreachable_target_is_missed_exactly_when_brute_force_cannot_reach_it(seed, unit):
    groups = tiny()
    smallest = min(every_cost(groups, unit).values())
    assert round_to_budget(Limits.counted(groups, {unit: smallest}), scores_of(seed, groups)).cost.get(unit) == smallest
    with pytest.raises(TargetMissedError):
        round_to_budget(Limits.counted(groups, {unit: smallest - 1}), scores_of(seed, groups))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.33, 0.95), st.sampled_from(UNITS))
def test_fine_moves_end_above_97_percent_of_the_budget(seed, share, unit):
    groups = wide()
    dense = groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)).get(unit)
    target = int(share * dense)
    reached = round_to_budget(Limits.counted(groups, {unit: target}), scores_of(seed, groups)).cost.get(unit)
    assert 0.97 * target < reached <= target


def test_one_expensive_move_does_not_leave_the_budget_unused():
    """Removing a channel of the 5x5 convolution would overshoot; sparing it and removing cheap ones lands close."""
    groups = uneven()
    order = {group.name: group for group in groups.groups if group.kind == "channels"}
    scores = torch.full((groups.num_moves,), 5.0)
    first = next(iter(order.values()))
    scores[list(first.moves)[:3]] = torch.tensor([-3.0, -2.0, -1.0])
    dense = groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)).macs
    reached = {}
    for share in (0.9, 0.8, 0.7, 0.6, 0.5):
        target = int(share * dense)
        reached[share] = round_to_budget(Limits.counted(groups, {"macs": target}), scores).cost.macs / target
    assert all(0.97 < value <= 1 for value in reached.values()), reached


def test_moves_go_in_the_order_of_their_scores():
    groups = wide()
    scores = torch.arange(groups.num_moves, dtype=torch.float)
    hidden = [group for group in groups.groups if group.kind == "channels"][-1]
    target = groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)).params // 2
    keep = round_to_budget(Limits.counted(groups, {"params": target}), scores).keep
    for group in groups.groups:
        kept = keep[list(group.moves)]
        # Ascending scores within a group: what stays is its tail.
        assert torch.equal(kept, kept.sort().values)
    assert keep[list(hidden.moves)].all()


def test_every_group_keeps_its_best_move():
    groups = tiny()
    scores = torch.tensor([0.1, 0.9, 0.5, -5.0, -3.0, -4.0, -6.0, 2.0, 3.0, 4.0])
    smallest = min(every_cost(groups, "params").values())
    keep = round_to_budget(Limits.counted(groups, {"params": smallest}), scores).keep
    for group in groups.groups:
        members = list(group.moves)
        assert keep[members].sum() == 1
        assert keep[members].nonzero().item() == scores[members].argmax().item()


def test_the_error_names_what_stays():
    with pytest.raises(TargetMissedError) as error:
        round_to_budget(Limits.counted(tiny(), {"params": 7}), torch.zeros(10))
    assert str(error.value) == (
        "No choice of what to remove reaches 7 params: with everything removable removed, 8 remain. Nothing was "
        "written. Ask for a larger target."
    )


def test_hardened_gates_shrink_to_the_cost_that_the_plan_says():
    gated = gate(wide().graph)
    with torch.no_grad():
        gated.gates.log_alpha.copy_(scores_of(0, gated.groups))
    budget = Budget(gated, {"params": 0.4})
    plan = harden(gated, budget)
    small = gated.shrink(plan)
    assert sum(parameter.numel() for parameter in small.module().parameters()) == plan.cost.params
    assert 0.97 * budget.target < plan.cost.params <= budget.target


def test_without_a_target_what_is_likelier_open_than_closed_stays():
    gated = gate(wide().graph)
    with torch.no_grad():
        gated.gates.log_alpha.copy_(scores_of(1, gated.groups) * 4)
    likely = gated.gates.probability_nonzero() > 0.5
    plan = harden(gated, FixedPenalty.aic(gated, 100))
    assert torch.equal(plan.keep, likely)
