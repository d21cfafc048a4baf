"""Scores of methods that decide before training, against what can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clouds import QUICK, blobs
from torch import Tensor, nn

from l0compress.data import Data, Split
from l0compress.data.batches import Batch
from l0compress.graph.capture import capture
from l0compress.graph.groups import Groups, find_groups
from l0compress.training.limits import Limits
from l0compress.training.losses import objective_for
from l0compress.training.methods.random_scores import Random, RandomWeights, random_scores
from l0compress.training.methods.taylor import TaylorWeights, task_loss, taylor_scores
from l0compress.training.problem import problem_of


def two_units(first: float, second: float) -> Groups:
    """One input to two units, which a third reads with these weights."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].weight.copy_(torch.tensor([[first, second]]))
    return find_groups(capture(net, (torch.zeros(2, 1),)))


def hidden(groups: Groups) -> list[int]:
    (found,) = [group for group in groups.groups if group.kind == "channels"]
    return list(found.moves)


class TestRandom:
    def test_scores_are_the_seed_s_and_leave_the_global_state_alone(self):
        before = torch.get_rng_state()
        one, again, other = random_scores(50, seed=3), random_scores(50, seed=3), random_scores(50, seed=4)
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_they_are_uniform(self):
        scores = random_scores(20_000, seed=0)
        assert abs(float(scores.mean()) - 1 / 2) < 0.01
        assert abs(float(scores.var()) - 1 / 12) < 0.01

    def test_they_know_nothing_of_the_weights(self):
        data = Data(*[Split((torch.zeros(64, 1),), torch.zeros(64, 1))] * 2)
        scores, of_weights = [], []
        for first in (3.0, 0.1):
            groups = two_units(first, 1.0)
            problem = problem_of(groups.graph, data, replace(QUICK, granularity="weights", loss="mse"))
            limits = Limits.counted(groups, {"params": 2})
            scores.append(Random.on(groups, ()).score(limits, problem, ()))
            of_weights.append(RandomWeights.__new__(RandomWeights).score(groups.graph, problem))
        assert torch.equal(*scores)
        assert all(torch.equal(each, of_weights[1][name]) for name, each in of_weights[0].items())


class TestTaylor:
    @pytest.mark.parametrize(("target", "scores"), [(4.0, [6.0, 2.0]), (6.0, [12.0, 4.0])])
    def test_it_is_the_gradient_of_the_squared_error_along_each_gate(self, target: float, scores: list[float]):
        groups, y = two_units(3.0, -1.0), torch.tensor([[target]])
        # The model says 3 - 1 = 2, its error is 2 - target, and dL/dg = 2 (2 - target) * (3 or -1).
        objective = objective_for("mse", y, torch.zeros(1, 1))
        objective = replace(objective, reading=replace(objective.reading, scale=1.0))
        found = taylor_scores(groups, [Batch((torch.ones(1, 1),), {}, y)], objective)[hidden(groups)]
        assert torch.allclose(found, torch.tensor([2 * abs(2 - target) * 3, 2 * abs(2 - target)]).double())
        assert found.tolist() == pytest.approx([abs(2 - target) * 6, abs(2 - target) * 2])
        assert (found / found.max()).tolist() == pytest.approx([score / max(scores) for score in scores])

    def test_errors_of_different_signs_do_not_cancel(self):
        groups = two_units(1.0, 1.0)
        objective = objective_for("mse", torch.zeros(2, 1), torch.zeros(2, 1))
        objective = replace(objective, reading=replace(objective.reading, scale=1.0))
        batches = [Batch((torch.ones(1, 1),), {}, torch.tensor([[target]])) for target in (1.0, 3.0)]  # 2 is between
        assert taylor_scores(groups, batches, objective)[hidden(groups)].tolist() == pytest.approx([2.0, 2.0])

    def test_of_single_weights_it_is_weight_times_gradient(self):
        groups = two_units(3.0, -1.0)
        part = Split((torch.ones(64, 1),), torch.full((64, 1), 4.0))
        problem = problem_of(groups.graph, Data(part, part), replace(QUICK, granularity="weights", loss="mse"))
        found = TaylorWeights.__new__(TaylorWeights).score(groups.graph, problem)
        scale = problem.objective.reading.scale  # dL/dw2 = 2 (2 - 4) * 1, dL/dw1 = 2 (2 - 4) * (3 or -1)
        assert (found["1.weight"] * scale).flatten().tolist() == pytest.approx([12.0, 4.0])
        assert (found["0.weight"] * scale).flatten().tolist() == pytest.approx([12.0, 4.0])

    def test_without_labels_the_answers_are_drawn_from_the_model_itself(self):
        logits = torch.tensor([[0.0, 2.0]]).repeat(20_000, 1).requires_grad_()
        objective = objective_for("auto", torch.zeros(20_000).long(), logits)
        loss = task_loss(logits, None, objective, torch.Generator().manual_seed(0))
        p = torch.tensor([0.0, 2.0]).softmax(-1)
        assert float(loss.detach()) == pytest.approx(float(-(p * p.log()).sum()), rel=0.02)  # the entropy
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool((gradient.abs().sum(1) > 0).all())  # no sample has answered what it cannot learn from

    def test_values_are_drawn_about_what_the_model_returns(self):
        values = torch.full((20_000, 1), 7.0, requires_grad=True)
        objective = objective_for("mse", None, blobs(64).inputs[0])
        loss: Tensor = task_loss(values, None, objective, torch.Generator().manual_seed(0))
        assert float(loss.detach()) == pytest.approx(1.0, rel=0.03)  # the variance over itself
