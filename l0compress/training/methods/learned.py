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

from l0compress.errors import InputError, PlanError
from l0compress.gates.attach import GatedNetwork, attach, fold, gate
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.training.budget import Budget, FixedPenalty, Penalty
from l0compress.training.course import Course
from l0compress.training.descent import Descent
from l0compress.training.events import DECIDED, ProgressEvent
from l0compress.training.goals import Criterion, Goal
from l0compress.training.harden import harden
from l0compress.training.mending import mender
from l0compress.training.methods.base import Method
from l0compress.training.methods.fisher import Fisher
from l0compress.training.methods.start import CENTRE, SPREAD, on_their_sides, ordered_log_alpha
from l0compress.training.multiplier import AscentSettings
from l0compress.training.narrowing import Narrowed
from l0compress.training.phases import Gated, evaluate_on, train_gates
from l0compress.training.results import Hardened, Run
from l0compress.training.snapshot import GATES, Snapshot, prefixed
from l0compress.training.sparse_harden import whole_masks

_START, _PLAN, _STATE = "start", "score.plan", "score.state"


class LearnedGates(Method):
    """Learn which moves or single weights stay, in the first part of the epochs.

    In few steps gates cannot find an order by themselves, so that they start from what a score knows: on a network that
    is cut already to the step before the budget, in the order of its scores. In many they start open on all of it. The
    decision of :class:`~l0compress.training.methods.fisher.Fisher` without training takes their place where it does
    better on the validation part.
    """

    def __init__(self, graph: CapturedGraph, course: Course, goal: Goal) -> None:
        scored = course.settings.granularity == "structured" and not isinstance(goal, Criterion)
        if course.settings.gated_epochs == 0 and not scored:
            raise InputError(
                "In 0 epochs gates learn nothing, and no score stands in for them on single weights or under a fixed "
                "penalty. Nothing was changed. Say --epochs 2 or more, or --method magnitude for single weights."
            )
        self.gated = gated_for(graph, course)
        self.groups = self.gated.groups
        self.budget = penalty_for(self.gated, goal, course)
        self.unit = self.budget.unit
        self.fisher = None if isinstance(goal, Criterion) or not scored else Fisher.on(self.groups, goal)

    def decide(self, run: Run) -> Hardened:
        if self.fisher is not None and run.course.settings.gated_epochs == 0:
            return self.fisher.decide(run)
        if self.fisher is None:
            trained = train_gates(run.course, self.gated, self.budget, run.journal)
            return harden_gates(Narrowed.whole(self.groups), trained, self.budget)
        return self._from_scores(self.fisher, run)

    def _from_scores(self, fisher: Fisher, run: Run) -> Hardened:
        """Learn, and go on with the score's own decision where that one does better."""
        resumed = run.journal.start_of(GATES)
        begun = self._begun(fisher, run) if resumed is None else self._resumed(resumed)
        scored = begun.scored
        run.journal.carried.update({_START: begun.start.plan.keep, **prefixed(_PLAN, scored.plan.tensors())})
        run.journal.carried.update(prefixed(_STATE, scored.graph.state()))
        gated, budget = self.gated, self.budget
        if not run.course.settings.gates.are_many(run.course.gated_steps):
            gated = _gated(begun, run.course)
            budget = Budget.at(gated, fisher.goal, ascent=ascent_of(run.course))
        learned = harden_gates(begun.start, train_gates(run.course, gated, budget, run.journal), budget)
        return better(run, {"gates": learned, "gates, repaired": mended(run, learned), "score": scored})

    def _begun(self, fisher: Fisher, run: Run) -> _Begun:
        course, descent = run.course, fisher.descent(run)
        # As a resumed run has it, to the bit.
        scored = Hardened.of(descent.end.plan, descent.end.graph.state(), mended=True)
        if course.settings.gates.are_many(course.gated_steps):
            return _Begun(Narrowed.whole(self.groups), None, scored)
        return _Begun(*_in_one_cut(descent, self.groups), scored)

    def _resumed(self, stopped: Snapshot) -> _Begun:
        if _START not in stopped.tensors:
            raise PlanError(
                "The snapshot is of an earlier version, whose gates began otherwise. Nothing was changed. Resume the "
                "run with that version of l0compress, or start it again."
            )
        plan = KeepPlan.from_tensors(self.groups, stopped.under(_PLAN))
        scored = Hardened.of(plan, stopped.under(_STATE), mended=True)
        return _Begun(Narrowed.whole(self.groups).cut_to(stopped.tensors[_START]), None, scored)


@dataclass(frozen=True, eq=False)
class _Begun:
    """What gates are put on, where they start, None where nothing says so, and the score's own decision."""

    start: Narrowed
    log_alpha: Tensor | None
    scored: Hardened


def _gated(begun: _Begun, course: Course) -> GatedNetwork:
    """Gates on what the last step of the score's descent chooses from, beginning in the score's order."""
    gates = HardConcrete(begun.start.groups.num_moves, temperature=course.settings.gates.temperature)
    if begun.log_alpha is not None:
        with torch.no_grad():
            gates.log_alpha.copy_(begun.log_alpha)
    return attach(begun.start.groups, gates).train().to(course.settings.device)


def _in_one_cut(descent: Descent, groups: Groups) -> tuple[Narrowed, Tensor]:
    """The network before the last step as a resumed run makes it, by one cut of the dense one, and where gates start.

    They are in the order of the scores, each on the side that the last step decided for it.
    """
    before, keep = descent.before, descent.last.keep
    log_alpha = on_their_sides(ordered_log_alpha(descent.scores, int(keep.sum())), keep)
    start = Narrowed.whole(groups).cut_to(before.plan.keep, before.graph.state())
    of_dense = torch.full((groups.num_moves + 1,), CENTRE + SPREAD)
    of_dense[before.moves] = log_alpha
    of_dense[-1] = CENTRE + SPREAD
    return start, of_dense[start.moves]


def gated_for(graph: CapturedGraph, course: Course) -> GatedNetwork:
    """The network with gates that all start alike, but for the order that magnitudes give to single weights."""
    settings = course.settings
    gated = gate(
        graph,
        granularity=settings.granularity,
        log_alpha=settings.gates.log_alpha,
        magnitude_slope=settings.gates.slope_for(max(course.gated_steps, 1)),
        temperature=settings.gates.temperature,
    )
    return gated.to(settings.device)


def penalty_for(gated: GatedNetwork, goal: Goal, course: Course) -> Penalty:
    """What gates are trained under to reach ``goal``."""
    if isinstance(goal, Criterion):
        return FixedPenalty(gated, goal.multiplier(len(course.data.train)))
    ramp_steps = round(course.gated_steps * course.settings.gates.ramp_share)
    return Budget(gated, goal, ramp_steps=ramp_steps, ascent=ascent_of(course))


def ascent_of(course: Course) -> AscentSettings:
    """How fast the multiplier moves in a phase of this length."""
    return AscentSettings(learning_rate=course.settings.gates.multiplier_rate_for(max(course.gated_steps, 1)))


def mended(run: Run, decided: Hardened) -> Hardened:
    """The same decision with weights that make up for what it drops."""
    repaired = mender(run.course, run.graph)(decided.plan, decided.graph)
    return Hardened(decided.plan, repaired, mended=True)


def better(run: Run, candidates: Mapping[str, Hardened]) -> Hardened:
    """The candidate that does best on the validation part, by metric and then by loss; it is told which and how."""
    course = run.course
    found = {
        name: evaluate_on(course, candidate.graph.module().to(course.settings.device))
        for name, candidate in candidates.items()
    }
    sign = 1 if course.objective.higher_is_better else -1

    def rank(name: str) -> tuple[float, float]:
        metric, loss = sign * found[name].metric, -found[name].loss
        return (-math.inf if math.isnan(metric) else metric, -math.inf if math.isnan(loss) else loss)

    best = max(found, key=rank)
    told = "; ".join(f"{name}: {one.metric:.4f} (loss {one.loss:.4f})" for name, one in found.items())
    message = f"Goes on with {best!r}. Validation {course.objective.metric_name} of what was to choose from: {told}."
    run.journal.on_event(ProgressEvent(DECIDED, 0, course.settings.epochs, epoch_done=False, message=message))
    return candidates[best]


def harden_gates(start: Narrowed, trained: Gated, budget: Penalty) -> Hardened:
    """Decide on the network that is left, fold its gates, and carry both back to the dense graph's groups."""
    plan = harden(trained.network, budget, allow_untrained=True)
    small = shrink(fold(trained.network, plan), plan)
    keep = torch.zeros(start.groups.num_moves, dtype=torch.bool)
    keep[trained.moves[plan.keep]] = True
    whole = start.lifted(KeepPlan.from_keep(start.groups, keep))
    return Hardened(whole.with_masks(whole_masks(whole, plan.small_masks())), small)
