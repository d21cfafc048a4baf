"""A family: one small model for each of several budgets, from a single run that goes down from one to the next.

requires: a captured graph of a trained model, data, budgets in one unit.
ensures:  for each budget, from the largest to the smallest, what a run of its own returns, on the dense graph.

Each leg of the way is a run like any other, but that it cuts what the leg before left: a decision, surgery's check, and
final epochs whose best state is the member. So the training of a member also serves all that are smaller, and a leg is
short because the network that it begins with is close to the one that it looks for. The dense model teaches in all of
them, and every member is lifted to the dense graph, whose weights in a member's places it replaces.

Source: gradual pruning as in Zhu and Gupta, "To prune, or not to prune", 2017, with the learning rate restarted after
every cut as in Renda, Frankle and Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from l0compress.data import Data
from l0compress.errors import InputError, PlanError
from l0compress.gates.defaults import Granularity
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups, find_groups, groups_without_moves
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.training.decision import Decision
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import CUT, OnEvent, ProgressEvent, ignore
from l0compress.training.family_targets import Leg, legs_of
from l0compress.training.finetune import check_rewritable, protected, solved
from l0compress.training.latency_targets import Measure, measured_time
from l0compress.training.methods import method_of
from l0compress.training.methods.learned import lifted
from l0compress.training.narrowing import Narrowed
from l0compress.training.problem import Problem, check_precision, problem_of
from l0compress.training.processes import processes_for
from l0compress.training.randomness import alike_, seeded
from l0compress.training.reading import Reading
from l0compress.training.reporting import Checkpoints, NoCheckpoints, Reporter
from l0compress.training.results import FinetuneResult
from l0compress.training.settings import FinetuneSettings
from l0compress.training.state_dicts import FINETUNE, GATES, MEMBER, SPARSIFY, StateDict, Stateful, prefixed, under
from l0compress.training.targets import AbsoluteTarget, Target

_PLAN, _STATE = "before.plan", "before.state"


@dataclass(frozen=True, eq=False)
class Member:
    """One of a family.

    Attributes:
        goal: its budget.
        result: what a run of its own would return; its history is that of its own leg.
    """

    goal: AbsoluteTarget
    result: FinetuneResult


def finetune_family(
    graph: CapturedGraph,
    data: Data,
    targets: Sequence[Target],
    *,
    settings: FinetuneSettings | None = None,
    on_event: OnEvent = ignore,
    checkpoints: Checkpoints | None = None,
    measure: Measure = measured_time,
) -> Iterator[Member]:
    """Yield the members of a family from the largest to the smallest, each as soon as it is trained.

    ``settings.epochs`` are those of one run; a family divides somewhat more among its members, see
    :func:`~l0compress.training.family_targets.epochs_of_members`. The first member is, bit for bit, what
    :func:`~l0compress.training.finetune.finetune` returns for its target and its epochs. ``checkpoints`` saves states
    on the way; a family that goes on from one yields from the member that was being made, and the rest is that of a
    family which was never stopped.

    >>> import l0compress as l0
    >>> from torch import nn, randn
    >>> from l0compress.data import Split
    >>> from l0compress.graph.capture import capture
    >>> from l0compress.training.family_targets import parse_targets
    >>> _ = torch.manual_seed(0)
    >>> x = randn(64, 4)
    >>> part = Split((x,), (x[:, 0] > 0).long())
    >>> graph = capture(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), (x[:2],))
    >>> targets, settings = parse_targets("params=0.5,0.25"), FinetuneSettings(epochs=2, method="fisher")
    >>> members = list(finetune_family(graph, Data(part, part), targets, settings=settings))
    >>> [(str(one.goal.wanted), one.goal.limit, l0.cost(one.result.small).params <= one.goal.limit) for one in members]
    [('params=0.5', 57, True), ('params=0.25', 28, True)]

    Raises:
        InputError: too few epochs for so many members.
        TargetError: a target that cannot be reached, before any member is trained.
        What :func:`~l0compress.training.finetune.finetune` raises.
    """
    settings = FinetuneSettings() if settings is None else settings
    processes = processes_for(settings.device)
    settings, on_event = processes.placed(settings), processes.listener(on_event)
    if settings.min_density is not None:
        raise InputError(
            "min_density is a share of the dense widths, which the members of a family are not cut from.",
            fix="Leave it out, or give each member a run of its own; keep=... works.",
        )
    graph = protected(graph, settings)
    data = data.called_like(graph.form)
    check_precision(graph, settings.device)
    check_rewritable(graph, settings)
    legs = legs_of(graph, targets, settings, measure)
    checkpoints = NoCheckpoints() if checkpoints is None else checkpoints
    start = checkpoints.start
    first = 0 if start is None else _position(legs, start)
    before = None if start is None or first == 0 else _before(graph, start, settings.granularity)
    dense: Evaluation | None = None
    problem: Problem | None = None
    for leg in legs[first:]:
        own = _LegCheckpoints(checkpoints, start, _told(leg, before))
        with seeded(leg.settings.seed, settings.device), processes.noticing():
            alike_(processes, settings.device)
            if problem is None:
                reading = None if start is None else Reading.from_json(start.get("reading"))
                problem = problem_of(graph, data, leg.settings, reading=reading)
                _check_all(problem, legs)
            result = _member(problem, leg, before, Reporter(_named(on_event, leg.name), own), dense)
        yield Member(leg.goal, result)
        before, dense, start = Decision(result.plan.decision(), result.small), result.dense_evaluation, None


def _check_all(problem: Problem, legs: Sequence[Leg]) -> None:
    """Refuse a family whose smallest member is out of reach before any other is trained; nothing is drawn for it.

    Raises:
        TargetError: it is.
    """
    last = legs[-1]
    with seeded(last.settings.seed, last.settings.device):
        method_of(last.settings)(
            replace(problem, settings=replace(problem.settings, epochs=last.settings.epochs)), last.goal
        )


def _member(
    problem: Problem, leg: Leg, before: Decision | None, reporter: Reporter, dense: Evaluation | None
) -> FinetuneResult:
    """What a leg leads to from the member ``before``, on the dense graph."""
    if before is None:
        return solved(problem, leg.goal, reporter, dense=dense)
    start = _beginning(before, leg.settings.granularity)
    steps = leg.settings.epochs * problem.steps_per_epoch
    here = replace(problem, graph=start.graph, settings=leg.settings.settled(start.graph, steps))
    # Densities are those of what the leg begins with, until they are told.
    left = leg.goal.resource(start.groups).dense
    share = left / leg.goal.dense
    reporter = replace(reporter, on_event=_rescaled(reporter.on_event, share))
    result = solved(here, replace(leg.goal, dense=left), reporter, dense=dense)
    return _on_dense(problem.graph, start, result, share)


def _beginning(before: Decision, granularity: Granularity) -> Narrowed:
    """The network that a leg cuts: a member, made by one cut of the dense graph as a resumed run makes it."""
    if granularity == "weights":
        return Narrowed(before.plan, before.small, groups_without_moves(before.small), torch.arange(0))
    start = Narrowed.of(before)
    if bool((start.moves >= 0).all()):
        return start
    # The cut has set something free that stands fast in the dense graph, where no plan could say that it goes.
    folded = before.folded
    groups = find_groups(folded)
    return Narrowed(KeepPlan.everything(before.plan.groups), folded, groups, torch.arange(groups.num_moves))


def _on_dense(dense: CapturedGraph, start: Narrowed, result: FinetuneResult, share: float) -> FinetuneResult:
    """A leg's result as one of a run on the dense graph."""
    moves = torch.arange(start.groups.num_moves)
    decision = lifted(start, moves, Decision(result.plan.decision(), result.small))
    unfit = {weights_checksum(dense.state()): "the weights from before it"}
    own, last = decision.small.state(), result.last.state()
    trained = {name: last[name] for name in decision.plan.parameter_keeps() if name in own}
    return replace(
        result,
        dense=dense,
        plan=replace(decision.plan, unfit=unfit),
        folded=decision.folded,
        small=decision.small,
        last=decision.small.with_state({**own, **trained}),
        history=tuple(_rescaled_event(event, share) for event in result.history),
    )


def _position(legs: Sequence[Leg], start: StateDict) -> int:
    names = [leg.name for leg in legs]
    if start.get(MEMBER) not in names:
        raise PlanError(
            f"The checkpoint is of member {start.get(MEMBER)!r}, but this family has {', '.join(names)}.",
            fix="Resume it with the targets that it began with.",
        )
    return names.index(start[MEMBER])


def _told(leg: Leg, before: Decision | None) -> StateDict:
    """What a state of a leg says besides: which it is, and what it began with."""
    if before is None:
        return {MEMBER: leg.name}
    return {
        MEMBER: leg.name,
        **prefixed(_PLAN, before.plan.tensors()),
        **prefixed(_STATE, before.small.state()),
    }


def _before(graph: CapturedGraph, start: StateDict, granularity: Granularity) -> Decision:
    """What the leg of a state began with."""
    groups: Groups = groups_without_moves(graph) if granularity == "weights" else find_groups(graph)
    return Decision.of(KeepPlan.from_tensors(groups, under(_PLAN, start)), under(_STATE, start))


@dataclass(frozen=True)
class _LegState:
    """The state of a leg, and what it began with."""

    inner: Stateful
    told: StateDict

    def state_dict(self) -> StateDict:
        return {**self.inner.state_dict(), **self.told}


@dataclass(frozen=True)
class _LegCheckpoints:
    """A family's checkpoints as one of its legs sees them; ``start`` is the state that it goes on from."""

    inner: Checkpoints
    start: StateDict | None
    told: StateDict = field(default_factory=dict)

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        self.inner.save_if_due_(_LegState(state, self.told), must=must)


def _named(on_event: OnEvent, member: str) -> OnEvent:
    return lambda event: on_event(replace(event, member=member))


def _rescaled(on_event: OnEvent, share: float) -> OnEvent:
    return lambda event: on_event(_rescaled_event(event, share))


def _rescaled_event(event: ProgressEvent, share: float) -> ProgressEvent:
    """The event with a density that is one of the dense model, not of what the leg began with."""
    return replace(event, density=event.density * share) if event.stage in (CUT, GATES, SPARSIFY, FINETUNE) else event
