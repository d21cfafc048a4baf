"""Methods that decide by a score, before any training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

from torch import Tensor

from l0compress.data.batches import Batch
from l0compress.errors import NOTHING_CHANGED, DivergedError
from l0compress.graph.groups import Groups, find_groups
from l0compress.training.decision import Decision
from l0compress.training.descent import Descent, OnStep, descend
from l0compress.training.events import CUT, ProgressEvent, densities_told
from l0compress.training.goals import Goal, budgets_of
from l0compress.training.limits import Limits
from l0compress.training.methods.base import Method, check_structured
from l0compress.training.problem import Problem
from l0compress.training.reachable import check_reachable
from l0compress.training.samples import num_samples_for, repair_on_samples, take_samples
from l0compress.training.state import TrainingState
from l0compress.training.targets import AbsoluteTarget

# Few samples a probe, since every probe is one random draw.
PROBE = 4


class OneShot(Method):
    """Score, cut and repair in steps down to the budget; all epochs are left for the small model."""

    name: ClassVar[str]

    def __init__(self, problem: Problem, goal: Goal) -> None:
        check_structured(self.name, problem)
        self._begin_(find_groups(problem.graph), budgets_of(goal))
        check_reachable(self.targets, self.groups)

    @classmethod
    def on(cls, groups: Groups, targets: tuple[AbsoluteTarget, ...]) -> Self:
        """The method on groups that are known already, for budgets that were found to be within reach."""
        method = cls.__new__(cls)
        method._begin_(groups, targets)
        return method

    def _begin_(self, groups: Groups, targets: tuple[AbsoluteTarget, ...]) -> None:
        self.groups, self.targets, self.limits = groups, targets, Limits.of(groups, targets)
        self.resources = self.limits.resources

    @abstractmethod
    def score(self, limits: Limits, problem: Problem, samples: tuple[Batch, ...]) -> Tensor:
        """float ``(num_moves,)`` of the groups of a step's limits: the lowest goes first."""

    def descent(self, state: TrainingState) -> Descent:
        """The steps down to the budget, each reported before it is taken."""
        problem = state.problem
        samples = take_samples(problem, num_samples_for(problem.graph), batch_size=PROBE)
        return descend(
            self.limits,
            lambda limits: finite(self.score(limits, problem, samples)),
            repair_on_samples(problem),
            on_step=told_steps(state, self.targets),
        )

    def decide(self, state: TrainingState) -> Decision:
        return self.decision(self.descent(state))

    @staticmethod
    def decision(descent: Descent) -> Decision:
        """What a descent ends in."""
        return Decision.of(descent.end.plan, descent.end.graph.state(), repaired=True)


def told_steps(state: TrainingState, targets: Sequence[AbsoluteTarget]) -> OnStep:
    """Report every step down to the targets before it is taken."""

    def report(number: int, steps: int, left: tuple[int, ...]) -> None:
        event = ProgressEvent(CUT, 0, state.problem.settings.epochs, epoch_done=False, step=number, steps=steps)
        densities = {target.unit: used / target.dense for target, used in zip(targets, left, strict=True)}
        state.reporter.on_event(replace(event, **densities_told(densities)))

    return report


def finite(scores: Tensor) -> Tensor:
    """Return scores as they are.

    Raises:
        DivergedError: they are not finite.
    """
    if not bool(scores.isfinite().all()):
        raise DivergedError(
            "The model's output on the training part, or its gradient, is not finite, so nothing can be scored.",
            fix="Look for values in data or weights that are not finite.",
            assurance=NOTHING_CHANGED,
        )
    return scores
