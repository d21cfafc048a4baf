"""From a graph, data and settings to a run that can begin: what is refused, the teacher, and what is minimised."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from l0compress.data import Data
from l0compress.devices import widest_float
from l0compress.errors import DataError, InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.loading.classes import class_warnings
from l0compress.training.course import Course
from l0compress.training.events import WARNING, OnEvent, ProgressEvent
from l0compress.training.journal import Journal
from l0compress.training.lessons import Lessons
from l0compress.training.losses import Objective, check_loss, objective_of
from l0compress.training.outputs import outputs_of
from l0compress.training.phases import evaluate_on
from l0compress.training.reading import Reading
from l0compress.training.results import Run
from l0compress.training.settings import FinetuneSettings
from l0compress.training.single import check_batches, takes_one_sample
from l0compress.training.snapshot import Checkpoints, NoCheckpoints
from l0compress.training.survey import reading_of


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
    course = Course(data, objective, dense if settings.distill else None, settings.settled(graph, num_steps), fewest)
    if course.teacher is None or data.augment is not None:
        return course
    return replace(course, lessons=Lessons(dense, data.train, settings.device, course.autocast))


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
