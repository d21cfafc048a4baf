"""The whole loop: dense teacher, a decision under a budget, surgery, and the small model's fine-tuning.

requires: a captured graph of a trained model, data, a budget.
ensures:  a smaller graph within the budget, checked equal to the masked dense model that carries the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from l0compress.data import Data
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan, unshrink_state
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.training.course import Course
from l0compress.training.equality import check_equal
from l0compress.training.events import OnEvent, ignore
from l0compress.training.fake_quantization import check_quantizable
from l0compress.training.goals import AnyTarget, goal_for
from l0compress.training.methods import method_of
from l0compress.training.phases import train_small
from l0compress.training.preparation import check_precision, course_of, start
from l0compress.training.randomness import seeded
from l0compress.training.reading import Reading
from l0compress.training.recalibrate import recalibrate
from l0compress.training.results import FinetuneResult, Hardened, Run
from l0compress.training.settings import FinetuneSettings
from l0compress.training.snapshot import FINETUNE, Checkpoints, Snapshot, prefixed
from l0compress.training.sparsity import check_zeros

_RECALIBRATION_BATCHES = 100
_PLAN = "plan"


def finetune(
    graph: CapturedGraph,
    data: Data,
    target: AnyTarget,
    *,
    settings: FinetuneSettings | None = None,
    on_event: OnEvent = ignore,
    checkpoints: Checkpoints | None = None,
) -> FinetuneResult:
    """Compress a trained model to a budget.

    ``target`` names one unit: ``{"params": ...}``, ``{"macs": ...}``, ``{"bytes": ...}`` or ``{"int8_bytes": ...}``,
    with a fraction of the dense cost (a float between 0 and 1) or an absolute number (an int); or it says the same as
    text, ``"macs=0.5"`` or ``"bytes=1MB"``, or is a :class:`~l0compress.training.targets.Target`. Or it names a fixed
    penalty: ``{"penalty": 1e-6}`` (loss per parameter), ``{"aic": 1}`` or ``{"bic": 1}``. The same seed gives the same
    result, bit for bit on one device, and the global random state is left as it was. ``checkpoints`` takes snapshots
    on the way, and may hold the one to go on from; the result is that of a run which was never stopped.

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
    if settings.quantization_aware:
        check_quantizable(graph)
    with seeded(settings.seed, settings.device):
        kept = None if checkpoints is None or checkpoints.start is None else checkpoints.start.values.get("reading")
        course = course_of(graph, data, settings, reading=Reading.from_json(kept))
        method = method_of(course.settings)(graph, course, goal_for(graph, target))
        run = start(graph, course, on_event, checkpoints)
        kept = run.journal.start_of(FINETUNE)
        hardened = method.decide(run) if kept is None else _stand_in(method.groups, kept)
        return finish(run, hardened, unit=method.unit)


def _stand_in(groups: Groups, kept: Snapshot) -> Hardened:
    """A decision that was made before, with the dense model's weights until the snapshot's are loaded."""
    plan = KeepPlan.from_tensors(groups, kept.under(_PLAN))
    return Hardened(plan, shrink(groups.graph, plan))


def finish(run: Run, hardened: Hardened, *, unit: str) -> FinetuneResult:
    """From a decision to a result: surgery, its check, BatchNorm statistics, and the epochs that are left."""
    course, plan = run.course, hardened.plan
    first_epoch = course.settings.gated_epochs
    run.journal.carried = prefixed(_PLAN, plan.tensors())
    small = _shrunk(run.graph, hardened, course)
    counted, masks = nonzero_cost if plan.masks else cost, plan.small_masks()
    density = counted(small).get(unit) / cost(run.graph).get(unit)
    if run.journal.start_of(FINETUNE) is None and not hardened.mended:
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
    folded = graph.with_state(unshrink_state(plan, hardened.graph.state()))
    small = shrink(folded, plan)
    batch = next(iter(course.data.val.batches(course.batch_size)))
    check_equal(small.module(), masked(folded, plan), batch)
    return small
