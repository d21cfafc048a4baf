"""The whole loop: dense teacher, a decision under a budget, surgery, and the small model's fine-tuning.

requires: a captured graph of a trained model, data, a budget.
ensures:  a smaller graph within the budget, checked equal to the masked dense model that carries the same weights.
"""

from __future__ import annotations

from dataclasses import replace

from l0compress.data import Data
from l0compress.errors import NotEqualError, PenaltyWarning
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups.resource import Resource
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.training.activations.penalty import check_activations
from l0compress.training.activations.removal import SmallModel, without_silent_units
from l0compress.training.decision import Decision
from l0compress.training.dropout import check_dropout
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import OnEvent, ignore, warning
from l0compress.training.extremes import extreme_of
from l0compress.training.fake_quantization import check_quantizable
from l0compress.training.final_phase import FinalPhase
from l0compress.training.goals import AnyGoal, Criterion, Goal, goal_for
from l0compress.training.methods import method_of
from l0compress.training.problem import Problem, check_precision, problem_of
from l0compress.training.processes import processes_for
from l0compress.training.randomness import alike_, seeded
from l0compress.training.reading import Reading
from l0compress.training.recalibrate import batches_at, recalibrate
from l0compress.training.reporting import Checkpoints, NoCheckpoints, Reporter
from l0compress.training.results import FinetuneResult
from l0compress.training.settings import FinetuneSettings
from l0compress.training.sparsity import check_zeros
from l0compress.training.state import TrainingState, train_
from l0compress.training.state_dicts import FINETUNE, prefixed, under
from l0compress.training.ternary import check_ternary
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify

_PLAN = "plan"


def finetune(
    graph: CapturedGraph,
    data: Data,
    target: AnyGoal,
    *,
    settings: FinetuneSettings | None = None,
    on_event: OnEvent = ignore,
    checkpoints: Checkpoints | None = None,
) -> FinetuneResult:
    """Compress a trained model to a budget.

    ``target`` names a unit: ``{"params": ...}``, ``{"macs": ...}``, ``{"bytes": ...}`` or ``{"int8_bytes": ...}``,
    with a fraction of the dense cost (a float between 0 and 1) or an absolute number (an int); or it says the same as
    text, ``"macs=0.5"`` or ``"bytes=1MB"``, or is a :class:`~l0compress.training.targets.Target`. Several units, or a
    list of these, hold together. Or it names a fixed penalty: ``{"penalty": 1e-6}`` (loss per parameter), ``{"aic":
    1}`` or ``{"bic": 1}``. The same seed gives the same result, bit for bit on one device, and the global random state
    is left as it was. Where a launcher started several processes, all of them call this alike and divide the batches.
    ``checkpoints`` saves states on the way, and may have the one to go on from; the result is that of a run which was
    never stopped.

    Raises:
        NothingToPruneError: no channel can be removed.
        TargetError: the target is malformed or out of reach.
        DataError: data and model do not fit together.
        InputError: the weights are too coarse to be trained, or finer than the device can hold.
        DivergedError: the loss or a weight is not finite any more; the message names the step and the layer.
        ProcessesError: of several processes one is gone, or they differ.
        NotEqualError: the shrunk model differs from the masked one.
    """
    settings = FinetuneSettings() if settings is None else settings
    processes = processes_for(settings.device)
    settings = processes.placed(settings)
    graph = protected(graph, settings)
    data = data.called_like(graph.form)
    check_precision(graph, settings.device)
    check_rewritable(graph, settings)
    goal = goal_for(graph, target, settings)
    reporter = Reporter(processes.listener(on_event), NoCheckpoints() if checkpoints is None else checkpoints)
    with seeded(settings.seed, settings.device), processes.noticing():
        alike_(processes, settings.device)
        resumed = reporter.checkpoints.start
        reading = None if resumed is None else Reading.from_json(resumed.get("reading"))
        problem = problem_of(graph, data, settings, reading=reading)
        return solved(problem, goal, reporter)


def protected(graph: CapturedGraph, settings: FinetuneSettings) -> CapturedGraph:
    """The graph with the limits that the settings name; without any it keeps its own."""
    if settings.keep is None and settings.min_density is None:
        return graph
    return graph.protected(keep=settings.keep, min_density=settings.min_density)


def check_rewritable(graph: CapturedGraph, settings: FinetuneSettings) -> None:
    """Raises:
    InputError: the settings round, drop or penalise something in training, but the model has nothing of the kind.
    """
    check_dropout(graph, settings)
    check_activations(graph, settings)
    if settings.quantization_aware:
        check_quantizable(graph)
    if settings.ternary:
        check_ternary(graph, settings.keep_float)


def solved(problem: Problem, goal: Goal, reporter: Reporter, *, dense: Evaluation | None = None) -> FinetuneResult:
    """The loop on a problem that is set; ``dense`` is the dense model's validation result, where it is known.

    Raises what :func:`finetune` raises.
    """
    method = method_of(problem.settings)(problem, goal)
    state = TrainingState.begin(problem, reporter, dense=dense)
    resumed = state.resumed_in(FINETUNE)
    if resumed is None:
        decision = method.decide(state)
        _warn_of_extremes(state, goal, decision)
    else:
        # With the dense model's weights, until those of the state are loaded.
        decision = Decision.of(KeepPlan.from_tensors(method.groups, under(_PLAN, resumed)))
    return finish(state, decision, method.resources, begins=method.num_steps)


def _warn_of_extremes(state: TrainingState, goal: Goal, decision: Decision) -> None:
    """Warns:
    PenaltyWarning: a fixed penalty removes nothing, or all that may go.
    """
    message = extreme_of(goal, decision.plan, state.problem) if isinstance(goal, Criterion) else None
    if message is not None:
        state.reporter.on_event(warning(message, PenaltyWarning, epochs=state.problem.settings.epochs))


def finish(state: TrainingState, decision: Decision, resources: tuple[Resource, ...], *, begins: int) -> FinetuneResult:
    """From a decision to a result: surgery's check, BatchNorm statistics, and the epochs that are left.

    ``resources`` are functions of the moves that the decision is on; how much is used of each is reported. The epochs
    that are left begin at step ``begins`` of the run.
    """
    problem, plan, small = state.problem, decision.plan, decision.small
    _check_surgery(problem, decision)
    masks = plan.small_masks()
    densities = {each.unit: _used(each, small, plan) / each.dense for each in resources}
    if state.resumed_in(FINETUNE) is None and not decision.repaired:
        small = recalibrate(small, batches_at(problem, begins), device=problem.device)
    state.decided = prefixed(_PLAN, plan.tensors())
    phase = FinalPhase(problem, small, teacher=state.dense, densities=densities, masks=masks, begins=begins)
    train_(state, phase)
    trained = SmallModel(plan, phase.best_graph, phase.last_graph, phase.best, phase.last)
    if problem.settings.activation_l1:
        trained = without_silent_units(state, trained)
        _check_surgery(problem, Decision(trained.plan, trained.best))
    plan, best, last = trained.plan, trained.best, trained.last
    problem.processes.check_same(weights_checksum(best.state()), "The small model")
    check_zeros(last.state(), plan.small_masks())
    before = {weights_checksum(problem.graph.state()): "the weights from before it"}
    return FinetuneResult(
        dense=problem.graph,
        plan=replace(plan, unfit=before),
        folded=Decision(plan, best).folded,
        small=best,
        last=last,
        dense_evaluation=state.dense,
        best_evaluation=trained.best_evaluation,
        best_epoch=phase.best_epoch,
        last_evaluation=trained.last_evaluation,
        history=tuple(state.history),
        reading=problem.objective.reading,
    )


def _used(resource: Resource, small: CapturedGraph, plan: KeepPlan) -> int:
    # What is measured differs each time, and what a run reports while it trains should not.
    if resource.is_estimate:
        return resource.cost(plan.keep)
    return resource.used_by(small, plan.keep, sparse=bool(plan.masks))


def _check_surgery(problem: Problem, decision: Decision) -> None:
    """Compare the small graph with the masked dense one on a validation batch.

    Raises:
        NotEqualError: they differ.
    """
    batch = next(iter(problem.data.val.batches(problem.batch_size)))
    call = Call(*batch.call(), batch.batch_dims)
    reference = masked(decision.folded, decision.plan)
    try:
        # In so many samples a tie between two classes may be decided by rounding.
        verify(decision.small, reference, inputs=[call], rounded=True)
    except NotEqualError as error:
        raise NotEqualError(
            f"After surgery: {error} This is a defect of l0compress: please report the model."
        ) from error
