"""What every method has in common: it is made for one problem and goal, and returns a decision."""

from __future__ import annotations

from abc import ABC, abstractmethod

from l0compress.errors import InputError
from l0compress.graph.groups import Groups
from l0compress.graph.groups.resource import Resource
from l0compress.training.decision import Decision
from l0compress.training.goals import Goal
from l0compress.training.problem import Problem
from l0compress.training.state import TrainingState


class Method(ABC):
    """What decides which moves and weights of the dense graph stay. Making one refuses what it cannot do.

    Attributes:
        groups: those of the dense graph, which the decision is on.
        resources: what is used of each of them is reported; those that the goal is on.
        num_steps: steps that it trains for, from the run's first on.
    """

    groups: Groups
    resources: tuple[Resource, ...]
    num_steps: int = 0

    @abstractmethod
    def __init__(self, problem: Problem, goal: Goal) -> None:
        """Raises:
        NothingToPruneError: no channel can be removed.
        TargetError: the goal is out of reach, or not of a kind that the method can have.
        InputError: the method cannot decide at this granularity.
        """

    @abstractmethod
    def decide(self, state: TrainingState) -> Decision:
        """The decision within the budget, on :attr:`groups`."""


def check_structured(name: str, problem: Problem) -> None:
    """Refuse single weights for a method that cannot decide on them.

    Raises:
        InputError: that is what the problem asks for.
    """
    if problem.settings.granularity != "structured":
        raise InputError(
            f"Method {name!r} decides on channels, heads and units, not on single weights.",
            fix="Pass --granularity structured, or --method l0 or magnitude for single weights.",
        )
