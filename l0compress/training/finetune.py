"""The whole loop: dense teacher, gates under a budget, hardening, surgery, and the small model's fine-tuning.

requires: a captured graph of a trained model, data, a budget.
ensures:  a smaller graph within the budget, checked equal to the masked dense model that carries the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from l0compress.data import Data
from l0compress.devices import widest_float
from l0compress.errors import DataError, InputError, TargetError
from l0compress.gates.attach import GatedNetwork, fold, gate
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.checksum import weights_checksum
from l0compress.graph.cost import UNITS, cost
from l0compress.graph.describe import cost_lines, counted, headed
from l0compress.graph.groups import Groups
from l0compress.graph.masked import masked
from l0compress.graph.plan import KeepPlan, unshrink_state
from l0compress.graph.shrink import shrink
from l0compress.graph.weights import nonzero_cost
from l0compress.loading.classes import class_warnings
from l0compress.training.budget import Budget, FixedPenalty, Penalty
from l0compress.training.course import Course, Evaluation, outputs_of
from l0compress.training.equality import check_equal
from l0compress.training.events import WARNING, OnEvent, ProgressEvent, ignore
from l0compress.training.harden import harden
from l0compress.training.journal import Journal
from l0compress.training.losses import Objective, check_loss, objective_of
from l0compress.training.multiplier import AscentSettings
from l0compress.training.phases import Gated, evaluate_on, train_gates, train_small
from l0compress.training.randomness import seeded
from l0compress.training.reading import Reading
from l0compress.training.recalibrate import recalibrate
from l0compress.training.settings import FinetuneSettings
from l0compress.training.single import check_batches, takes_one_sample
from l0compress.training.snapshot import FINETUNE, Checkpoints, NoCheckpoints, prefixed
from l0compress.training.sparse_harden import whole_masks
from l0compress.training.sparsity import check_zeros
from l0compress.training.survey import reading_of
from l0compress.training.targets import the_one

TARGETS = "params, macs, bytes, penalty, aic and bic"
_RECALIBRATION_BATCHES = 100
_PLAN = "plan"


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What a run returns.

    Attributes:
        dense: the graph that went in.
        plan: what stays of it, on the groups of ``dense``.
        folded: the dense-shaped graph with the final weights scattered back; ``masked(folded, plan)`` equals ``small``.
        small: the shrunk graph with the best weights by validation.
        last: the shrunk graph with the weights of the last epoch.
        dense_evaluation: validation result of the dense model.
        best_evaluation: validation result of ``small``, reached ``best_epoch`` epochs after hardening.
        last_evaluation: validation result of ``last``.
        history: the events that closed an epoch, in order.
        reading: how outputs and targets were read: what the metrics mean.
    """

    dense: CapturedGraph
    plan: KeepPlan
    folded: CapturedGraph
    small: CapturedGraph
    last: CapturedGraph
    dense_evaluation: Evaluation
    best_evaluation: Evaluation
    best_epoch: int
    last_evaluation: Evaluation
    history: tuple[ProgressEvent, ...]
    reading: Reading

    def __repr__(self) -> str:
        before, after = self.dense_evaluation, self.best_evaluation
        scores = f"val {after.metric_name}: {before.metric:.4g} -> {after.metric:.4g}, {self.best_epoch} epochs after"
        lines = [*cost_lines(cost(self.dense), cost(self.small)), f"{scores} hardening"]
        return headed(f"FinetuneResult({counted(len(self.history), 'epoch')})", lines)


@dataclass(frozen=True, eq=False)
class Run:
    """What a run starts from, whatever method decides what is removed."""

    graph: CapturedGraph
    course: Course
    journal: Journal
    dense_evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class Hardened:
    """A decision on the dense graph's groups, and the weights that go with it, as the small model has them."""

    plan: KeepPlan
    state: dict[str, Tensor]


def finetune(
    graph: CapturedGraph,
    data: Data,
    target: Mapping[str, float] | str,
    *,
    settings: FinetuneSettings | None = None,
    on_event: OnEvent = ignore,
    checkpoints: Checkpoints | None = None,
) -> FinetuneResult:
    """Compress a trained model to a budget.

    ``target`` names one unit: ``{"params": ...}``, ``{"macs": ...}`` or ``{"bytes": ...}``, with a fraction of the
    dense cost (a float between 0 and 1) or an absolute number (an int); or it says the same as text, ``"macs=0.5"`` or
    ``"bytes=1MB"``. Or it names a fixed penalty: ``{"penalty":
    1e-6}`` (loss per parameter), ``{"aic": 1}`` or ``{"bic": 1}``. The same seed gives the same result, bit for bit on
    one device, and the global random state is left as it was. ``checkpoints`` takes snapshots on the way, and may hold
    the one to go on from; the result is that of a run which was never stopped.

    Raises:
        NothingToPruneError: no channel can be removed.
        TargetError: the target is malformed or out of reach.
        DataError: data and model do not fit together.
        InputError: the weights are too coarse to be trained, or finer than the device can hold.
        DivergedError: the loss or a weight is not finite any more; the message names the step and the layer.
        NotEqualError: the shrunk model differs from the masked one.
    """
    settings = FinetuneSettings() if settings is None else settings
    data = data.called_like(graph.form)
    check_precision(graph, settings.device)
    with seeded(settings.seed, settings.device):
        gated = gated_for(graph, data, settings)
        groups = gated.groups
        kept = None if checkpoints is None or checkpoints.start is None else checkpoints.start.values.get("reading")
        course = course_of(graph, data, settings, reading=Reading.from_json(kept))
        budget = penalty_for(gated, target, course)
        run = start(graph, course, on_event, checkpoints)
        kept = run.journal.start_of(FINETUNE)
        if kept is None:
            hardened = harden_gates(groups, train_gates(course, gated, budget, run.journal), budget)
        else:
            hardened = _stand_in(graph, KeepPlan.from_tensors(groups, kept.under(_PLAN)))
        return finish(run, hardened, unit=budget.unit, first_epoch=settings.gated_epochs)


def _stand_in(graph: CapturedGraph, plan: KeepPlan) -> Hardened:
    """A decision that was made before, with the dense model's weights until the snapshot's are loaded."""
    return Hardened(plan, shrink(graph, plan).state())


def gated_for(graph: CapturedGraph, data: Data, settings: FinetuneSettings) -> GatedNetwork:
    """The network with the gates that a run starts from."""
    steps = settings.gated_epochs * max(1, len(data.train) // settings.batch_size_for(len(data.train)))
    gated = gate(
        graph,
        granularity=settings.granularity,
        log_alpha=settings.gates.log_alpha,
        magnitude_slope=settings.gates.slope_for(steps),
        temperature=settings.gates.temperature,
    )
    return gated.to(settings.device)


def start(graph: CapturedGraph, course: Course, on_event: OnEvent, checkpoints: Checkpoints | None = None) -> Run:
    """Say what is odd about the data, measure the dense model and tell it; or take over what a stopped run has told.

    Raises:
        DataError: the training part has samples of one class only.
    """
    for message in warnings_of(course):
        on_event(ProgressEvent(WARNING, 0, course.settings.epochs, epoch_done=False, message=message))
    journal = Journal(on_event, course.settings.epochs, NoCheckpoints() if checkpoints is None else checkpoints)
    if journal.checkpoints.start is not None:
        journal.restore_(journal.checkpoints.start)
    if journal.dense is None:
        dense = journal.dense = evaluate_on(course, graph.module().to(course.settings.device))
        event = ProgressEvent("dense", 0, journal.epochs, loss=dense.loss, metric=dense.metric)
        on_event(replace(event, metric_name=dense.metric_name))
    return Run(graph, course, journal, journal.dense)


def warnings_of(course: Course) -> tuple[str, ...]:
    """What is odd about the data, where their labels are classes."""
    return class_warnings(course.data) if course.objective.reading.counts_hits else ()


def check_precision(graph: CapturedGraph, device: str = "cpu") -> None:
    """Refuse weights that are too coarse to be trained, or finer than the device can hold.

    Raises:
        InputError: a weight is float16 or bfloat16, or float64 where the device has no such numbers.
    """
    for name, weight in graph.state().items():
        if weight.dtype == torch.float64 and widest_float(device) != torch.float64:
            raise InputError(
                f"the model's {name!r} is float64, and device {device!r} has no such numbers. Nothing was changed. "
                "Convert the model first, model.float(), or train it on the CPU."
            )
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"the model's {name!r} is {str(weight.dtype).removeprefix('torch.')}, and training takes float32. "
                "Nothing was changed. Convert the model first: model.float()."
            )


def course_of(
    graph: CapturedGraph, data: Data, settings: FinetuneSettings, *, reading: Reading | None = None
) -> Course:
    """The teacher and the objective that a run on ``graph`` and ``data`` has.

    ``reading`` is what was found when the run began; it is taken from the training part where it is None.

    Raises:
        DataError: there are neither labels nor a teacher, or a target is not finite.
        InputError: the weights are float16 or bfloat16, or float64 where the device has none; or it cannot be told
            what the model returns.
    """
    check_precision(graph, settings.device)
    dense = graph.module().to(settings.device)
    objective = objective_on(dense, data, settings, reading=reading)
    fewest = 1 if takes_one_sample(graph) else 2
    if fewest > 1:
        check_batches(data.train, settings)
    num_steps = settings.epochs * max(1, len(data.train) // settings.batch_size_for(len(data.train)))
    return Course(data, objective, dense if settings.distill else None, settings.settled(graph, num_steps), fewest)


def objective_on(dense: nn.Module, data: Data, settings: FinetuneSettings, *, reading: Reading | None) -> Objective:
    """What a run on ``data`` minimises and is judged by; arguments and errors as for :func:`course_of`."""
    check_loss(settings.loss)
    batch_size = settings.batch_size_for(len(data.train))
    first = next(iter(data.train.batches(batch_size)))
    if not settings.distill and first.targets is None:
        raise DataError(
            "Distillation is off and the data has no labels: there is nothing to learn from. Nothing was changed. "
            "Give data with labels, or leave distillation on."
        )
    if reading is None:
        reading = reading_of(
            settings.loss,
            data.train,
            lambda batch: outputs_of(dense, batch.to(settings.device)),
            first=first,
            batch_size=batch_size,
        )
    return objective_of(
        reading, settings.loss, temperature=settings.distill_temperature, task_share=settings.task_share
    )


def penalty_for(gated: GatedNetwork, target: Mapping[str, float] | str, course: Course) -> Penalty:
    """The budget or fixed penalty that ``target`` names; see :func:`finetune`."""
    unit, value = the_one(target, names=TARGETS)
    num_samples = len(course.data.train)
    if unit == "aic":
        return FixedPenalty.aic(gated, num_samples)
    if unit == "bic":
        return FixedPenalty.bic(gated, num_samples)
    if unit == "penalty":
        return FixedPenalty(gated, value)
    gates = course.settings.gates
    ramp_steps = round(course.gated_steps * gates.ramp_share)
    ascent = AscentSettings(learning_rate=gates.multiplier_rate_for(course.gated_steps))
    if unit not in UNITS:
        raise TargetError(
            f"Unknown target {unit!r}: expected one of {TARGETS}. Nothing was changed. Example: macs=0.5."
        )
    return Budget(gated, {unit: value}, ramp_steps=ramp_steps, ascent=ascent)


def harden_gates(groups: Groups, trained: Gated, budget: Penalty) -> Hardened:
    """Decide on the network that is left, fold its gates, and carry both back to the dense graph's ``groups``."""
    plan = harden(trained.network, budget, allow_untrained=True)
    small = shrink(fold(trained.network, plan), plan)
    keep = torch.zeros(groups.num_moves, dtype=torch.bool)
    keep[trained.moves[plan.keep]] = True
    whole = KeepPlan.from_keep(groups, keep)
    return Hardened(whole.with_masks(whole_masks(whole, plan.small_masks())), small.state())


def finish(run: Run, hardened: Hardened, *, unit: str, first_epoch: int) -> FinetuneResult:
    """From a decision to a result: surgery, its check, BatchNorm statistics, and the epochs from ``first_epoch`` on."""
    course, plan = run.course, hardened.plan
    run.journal.carried.update(prefixed(_PLAN, plan.tensors()))
    small = _shrunk(run.graph, hardened, course)
    counted, masks = nonzero_cost if plan.masks else cost, plan.small_masks()
    density = counted(small).get(unit) / cost(run.graph).get(unit)
    if run.journal.start_of(FINETUNE) is None:
        batches = islice(course.batches(first_epoch), _RECALIBRATION_BATCHES)
        small = recalibrate(small, batches, device=course.settings.device)
    objective = replace(course.objective, temperature=course.settings.final_temperature)
    final = replace(course, objective=objective)
    finished = train_small(final, small, run.journal, density=density, first_epoch=first_epoch, masks=masks)
    check_zeros(finished.last.state(), masks)
    before = {weights_checksum(run.graph.state()): "the weights from before it"}
    return FinetuneResult(
        dense=run.graph,
        plan=replace(plan, unfit=before),
        folded=run.graph.with_state(unshrink_state(plan, finished.best.state())),
        small=finished.best,
        last=finished.last,
        dense_evaluation=run.dense_evaluation,
        best_evaluation=finished.best_evaluation,
        best_epoch=finished.best_epoch,
        last_evaluation=finished.last_evaluation,
        history=tuple(run.journal.rows),
        reading=course.objective.reading,
    )


def _shrunk(graph: CapturedGraph, hardened: Hardened, course: Course) -> CapturedGraph:
    """The small graph with the decision's weights, checked equal to the masked dense one on a validation batch."""
    plan = hardened.plan
    folded = graph.with_state(unshrink_state(plan, hardened.state))
    small = shrink(folded, plan)
    batch = next(iter(course.data.val.batches(course.batch_size)))
    check_equal(small.module(), masked(folded, plan), batch)
    return small
