"""Methods that search for the density of every group, by what the validation part says of the repaired network.

requires: a way to propose densities, given all that were tried; what it says may depend on nothing else.
ensures:  the best of all trials. Where a run is stopped, it goes on with the trials that were done.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups, find_groups
from l0compress.training.closing import closed
from l0compress.training.decision import Decision
from l0compress.training.descent import GROUP_STEP, held_back
from l0compress.training.events import ProgressEvent, densities_told
from l0compress.training.goals import Goal, budgets_of
from l0compress.training.harden import decide
from l0compress.training.limits import Limits
from l0compress.training.methods.base import Method, check_structured
from l0compress.training.methods.fisher import fisher_information, joint_marginal_cost
from l0compress.training.methods.one_shot import PROBE
from l0compress.training.narrowing import Refine
from l0compress.training.problem import Problem
from l0compress.training.reachable import check_reachable
from l0compress.training.samples import num_samples_for, repair_on_samples, take_samples
from l0compress.training.stage import Stage
from l0compress.training.state import TrainingState
from l0compress.training.state_dicts import SEARCH, StateDict

# Densities are looked for above this; what counts is how they stand to each other.
LEAST = 0.05


@dataclass(frozen=True, eq=False)
class Trials:
    """What was tried.

    Attributes:
        densities: float64 (trials, groups), in [LEAST, 1].
        losses: float64 (trials,): what the validation part said; infinite where it was not finite.
    """

    densities: Tensor
    losses: Tensor

    @classmethod
    def none(cls, num_groups: int) -> Trials:
        """No trial yet."""
        return cls(torch.zeros(0, num_groups, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))

    def __len__(self) -> int:
        """How many there were."""
        return len(self.losses)

    def with_one(self, densities: Tensor, loss: float) -> Trials:
        """All of them and one more."""
        value = torch.tensor([loss if math.isfinite(loss) else math.inf], dtype=torch.float64)
        return Trials(torch.cat([self.densities, densities.unsqueeze(0)]), torch.cat([self.losses, value]))


class Proposer(ABC):
    """Proposes densities; all that it knows it knows from the trials, so that there is no other state."""

    @abstractmethod
    def propose(self, trials: Trials, *, seed: int) -> Tensor:
        """float64 ``(groups,)``, in [LEAST, 1]; there was at least one trial. The global random state stays."""


def density_scores(groups: Groups, order: Tensor, densities: Tensor) -> Tensor:
    """float64 ``(num_moves,)``: scores that, rounded to any budget, leave of every group a share like its density.

    Of a group of ``n`` moves the ``j``-th best gets ``density * n / j``: above any border ``1 / s`` there are then
    ``s * density * n`` of them, so that the rounding itself scales all densities alike until the budget is met.

    Args:
        order: (num_moves,): the highest of a group stay.

    >>> from l0compress.graph import capture, find_groups
    >>> groups = find_groups(capture(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.zeros(2, 2),)))
    >>> [(group.kind, list(group.moves)) for group in groups.groups]
    [('channels', [0, 1, 2, 3]), ('inputs', [4, 5])]
    >>> order = torch.tensor([1.0, 4.0, 3.0, 2.0, 9.0, 8.0])
    >>> density_scores(groups, order, torch.tensor([0.5, 1.0])).tolist()
    [0.5, 2.0, 1.0, 0.6666666666666666, 2.0, 1.0]
    """
    scores = torch.zeros(groups.num_moves, dtype=torch.float64)
    for density, group in zip(densities.tolist(), groups.groups, strict=True):
        moves = torch.tensor(list(group.moves))
        best = moves[order[moves].argsort(descending=True, stable=True)]
        scores[best] = density * len(moves) / torch.arange(1, len(moves) + 1, dtype=torch.float64)
    return scores


def densities_of(groups: Groups, keep: Tensor) -> Tensor:
    """float64 ``(groups,)``: the share that stays of each group, at least LEAST."""
    shares = [float(keep[list(group.moves)].double().mean()) for group in groups.groups]
    return torch.tensor(shares, dtype=torch.float64).clamp(LEAST, 1.0)


class DensitySearch(Method):
    """Try densities, each as the small network that they leave, repaired; the order within a group is Fisher's."""

    name: ClassVar[str]

    def __init__(self, problem: Problem, goal: Goal) -> None:
        check_structured(self.name, problem)
        targets = budgets_of(goal)
        self.groups, self.proposer = find_groups(problem.graph), self.make_proposer()
        check_reachable(targets, self.groups)
        self.limits = Limits.of(self.groups, targets)
        self.resources = self.limits.resources

    @abstractmethod
    def make_proposer(self) -> Proposer:
        """What proposes densities; raises where it cannot be had here."""

    def decide(self, state: TrainingState) -> Decision:
        problem = state.problem
        trial = _Trial.of(self.limits, problem)
        stage = _SearchStage(problem, Trials.none(len(self.groups.groups)))
        state.enter_(stage)
        while len(stage.trials) < problem.settings.trials:
            first = len(stage.trials) == 0
            densities = trial.start if first else self.proposer.propose(stage.trials, seed=problem.settings.seed)
            loss = problem.evaluate(trial.decision(densities).small.module().to(problem.device)).loss
            stage.trials = stage.trials.with_one(densities, loss)
            self._report(state, stage.trials)
        return trial.decision(stage.trials.densities[int(stage.trials.losses.argmin())])

    def _report(self, state: TrainingState, trials: Trials) -> None:
        settings, best = state.problem.settings, float(trials.losses.min())
        shares = {bound.resource.unit: bound.most / bound.resource.dense for bound in self.limits.bounds}

        def event() -> ProgressEvent:
            counts = {"step": len(trials), "steps": settings.trials}
            return ProgressEvent(
                SEARCH, 0, settings.epochs, epoch_done=False, loss=best, **counts, **densities_told(shares)
            )

        state.reporter.step_(state, event)


class _SearchStage(Stage):
    """The trials so far; no epoch is spent on them."""

    name = SEARCH
    steps = range(0)

    def __init__(self, problem: Problem, trials: Trials) -> None:
        self._network, self.trials = problem.graph.module(), trials

    @property
    def network(self) -> nn.Module:
        return self._network

    def state_dict(self) -> StateDict:
        return {"trials.densities": self.trials.densities, "trials.losses": self.trials.losses}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.trials = Trials(state_dict["trials.densities"], state_dict["trials.losses"])


@dataclass(frozen=True, eq=False)
class _Trial:
    """What a choice of densities leads to.

    Attributes:
        repair: weights for a small graph.
        order: of moves within their groups, the highest stay.
        start: the densities that the same scores over costs lead to by themselves.
    """

    limits: Limits
    repair: Refine
    order: Tensor
    start: Tensor

    @classmethod
    def of(cls, limits: Limits, problem: Problem) -> _Trial:
        settings, groups = problem.settings, limits.groups
        samples = take_samples(problem, num_samples_for(problem.graph), batch_size=PROBE)
        order = fisher_information(groups, samples, problem.objective, device=settings.device, seed=settings.seed)
        scores = held_back(groups, order / joint_marginal_cost(limits, order), GROUP_STEP)
        return cls(limits, repair_on_samples(problem), order, densities_of(groups, decide(limits, scores).keep))

    def decision(self, densities: Tensor) -> Decision:
        """The network within the limits that densities leave, repaired."""
        plan = self._plan(densities)
        small = self.repair(plan, shrink(self.limits.groups.graph, plan))
        return Decision(plan, small, repaired=True)

    def _plan(self, densities: Tensor) -> KeepPlan:
        graph, scores = self.limits.groups.graph, density_scores(self.limits.groups, self.order, densities)
        return closed(lambda within: decide(within, scores), lambda plan: shrink(graph, plan), self.limits)
