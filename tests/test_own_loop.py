"""Loops of people's own: whatever is usual in one has to come out as it does without gates."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from own_loop import decided_, train_, trained
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import l0compress as l0
from l0compress.errors import PlanError
from l0compress.gates.attach import compact, gate
from l0compress.graph.capture import capture
from l0compress.training.budget import FixedPenalty
from l0compress.training.optim import weight_optimizer

GRANULARITIES = ("structured", "weights", "both")
# What float32 and bfloat16 round to, relative to outputs of a few units.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}


@pytest.fixture
def x(data) -> torch.Tensor:
    return data.test.inputs[0][:16]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_shrunk_is_the_trained_network_with_the_dropped_gates_shut(graph, data, x, granularity):
    gated, budget = trained(graph, data, granularity=granularity)
    plan = l0.harden(gated, budget)
    small = gated.shrink(plan)
    torch.testing.assert_close(small.module()(x), decided_(gated, plan)(x), rtol=1e-5, atol=1e-5)
    assert l0.nonzero_cost(small).macs <= budget.target < l0.cost(graph).macs


def test_a_plan_out_of_training_refuses_the_weights_that_it_was_not_made_for(graph, data):
    gated, budget = trained(graph, data)
    with torch.no_grad():
        gated.gates.log_alpha.clamp_(max=0.5)  # the medians of open gates are below 1, so that folding changes weights
    plan = l0.harden(gated, budget)
    for carry_out in (l0.shrink, l0.masked):
        for weights, what in (
            (graph, "the weights from before training"),
            (gated.graph(), "trained weights without their gate values"),
        ):
            with pytest.raises(PlanError) as error:
                carry_out(weights, plan)
            assert str(error.value) == (
                f"the plan was made by training, but the graph has {what}. Nothing was changed. Write "
                "gated.shrink(plan), or take the graph from fold(gated, plan); to apply the bare decision to these "
                "weights pass plan.decision()."
            )
    small = l0.shrink(l0.fold(gated, plan), plan)
    assert l0.verify(small, gated.shrink(plan)).max_absolute == 0
    assert l0.cost(l0.shrink(graph, plan.decision())) == l0.cost(small)


def test_where_training_left_the_weights_alone_the_plan_fits_them(graph):
    gated = l0.gate(graph)
    with torch.no_grad():
        gated.gates.log_alpha[::2] = -3.0
        gated.gates.log_alpha[1::2] = 3.0
    plan = l0.harden(gated, l0.Budget(gated, {"macs": 0.5}))
    assert l0.verify(l0.shrink(graph, plan), gated.shrink(plan)).max_absolute == 0


def test_scores_set_by_hand_and_loaded_ones_count_as_trained(graph, data):
    gated, budget = trained(graph, data)
    loaded = l0.gate(graph)
    loaded.load_state_dict(gated.state_dict())
    plan = l0.harden(loaded, l0.Budget(loaded, {"macs": 0.5}))
    assert torch.equal(plan.keep, l0.harden(gated, budget).keep)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_first_scores_may_be_hardened_on_purpose(graph, granularity):
    gated = l0.gate(graph, granularity=granularity, magnitude_slope=1.0)
    plan = l0.harden(gated, l0.Budget(gated, {"macs": 0.6}), allow_untrained=True)
    assert l0.nonzero_cost(gated.shrink(plan)).macs <= 0.6 * l0.cost(graph).macs


def test_the_groups_of_an_optimizer_are_those_of_the_built_in_training(graph):
    gated = l0.gate(graph, granularity="both")
    *weights, gates = gated.param_groups(lr=0.1, gate_lr=0.2, weight_decay=0.3)
    built_in = weight_optimizer(gated.weights(), "sgd", learning_rate=0.1, weight_decay=0.3).param_groups
    for mine, theirs in zip(weights, built_in, strict=True):
        assert {key: theirs[key] for key in ("lr", "weight_decay")} == {"lr": mine["lr"], **_decay(mine)}
        assert list(map(id, mine["params"])) == list(map(id, theirs["params"]))
    assert (gates["lr"], gates["weight_decay"]) == (0.2, 0.0)
    everything = [*weights[0]["params"], *weights[1]["params"], *gates["params"]]
    assert set(map(id, everything)) == set(map(id, gated.parameters()))


def _decay(group: dict) -> dict:
    return {"weight_decay": group["weight_decay"]}


class Entropy(nn.Module):
    """A matrix that is itself called ``log_alpha``."""

    def __init__(self) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.randn(12, 6))
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.linear(x, self.log_alpha).relu())


def test_a_weight_named_log_alpha_keeps_its_gates_apart_from_those_of_the_moves():
    gated = gate(capture(Entropy(), (torch.randn(2, 6),)), granularity="both")
    gates = gated.gate_parameters()
    assert list(gates) == ["log_alpha", "log_alpha.log_alpha", "head.weight"]
    assert gates["log_alpha"].shape == (gated.groups.num_moves,)
    assert gates["log_alpha.log_alpha"].shape == (12, 6)
    with torch.no_grad():
        gates["log_alpha"][:4] = -9.0
    compacted = compact(gated)
    for name, parameter in compacted.gated.gate_parameters().items():
        kept = [size if keep is None else len(keep) for size, keep in
                zip(gates[name].shape, compacted.gate_keeps[name], strict=True)]  # fmt: skip
        assert tuple(kept) == tuple(parameter.shape)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_converted_network_trains_in_its_type_with_gates_in_float32_at_least(graph, data, x, dtype, granularity):
    gated = l0.gate(graph, granularity=granularity).to(dtype)
    budget = l0.Budget(gated, {"macs": 0.5})
    budget.step()
    penalty = budget.penalty()
    reference = l0.Budget(l0.gate(graph, granularity=granularity), {"macs": 0.5})
    assert penalty.dtype is torch.float64
    assert budget.violation == pytest.approx(reference.violation, rel=1e-6)
    (F.cross_entropy(gated(x.to(dtype)).float(), data.test.targets[:16]) + penalty).backward()
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-3, gate_lr=1e-3))
    optimizer.step()
    for gates in gated.gate_parameters().values():
        assert gates.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        assert bool((gates != gates.to(torch.bfloat16)).any())  # steps that bfloat16 would have lost
    plan = l0.harden(gated, budget)
    small = gated.shrink(plan).module()
    answer, expected = small(x.to(dtype)), decided_(gated, plan)(x.to(dtype))
    assert answer.dtype is expected.dtype is dtype
    torch.testing.assert_close(answer, expected, rtol=0, atol=ROUNDING[dtype])


def test_literal_types_of_the_graph_follow_a_conversion_there_and_back():
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x).relu().to(torch.float32)
            return self.second(hidden + torch.ones(16)) + torch.zeros(2, dtype=torch.float32)

    gated = gate(capture(Cast(), (torch.randn(2, 8),))).eval()
    x = torch.randn(5, 8)
    before = gated(x)
    torch.testing.assert_close(gated.double()(x.double()).float(), before)
    torch.testing.assert_close(gated.float()(x), before)
    torch.testing.assert_close(gated.bfloat16()(x.bfloat16()).float(), before, rtol=0, atol=0.1)


def test_accumulated_gradients_are_those_of_one_batch(graph, data):
    gated = l0.gate(graph).eval()
    gated.gates.train()
    x, y = data.train.inputs[0][:32], data.train.targets[:32]
    gradients = []
    for parts in (1, 4):
        gated.zero_grad()
        for inputs, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
            torch.manual_seed(1)  # one draw of the gates for all parts
            (F.cross_entropy(gated(inputs), targets) / parts).backward()
        nn.utils.clip_grad_norm_(gated.parameters(), 10.0)
        gradients.append([parameter.grad.clone() for parameter in gated.parameters()])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(accumulated, whole)


def test_several_calls_a_step_each_draw_their_own_gates(graph, x):
    for granularity in GRANULARITIES:
        gated = l0.gate(graph, granularity=granularity, log_alpha=0.0)
        first, second = gated(x), gated(x)
        assert not torch.equal(first, second)
        (first.sum() + second.sum() + FixedPenalty(gated, 1e-3).penalty()).backward()
        assert all(bool(gates.grad.isfinite().all()) for gates in gated.gate_parameters().values())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_under_autocast_and_a_gradient_scaler_the_budget_is_met(graph, data, granularity):
    torch.manual_seed(0)
    gated = l0.gate(graph, granularity=granularity)
    budget = l0.Budget(gated, {"macs": 0.5})
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-2, gate_lr=0.2))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = gated(data.train.inputs[0])
        loss = F.cross_entropy(outputs.float(), data.train.targets) + budget.penalty()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(gated.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        budget.step()
    assert l0.nonzero_cost(gated.shrink(l0.harden(gated, budget))).macs <= budget.target


def test_evaluation_in_the_middle_changes_nothing_of_the_training(graph, data, x):
    ends = []
    for evaluates in (False, True):
        gated, budget = trained(graph, data, steps=4)
        if evaluates:
            with torch.no_grad():
                assert torch.equal(gated.eval()(x), gated(x))
                assert budget.penalty().item() >= 0
        torch.manual_seed(1)
        train_(gated, budget, data, steps=4)
        ends.append(gated.gates.log_alpha.detach().clone())
    assert torch.equal(*ends)


# Where a gate interrupts the compiled graph, torch itself looks at the gradient of what is no leaf.
@pytest.mark.mostly_slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_compiled_network_samples_and_evaluates_as_it_does_uncompiled(graph, x, granularity):
    gated = l0.gate(graph, granularity=granularity, log_alpha=0.0)
    compiled = torch.compile(gated, backend="eager")
    for mode in (True, False, True):
        gated.train(mode)
        torch.manual_seed(1)
        expected = gated(x)
        torch.manual_seed(1)
        torch.testing.assert_close(compiled(x), expected)
    (compiled(x).sum() + l0.Budget(gated, {"macs": 0.5}).penalty()).backward()
    assert all(gates.grad is not None for gates in gated.gate_parameters().values())


def test_data_parallel_passes_calls_and_gradients_through(graph, x):
    gated = l0.gate(graph)
    torch.manual_seed(1)
    expected = gated(x)
    torch.manual_seed(1)
    answer = nn.DataParallel(gated)(x)
    assert torch.equal(answer, expected)
    answer.sum().backward()
    assert gated.gates.log_alpha.grad is not None


def test_threads_may_evaluate_one_network_and_train_several(graph, data, x):
    gated, _ = trained(graph, data)
    expected = gated.eval()(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(answer, expected) for answer in pool.map(lambda _: gated(x), range(20)))
        loops = list(pool.map(lambda _: trained(graph, data), range(3)))
    for network, budget in loops:
        assert l0.cost(network.shrink(l0.harden(network, budget))).macs <= budget.target


def test_an_average_of_the_weights_is_hardened_and_shrunk_like_the_network(graph, data, x):
    gated, budget = trained(graph, data, steps=10)
    average = AveragedModel(gated, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    before = copy.deepcopy(gated)
    for _ in range(3):
        train_(gated, budget, data, steps=2)
        average.update_parameters(gated)
    assert not torch.equal(average.module.gates.log_alpha, gated.gates.log_alpha)
    assert not torch.equal(average.module.gates.log_alpha, before.gates.log_alpha)
    plan = l0.harden(average.module, budget)
    small = average.module.shrink(plan)
    torch.testing.assert_close(small.module()(x), decided_(average.module, plan)(x), rtol=1e-5, atol=1e-5)
