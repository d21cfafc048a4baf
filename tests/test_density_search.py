"""Searches for densities: what densities mean for a plan, what is learned from trials, and the end."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from clouds import QUICK, blobs, trained_mlp
from torch import Tensor, nn

from l0compress.data import Data
from l0compress.errors import InputError
from l0compress.graph.capture import capture
from l0compress.graph.groups import Groups, find_groups
from l0compress.training.finetune import finetune
from l0compress.training.harden import round_to_budget
from l0compress.training.limits import Limits
from l0compress.training.methods.density_search import LEAST, Proposer, Trials, densities_of, density_scores
from l0compress.training.methods.reinforce import Policy, PolicyGradient, densities_at, logits_of, policy_after
from l0compress.training.methods.search import ParzenEstimator

WANTED = torch.tensor([0.3, 0.8], dtype=torch.float64)


def hidden_groups() -> tuple[Groups, list[int]]:
    net = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 2))
    groups = find_groups(capture(net, (torch.zeros(2, 2),)))
    return groups, [number for number, group in enumerate(groups.groups) if group.kind == "channels"]


def loss_of(densities: Tensor) -> float:
    return float((densities - WANTED).square().sum())


def searched(proposer: Proposer, count: int, *, seed: int = 0) -> Trials:
    trials = Trials.none(2).with_one(torch.ones(2, dtype=torch.float64), loss_of(torch.ones(2)))
    for _ in range(count):
        densities = proposer.propose(trials, seed=seed)
        trials = trials.with_one(densities, loss_of(densities))
    return trials


class TestDensities:
    @pytest.mark.parametrize("share", [0.4, 0.2])
    def test_a_plan_keeps_their_ratio_and_meets_the_budget(self, share: float):
        groups, (first, second) = hidden_groups()
        order = torch.rand(groups.num_moves, generator=torch.Generator().manual_seed(0))
        densities = torch.ones(len(groups.groups), dtype=torch.float64)
        densities[first], densities[second] = 0.8, 0.4
        dense = Limits.counted(groups, {"params": 10**9}).dense()[0]
        limits = Limits.counted(groups, {"params": int(share * dense)})
        keep = round_to_budget(limits, density_scores(groups, order, densities)).keep
        found = densities_of(groups, keep)
        assert float(found[first] / found[second]) == pytest.approx(2.0, rel=0.15)
        assert 0.95 * share * dense < limits.costs(keep)[0] <= share * dense

    def test_within_a_group_the_order_decides(self):
        groups, (first, _) = hidden_groups()
        order = torch.rand(groups.num_moves, generator=torch.Generator().manual_seed(1))
        moves = list(groups.groups[first].moves)
        scores = density_scores(groups, order, torch.ones(len(groups.groups)))
        assert torch.equal(scores[moves].argsort(), order[moves].argsort())


@pytest.mark.parametrize("proposer", [ParzenEstimator(), PolicyGradient()], ids=["search", "reinforce"])
class TestProposers:
    def test_a_proposal_depends_on_the_trials_and_the_seed_alone(self, proposer: Proposer):
        trials = searched(proposer, 12)
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
        told = optuna.logging.get_verbosity()
        one, again = proposer.propose(trials, seed=0), proposer.propose(trials, seed=0)
        assert torch.equal(one, again)
        assert not torch.equal(one, proposer.propose(trials, seed=1))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        assert (random.getstate(), optuna.logging.get_verbosity()) == (before[2], told)

    def test_they_are_within_bounds(self, proposer: Proposer):
        densities = searched(proposer, 20).densities
        assert bool(((densities >= LEAST) & (densities <= 1)).all())

    def test_what_is_learned_is_better_than_chance(self, proposer: Proposer):
        late = [float(searched(proposer, 40, seed=seed).losses[-10:].mean()) for seed in range(3)]
        uniform = LEAST + (1 - LEAST) * torch.rand(5000, 2, generator=torch.Generator().manual_seed(0)).double()
        chance = float((uniform - WANTED).square().sum(1).mean())
        assert sum(late) / 3 < chance / 2

    def test_a_loss_that_is_not_finite_is_no_end(self, proposer: Proposer):
        trials = searched(proposer, 10).with_one(torch.full((2,), 0.5, dtype=torch.float64), float("nan"))
        assert float(trials.losses[-1]) == float("inf")
        assert bool(proposer.propose(trials, seed=0).isfinite().all())


class TestPolicy:
    def test_a_step_is_along_the_gradient_of_the_logarithm_of_the_density(self):
        mean, spread = torch.tensor([0.2, -0.4]).double(), torch.tensor([0.5, 0.8]).double()
        action, reward = torch.tensor([0.9, -1.0]).double(), 3.0
        log_spread = spread.log().requires_grad_()
        leaf = mean.clone().requires_grad_()
        torch.distributions.Normal(leaf, log_spread.exp()).log_prob(action).sum().backward()
        learned = Policy(mean, spread, baseline=1.0).learned(action, reward)
        # The first advantage is 2, over its own size 1. Rates are 0.3 sigma^2 of the mean and 0.05 of log sigma.
        assert torch.allclose(learned.mean, mean + 0.3 * spread.square() * leaf.grad)
        assert torch.allclose(learned.spread.log(), log_spread.detach() + 0.05 * log_spread.grad)
        assert learned.baseline == pytest.approx(0.8 * 1.0 + 0.2 * 3.0)

    def test_what_is_worse_than_expected_pushes_away(self):
        policy = Policy(torch.zeros(1).double(), torch.ones(1).double(), baseline=0.0)
        assert (
            float(policy.learned(torch.ones(1).double(), -1.0).mean)
            < 0
            < float(policy.learned(torch.ones(1).double(), 1.0).mean)
        )

    def test_it_is_replayed_from_the_trials(self):
        trials = Trials.none(2).with_one(torch.tensor([0.5, 0.5]).double(), 2.0)
        trials = trials.with_one(torch.tensor([0.6, 0.4]).double(), 1.0)
        by_hand = Policy.about(trials.densities[0], -2.0).learned(logits_of(trials.densities[1]), -1.0)
        assert torch.equal(policy_after(trials).mean, by_hand.mean)
        assert bool((densities_at(by_hand.mean) - 0.5)[0] > 0)


class TestMethod:
    @pytest.mark.parametrize("method", ["search", "reinforce"])
    def test_it_ends_in_the_best_of_its_trials(self, method: str):
        part, told = blobs(128), []
        graph = capture(trained_mlp(part), (part.inputs[0][:2],))
        settings = replace(QUICK, epochs=0, method=method, trials=6)
        data = Data(part, blobs(64, seed=1))
        result = finetune(graph, data, {"params": 0.3}, settings=settings, on_event=told.append)
        (last,) = [event for event in told if event.stage == "search"][-1:]
        losses = [event.loss for event in told if event.stage == "search"]
        assert losses == sorted(losses, reverse=True)  # the best so far
        assert (last.steps, last.step <= 6) == (6, True)
        assert result.best_evaluation.loss <= losses[0] + 1e-6

    def test_without_optuna_it_is_said_what_to_install(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(InputError) as error:
            ParzenEstimator()
        assert str(error.value) == (
            "Method 'search' needs optuna, which is not installed. Nothing was changed. Install it: pip install "
            "'l0compress[search]'."
        )
