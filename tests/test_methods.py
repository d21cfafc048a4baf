"""What decides: scores against closed forms, the way down in steps, and all methods behind one interface."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from clouds import QUICK, blobs, fitted_, trained_mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from l0compress.data import Data, StreamSplit
from l0compress.data.batches import Batch
from l0compress.errors import InputError, PlanError, TargetError
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups, find_groups
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.resource import Counted
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.training.curvature import probe
from l0compress.training.decision import Decision
from l0compress.training.descent import descend, held_back, steps_down
from l0compress.training.events import DECIDED
from l0compress.training.finetune import finetune
from l0compress.training.goals import goal_for
from l0compress.training.harden import decide
from l0compress.training.limits import Limits
from l0compress.training.losses import objective_for
from l0compress.training.methods import METHODS, method_of
from l0compress.training.methods.fisher import fisher_information, marginal_cost
from l0compress.training.methods.learned import better
from l0compress.training.methods.start import ordered_log_alpha
from l0compress.training.narrowing import Narrowed
from l0compress.training.problem import problem_of
from l0compress.training.reporting import Reporter
from l0compress.training.samples import take_samples
from l0compress.training.settings import METHOD_NAMES, FinetuneSettings
from l0compress.training.state import TrainingState
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify


def mean_square_of_gradients(outputs: Tensor, draws: int, **objective) -> Tensor:
    """The second moments of probes of ``outputs``, element by element and for pairs: ``(elements, elements)``."""
    reading = objective_for(objective.pop("loss", "auto"), objective.get("targets"), outputs.detach())
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(outputs.numel(), outputs.numel(), dtype=torch.float64)
    for _ in range(draws):
        leaf = outputs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(probe(leaf, objective.get("targets"), reading, generator), leaf)
        flat = gradient.double().flatten()
        total += torch.outer(flat, flat)
    return total / draws


class TestProbe:
    """The squared gradients of probes are, on average, the Hessian of the distance."""

    @pytest.mark.slow
    def test_of_class_scores_it_is_the_hessian_of_the_divergence(self):
        logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]])
        hessian = torch.autograd.functional.hessian(
            lambda z: nn.functional.kl_div(z.log_softmax(-1), logits.log_softmax(-1), reduction="sum", log_target=True),
            logits,
        ).view(4, 4)
        found = mean_square_of_gradients(logits, 20_000, targets=torch.tensor([0]))
        assert torch.allclose(found.float(), hessian, atol=0.01)

    def test_of_two_classes_one_draw_is_exact(self):
        logits = torch.tensor([[1.0, -0.5]])
        p = logits.softmax(-1)[0]
        hessian = torch.diag(p) - torch.outer(p, p)
        assert torch.allclose(
            mean_square_of_gradients(logits, 1, targets=torch.tensor([1])).float(), hessian, atol=1e-6
        )

    @pytest.mark.slow
    def test_of_values_it_is_that_of_the_mean_squared_error_over_its_scale(self):
        values = torch.tensor([[1.0, 2.0, 6.0]])
        found = mean_square_of_gradients(values, 20_000, loss="mse")
        scale = float(values.var(correction=0))
        assert torch.allclose(found, torch.eye(3, dtype=torch.float64) * 2 / (3 * scale), atol=0.01)

    def test_what_labels_leave_out_does_not_count(self):
        logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
        found = mean_square_of_gradients(logits, 50, targets=torch.tensor([[1, -100, 2]]))
        counted = found.diagonal().view(3, 5).sum(1) > 0
        assert counted.tolist() == [True, False, True]

    def test_labels_change_nothing_but_that(self):
        logits, draws = torch.randn(4, 3), [torch.Generator().manual_seed(1) for _ in range(2)]
        objective = objective_for("auto", torch.zeros(4).long(), logits)
        one, other = (
            probe(logits, torch.full((4,), label), objective, d) for label, d in zip((0, 2), draws, strict=True)
        )
        assert torch.equal(one, other)


def network() -> tuple[Groups, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    return find_groups(capture(net, (torch.zeros(2, 6),))), torch.randn(64, 6)


class TestFisher:
    @pytest.mark.slow
    def test_it_is_the_gauss_newton_diagonal_of_the_gates(self):
        groups, x = network()
        module = groups.graph.module()
        objective = objective_for("mse", None, module(x))
        batches = [Batch((row,), {}) for row in x.split(1)]
        found = torch.stack([fisher_information(groups, batches, objective, seed=seed) for seed in range(100)]).mean(0)
        (hidden,) = [group for group in groups.groups if group.name == "0" and group.kind == "channels"]
        inner = torch.tanh(module.get_parameter("0.weight") @ x.T + module.get_parameter("0.bias")[:, None])
        jacobian = inner.square().mean(1) * module.get_parameter("2.weight").square().sum(0)
        closed = jacobian.detach().double() * 2 / (3 * objective.reading.scale)
        assert torch.allclose(found[list(hidden.moves)], closed, rtol=0.1)

    @pytest.mark.slow
    def test_the_size_of_the_batches_does_not_matter_on_average(self):
        groups, x = network()
        objective = objective_for("mse", None, groups.graph.module()(x))

        def mean(size: int) -> Tensor:
            batches = [Batch((rows,), {}) for rows in x.split(size)]
            return torch.stack([fisher_information(groups, batches, objective, seed=s) for s in range(200)]).mean(0)

        assert torch.allclose(mean(1), mean(8), rtol=0.2)

    def test_a_unit_that_nothing_reads_has_none(self):
        groups, x = network()
        state = groups.graph.state()
        state["2.weight"][:, 3] = 0
        groups = find_groups(groups.graph.with_state(state))
        objective = objective_for("mse", None, groups.graph.module()(x))
        found = fisher_information(groups, [Batch((x,), {})], objective)
        (hidden,) = [group for group in groups.groups if group.name == "0" and group.kind == "channels"]
        assert [move for move in hidden.moves if found[move] == 0] == [hidden.moves[3]]

    def test_the_global_random_state_stays(self):
        groups, x = network()
        before = torch.get_rng_state()
        fisher_information(groups, [Batch((x,), {})], objective_for("mse", None, groups.graph.module()(x)))
        assert torch.equal(torch.get_rng_state(), before)

    def test_costs_are_those_of_single_removals(self):
        groups, _ = network()
        whole = cost(groups.graph).macs
        costs = marginal_cost(Counted(groups, "macs"))
        for move in range(groups.num_moves):
            keep = torch.ones(groups.num_moves, dtype=torch.bool)
            keep[move] = False
            assert whole - groups.cost_of(keep).macs == round(float(costs[move]))


class TestOrderedStart:
    def test_gates_stand_in_the_order_of_the_scores_and_change_sides_at_the_border(self):
        scores = torch.logspace(-4, 4, 101)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
        log_alpha = ordered_log_alpha(scores, 40)
        assert torch.equal(log_alpha.argsort(), scores.argsort())
        assert int((log_alpha > 0.3).sum()) == 40

    def test_scores_of_nothing_and_without_bound_are_the_ends(self):
        found = ordered_log_alpha(torch.tensor([0.0, 1.0, 2.0, torch.inf]), 2)
        assert found.isfinite().all()
        assert torch.equal(found.argsort(stable=True), torch.arange(4))

    @pytest.mark.parametrize("scores", [torch.zeros(3), torch.ones(3), torch.tensor([2.0])])
    def test_scores_that_tell_nothing_apart_start_alike(self, scores):
        found = ordered_log_alpha(scores, 1)
        assert found.isfinite().all()
        assert len(set(found.tolist())) == 1


class TestDescent:
    def test_steps_are_geometric_and_end_at_the_target(self):
        assert steps_down(10_000, 2_500) == [7071, 5000, 3535, 2500]
        assert steps_down(10_000, 9_999) == [9_999]

    @pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
    def test_every_step_is_one_decision_on_the_dense_groups(self, share):
        groups, x = network()
        target = int(share * cost(groups.graph).macs)
        seen: list[int] = []

        def untouched(plan: KeepPlan, small: CapturedGraph) -> CapturedGraph:
            seen.append(cost(small).macs)
            verify(small, masked(groups.graph, plan), inputs=[Call((x,))])
            return small

        def by_norm(now: Limits) -> Tensor:
            objective = objective_for("mse", None, now.groups.graph.module()(x))
            return fisher_information(now.groups, [Batch((x,), {})], objective)

        found = descend(Limits.counted(groups, {"macs": target}), by_norm, untouched).end
        assert seen == sorted(seen, reverse=True)
        assert found.plan.cost == cost(found.graph)
        assert 0.7 * target < cost(found.graph).macs <= target

    def test_a_step_leaves_half_of_every_group_where_something_else_can_go(self):
        groups, _ = network()
        scores = torch.arange(groups.num_moves, dtype=torch.float64).exp()  # one group before all others
        target = round(0.35 * cost(groups.graph).macs)
        plan = decide(Limits.counted(groups, {"macs": target}), held_back(groups, scores, 0.5))
        assert all(2 * int(plan.keep[list(group.moves)].sum()) >= len(group.moves) for group in groups.groups)

    def test_a_step_takes_more_of_a_group_before_it_misses_the_target(self):
        groups, _ = network()
        scores = torch.rand(groups.num_moves, generator=torch.Generator().manual_seed(0))
        target = cost(groups.graph).macs // 10
        assert decide(Limits.counted(groups, {"macs": target}), held_back(groups, scores, 0.5)).cost.macs <= target

    def test_what_is_held_back_stays_in_order_and_without_bound(self):
        groups, _ = network()
        scores = torch.full((groups.num_moves,), torch.inf)
        assert held_back(groups, scores, 0.5).isfinite().all()

    def test_a_cut_to_a_stored_plan_is_the_same_network_with_the_moves_in_the_same_order(self):
        groups, _ = network()
        scores = torch.rand(groups.num_moves, generator=torch.Generator().manual_seed(0))
        plan = decide(Limits.counted(groups, {"macs": cost(groups.graph).macs // 2}), scores)
        one = Narrowed.whole(groups).cut(plan)
        other = Narrowed.of(Decision.of(one.plan, one.graph.state()))
        assert torch.equal(one.moves, other.moves)
        assert all(torch.equal(tensor, other.graph.state()[name]) for name, tensor in one.graph.state().items())


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(blobs(), blobs(seed=1))


@pytest.fixture(scope="module")
def graph(data: Data) -> CapturedGraph:
    return capture(trained_mlp(data.train), (data.train.inputs[0][:2],))


class TestOneInterface:
    def test_every_name_has_a_method(self):
        assert tuple(METHODS) == METHOD_NAMES

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("method", ["l0", "fisher", "magnitude"])
    @pytest.mark.parametrize("epochs", [0, 2])
    def test_the_budget_is_met_and_the_epochs_are_those_asked_for(self, graph, data, method, epochs):
        result = finetune(graph, data, {"params": 0.4}, settings=replace(QUICK, method=method, epochs=epochs))
        assert 0.9 * 0.4 * cost(graph).params < cost(result.small).params <= 0.4 * cost(graph).params
        assert len(result.history) == epochs
        call = Call(data.val.take(slice(0, 9)).args)
        assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("method", ["l0", "fisher", "magnitude"])
    def test_the_same_seed_gives_the_same_bits(self, graph, data, method):
        settings = replace(QUICK, method=method, epochs=2)
        one, other = (finetune(graph, data, {"params": 0.4}, settings=settings).last.state() for _ in range(2))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    @pytest.mark.parametrize("method", ["l0", "fisher"])
    def test_no_labels_are_needed_to_decide_without_training(self, graph, method):
        unlabelled = Data(blobs(labels=False), blobs(labels=False, seed=1))
        result = finetune(graph, unlabelled, {"params": 0.4}, settings=replace(QUICK, method=method, epochs=0))
        assert result.last_evaluation.metric > 0.9

    def test_without_epochs_learned_gates_are_the_score(self, graph, data):
        one, other = (
            finetune(graph, data, {"params": 0.4}, settings=replace(QUICK, method=method, epochs=0))
            for method in ("l0", "fisher")
        )
        assert torch.equal(one.plan.keep, other.plan.keep)

    def test_steps_down_are_told(self, graph, data):
        told = []
        settings = replace(QUICK, method="fisher", epochs=0)
        finetune(graph, data, {"params": 0.4}, settings=settings, on_event=told.append)
        steps = [event for event in told if event.stage == "cut"]
        assert [(event.step, event.steps) for event in steps] == [(0, 3), (1, 3), (2, 3)]
        assert [event.density for event in steps] == sorted((event.density for event in steps), reverse=True)
        assert steps[0].density == 1

    def test_which_decision_goes_on_is_told(self, graph, data):
        told = []
        settings = replace(QUICK, epochs=3)
        finetune(graph, data, {"params": 0.4}, settings=settings, on_event=lambda event: told.append(event.message))
        (message,) = [message for message in told if message]
        assert message.startswith("Continues with '")
        assert "gates, repaired: " in message
        assert "score: " in message

    @pytest.mark.parametrize("epochs", [0, 1])
    def test_of_single_weights_the_better_of_two_scores_goes_on_where_gates_had_no_time(self, data, epochs):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        graph = capture(fitted_(net, data.train).eval(), (data.train.inputs[0][:2],))
        settings = replace(QUICK, epochs=epochs, batch_size=128, granularity="weights")
        told = []
        chosen = finetune(graph, data, {"params": 0.3}, settings=settings, on_event=told.append)
        (message,) = [event.message for event in told if event.stage == DECIDED]
        names = re.findall(r"(?:candidates: |; )([\w, ]+): ([\d.]+) \(loss ([\d.]+)\)", message)
        best = max(names, key=lambda found: (float(found[1]), -float(found[2])))[0]
        learned = ["gates", "gates, repaired"] if epochs else []
        assert [name for name, *_ in names] == [*learned, "fisher", "magnitude"]
        assert message.startswith(f"Continues with '{best}'.") and best not in learned
        alone = finetune(graph, data, {"params": 0.3}, settings=replace(settings, method=best, epochs=0))
        assert all(torch.equal(mask, alone.plan.masks[name]) for name, mask in chosen.plan.masks.items())
        assert f"{best}: {alone.best_evaluation.metric:.4f} (loss {alone.best_evaluation.loss:.4f})" in message

    @pytest.mark.parametrize("method", ["l0", "fisher", "magnitude"])
    def test_channels_that_nothing_reads_go_with_the_single_weights(self, graph, data, method):
        settings, told = replace(QUICK, epochs=3, granularity="both", method=method), []
        result = finetune(graph, data, {"params": 0.2}, settings=settings, on_event=told.append)
        messages = [event.message for event in told if event.stage == DECIDED]
        found = [re.findall(r"(?:candidates: |; )([\w, ]+): ", message) for message in messages]
        assert found == ([["gates", "gates, repaired", "fisher", "magnitude"]] if method == "l0" else [])
        assert nonzero_cost(result.small).params == int(0.2 * cost(graph).params)
        assert cost(result.small).params < cost(graph).params

    def test_the_decision_that_does_best_in_validation_goes_on(self, graph, data):
        state = TrainingState.begin(problem_of(graph, data, QUICK), Reporter())
        groups = find_groups(graph)
        (hidden,) = [group for group in groups.groups if group.kind == "channels"]
        whole, narrow = KeepPlan.everything(groups), KeepPlan.without(groups, hidden.moves[1:])
        candidates = {name: Decision.of(plan) for name, plan in (("a", narrow), ("b", whole))}
        assert better(state, candidates) is candidates["b"]
        broken = Decision.of(whole, {name: tensor * torch.nan for name, tensor in graph.state().items()})
        assert better(state, {"broken": broken, **candidates}) is candidates["b"]

    def test_a_snapshot_of_gates_that_began_otherwise_is_refused(self, graph, data):
        problem = problem_of(graph, data, QUICK)
        state = replace(TrainingState.begin(problem, Reporter()), resumed={"stage": "gates"})
        with pytest.raises(PlanError, match=r"^The checkpoint is from an earlier version, whose gates started"):
            METHODS["l0"](problem, goal_for(graph, {"params": 0.5})).decide(state)

    @pytest.mark.parametrize(
        ("granularity", "target", "where", "way"),
        [
            (
                "both",
                {"params": 0.1},
                "where channels have to go with the weights to fit the target",
                "a larger --target",
            ),
            ("structured", {"bic": 1}, "under a fixed penalty", "--target in place of the penalty"),
            ("weights", {"bic": 1}, "under a fixed penalty", "--target in place of the penalty"),
        ],
    )
    def test_gates_that_no_score_stands_in_for_need_epochs(self, graph, data, granularity, target, where, way):
        with pytest.raises(InputError) as error:
            finetune(graph, data, target, settings=replace(QUICK, epochs=0, granularity=granularity))
        assert str(error.value) == (
            f"In 0 steps gates learn nothing, and no score can replace them {where}. Nothing was changed. Pass more "
            f"--epochs, or {way}."
        )

    @pytest.mark.parametrize("method", ["fisher", "magnitude"])
    def test_a_score_takes_no_penalty(self, graph, data, method):
        with pytest.raises(TargetError) as error:
            finetune(graph, data, {"aic": 1}, settings=replace(QUICK, method=method))
        assert str(error.value) == (
            "Target 'aic' is not a budget, but a score needs one: params, macs, bytes, int8_bytes or latency. "
            "Nothing was "
            "changed. Example: macs=0.5; or learn gates, with method l0."
        )

    @pytest.mark.parametrize(
        ("method", "granularity", "message"),
        [
            (
                "gradual-magnitude",
                "both",
                "Method 'gradual-magnitude' decides on channels or on single weights, not on 'both'. Nothing was "
                "changed. Pass --granularity structured or weights, or --method l0.",
            ),
            (
                "layer-magnitude",
                "structured",
                "Magnitudes decide on single weights, not on channels. Nothing was changed. Pass --granularity weights "
                "or both, or --method magnitude.",
            ),
        ],
    )
    def test_what_a_method_cannot_decide_on_is_refused(self, graph, data, method, granularity, message):
        settings = replace(QUICK, method=method, granularity=granularity)
        with pytest.raises(InputError) as error:
            method_of(settings)(problem_of(graph, data, settings), goal_for(graph, {"params": 0.5}))
        assert str(error.value) == message


class TestSamples:
    def test_they_are_the_same_for_the_same_seed_and_leave_all_generators_alone(self, graph, data):
        problem = problem_of(graph, data, FinetuneSettings())
        before = torch.get_rng_state()
        one, other = (take_samples(problem, 10, batch_size=4) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        assert [len(batch) for batch in one] == [4, 4, 2]
        assert all(torch.equal(a.args[0], b.args[0]) for a, b in zip(one, other, strict=True))

    def test_the_generator_of_a_loader_is_left_alone_too(self, graph, data):
        draws = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(*data.train.inputs), batch_size=8, shuffle=True, generator=draws)
        problem = problem_of(graph, Data(StreamSplit(loader), data.val), FinetuneSettings())
        before = draws.get_state()
        assert [len(batch) for batch in take_samples(problem, 10, batch_size=4)] == [4, 4, 2]
        assert torch.equal(draws.get_state(), before)

    def test_there_are_no_more_than_the_data_have(self, graph, data):
        problem = problem_of(graph, data, FinetuneSettings())
        assert sum(map(len, take_samples(problem, 10_000, batch_size=32))) == len(data.train)
