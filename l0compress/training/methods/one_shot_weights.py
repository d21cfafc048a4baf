"""Methods that decide on single weights by a score, before any training.

Weights go in steps, like channels do (:mod:`l0compress.training.descent`): each step is scored on what the one before
left, and after each the weights that stay are solved anew to return what the dense layers return. Source: gradual
pruning with a reconstruction in between, as in Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from l0compress.errors import InputError
from l0compress.gates.sparse_cost import SparseCost
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups, find_groups, groups_without_moves
from l0compress.graph.groups.weights import prunable_weights
from l0compress.training.decision import Decision
from l0compress.training.descent import steps_in_step
from l0compress.training.goals import Goal, budgets_of
from l0compress.training.limits import Limits
from l0compress.training.methods.base import Method
from l0compress.training.methods.one_shot import told_steps
from l0compress.training.problem import Problem
from l0compress.training.reachable import check_countable, check_reachable
from l0compress.training.rounding import round_weights
from l0compress.training.samples import repair_on_samples
from l0compress.training.sparse_harden import Elements, masked_plan
from l0compress.training.state import TrainingState

# What a step leaves of the step before, at least. Of a layer's many weights more can go at a time than of its channels.
STEP = 0.5


class OneShotWeights(Method):
    """Score, round and repair in steps down to the budget; all epochs are left for the weights that stay.

    ``subject`` is what the scores are called, as a message begins.
    """

    subject: ClassVar[str]

    def __init__(self, problem: Problem, goal: Goal) -> None:
        granularity = problem.settings.granularity
        if granularity == "structured":
            raise InputError(
                f"{self.subject} decide on single weights, not on channels.",
                fix="Pass --granularity weights or both, or --method magnitude.",
            )
        self.groups = find_groups(problem.graph) if granularity == "both" else groups_without_moves(problem.graph)
        self.targets = budgets_of(goal)
        self.limits = weight_limits(self.groups, problem, goal)
        self.resources = self.limits.resources

    @abstractmethod
    def score(self, graph: CapturedGraph, problem: Problem) -> dict[str, Tensor]:
        """By name of each weight of ``graph``, of its shape: the highest stay. Zeros have none that is higher."""

    def decide(self, state: TrainingState) -> Decision:
        problem, graph, used = state.problem, state.problem.graph, self.limits.dense()
        repair, report = repair_on_samples(problem), told_steps(state, self.targets)
        steps = steps_in_step(used, self.limits.most, step=STEP)
        for number, most in enumerate(steps[:-1]):
            report(number, len(steps), used)
            masks = round_weights(graph, self.score(graph, problem), self.limits.at(most).by_unit)
            plan = KeepPlan.everything(self.groups).with_masks(masks)
            graph, used = graph.with_state(repair(plan, shrink(graph, plan)).state()), most
        report(len(steps) - 1, len(steps), used)
        plan = self._last(graph, self.score(graph, problem))
        return Decision(plan, repair(plan, shrink(graph, plan)), repaired=True)

    def _last(self, graph: CapturedGraph, scores: dict[str, Tensor]) -> KeepPlan:
        """The decision within the budget. Channels that nothing reads any more go, where channels may."""
        elements = Elements(graph, prunable_weights(graph), scores, self.limits)
        return masked_plan(elements, KeepPlan.everything(self.groups), torch.zeros(self.groups.num_moves))


def weight_limits(groups: Groups, problem: Problem, goal: Goal) -> Limits:
    """What a goal allows of a network in which single weights become zero, with all channels of ``groups`` there.

    Raises:
        TargetError: it is no budget, is out of reach, or is in a unit in which zeros cost as much as other weights.
    """
    targets = budgets_of(goal)
    check_countable(targets, single_weights=True)
    costs = SparseCost(groups, prunable_weights(problem.graph))
    keep = torch.ones(groups.num_moves, dtype=torch.bool)
    check_reachable(targets, groups, lambda resource: costs.smallest(keep, resource.unit))
    return Limits.of(groups, targets)
