"""The whole line in one call: capture, fine-tune under a budget, harden, shrink, verify."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from l0compress.devices import CPU, device_of
from l0compress.errors import InputError, LostInCaptureWarning, TargetError, TargetMissedError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.capture.dynamic import Dynamic
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups.cost import Cost, cost, cost_lines
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.graph.nodes.describe import headed
from l0compress.loading import Model
from l0compress.pipeline.sources import Prepared, prepare
from l0compress.pipeline.watching import watched
from l0compress.training.evaluation import Evaluation, On, evaluate
from l0compress.training.events import WARNING, OnEvent, ProgressEvent, ignore
from l0compress.training.finetune import FinetuneResult, finetune, protected
from l0compress.training.goals import AnyGoal, Criterion, wanted_of
from l0compress.training.latency_targets import Measure, allowances, measured_time
from l0compress.training.losses import objective_of
from l0compress.training.processes import processes_for
from l0compress.training.randomness import in_turn
from l0compress.training.reading import Reading
from l0compress.training.reporting import Checkpoints
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import AbsoluteTarget, Target, absolute_targets, told
from l0compress.verification.equality import Equality, verify


@dataclass(frozen=True, eq=False)
class Scores:
    """The dense and the small model on the same part of the data."""

    dense: Evaluation
    small: Evaluation

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"dense": asdict(self.dense), "small": asdict(self.small)}


@dataclass(frozen=True)
class Reached:
    """What a small model uses of what one target allows.

    Attributes:
        target: what was asked for.
        limit: the most that it allows, in its unit.
        left: what is used, in the same unit.
    """

    target: Target
    limit: int
    left: int

    def __str__(self) -> str:
        """Return it as one line for people."""
        left, limit = (told(self.target.unit, number, named=False) for number in (self.left, self.limit))
        return f"{self.target}: {left} of at most {limit}"

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"unit": self.target.unit, "limit": self.limit, "reached": self.left}


@dataclass(frozen=True)
class Penalized:
    """The fixed penalty that stood in place of a target.

    Attributes:
        name: ``penalty``, ``aic`` or ``bic``.
        multiplier: the loss for each parameter.
    """

    name: str
    multiplier: float

    def __str__(self) -> str:
        """Return it as one line for people."""
        return f"{self.name}: {self.multiplier:.4g} for each parameter"

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CompressResult:
    """What :func:`compress` returns.

    Attributes:
        dense: the captured model, as it was given.
        masked: the dense-shaped model with the trained weights and removed channels silenced; equal to ``small``.
        small: the smaller model, best by validation; ``small.module()`` is an ``nn.Module``.
        plan: which channels were kept.
        budgets: what each target allows, and what is used of that; empty under a fixed penalty.
        penalty: the fixed penalty; None under targets.
        dense_cost, small_cost: what both cost by their shapes.
        nonzero_cost: what ``small`` costs when the zeros in its weights are left out; None where no single weights were
            removed. With it, the target is on this.
        val, test: both on the validation and the test part; ``test`` is None where the data has none.
        equality: how closely ``small`` and ``masked`` agree.
        history: one event for every epoch.
        reading: how outputs and targets were read: what the metrics mean.
        folder: where the run is kept; None where it is not.
    """

    dense: CapturedGraph
    masked: CapturedGraph
    small: CapturedGraph
    plan: KeepPlan
    budgets: tuple[Reached, ...]
    dense_cost: Cost
    small_cost: Cost
    nonzero_cost: Cost | None
    val: Scores
    test: Scores | None
    equality: Equality
    history: tuple[ProgressEvent, ...]
    reading: Reading
    penalty: Penalized | None = None
    folder: Path | None = None

    def __repr__(self) -> str:
        scores = [("val", self.val), *([("test", self.test)] if self.test is not None else [])]
        lines = [
            *cost_lines(self.dense_cost, self.nonzero_cost or self.small_cost),
            *(f"{part} {s.dense.metric_name}: {s.dense.metric:.4g} -> {s.small.metric:.4g}" for part, s in scores),
            f"small and masked model agree within {self.equality.max_relative:.2g}",
        ]
        return headed(f"CompressResult({'; '.join(map(str, self.budgets or [self.penalty]))})", lines)

    @property
    def target(self) -> Target:
        """The budget; the first one where there are several in :attr:`budgets`."""
        return self._first.target

    @property
    def limit(self) -> int:
        """The most that :attr:`target` allows, in its unit."""
        return self._first.limit

    @property
    def reached(self) -> int:
        """What is left, in the unit of :attr:`target`."""
        return self._first.left

    @property
    def _first(self) -> Reached:
        if not self.budgets:
            raise TargetError(
                f"this result has no target: it was made under a fixed penalty ({self.penalty}).",
                fix="Read what is left from small_cost, or nonzero_cost for single weights.",
            )
        return self.budgets[0]


def compress(
    model: Model,
    data: Any,
    *,
    target: AnyGoal,
    epochs: int | None = None,
    settings: FinetuneSettings | None = None,
    dynamic: Dynamic = "auto",
    on_event: OnEvent = ignore,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> CompressResult:
    """Compress a trained model to a budget. The model that is given stays as it is.

    Calls from several threads take turns, so that each gives the same bits as by itself.

    Args:
        model: an ``nn.Module`` or an ``ExportedProgram``.
        data: ``(x, y)`` of arrays or tensors, a ``Dataset`` or a ``DataLoader``; a dict of these such as ``{"train":
            (x, y), "val": (x, y)}``; :class:`~l0compress.data.Data`; or a name. See
            :func:`~l0compress.loading.as_data` and :func:`~l0compress.loading.load_data`.
        target: a unit and its number, ``"macs=0.5"`` or ``{"macs": 0.5}`` (a fraction of dense), ``"params=26500"``
            or ``{"params": 26500}`` (a count). Several hold together: ``{"macs": 0.5, "bytes": 4_000_000}``, or a list
            of texts. Or a fixed penalty in place of a budget, ``"bic=1"``, ``{"aic": 1}`` or ``{"penalty": 1e-6}``
            (loss for each parameter), under which how much is left is an outcome.
        epochs: how long to train; 0 decides and repairs without training or labels. None leaves it to ``settings``.
        settings: how to train; the defaults are those of the command line, on the device that the model is on.
        dynamic: which sizes of the inputs are free, and where the batch is, as for
            :func:`~l0compress.graph.capture.capture`.
        on_event: called with a :class:`~l0compress.training.events.ProgressEvent` while the run is under way; first
            with those of the stage "warning", which say what is odd about the data.
        output: a folder that is new or empty, to keep the run in as ``l0compress finetune`` does: it can be gone on
            with from any moment, and ``l0compress export``, ``verify`` and ``bench`` take it. Ctrl-C then stops the
            run after a step and raises StoppedError. Of an epoch that came from the folder, the events in ``history``
            have no times: ``log.jsonl`` has them.
        resume: go on with the run in ``output`` where it was stopped, or begin it where there is none. It ends in the
            same bits as a run that was never stopped. A finished one gives its result without training.
        progress: show on standard error what the command line shows.

    Warns:
        DataWarning, LostInCaptureWarning: the same, where there is neither ``on_event`` nor ``progress``.

    Raises:
        InputError: model, data, target and settings do not fit together; nothing was computed.
        NotEqualError: the small model does not compute what the masked dense model computes.
        TargetMissedError: the small model is over its budget.
        RunError: ``output`` has something in it, or began with another model, other data or settings.
        StoppedError: Ctrl-C or SIGTERM came while the run was being kept.

    Example:
        >>> import torch, l0compress as l0
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x = torch.randn(64, 4)
        >>> part = l0.Split((x,), (x[:, 0] > 0).long())
        >>> result = l0.compress(net, l0.Data(train=part, val=part), target={"params": 0.5}, epochs=3)
        >>> result.dense_cost.params, result.small_cost.params <= 57
        (114, True)
    """
    if isinstance(target, str) and "," in target:
        raise TargetError(
            f"Target {target!r} names several members of a family, and compress returns one model.",
            fix="Call compress_family with the same arguments.",
        )
    from l0compress.pipeline.given import Given
    from l0compress.pipeline.kept import Keeping, kept

    wanted = wanted_of(target)
    settings = settings_for(model, settings, epochs)
    with in_turn(), watched(on_event, progress=progress) as listener:
        keeping = Keeping.of(output, resume=resume)
        prepared = prepare(model, data, loss=settings.loss, dynamic=dynamic)
        if keeping is None:
            return compress_prepared(prepared, wanted, settings, on_event=listener)
        given = Given(prepared, settings, model, data, dynamic)
        return kept(given, wanted, keeping, on_event=listener)


def settings_for(model: Model, settings: FinetuneSettings | None, epochs: int | None) -> FinetuneSettings:
    """What a call means by its settings: the defaults on the device that the model is on where none are given.

    Raises:
        InputError: they are no settings, the model is no model, or its device cannot be used.
    """
    settings = FinetuneSettings(device=_device_of(model)) if settings is None else settings
    if not isinstance(settings, FinetuneSettings):
        raise InputError(
            f"settings is {type(settings).__name__}, but must be FinetuneSettings.",
            fix="Write for example settings=l0compress.FinetuneSettings(epochs=5).",
        )
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    if not isinstance(model, nn.Module | ExportedProgram):
        raise InputError(
            f"the model is {type(model).__name__}, but must be an nn.Module or an ExportedProgram.",
            fix="Load a file first: torch.export.load(path), or l0compress.loading.load_model(path).",
        )
    check_device(settings.device)
    return settings


def _device_of(model: Model) -> str:
    found = device_of(model) if isinstance(model, nn.Module) else None
    return str(found or CPU)


def compress_prepared(
    prepared: Prepared,
    wanted: tuple[Target, ...] | Criterion,
    settings: FinetuneSettings,
    *,
    on_event: OnEvent = ignore,
    checkpoints: Checkpoints | None = None,
    measure: Measure = measured_time,
) -> CompressResult:
    """As :func:`compress`, from a captured model and data that fit together; ``checkpoints`` as for ``finetune``."""
    processes = processes_for(settings.device)
    settings, on_event = processes.placed(settings), processes.listener(on_event)
    tell_lost(prepared, settings, on_event)
    with in_turn():
        graph = protected(prepared.graph, settings)
        penalized = isinstance(wanted, Criterion)
        goals = () if penalized else absolute_targets(wanted, allowances(graph, settings, measure=measure))
        goal = wanted if penalized else goals
        result = finetune(
            prepared.graph, prepared.data, goal, settings=settings, on_event=on_event, checkpoints=checkpoints
        )
        compressed = checked(result, prepared, goals, settings)
        if not penalized:
            return compressed
        return replace(compressed, penalty=Penalized(wanted.name, wanted.multiplier(len(prepared.data.train))))


def tell_lost(prepared: Prepared, settings: FinetuneSettings, on_event: OnEvent) -> None:
    """Say what the model does in training mode alone, which its graph does not."""
    for part in prepared.graph.training_only:
        message = f"No run does what the model does only in training mode: {part.sentence}."
        event = ProgressEvent(WARNING, 0, settings.epochs, epoch_done=False, message=message)
        on_event(replace(event, category=LostInCaptureWarning))


def check_device(device: str) -> None:
    """Raises:
    InputError: there is no such device here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as reason:
        lines = str(reason).splitlines()
        raise InputError(f"Device {device!r} cannot be used: {lines[0]}", fix="Pass --device cpu.") from reason


def checked(
    result: FinetuneResult, prepared: Prepared, goals: tuple[AbsoluteTarget, ...], settings: FinetuneSettings
) -> CompressResult:
    """What a run came to, compared with the masked dense model and with its budget, and scored on the test part.

    Raises:
        NotEqualError, TargetMissedError: as :func:`compress`.
    """
    silenced = replace(result.folded, graph_module=masked(result.folded, result.plan))
    equality = verify(result.small, silenced)
    sparse = nonzero_cost(result.small) if result.plan.masks else None
    budgets = tuple(Reached(goal.wanted, goal.limit, _used(goal, result)) for goal in goals)
    compressed = CompressResult(
        dense=result.dense,
        masked=silenced,
        small=result.small,
        plan=result.plan,
        budgets=budgets,
        dense_cost=cost(prepared.graph),
        small_cost=cost(result.small),
        nonzero_cost=sparse,
        val=Scores(result.dense_evaluation, result.best_evaluation),
        test=_test_scores(result, prepared, settings),
        equality=equality,
        history=result.history,
        reading=result.reading,
    )
    for goal, budget in zip(goals, budgets, strict=True):
        if budget.left > goal.allowed:
            raise TargetMissedError(
                f"Target {budget.target}: the small model has {told(goal.unit, budget.left)}, but at most "
                f"{told(goal.unit, budget.limit, named=False)} were requested.",
                fix="",
            )
    return compressed


def _used(goal: AbsoluteTarget, result: FinetuneResult) -> int:
    resource = goal.resource(result.plan.groups)
    return resource.used_by(result.small, result.plan.keep, sparse=bool(result.plan.masks))


def _test_scores(result: FinetuneResult, prepared: Prepared, settings: FinetuneSettings) -> Scores | None:
    test = prepared.data.test
    if test is None:
        return None
    objective, device = objective_of(result.reading, settings.loss), settings.device
    on = On(device, processes_for(device))
    teacher = result.dense.module().to(device)
    dense, small = (
        evaluate(graph.module().to(device), test, objective, teacher=teacher, on=on)
        for graph in (result.dense, result.small)
    )
    return Scores(dense, small)
