"""Several budgets at once: one constraint a target, and plans that keep to all of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from clouds import QUICK
from conftest import run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import l0compress as l0
from l0compress.data import Data
from l0compress.errors import TargetError, TargetMissedError
from l0compress.gates.attach import compact, gate
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.gates.reach import smallest_cost
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, find_groups, nonzero_cost
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.graph.groups.cost import UNITS
from l0compress.graph.groups.resource import Counted, Modelled
from l0compress.training.budget import Budget
from l0compress.training.descent import descend, steps_in_step
from l0compress.training.finetune import finetune
from l0compress.training.goals import Criterion, goal_for, parts_of
from l0compress.training.harden import decide, harden, round_to_budget
from l0compress.training.limits import Limits
from l0compress.training.methods.fisher import joint_marginal_cost, marginal_cost
from l0compress.training.multiplier import AscentSettings, Multiplier, cubic_ramp
from l0compress.training.narrowing import Narrowed
from l0compress.training.rounding import round_weights

TWO = {"macs": 0.5, "params": 0.6}


class Pooled(nn.Module):
    """Two widths that trade MACs for parameters: the first is computed at 16 positions, the second at one."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 1, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).relu().mean((2, 3))).relu())


class Residual(nn.Module):
    """A stream of 16 channels, and a branch of 24 that may go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.up, self.norm, self.down = nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.down(self.norm(self.up(x)).relu())).mean((2, 3)))


def pooled(width: int = 4) -> Groups:
    return find_groups(capture(Pooled(width), (torch.zeros(2, 1, 4, 4),)))


@pytest.fixture(scope="module")
def residual() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(Residual().eval(), (torch.randn(2, 3, 6, 6),))


def scores_of(seed: int, groups: Groups) -> Tensor:
    return torch.rand(groups.num_moves, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_list_of_texts_and_a_mapping_are_the_same_goals(residual) -> None:
    goals = goal_for(residual, {"macs": 0.5, "bytes": 4_000})
    assert goals == goal_for(residual, ["macs=0.5", "bytes=4kB"])
    assert [(part.unit, part.limit) for part in parts_of(goals)] == [
        ("macs", cost(residual).macs // 2),
        ("bytes", 4000),
    ]
    assert goal_for(residual, goals) == goals
    assert parts_of(goal_for(residual, "macs=0.5")) == (goal_for(residual, "macs=0.5"),)
    assert parts_of(Criterion("aic")) == ()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["macs=0.5", "macs=0.4"], "There are two targets in one unit: macs=0.5 and macs=0.4. Nothing was changed. "
         "Leave one of them out."),
        (["macs=0.5", "aic=1"], "'aic' is a penalty in place of a budget, so no target can stand beside it. Nothing "
         "was changed. Omit aic, or everything else."),
        ({"penalty": 1e-6, "bic": 1}, "'penalty' is a penalty in place of a budget, so no target can stand beside it. "
         "Nothing was changed. Omit penalty, or everything else."),
        ([], "A target names at least one of params, macs, bytes, int8_bytes and latency; given: none. Nothing was "
        "changed. "
         "Example: macs=0.5."),
    ],
)  # fmt: skip
def test_targets_that_cannot_stand_together(residual, target, message) -> None:
    with pytest.raises(TargetError) as error:
        goal_for(residual, target)
    assert str(error.value) == message


def test_counts_of_another_model_stand_beside_shares_of_this_one(residual) -> None:
    (counted,) = parts_of(goal_for(residual, "macs=0.75"))
    budget = Budget(gate(residual), [counted, "params=0.5"], bytes=0.9)
    dense = cost(residual)
    wanted = [("macs", counted.limit), ("params", dense.params // 2), ("bytes", int(0.9 * dense.bytes))]
    assert [(each.unit, each.target) for each in budget.constraints] == wanted
    assert [part.limit for part in parts_of(goal_for(residual, [counted, "params=0.5"]))] == [n for _, n in wanted[:2]]


def test_the_penalty_is_the_sum_of_each_multiplier_times_its_violation(residual) -> None:
    gated = gate(residual)
    budget, ascent = Budget(gated, TWO, ramp_steps=4), AscentSettings()
    alone = [Multiplier(ascent), Multiplier(ascent)]
    dense, target = (
        [cost(residual).get(unit) for unit in TWO],
        [int(TWO[unit] * cost(residual).get(unit)) for unit in TWO],
    )
    for step in range(6):
        now = [cubic_ramp(d, t, step / 4) for d, t in zip(dense, target, strict=True)]
        violations = [
            math.log(gated.expected_cost(unit).item()) - math.log(allowed)
            for unit, allowed in zip(TWO, now, strict=True)
        ]
        wanted = sum(one.value * violation for one, violation in zip(alone, violations, strict=True))
        assert budget.penalty().item() == pytest.approx(wanted, abs=1e-12)
        assert budget.violation == pytest.approx(max(violations))
        assert [constraint.multiplier for constraint in budget.constraints] == [one.value for one in alone]
        for one, violation in zip(alone, violations, strict=True):
            one.ascend_(violation)
        budget.step()
    assert min(one.value for one in alone) > 0


def test_a_multiplier_restarts_when_its_own_constraint_is_met(residual) -> None:
    gated = gate(residual)
    budget = Budget(gated, {"macs": 0.5, "bytes": 0.999})
    with torch.no_grad():  # expected bytes are below 0.999 of dense, MACs are not below half
        gated.gates.log_alpha.fill_(2.0)
    budget.step()
    macs, size = budget.constraints
    assert macs.violation > 0 > size.violation
    assert macs.multiplier > 0 == size.multiplier
    assert budget.multiplier == macs.multiplier


def test_what_a_budget_of_one_target_says_is_asked_of_the_constraints_where_there_are_several(residual) -> None:
    budget = Budget(gate(residual), TWO)
    assert "macs: at most" in repr(budget) and "; params: at most" in repr(budget)
    with pytest.raises(TargetError) as error:
        _ = budget.target
    assert str(error.value) == (
        "this budget has 2 targets, macs and params, each with numbers of its own. Nothing was changed. Read them one "
        "by one, for example [c.target for c in budget.constraints]."
    )


def test_the_state_of_one_target_is_what_it_was_and_several_have_one_each(residual) -> None:
    one, several = (Budget(gate(residual), target, ramp_steps=9) for target in ("macs=0.5", TWO))
    for budget in (one, several):
        budget.step()
        budget.step()
    assert one.state_dict().keys() == {"num_steps", "multiplier", "mean", "square", "steps"}
    again = Budget(gate(residual), TWO, ramp_steps=9)
    again.load_state_dict(json.loads(json.dumps(several.state_dict())))
    assert again.state_dict() == several.state_dict()
    assert [c.target_now for c in again.constraints] == [c.target_now for c in several.constraints]
    earlier = Budget(gate(residual), "macs=0.5", ramp_steps=9)
    earlier.load_state_dict({"num_steps": 5, "multiplier": 0.25, "mean": 0.5, "square": 0.125, "steps": 3})
    assert earlier.multiplier == 0.25 and earlier.target_now == cubic_ramp(earlier.dense, earlier.target, 5 / 9)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shares=st.tuples(*[st.floats(0.2, 0.95)] * 2), units=st.permutations(UNITS))
def test_a_plan_keeps_to_every_limit_and_uses_one_of_them_up(residual, seed, shares, units) -> None:
    groups = find_groups(residual)
    dense = cost(residual)
    most = {unit: int(share * dense.get(unit)) for unit, share in zip(units, shares, strict=False)}
    limits, scores = Limits.counted(groups, most), scores_of(seed, groups)
    if any(smallest_cost(bound.resource) > bound.most for bound in limits.bounds):
        with pytest.raises(TargetMissedError):
            decide(limits, scores)
        return
    plan = decide(limits, scores)
    small = cost(shrink(residual, plan))
    assert all(small.get(unit) <= number for unit, number in most.items())
    # Nothing that went could come back alone, unless a limit is nearly used up.
    closest = max(small.get(unit) / number for unit, number in most.items())
    assert closest > 0.97 or not any(limits.fitted(_with(plan.keep, move)) is not None for move in _gone(plan))


def _gone(plan: KeepPlan) -> list[int]:
    return (~plan.keep).nonzero().flatten().tolist()


def _with(keep: Tensor, move: int) -> Tensor:
    more = keep.clone()
    more[move] = True
    return more


def test_limits_that_cannot_be_reached_are_all_named(residual) -> None:
    with pytest.raises(TargetMissedError) as error:
        decide(Limits.counted(find_groups(residual), {"macs": 10, "params": 5_000, "bytes": 20}), torch.zeros(40))
    least = {unit: smallest_cost(Counted(find_groups(residual), unit)) for unit in ("macs", "bytes")}
    assert str(error.value).startswith(
        f"No choice of what to remove reaches 10 macs and 20 bytes: with everything removable removed, "
        f"{least['macs']:,} and {least['bytes']:,} remain."
    )
    with pytest.raises(TargetError) as refused:
        Budget(gate(residual), {"macs": 0.001, "params": 0.9, "bytes": 0.001})
    told = str(refused.value)
    assert re.findall(r"Target (\w+)=0\.001: at most", told) == ["macs", "bytes"]
    assert re.search(r"Ask for macs=0\.\d+ and bytes=0\.\d+ or more\.$", told)


class TestMarginalCost:
    # A move of the first width takes off 16 MACs and reads 4 weights of the second: 20 MACs, 5 parameters. One of the
    # second: 5 MACs, 5 parameters. In all 64 + 16 + 4 = 84 MACs and 24 parameters.

    def test_of_each_unit_by_hand(self):
        groups = pooled()
        assert marginal_cost(Counted(groups, "macs")).tolist() == [20.0] * 4 + [5.0] * 4
        assert marginal_cost(Counted(groups, "params")).tolist() == [5.0] * 8

    @pytest.mark.parametrize(
        ("most", "macs", "params"),
        [
            # 50 MACs and 20 parameters have to go: two of each width and nothing else. Both are scarce, so savings are
            # worth what is lost: 20 m + 5 p = 5 and 5 m + 5 p = 2, that is m = p.
            ({"macs": 34, "params": 4}, 1.0, 1.0),
            # 50 MACs and 5 parameters: two and a half of the first width, which lose least for a MAC, and the
            # parameters come with them.
            ({"macs": 34, "params": 19}, 1.0, 0.0),
            # 5 MACs and 12 parameters: more than two of the second width, and the MACs come with them.
            ({"macs": 79, "params": 12}, 0.0, 1.0),
        ],
    )
    def test_of_several_it_is_their_sum_at_the_prices_of_the_limits(self, most, macs, params):
        losses = torch.tensor([5.0] * 4 + [2.0] * 4, dtype=torch.float64)
        found = joint_marginal_cost(Limits.counted(pooled(), most), losses)
        assert found.tolist() == pytest.approx([20 * macs + 5 * params] * 4 + [5 * macs + 5 * params] * 4)

    def test_a_single_limit_is_its_own(self):
        groups = pooled()
        one = joint_marginal_cost(Limits.counted(groups, {"macs": 42}), torch.rand(8, dtype=torch.float64))
        assert torch.equal(one, marginal_cost(Counted(groups, "macs")))

    @pytest.mark.parametrize(("macs", "params"), [(174, 120), (120, 100), (250, 84), (200, 100)])
    def test_plans_by_it_are_as_good_as_the_better_of_both_units_alone(self, macs, params):
        # With widths of 12 a plan is two numbers, a of the first and b of the second, so all plans can be looked at.
        groups = pooled(12)
        limits, draws = Limits.counted(groups, {"macs": macs, "params": params}), torch.Generator().manual_seed(0)
        sizes = [(a, b) for a in range(1, 13) for b in range(1, 13) if 16 * a + a * b + b <= macs]
        sizes = [(a, b) for a, b in sizes if a + a * b + b <= params]
        alone = [marginal_cost(bound.resource) for bound in limits.bounds]
        kept = torch.zeros(3, dtype=torch.float64)
        for factor in (1, 2, 4) * 4:
            losses = torch.rand(2, 12, generator=draws, dtype=torch.float64).sort(descending=True).values
            losses = (losses * torch.tensor([[factor], [1.0]])).flatten()
            best = max(float(losses[:a].sum() + losses[12 : 12 + b].sum()) for a, b in sizes)
            costs = [joint_marginal_cost(limits, losses), *alone]
            kept += torch.stack([losses[round_to_budget(limits, losses / cost).keep].sum() / best for cost in costs])
        assert kept[0] > kept[1:].max() - 0.03 and kept[0] > 0.97 * 12


@given(
    dense=st.lists(st.integers(1_000, 10**9), min_size=1, max_size=3),
    shares=st.lists(st.floats(0.05, 0.95), min_size=3),
)
def test_limits_come_down_in_step(dense: list[int], shares: tuple[float, ...]) -> None:
    targets = [max(1, int(share * start)) for share, start in zip(shares, dense, strict=False)]
    steps = steps_in_step(dense, targets)
    assert steps[-1] == tuple(targets)
    for start, target, column in zip(dense, targets, zip(*steps, strict=True), strict=True):
        for number, most in enumerate(column, 1):
            assert most == pytest.approx(start * (target / start) ** (number / len(steps)), abs=1)


def test_a_descent_keeps_to_all_limits(residual) -> None:
    groups, dense = find_groups(residual), cost(residual)
    limits = Limits.counted(groups, {"macs": int(0.4 * dense.macs), "bytes": int(0.5 * dense.bytes)})
    told: list[tuple[int, ...]] = []
    found = descend(
        limits,
        lambda now: (scores := scores_of(0, now.groups)) / joint_marginal_cost(now, scores),
        lambda _, small: small,
        on_step=lambda *step: told.append(step[-1]),
    )
    small = cost(found.end.graph)
    assert small.macs <= int(0.4 * dense.macs) and small.bytes <= int(0.5 * dense.bytes)
    assert told[0] == (dense.macs, dense.bytes) and len(told) == 3


class TestModelled:
    """A model of the dense network that has the terms of a unit says what counting says, whatever was cut since."""

    @pytest.fixture(params=["macs", "bytes"])
    def unit(self, request) -> str:
        return request.param

    def of(self, groups: Groups, unit: str) -> Modelled:
        return Modelled.on(groups, unit, groups.costs.terms[unit])

    def test_of_plans_and_probabilities(self, residual, unit):
        groups = find_groups(residual)
        model, counted = self.of(groups, unit), Counted(groups, unit)
        assert model.dense == counted.dense and smallest_cost(model) == smallest_cost(counted)
        for seed in range(5):
            keep = KeepPlan.random(groups, 0.5, seed).keep
            assert model.cost(keep) == counted.cost(keep)
        some = scores_of(0, groups).requires_grad_()
        (slope,) = torch.autograd.grad(model.expected(some), some)
        (wanted,) = torch.autograd.grad(counted.expected(some), some)
        assert torch.allclose(slope, wanted)

    def test_it_follows_the_cuts_of_a_descent(self, residual, unit):
        groups = find_groups(residual)
        now, model = Narrowed.whole(groups), self.of(groups, unit)
        for seed in range(3):
            now = now.cut(KeepPlan.random(now.groups, 0.8, seed))
            here = model.after(now.groups, now.plan.keep, now.moves)
            assert here.dense == cost(now.graph).get(unit)
            keep = KeepPlan.random(now.groups, 0.7, seed).keep
            assert here.cost(keep) == Counted(now.groups, unit).cost(keep)
            some = scores_of(seed, now.groups)
            assert float(here.expected(some)) == pytest.approx(float(Counted(now.groups, unit).expected(some)))

    def test_a_branch_that_went_as_a_whole_costs_nothing(self, residual, unit):
        groups = find_groups(residual)
        (branch,) = [group for group in groups.groups if group.can_vanish]
        plan = KeepPlan.without(groups, branch.moves)
        now = Narrowed.whole(groups).cut(plan)
        here = self.of(groups, unit).after(now.groups, now.plan.keep, now.moves)
        assert here.dense == cost(now.graph).get(unit) < 0.5 * cost(residual).get(unit)

    def test_it_follows_compaction(self, residual, unit):
        gated = gate(residual)
        budget = Budget(gated, {unit: 0.6})
        (constraint,) = budget.constraints
        constraint.resource = self.of(gated.groups, unit)
        for seed in range(2):
            with torch.no_grad():
                gated.gates.log_alpha.copy_(20 * scores_of(seed, gated.groups).float() - 10)
            compacted = compact(gated)
            assert compacted.gated is not gated
            gated = compacted.gated
            budget.follow_(gated, compacted.kept_moves)
            assert budget.expected_cost().item() == pytest.approx(gated.expected_cost(unit).item())
            assert constraint.resource.dense == cost(gated.graph()).get(unit)
        plan = harden(gated, budget, allow_untrained=True)
        assert cost(shrink(gated.graph(), plan.decision())).get(unit) <= budget.target


def test_several_limits_on_single_weights_fill_until_one_is_used_up() -> None:
    # The convolution's weights cost 16 MACs each, the linear ones one: 64 + 16 + 4 MACs, 24 parameters.
    graph = capture(Pooled(), (torch.zeros(2, 1, 4, 4),))
    scores = {"first.weight": torch.arange(4.0, 0.0, -1).view(4, 1, 1, 1), "second.weight": torch.zeros(4, 4)}
    scores["out.weight"] = torch.ones(1, 4)
    # One of each has to stay: 18 MACs, 3 parameters. Then the best, as long as they fit both limits, then what does.
    for most, left in (((60, 24), (60, 15)), ((84, 10), (70, 10)), ((60, 10), (55, 10))):
        masks = round_weights(graph, scores, {"macs": most[0], "params": most[1]})
        small = nonzero_cost(shrink(graph, KeepPlan.everything(find_groups(graph)).with_masks(masks)))
        assert (small.macs, small.params) == left
    tight = round_weights(graph, scores, {"params": 20, "bytes": 60, "macs": 80})
    assert sum(int(mask.sum()) for mask in tight.values()) <= 20
    small = nonzero_cost(shrink(graph, KeepPlan.everything(find_groups(graph)).with_masks(tight)))
    assert small.bytes <= 60


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("method", "granularity", "epochs"),
    [
        ("l0", "structured", 6),
        ("l0", "weights", 4),
        ("l0", "both", 4),
        ("fisher", "structured", 0),
        ("magnitude", "structured", 0),
        ("magnitude", "weights", 2),
        ("layer-magnitude", "weights", 2),
    ],
)
def test_a_run_keeps_to_all_targets(graph: CapturedGraph, data: Data, method, granularity, epochs) -> None:
    told = []
    chosen = replace(QUICK, method=method, granularity=granularity, epochs=epochs)
    target = ["params=0.5", "macs=0.4", "bytes=0.6"]
    result = finetune(graph, data, target, settings=chosen, on_event=told.append)
    small = (nonzero_cost if granularity != "structured" else cost)(result.small)
    dense = cost(graph)
    for unit, share in (("params", 0.5), ("macs", 0.4), ("bytes", 0.6)):
        assert small.get(unit) <= int(share * dense.get(unit))
        for event in result.history[-1:]:
            assert event.constraints[unit]["density"] == small.get(unit) / dense.get(unit)
    gated = [event for event in result.history if event.stage == "gates"]
    assert all(event.constraints["macs"].keys() == {"density", "violation", "multiplier"} for event in gated)
    assert all(event.violation == max(one["violation"] for one in event.constraints.values()) for event in gated)


def test_one_target_leaves_no_trace_of_several(graph, data) -> None:
    result = finetune(graph, data, "params=0.5", settings=replace(QUICK, epochs=2))
    assert all("constraints" not in event.row() for event in result.history)


def test_a_result_shows_every_target(graph, data) -> None:
    model = graph.module()
    result = l0.compress(model, data, target={"params": 0.5, "macs": 0.4}, settings=replace(QUICK, epochs=0))
    first, second = result.budgets
    assert str(result).startswith(f"CompressResult({first}; {second})")
    assert (first.left, second.left) == (result.small_cost.params, result.small_cost.macs)
    assert (result.target, result.limit, result.reached) == (first.target, first.limit, first.left)


@pytest.mark.slow
def test_the_command_line_takes_several_targets(mlp_pt2, blobs_npz, tmp_path) -> None:
    run = tmp_path / "run"
    targets = ("--target", "params=0.6", "--target", "macs=0.55")
    done = run_cli("finetune", mlp_pt2, "--data", blobs_npz, *targets, "--epochs", "0", "-o", run)
    assert done.exit_code == 0, done.stderr
    assert len(re.findall(r"Budget: at most", done.stdout)) == 2
    written = json.loads((run / "result.json").read_text())
    assert [each["unit"] for each in written["target"]] == ["params", "macs"]
    assert all(each["reached"] <= each["limit"] for each in written["target"])
    assert 'target = [\n    "params=0.6",\n    "macs=0.55",\n]' in (run / "config.toml").read_text()
    again = tmp_path / "again"
    assert run_cli("finetune", "--config", run / "config.toml", "-o", again).exit_code == 0
    assert (again / "result.json").read_bytes() == (run / "result.json").read_bytes()


def test_gates_that_know_nothing_are_hardened_within_all_limits(residual) -> None:
    groups = find_groups(residual)
    gated = gate(residual)
    assert isinstance(gated.gates, HardConcrete) and gated.groups.num_moves == groups.num_moves
    plan = harden(gated, Budget(gated, {"macs": 0.3, "bytes": 0.5}), allow_untrained=True)
    assert plan.cost.macs <= int(0.3 * cost(residual).macs) and plan.cost.bytes <= int(0.5 * cost(residual).bytes)
