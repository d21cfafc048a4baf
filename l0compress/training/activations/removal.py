"""After training: units that never fire leave the small model, by the same decision, surgery and proof as others.

requires: a plan, and small graphs with trained weights that it leaves.
ensures:  a plan that drops no less, and what it leaves of these graphs. What a bound proves silent goes; what is silent
          on the training part goes too, unless the validation part says otherwise. A run says how many went and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from l0compress.data import Batch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan, unshrink_state
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.graph.nodes.describe import counted
from l0compress.training.activations.silent import (
    Firing,
    firing_on,
    provably_firing,
    silent_moves,
    without_silent,
)
from l0compress.training.alignment import WIDTH_MULTIPLE, is_aligned_kind
from l0compress.training.decision import Decision
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import DECIDED, ProgressEvent
from l0compress.training.final_phase import as_measured
from l0compress.training.narrowing import Narrowed
from l0compress.training.problem import Problem
from l0compress.training.randomness import undisturbed
from l0compress.training.state import TrainingState

_BATCH = 256
# By so much, relatively, a validation result may differ for rounding alone.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SmallModel:
    """What training leaves of the dense one.

    Attributes:
        plan: what stays of the dense graph.
        best, last: the small graph with the best weights by validation, and with the last.
        best_evaluation, last_evaluation: their validation results.
    """

    plan: KeepPlan
    best: CapturedGraph
    last: CapturedGraph
    best_evaluation: Evaluation
    last_evaluation: Evaluation

    def under(self, plan: KeepPlan, problem: Problem) -> SmallModel:
        """What a plan leaves of it, measured anew where it drops more."""
        if bool((plan.keep == self.plan.keep).all()):
            return self
        best, last = (self._cut(small, plan) for small in (self.best, self.last))
        measured = (problem.evaluate(as_measured(small, problem.settings).to(problem.device)) for small in (best, last))
        return SmallModel(plan, best, last, *measured)

    def _cut(self, small: CapturedGraph, plan: KeepPlan) -> CapturedGraph:
        dense = self.plan.groups.graph
        return shrink(dense.with_state(unshrink_state(self.plan, small.state())), plan)


def without_silent_units(state: TrainingState, trained: SmallModel) -> SmallModel:
    """What is left without the units of the best small model that never fire; it is reported how many these were.

    Where single weights alone may go, every unit stays.
    """
    problem, narrowed = state.problem, Narrowed.of(Decision(trained.plan, trained.best))
    if not trained.plan.groups.num_moves:
        return trained
    proved = provably_firing(narrowed.groups)
    seen = _either(proved, _firing_in_training(narrowed.groups, problem))
    certain, likely = (_plan_without(narrowed, trained.plan, firing, first=proved) for firing in (proved, seen))
    chosen = trained.under(likely, problem)
    if _is_worse(chosen.best_evaluation, trained.best_evaluation, problem):
        _tell(state, _stay(trained, likely, certain, chosen))
        chosen = trained.under(certain, problem)
    _tell(state, _went(trained, chosen, certain, len(problem.data.train)))
    return chosen


def _plan_without(narrowed: Narrowed, plan: KeepPlan, firing: Firing, *, first: Firing) -> KeepPlan:
    """The plan without the units that are silent, and whole blocks of them where a convolution's width is one.

    Args:
        narrowed: what ``plan`` leaves.
        first: those that are silent by this go before others.
    """
    groups = narrowed.groups
    silent = silent_moves(groups, firing) & (narrowed.moves >= 0)
    before = silent_moves(groups, first)
    for group in groups.groups if groups.num_moves else ():
        found = [move for move in group.moves if silent[move]]
        found.sort(key=lambda move: not before[move])
        if is_aligned_kind(groups, group):
            silent[found[removable(len(group.moves), len(found)) :]] = False
    whole = narrowed.lifted(without_silent(groups, silent, firing))
    return whole.with_masks(plan.masks)


def removable(width: int, silent: int) -> int:
    """How many of the ``silent`` channels of a convolution leave a width that is no slower for being smaller.

    >>> removable(24, 11), removable(24, 5), removable(20, 5), removable(20, 2)
    (8, 0, 4, 2)
    """
    left = -(-(width - silent) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    return width - left if left <= width else silent


def _firing_in_training(groups: Groups, problem: Problem) -> Firing:
    with undisturbed(problem.data.train):
        return firing_on(groups, _each_once(problem), device=problem.device)


def _each_once(problem: Problem) -> Iterator[Batch]:
    """As many samples as the training part has, not augmented."""
    left = len(problem.data.train)
    for batch in problem.data.train.batches(_BATCH):
        yield batch
        left -= len(batch)
        if left <= 0:
            return


def _either(one: Firing, other: Firing) -> Firing:
    """What fires by both: what is silent by either never does."""
    return {number: fires & other[number] if number in other else fires for number, fires in one.items()}


def _is_worse(now: Evaluation, before: Evaluation, problem: Problem) -> bool:
    """Whether a validation result is worse by more than rounding."""
    sign = 1 if problem.objective.higher_is_better else -1
    return sign * (now.metric - before.metric) < -_ROUNDING * abs(before.metric)


def _num_dropped(before: KeepPlan, after: KeepPlan) -> int:
    return int(before.keep.sum()) - int(after.keep.sum())


def _went(trained: SmallModel, chosen: SmallModel, certain: KeepPlan, num_samples: int) -> str:
    count, proved = _num_dropped(trained.plan, chosen.plan), _num_dropped(trained.plan, certain)
    if not count:
        return "No unit is removed for never firing."
    before, after = trained.best_evaluation, chosen.best_evaluation
    return (
        f"Removed {counted(count, 'unit')} that never fired on the {num_samples:,} samples of the training part, "
        f"{proved:,} of which cannot on any input. Validation {after.metric_name}: {before.metric:.4f} before, "
        f"{after.metric:.4f} after."
    )


def _stay(trained: SmallModel, likely: KeepPlan, certain: KeepPlan, without: SmallModel) -> str:
    count = _num_dropped(certain, likely)
    before, after = trained.best_evaluation, without.best_evaluation
    stay = "stays: without it" if count == 1 else "stay: without them"
    return (
        f"{counted(count, 'unit')} that never fired on the training part may fire elsewhere, and {stay} validation "
        f"{after.metric_name} would be {after.metric:.4f}, not {before.metric:.4f}."
    )


def _tell(state: TrainingState, message: str) -> None:
    epochs = state.problem.settings.epochs
    state.reporter.on_event(ProgressEvent(DECIDED, epochs, epochs, epoch_done=False, message=message))
