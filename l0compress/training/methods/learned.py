"""Learned gates: the method of this package. Gates and weights are trained together under the budget.

Source: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018, with the
budget as a constraint instead of a penalty, see :mod:`l0compress.training.budget`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.errors import InputError, PlanError, TargetError
from l0compress.gates.attach import GatedNetwork, attach, gate
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups
from l0compress.training.budget import Budget
from l0compress.training.decision import Decision
from l0compress.training.descent import Descent
from l0compress.training.events import DECIDED, ProgressEvent
from l0compress.training.gate_phase import GatePhase
from l0compress.training.goals import Criterion, Goal, parts_of
from l0compress.training.harden import decide_by_gates
from l0compress.training.methods.base import Method
from l0compress.training.methods.fisher import Fisher
from l0compress.training.methods.fisher_weights import FisherWeights
from l0compress.training.methods.one_shot_weights import OneShotWeights
from l0compress.training.methods.start import CENTRE, SPREAD, on_their_sides, ordered_log_alpha
from l0compress.training.methods.weight_magnitude import WeightMagnitude
from l0compress.training.multiplier import AscentSettings
from l0compress.training.narrowing import Narrowed
from l0compress.training.penalty import FixedPenalty, Penalty
from l0compress.training.problem import Problem
from l0compress.training.recalibrate import batches_at, recalibrate
from l0compress.training.samples import repair_on_samples
from l0compress.training.sparse_harden import whole_masks
from l0compress.training.state import TrainingState, train_
from l0compress.training.state_dicts import GATES, StateDict, prefixed, under

# What stands beside gates on single weights, and why there may be nothing of the kind.
_OF_WEIGHTS = {"fisher": FisherWeights, "magnitude": WeightMagnitude}
_UNSCORED = (
    ("under a fixed penalty", "--target in place of the penalty"),
    ("where channels have to go with the weights to fit the target", "a larger --target"),
)
_START, _PLAN, _STATE = "start", "score.plan", "score.state"


class LearnedGates(Method):
    """Learn which moves or single weights stay, in the first part of the epochs.

    In few steps gates on moves cannot find an order by themselves, so that they start from what a score knows: on a
    network that is cut already to the step before the budget, in the order of its scores. In many they start open on
    all of it. The decision of :class:`~l0compress.training.methods.fisher.Fisher` without training takes their place
    where it does better on the validation part; for single weights, that of the better of two scores.
    """

    def __init__(self, problem: Problem, goal: Goal) -> None:
        has_budget = not isinstance(goal, Criterion)
        scored = has_budget and problem.settings.granularity == "structured"
        self.of_weights = _scores_of_weights(problem, goal)
        if problem.gated_steps == 0 and not (scored or self.of_weights):
            what, way = _UNSCORED[has_budget]
            raise InputError(
                f"In 0 steps gates learn nothing, and no score can replace them {what}.",
                fix=f"Pass more --epochs, or {way}.",
            )
        self._in_order = scored and not problem.settings.gates.are_many(problem.gated_steps)
        self.num_steps = _steps_in_order(problem) if self._in_order else problem.gated_steps
        self.gated = gated_for(problem)
        self.groups = self.gated.groups
        self.budget = penalty_for(self.gated, goal, problem)
        self.resources = self.budget.resources
        self.fisher = Fisher.on(self.groups, parts_of(goal)) if scored else None

    def decide(self, state: TrainingState) -> Decision:
        if self.fisher is None:
            return self._from_whole(state)
        if state.problem.gated_steps == 0:
            return self.fisher.decide(state)
        return self._from_scores(self.fisher, state)

    def _from_whole(self, state: TrainingState) -> Decision:
        """Learn on the whole network; of single weights go on with what a score says where that does better."""
        problem, candidates = state.problem, {}
        if problem.gated_steps:
            learned = self._learn(state, Narrowed.whole(self.groups), self.gated, self.budget)
            if isinstance(self.budget, FixedPenalty):
                return learned
            measured = recalibrate(learned.small, batches_at(problem, self.num_steps), device=problem.device)
            repaired = repair_on_samples(problem)(learned.plan, learned.small)
            candidates["gates"] = Decision(learned.plan, measured, repaired=True)
            candidates["gates, repaired"] = Decision(learned.plan, repaired, repaired=True)
        return better(state, candidates | {name: score.decide(state) for name, score in self.of_weights.items()})

    def _from_scores(self, fisher: Fisher, state: TrainingState) -> Decision:
        """Learn, and go on with the score's own decision where that one does better."""
        problem, resumed = state.problem, state.resumed_in(GATES)
        begun = self._begun(fisher, state) if resumed is None else self._resumed(resumed)
        scored = begun.scored
        state.decided = {
            _START: begun.start.plan.keep,
            **prefixed(_PLAN, scored.plan.tensors()),
            **prefixed(_STATE, scored.small.state()),
        }
        gated, budget = self.gated, self.budget
        if self._in_order:
            problem.held(self.gated)  # has no more use for its weights, and gives them up where they are divided
            gated = _gated(begun, problem)
            limits = begun.start.limits(fisher.limits)
            budget = Budget.at(gated, fisher.targets, limits, ascent=ascent_of(problem, self.num_steps))
        learned = self._learn(state, begun.start, gated, budget)
        repaired = repair_on_samples(problem)(learned.plan, learned.small)
        candidates = {"gates": learned, "gates, repaired": Decision(learned.plan, repaired, True), "score": scored}
        return better(state, candidates)

    def _learn(self, state: TrainingState, start: Narrowed, gated: GatedNetwork, budget: Penalty) -> Decision:
        phase = GatePhase(state.problem, gated, budget, num_steps=self.num_steps)
        train_(state, phase)
        return lifted(start, phase.moves, decide_by_gates(phase.whole_network(), budget))

    def _begun(self, fisher: Fisher, state: TrainingState) -> _Begun:
        descent = fisher.descent(state)
        scored = fisher.decision(descent)
        if not self._in_order:
            return _Begun(Narrowed.whole(self.groups), None, scored)
        return _Begun(*_in_one_cut(descent, self.groups), scored)

    def _resumed(self, stopped: StateDict) -> _Begun:
        if _START not in stopped:
            raise PlanError(
                "The checkpoint is from an earlier version, whose gates started differently.",
                fix="Resume the run with that version of l0compress, or start it again.",
            )
        plan = KeepPlan.from_tensors(self.groups, under(_PLAN, stopped))
        scored = Decision.of(plan, under(_STATE, stopped), repaired=True)
        return _Begun(Narrowed.of(Decision.of(KeepPlan(self.groups, stopped[_START]))), None, scored)


def _scores_of_weights(problem: Problem, goal: Goal) -> dict[str, OneShotWeights]:
    """What may take the place of gates on single weights; nothing where only closed channels reach the goal."""
    granularity = problem.settings.granularity
    if isinstance(goal, Criterion) or granularity == "structured":
        return {}
    try:
        return {name: score(problem, goal) for name, score in _OF_WEIGHTS.items()}
    except TargetError:
        if granularity == "both":
            return {}
        raise


@dataclass(frozen=True, eq=False)
class _Begun:
    """What gates are put on, where they start, None where nothing says so, and the score's own decision."""

    start: Narrowed
    log_alpha: Tensor | None
    scored: Decision


def _gated(begun: _Begun, problem: Problem) -> GatedNetwork:
    """Gates on what the last step of the score's descent chooses from, beginning in the score's order."""
    gates = HardConcrete(begun.start.groups.num_moves, temperature=problem.settings.gates.temperature)
    if begun.log_alpha is not None:
        with torch.no_grad():
            gates.log_alpha.copy_(begun.log_alpha)
    return attach(begun.start.groups, gates).train().to(problem.device)


def _in_one_cut(descent: Descent, groups: Groups) -> tuple[Narrowed, Tensor]:
    """The network before the last step as a resumed run makes it, by one cut of the dense one, and where gates start.

    They are in the order of the scores, each on the side that the last step decided for it.
    """
    before, keep = descent.before, descent.last.keep
    log_alpha = on_their_sides(ordered_log_alpha(descent.scores, int(keep.sum())), keep)
    start = Narrowed.of(Decision.of(before.plan, before.graph.state()))
    of_dense = torch.full((groups.num_moves + 1,), CENTRE + SPREAD)
    of_dense[before.moves] = log_alpha
    of_dense[-1] = CENTRE + SPREAD
    return start, of_dense[start.moves]


def gated_for(problem: Problem) -> GatedNetwork:
    """The network with gates that all start alike, but for the order that magnitudes give to single weights."""
    settings = problem.settings
    gated = gate(
        problem.graph,
        granularity=settings.granularity,
        log_alpha=settings.gates.log_alpha,
        magnitude_slope=settings.gates.slope_for(max(problem.gated_steps, 1)),
        temperature=settings.gates.temperature,
    )
    return gated.to(settings.device)


def penalty_for(gated: GatedNetwork, goal: Goal, problem: Problem) -> Penalty:
    """What gates are trained under to reach ``goal``."""
    if isinstance(goal, Criterion):
        return FixedPenalty(gated, goal.multiplier(len(problem.data.train)))
    ramp_steps = round(problem.gated_steps * problem.settings.gates.ramp_share)
    return Budget(gated, goal, ramp_steps=ramp_steps, ascent=ascent_of(problem, problem.gated_steps))


def _steps_in_order(problem: Problem) -> int:
    run_steps = problem.settings.epochs * problem.steps_per_epoch
    return problem.settings.gates.steps_in_order(problem.gated_steps, run_steps)


def ascent_of(problem: Problem, num_steps: int) -> AscentSettings:
    """How fast the multiplier moves in a phase of this length."""
    return AscentSettings(learning_rate=problem.settings.gates.multiplier_rate_for(max(num_steps, 1)))


def better(state: TrainingState, candidates: Mapping[str, Decision]) -> Decision:
    """The candidate that does best on the validation part, by metric and then by loss; which and how is reported."""
    problem = state.problem
    found = {
        name: problem.evaluate(candidate.small.module().to(problem.device)) for name, candidate in candidates.items()
    }
    sign = 1 if problem.objective.higher_is_better else -1

    def rank(name: str) -> tuple[float, float]:
        metric, loss = sign * found[name].metric, -found[name].loss
        return (-math.inf if math.isnan(metric) else metric, -math.inf if math.isnan(loss) else loss)

    best = max(found, key=rank)
    scores = "; ".join(f"{name}: {one.metric:.4f} (loss {one.loss:.4f})" for name, one in found.items())
    message = f"Continues with {best!r}. Validation {problem.objective.metric_name} of the candidates: {scores}."
    event = ProgressEvent(DECIDED, 0, problem.settings.epochs, epoch_done=False, message=message)
    state.reporter.on_event(event)
    return candidates[best]


def lifted(start: Narrowed, moves: Tensor, decision: Decision) -> Decision:
    """A decision on what is left of ``start``'s network after removals, on the dense graph's groups.

    Args:
        moves: int64, for each move that ``decision`` is on, that of ``start.groups`` which it was.
    """
    plan = decision.plan
    keep = torch.zeros(start.groups.num_moves, dtype=torch.bool)
    keep[moves[plan.keep]] = True
    whole = start.lifted(KeepPlan.from_keep(start.groups, keep))
    whole = whole.with_masks(whole_masks(whole, plan.small_masks()))
    if plan.groups is whole.groups:
        return Decision(whole, decision.small)
    return Decision.of(whole, decision.small.state())
