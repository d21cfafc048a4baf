"""From a captured model and data that fit together to a checked result, whoever asked and wherever it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.export import ExportedProgram

from l0compress.devices import CPU, device_of
from l0compress.errors import InputError, LostInCaptureWarning, TargetMissedError
from l0compress.graph.cut.masked import masked
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.loading import Model
from l0compress.pipeline.compress_result import CompressResult, Penalized, Reached, Scores
from l0compress.pipeline.sources import Prepared
from l0compress.training.evaluation import On, evaluate
from l0compress.training.events import OnEvent, ignore, warning
from l0compress.training.family import finetune_family
from l0compress.training.finetune import FinetuneResult, finetune, protected
from l0compress.training.goals import Criterion
from l0compress.training.latency_targets import Measure, allowances, measured_time
from l0compress.training.losses import objective_of
from l0compress.training.processes import processes_for
from l0compress.training.randomness import in_turn
from l0compress.training.reporting import Checkpoints
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import AbsoluteTarget, Target, absolute_targets, told
from l0compress.verification.equality import verify


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
    """As :func:`~l0compress.compress`, from a captured model and data that fit together.

    ``checkpoints`` as for ``finetune``.
    """
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


def members_of(
    prepared: Prepared,
    targets: Sequence[Target],
    settings: FinetuneSettings,
    *,
    on_event: OnEvent = ignore,
    checkpoints: Checkpoints | None = None,
    measure: Measure = measured_time,
) -> Iterator[CompressResult]:
    """As :func:`~l0compress.compress_family`, from a captured model and data that fit together.

    Each member is there as soon as it is made. A family that goes on from a state yields from the member that was
    being made.
    """
    processes = processes_for(settings.device)
    settings, on_event = processes.placed(settings), processes.listener(on_event)
    tell_lost(prepared, settings, on_event)
    members = finetune_family(
        prepared.graph,
        prepared.data,
        targets,
        settings=settings,
        on_event=on_event,
        checkpoints=checkpoints,
        measure=measure,
    )
    for member in members:
        yield checked(member.result, prepared, (member.goal,), settings)


def tell_lost(prepared: Prepared, settings: FinetuneSettings, on_event: OnEvent) -> None:
    """Say what the model does in training mode alone, which its graph does not."""
    for part in prepared.graph.training_only:
        message = f"No run does what the model does only in training mode: {part.sentence}."
        on_event(warning(message, LostInCaptureWarning, epochs=settings.epochs))


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
        NotEqualError, TargetMissedError: as :func:`~l0compress.compress`.
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
