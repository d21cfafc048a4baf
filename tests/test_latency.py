"""Budgets in milliseconds: tables of times, the model made of them, and how the gap to what is measured closes."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import TargetError
from l0compress.graph import CapturedGraph, KeepPlan, capture, find_groups, shrink
from l0compress.graph.groups import Groups
from l0compress.latency import Deployment, MeasuredTime, measure_time
from l0compress.latency.fit import Coefficients, fitted, trial_plans
from l0compress.latency.kernels import work_of
from l0compress.latency.operators import Attention, Convolution, Linear, Timed
from l0compress.latency.profiling import Stopwatch, operator_time
from l0compress.latency.resource import Latency, TimeModel
from l0compress.latency.tables import Table, axis_grid
from l0compress.training.budget import Budget
from l0compress.training.closing import closed
from l0compress.training.harden import decide
from l0compress.training.limits import Limits
from l0compress.training.narrowing import Narrowed
from l0compress.training.reachable import check_countable
from l0compress.training.targets import Target, parse_target


class Small(nn.Module):
    """Convolutions, plain and depthwise, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(48, 48, 3, groups=48)
        self.out = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.out(self.depthwise(x).mean((2, 3)))


class Attending(nn.Module):
    """Attention of four heads, eight wide."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 96), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def groups() -> Groups:
    torch.manual_seed(0)
    return find_groups(capture(Small().eval(), (torch.randn(2, 3, 12, 12),)))


@pytest.fixture(scope="module")
def measured(groups: Groups) -> MeasuredTime:
    return measure_time(groups, Deployment(threads=1), seconds=0.05)


def _unmeasured(graph: CapturedGraph) -> float:
    raise AssertionError(f"{graph} was measured")


def _always(nanoseconds: float) -> Callable[[CapturedGraph], float]:
    def measure(graph: CapturedGraph) -> float:
        del graph
        return nanoseconds

    return measure


def modelled(groups: Groups, measure: Callable[[CapturedGraph], float] = _unmeasured) -> Latency:
    """A latency whose operators take 100 ns and one more for each product of widths, without a machine."""
    work = work_of(groups)
    tables = tuple(Table.measured(p.operator.widths, p.operator.unit, _products) for p in work.operators)
    return Latency.of_model(groups, TimeModel(work, tables, Coefficients(1000.0, 1.0, 0.0, 0.0, 0.0), measure))


def _products(widths: tuple[int, ...]) -> float:
    return 100.0 + float(np.prod(widths))


# What is asked for


@pytest.mark.parametrize(
    ("text", "value"), [("5ms", 5_000_000), ("1.5ms", 1_500_000), ("800us", 800_000), ("2s", 2_000_000_000)]
)
def test_a_time_is_read_as_nanoseconds(text: str, value: int) -> None:
    assert parse_target(f"latency={text}") == Target("latency", value, False)


def test_a_time_reads_back_as_it_is_written() -> None:
    assert str(parse_target("latency=2.5ms")) == "latency=2.5ms"
    assert parse_target(str(parse_target("latency=0.25"))) == Target("latency", 0.25, True)


def test_a_time_in_an_unknown_unit_is_refused() -> None:
    with pytest.raises(TargetError, match=r"'latency=5min': unknown suffix 'min'\. Known suffixes are ns, us, ms, s\."):
        parse_target("latency=5min")


def test_single_weights_do_not_change_the_time_of_an_onnx_file() -> None:
    target = Target("latency", 0.5, True).on(1000, modelled)
    with pytest.raises(TargetError, match="does not depend on how many of its weights are zero"):
        check_countable([target], single_weights=True)


@pytest.mark.parametrize("counts", [{"batch": 0}, {"threads": 0}])
def test_a_deployment_needs_samples_and_threads(counts: dict[str, int]) -> None:
    with pytest.raises(TargetError, match="latency is measured with at least one sample and one thread"):
        Deployment(**counts)


def test_an_unknown_number_format_is_refused() -> None:
    with pytest.raises(TargetError, match=re.escape("unknown latency dtype 'int4'.")):
        Deployment(dtype="int4")


# Tables


@given(st.integers(1, 300), st.sampled_from([1, 8, 64]))
def test_a_grid_ends_at_the_width_and_its_other_points_are_whole_vectors(width: int, unit: int) -> None:
    grid = axis_grid(width * unit, unit)
    assert grid[-1] == width * unit
    assert list(grid) == sorted(set(grid))
    assert all(point % max(16, unit) == 0 or point in (unit, width * unit) for point in grid)
    assert len(grid) <= 2 * 12 + 2


@given(st.lists(st.floats(1, 1e6), min_size=4, max_size=4), st.integers(0, 70), st.integers(0, 70))
def test_a_time_never_falls_where_a_width_grows(times: list[float], one: int, other: int) -> None:
    table = Table.measured((64,), 1, dict(zip([(16,), (32,), (48,), (64,)], times, strict=True)).__getitem__)
    low, high = sorted((one, other))
    assert table.at((low,)) <= table.at((high,))


def test_a_table_is_exact_on_its_axes_and_its_coarse_grid() -> None:
    def measure(widths: tuple[int, ...]) -> float:
        return 50.0 + widths[0] * widths[1] + 3 * widths[0]

    table = Table.measured((96, 64), 1, measure)
    for point in [(16, 64), (48, 64), (96, 16), (96, 48), (96, 64), (32, 16)]:
        assert table.at(point) == pytest.approx(measure(point))
    assert table.at((48, 32)) == pytest.approx(measure((48, 32)), rel=0.02)


def test_a_width_of_zero_takes_no_time() -> None:
    assert Table.measured((32,), 1, _products).at((0,)) == 0


def test_the_smooth_form_of_a_bilinear_time_is_that_time() -> None:
    table = Table.measured((64, 32), 1, lambda widths: 7.0 + 2 * widths[0] + 0.5 * widths[0] * widths[1])
    assert table.smooth == pytest.approx({(): 7.0, (0,): 2.0, (1,): 0.0, (0, 1): 0.5}, abs=1e-6)


def test_the_smooth_form_falls_with_every_width_that_takes_time_even_on_a_plateau() -> None:
    steps = Table.measured((64,), 1, lambda widths: 100.0 if widths[0] <= 32 else 300.0)
    assert steps.at((48,)) == steps.at((64,)) == 300.0
    assert steps.smooth[(0,)] > 0


# What a graph does


def test_every_contraction_is_timed_and_everything_else_counted(groups: Groups) -> None:
    work = work_of(groups)
    kinds = {placed.node: (type(placed.operator), placed.operator.axes) for placed in work.operators}
    assert kinds == {
        "conv2d": (Convolution, ("outputs",)),
        "conv2d_1": (Convolution, ("outputs", "inputs")),
        "conv2d_2": (Convolution, ("outputs",)),
        "linear": (Linear, ("inputs",)),
    }
    assert {amount.node for amount in work.elements} == {"relu", "relu_1", "mean"}


def test_widths_of_a_plan_are_those_of_the_small_graph(groups: Groups) -> None:
    work, plan = work_of(groups), KeepPlan.random(groups, density=0.5, seed=1)
    counts = work.lines.of(plan.alive.double())
    small = {
        placed.node: placed.operator.widths for placed in work_of(find_groups(shrink(groups.graph, plan))).operators
    }
    for placed in work.operators:
        assert tuple(int(counts[line]) for line in placed.lines) == small[placed.node]


def test_heads_of_attention_are_a_width() -> None:
    groups = find_groups(capture(Attending().eval(), (torch.randn(2, 6, 16),)))
    (attention,) = [p.operator for p in work_of(groups).operators if isinstance(p.operator, Attention)]
    assert (attention.channels, attention.width, attention.queries, attention.keys) == (32, 8, 6, 6)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "operator",
    [
        Linear(("outputs", "inputs"), 24, 16, 3, is_matrix=False),
        Linear(("outputs", "inputs"), 24, 16, 1, is_matrix=True),
        Convolution(("outputs", "inputs"), 16, 24, 1, (6, 6), (3, 3), (("strides", (2, 2)), ("pads", (1, 1, 1, 1)))),
        Convolution(("outputs",), 16, 3, 1, (6, 6), (3, 3), ()),
        Convolution(("outputs",), 16, None, 1, (6, 6), (3, 3), ()),
        Convolution(("inputs", "outputs"), 16, 24, 1, (6, 6), (2, 2), (("strides", (2, 2)),), transposed=True),
        Convolution(("outputs", "inputs"), 16, 24, 1, (9,), (3,), ()),
        Attention(("channels",), 32, 8, 5, 7, 8),
    ],
)
def test_every_operator_is_a_model_that_onnx_runtime_times(operator: Timed, int8: bool) -> None:
    deployment = Deployment(threads=1, dtype="int8" if int8 else "float32")
    narrow = operator.at([max(operator.unit, width // 2) for width in operator.widths])
    for each in (operator, narrow):
        session = onnxruntime.InferenceSession(each.model(2, int8=int8).SerializeToString())
        assert len(session.get_outputs()) == 4
        assert operator_time(each, deployment) >= 0


# The model


def test_a_plan_takes_what_its_operators_take(groups: Groups) -> None:
    latency, plan = modelled(groups), KeepPlan.random(groups, density=0.5, seed=3)
    small = [placed.operator.widths for placed in work_of(find_groups(shrink(groups.graph, plan))).operators]
    dense = [placed.operator.widths for placed in work_of(groups).operators]
    # Whole vectors of sixteen, up to what the dense operators have.
    whole = [
        tuple(min(most, -(-width // 16) * 16) for width, most in zip(widths, largest, strict=True))
        for widths, largest in zip(small, dense, strict=True)
    ]
    assert latency.cost(plan.keep) == pytest.approx(1000 + sum(map(_products, whole)), rel=0.02)


def test_expectation_at_certainty_is_the_smooth_time_and_has_slopes_everywhere(groups: Groups) -> None:
    latency = modelled(groups)
    open_ = torch.ones(groups.num_moves, dtype=torch.float64, requires_grad=True)
    expected = latency.expected(open_)
    expected.backward()
    assert float(expected.detach()) == pytest.approx(latency.dense, rel=0.02)
    assert open_.grad is not None
    assert bool((open_.grad > 0).all())


@pytest.mark.parametrize("seed", range(12))
def test_less_never_takes_longer(groups: Groups, seed: int) -> None:
    latency = modelled(groups)
    draws = torch.Generator().manual_seed(seed)
    more = KeepPlan.random(groups, density=0.2 + 0.06 * seed, seed=seed)
    less = KeepPlan.further(more, torch.randint(groups.num_moves, (20,), generator=draws).tolist())
    assert latency.cost(less.keep) <= latency.cost(more.keep)


def test_a_narrowed_network_takes_what_the_dense_one_takes_without_what_is_gone(groups: Groups) -> None:
    latency, plan = modelled(groups), KeepPlan.random(groups, density=0.5, seed=0)
    limits = Limits.of(groups, (Target("latency", 0.5, True).on(latency.dense, modelled),))
    narrowed = Narrowed.whole(groups).cut(plan)
    here = narrowed.limits(limits)
    assert here.dense() == (latency.cost(plan.keep),)
    further = KeepPlan.random(narrowed.groups, density=0.6, seed=1)
    assert here.costs(further.keep) == (latency.cost(narrowed.lifted(further).keep),)


# Fitting


@given(st.floats(0, 1e5), st.floats(0.6, 1.9), st.floats(0, 5))
def test_what_made_the_times_is_found_again(fixed: float, scale: float, per_element: float) -> None:
    rows = [(1.0, float(a), 0.0, float(b), 0.0) for a, b in [(1e5, 1e4), (5e4, 9e3), (2e4, 1e3), (9e4, 2e3)]]
    times = [fixed + scale * row[1] + per_element * row[3] for row in rows]
    assert fitted(rows, times).error < 1e-3


def test_trial_plans_begin_with_the_dense_network_and_are_the_same_each_time(groups: Groups) -> None:
    plans, again = trial_plans(groups), trial_plans(groups)
    assert bool(plans[0].keep.all())
    assert all(torch.equal(one.keep, other.keep) for one, other in zip(plans, again, strict=True))


@pytest.mark.slow
def test_a_measured_network_is_modelled_as_far_as_its_own_measurements(groups: Groups, measured: MeasuredTime) -> None:
    latency = measured(groups)
    assert latency.dense == pytest.approx(measured.dense, rel=measured.coefficients.error + 1e-3)


def test_what_was_measured_says_what_a_smaller_network_takes(groups: Groups, measured: MeasuredTime) -> None:
    plan = KeepPlan.random(groups, density=0.5, seed=0)
    small = find_groups(shrink(groups.graph, plan))
    # A network of its own now, whose widths of less than a vector count as they are and not as whole ones.
    assert measured(small).dense == pytest.approx(measured(groups).cost(plan.keep), rel=0.05)


def test_what_was_measured_survives_being_written_down(groups: Groups, measured: MeasuredTime) -> None:
    again = MeasuredTime.from_json(json.loads(json.dumps(measured.to_json())), groups.graph)
    plan = KeepPlan.random(groups, density=0.5, seed=0)
    assert again(groups).cost(plan.keep) == measured(groups).cost(plan.keep)
    assert again.dense == measured.dense


def test_what_was_timed_once_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L0COMPRESS_CACHE", str(tmp_path / "times"))
    watch, operator = Stopwatch.opened(Deployment(threads=1)), Linear((), 8, 8, 1, is_matrix=True)
    first = watch.time(operator)
    watch.keep()
    again = Stopwatch.opened(Deployment(threads=1))
    assert (again.time(operator), again.measured) == (first, 0)
    assert Stopwatch.opened(Deployment(threads=2)).times == {}


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": "b"}', "\x00"])
def test_a_damaged_file_of_times_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("L0COMPRESS_CACHE", str(tmp_path))
    path = Stopwatch.opened(Deployment()).path
    assert path is not None
    path.write_text(content)
    assert Stopwatch.opened(Deployment()).times == {}


def test_a_time_can_be_copied_and_sent_to_another_process(groups: Groups, measured: MeasuredTime) -> None:
    latency, plan = measured(groups), KeepPlan.random(groups, density=0.5, seed=0)
    for again in (copy.deepcopy(latency), pickle.loads(pickle.dumps(latency))):
        assert again.cost(plan.keep) == latency.cost(plan.keep)


# Closing the gap


def test_what_is_counted_is_decided_once_and_never_measured(groups: Groups) -> None:
    limits = Limits.counted(groups, {"macs": l0.cost(groups.graph).macs // 2})
    scores = torch.arange(groups.num_moves, dtype=torch.float64)
    plan = closed(lambda within: decide(within, scores), _never, limits)
    assert torch.equal(plan.keep, decide(limits, scores).keep)


def _never(plan: KeepPlan) -> CapturedGraph:
    raise AssertionError(f"{plan} was carried out")


@pytest.mark.parametrize("wrong", [0.8, 1.0, 1.25])
def test_a_model_that_is_wrong_by_a_factor_is_made_up_for(groups: Groups, wrong: float) -> None:
    """What is measured is ``wrong`` times what the model says, so the plan has to be that of another budget."""
    latency = modelled(groups)
    truth: dict[l0.Cost, int] = {}

    def measure(small: CapturedGraph) -> float:
        return wrong * truth[l0.cost(small)]

    def carry_out(plan: KeepPlan) -> CapturedGraph:
        small = shrink(groups.graph, plan)
        truth[l0.cost(small)] = latency.cost(plan.keep)
        return small

    target = Target("latency", 0.75, True).on(latency.dense, lambda found: modelled(found, measure))
    limits = Limits.of(groups, (target,))
    scores = torch.rand(groups.num_moves, generator=torch.Generator().manual_seed(0))
    plan = closed(lambda within: decide(within, scores), carry_out, limits)
    used = wrong * latency.cost(plan.keep) / target.limit
    assert 0.85 <= used <= 1.01


def test_own_loops_hold_gates_to_a_time(groups: Groups) -> None:
    latency = modelled(groups)
    limit = int(0.75 * latency.dense)
    gated = l0.gate(groups.graph)
    # What is measured is just what was asked for.
    target = Target("latency", 0.75, True).on(latency.dense, lambda found: modelled(found, _always(limit)))
    budget = Budget(gated, target)
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-3))
    (gated(torch.randn(4, 3, 12, 12)).square().mean() + budget.penalty()).backward()
    optimizer.step()
    budget.step()
    assert all(bool(gate.grad.isfinite().all()) for gate in gated.gate_parameters().values() if gate.grad is not None)
    plan = l0.harden(gated, budget)
    assert latency.cost(plan.keep) <= budget.target


def test_a_time_that_no_width_can_buy_is_refused_before_training(groups: Groups, measured: MeasuredTime) -> None:
    fixed = MeasuredTime(
        measured.deployment,
        measured.dense,
        measured.tables,
        Coefficients(measured.dense, 0.5, 0, 0, 0),
        measured.beside,
    )
    with pytest.raises(TargetError, match=r"Target latency=0\.5: at most .* ms cannot be reached\."):
        Budget(l0.gate(groups.graph), Target("latency", 0.5, True).on(measured.dense, fixed))
