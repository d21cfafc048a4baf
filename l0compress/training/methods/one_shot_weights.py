"""Methods that decide on single weights by a score, at once and before any training."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from l0compress.errors import InputError
from l0compress.gates.sparse_cost import SparseCost
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import groups_without_moves
from l0compress.graph.groups.weights import prunable_weights
from l0compress.training.decision import Decision
from l0compress.training.goals import Goal, budgets_of
from l0compress.training.limits import Limits
from l0compress.training.methods.base import Method
from l0compress.training.problem import Problem
from l0compress.training.reachable import check_countable, check_reachable
from l0compress.training.rounding import round_weights
from l0compress.training.state import TrainingState


class OneShotWeights(Method):
    """Score every weight of the dense network, and keep the best that fit the budget; all epochs are left for them.

    ``subject`` is what the scores are called, as a message begins.
    """

    subject: ClassVar[str]

    def __init__(self, problem: Problem, goal: Goal) -> None:
        if problem.settings.granularity != "weights":
            raise InputError(
                f"{self.subject} decide on channels or on single weights, not on {problem.settings.granularity!r}.",
                fix="Pass --granularity structured or weights, or --method l0.",
            )
        self.groups = groups_without_moves(problem.graph)
        self.limits = weight_limits(problem, goal)
        self.resources = self.limits.resources

    @abstractmethod
    def score(self, problem: Problem) -> dict[str, Tensor]:
        """By name of each weight, of its shape: the highest stay."""

    def decide(self, state: TrainingState) -> Decision:
        masks = round_weights(state.problem.graph, self.score(state.problem), self.limits.by_unit)
        return Decision.of(KeepPlan.everything(self.groups).with_masks(masks))


def weight_limits(problem: Problem, goal: Goal) -> Limits:
    """What a goal allows of a network in which single weights become zero.

    Raises:
        TargetError: it is no budget, is out of reach, or is in a unit in which zeros cost as much as other weights.
    """
    targets, groups = budgets_of(goal), groups_without_moves(problem.graph)
    check_countable(targets, single_weights=True)
    costs = SparseCost(groups, prunable_weights(problem.graph))
    keep = torch.ones(0, dtype=torch.bool)
    check_reachable(targets, groups, lambda resource: costs.smallest(keep, resource.unit))
    return Limits.of(groups, targets)
