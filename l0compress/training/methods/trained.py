"""Methods that train the network towards sparsity in the first part of the epochs, and then round scores to the budget.

A method of this kind is a name and a :class:`~l0compress.training.methods.pressure.Pressure`; phase, rounding, repair
and what is refused are here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from l0compress.errors import InputError
from l0compress.gates.attach import GatedNetwork, attach, fold
from l0compress.gates.weight_gates import WeightGate
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import find_groups, groups_without_moves
from l0compress.graph.groups.weights import prunable_weights
from l0compress.graph.nodes.network import attribute
from l0compress.training.closing import closed
from l0compress.training.decision import Decision
from l0compress.training.descent import GROUP_STEP, held_back
from l0compress.training.goals import Goal, budgets_of
from l0compress.training.harden import decide
from l0compress.training.limits import Limits
from l0compress.training.methods.base import Method
from l0compress.training.methods.factors import Factors, WeightMask
from l0compress.training.methods.learned import better
from l0compress.training.methods.one_shot_weights import weight_limits
from l0compress.training.methods.pressure import MOVES, Pressed, Pressure
from l0compress.training.problem import Problem
from l0compress.training.reachable import check_reachable
from l0compress.training.regularisers import regularise_
from l0compress.training.rounding import round_weights
from l0compress.training.samples import repair_on_samples
from l0compress.training.sparsify_phase import SparsifyPhase
from l0compress.training.state import TrainingState, train_


class Trained(Method):
    """Train under a pressure for as many steps as gates are learned in, then decide by what it scores."""

    name: ClassVar[str]
    pressure: ClassVar[type[Pressure]]
    limits: Limits

    def __init__(self, problem: Problem, goal: Goal) -> None:
        if problem.gated_steps == 0:
            raise InputError(
                f"In 0 steps method {self.name!r} trains nothing, so it has nothing to decide by.",
                fix="Pass more --epochs, or a method that decides before training, such as --method magnitude.",
            )
        self.num_steps = problem.gated_steps
        self.limits = self._limits(problem, goal)
        self.groups = self.limits.groups
        self.resources = self.limits.resources

    def decide(self, state: TrainingState) -> Decision:
        network = self._network(state.problem).train().to(state.problem.device)
        regularise_(network.network, network.groups.graph, state.problem.settings)
        pressure = self.pressure(Pressed(network, self.limits, state.problem))
        train_(state, SparsifyPhase(state.problem, pressure))
        return self._rounded(pressure, state)

    @abstractmethod
    def _limits(self, problem: Problem, goal: Goal) -> Limits:
        """What the goal allows; raises as the method does."""

    @abstractmethod
    def _network(self, problem: Problem) -> GatedNetwork:
        """The network that is trained."""

    @abstractmethod
    def _rounded(self, pressure: Pressure, state: TrainingState) -> Decision:
        """The decision that the scores come to within the budget."""


class TrainedMoves(Trained):
    """Channels, heads and units: factors stand where gates would."""

    def _limits(self, problem: Problem, goal: Goal) -> Limits:
        if problem.settings.granularity == "weights":
            raise InputError(
                f"Method {self.name!r} decides on channels, heads and units, not on single weights.",
                fix="Pass --granularity structured, or --method l0 or magnitude for single weights.",
            )
        _check_not_both(self.name, problem)
        groups, targets = find_groups(problem.graph), budgets_of(goal)
        check_reachable(targets, groups)
        return Limits.of(groups, targets)

    def _network(self, problem: Problem) -> GatedNetwork:
        del problem
        return attach(self.groups, Factors(self.groups.num_moves))

    def _rounded(self, pressure: Pressure, state: TrainingState) -> Decision:
        network, graph = pressure.network, self.groups.graph
        scores = held_back(self.groups, pressure.scores()[MOVES], GROUP_STEP)
        plan = closed(lambda within: decide(within, scores), lambda plan: shrink(graph, plan), self.limits)
        return _or_repaired(Decision(plan, shrink(fold(network, plan), plan)), state)


class TrainedWeights(Trained):
    """Single weights: each weight that may be sparse has a mask."""

    def _limits(self, problem: Problem, goal: Goal) -> Limits:
        _check_not_both(self.name, problem)
        return weight_limits(groups_without_moves(problem.graph), problem, goal)

    def _network(self, problem: Problem) -> GatedNetwork:
        module = problem.graph.graph_module
        masks: dict[str, WeightGate] = {
            weight.name: WeightMask(tuple(attribute(module, weight.name).shape))
            for weight in prunable_weights(problem.graph)
        }
        return attach(groups_without_moves(problem.graph), Factors(0), masks)

    def _rounded(self, pressure: Pressure, state: TrainingState) -> Decision:
        graph = pressure.network.graph()
        masks = round_weights(graph, _on_cpu(pressure.scores()), self.limits.by_unit)
        return _or_repaired(Decision.of(KeepPlan.everything(self.groups).with_masks(masks), graph.state()), state)


def _or_repaired(trained: Decision, state: TrainingState) -> Decision:
    """The decision as it was trained, or repaired, whichever does better in validation."""
    repaired = repair_on_samples(state.problem)(trained.plan, trained.small)
    return better(state, {"as trained": trained, "repaired": Decision(trained.plan, repaired, repaired=True)})


def _on_cpu(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.detach().cpu() for name, values in scores.items()}


def _check_not_both(name: str, problem: Problem) -> None:
    if problem.settings.granularity == "both":
        raise InputError(
            f"Method {name!r} decides on channels or on single weights, not on 'both'.",
            fix="Pass --granularity structured or weights, or --method l0.",
        )
