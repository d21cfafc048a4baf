"""From what the user names to a captured graph and data that fits it, every check made before anything is computed."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from l0compress.data import Batch, Data, Split, example_batch
from l0compress.data.inputs import Form, has_samples, places_of
from l0compress.devices import CPU, device_of
from l0compress.errors import CaptureError, DataError, InputError, LostInCaptureWarning
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.capture.batch import batch_dims_of_program
from l0compress.graph.capture.dynamic import Dynamic, said_batch_dims
from l0compress.loading import (
    DataSource,
    Model,
    ModelSource,
    as_data,
    check_labels,
    check_values,
    fit_data,
    load_data,
)
from l0compress.loading.classes import class_warnings
from l0compress.loading.references import FOREIGN_ERRORS, first_line
from l0compress.loading.torchscript import WAY_OUT
from l0compress.loading.wrappers import traceable
from l0compress.progress import tell
from l0compress.training.losses import TaskLoss, check_loss, objective_of
from l0compress.training.outputs import class_last, logits_of, one_score_each, two_classes
from l0compress.training.problem import check_precision
from l0compress.training.randomness import undisturbed
from l0compress.training.reading import BINARY, CLASSES, kind_of

EXAMPLE_SAMPLES = 2


@dataclass(frozen=True, eq=False)
class Prepared:
    """A captured model, and data that it runs on."""

    graph: CapturedGraph
    data: Data


def prepare(model: Model, data: Any, *, loss: str | TaskLoss = "auto", dynamic: Dynamic = "auto") -> Prepared:
    """Capture the model with the data's first samples as example, and check that data, model and loss fit together.

    Args:
        model: what is captured.
        data: what :func:`~l0compress.loading.as_data` takes, or the name of data.
        loss: "auto", the name of a loss, or one's own.
        dynamic: as for :func:`~l0compress.graph.capture.capture`; the sizes of an exported program are its own.

    Raises:
        DataError: the data cannot be read, hold values that are not finite, or do not fit the model or the loss.
        CaptureError: the model cannot be captured.
        InputError: its weights are float16 or bfloat16.
    """
    model = traceable(model) if isinstance(model, nn.Module) else model
    tell("reading the data")
    data = fit_data(_placed(_data_of(data), model, dynamic), model)
    check_values(data)
    tell("capturing the model")
    graph = capture_with(model, data, dynamic=dynamic)
    check_precision(graph)
    check_parts(graph, data)
    _check_targets(graph, data, loss)
    return Prepared(graph, data)


def _placed(data: Data, model: Model, dynamic: Dynamic) -> Data:
    """The data, with word of where the model wants the batch of each input."""
    if isinstance(model, ExportedProgram):
        args, kwargs = model.example_inputs or ((), {})
        return data.called_like(Form(args, kwargs, batch_dims_of_program(model)))
    if not isinstance(dynamic, Mapping) or isinstance(model, torch.jit.ScriptModule):
        return data
    batch = example_batch(data, 1)
    return data.placed(said_batch_dims(model, batch.args, batch.kwargs, dynamic))


def _data_of(given: Any) -> Data:
    return load_data(given) if isinstance(given, DataSource | str | Path) else as_data(given, name="data")


def capture_with(model: Model, data: Data, *, dynamic: Dynamic = "auto") -> CapturedGraph:
    """Capture the model; a module with the data's first samples as example, a program with its own.

    Raises:
        CaptureError: the model cannot be captured.
    """
    if isinstance(model, ExportedProgram):
        return _captured_program(model)
    device = device_of(model) if isinstance(model, nn.Module) else None
    batch = example_batch(data, EXAMPLE_SAMPLES).to(device or CPU)
    with _silence():
        model = traceable(model)
        if isinstance(model, torch.jit.ScriptModule):
            return _captured_script(model, batch, dynamic)
        args, kwargs = batch.call()
        return capture(model, args, kwargs, dynamic=dynamic)


def captured_like(graph: CapturedGraph, model: nn.Module, *, dynamic: Dynamic = "auto") -> CapturedGraph:
    """Capture a model with the example inputs of a graph.

    Raises:
        CaptureError: the model cannot be captured.
    """
    with _silence():
        return capture(model, graph.example_args, graph.example_kwargs, dynamic=dynamic)


def _captured_script(model: torch.jit.ScriptModule, batch: Batch, dynamic: Dynamic) -> CapturedGraph:
    try:
        return capture(model, batch.args, batch.kwargs, dynamic=dynamic)
    except CaptureError as reason:
        raise CaptureError(f"{reason} This is a TorchScript model. {WAY_OUT}") from reason


def open_graph(
    source: ModelSource, data: DataSource | str | None = None, *, dynamic: Dynamic = "auto"
) -> CapturedGraph:
    """Load a model file and capture it; a module needs data for its example inputs.

    Raises:
        InputError: the model is a module and there is no data.
        ModelError, DataError, CaptureError: as the stages say.
    """
    tell("loading the model")
    model = source.load()
    tell("capturing the model")
    if data is not None:
        found = _placed(load_data(data), model, dynamic)
        return capture_with(model, fit_data(found, model), dynamic=dynamic)
    if isinstance(model, nn.Module):
        raise InputError(
            f"Model {str(source.path)!r} does not record its inputs.",
            fix="Name data whose first samples serve as example: --data DATA.",
        )
    return _captured_program(model)


@contextmanager
def _silence() -> Iterator[None]:
    """What torch.export cannot capture it also prints, graph and all, before it raises: the message is enough."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # Told by whoever asked for the graph, from what the graph says.
            warnings.simplefilter("ignore", LostInCaptureWarning)
            yield
    finally:
        logging.disable(disabled)


def _captured_program(program: ExportedProgram) -> CapturedGraph:
    """The program's graph with copies of its example inputs: those of a file are often views into a whole data set."""
    graph = capture(program)
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (graph.example_args, graph.example_kwargs))
    return replace(graph, example_args=args, example_kwargs=kwargs)


def check_parts(graph: CapturedGraph, data: Data) -> None:
    """Refuse a part that the model cannot run on, before anything is trained.

    Raises:
        DataError: names the part and its shapes.
    """
    expected = _sizes(example_batch(data, EXAMPLE_SAMPLES))
    for part, split in data.parts().items():
        if part == "train":
            continue
        batch = next(iter(split.batches(EXAMPLE_SAMPLES, seed=None if isinstance(split, Split) else 0)))
        if _sizes(batch) != expected or not isinstance(split, Split):
            _check_runs(graph, batch, part, expected)


def _check_runs(graph: CapturedGraph, batch: Batch, part: str, expected: str) -> None:
    try:
        with torch.no_grad():
            batch.to(CPU).run(graph.module())
    except FOREIGN_ERRORS as reason:
        raise DataError(
            f"The model cannot run on the {part} part ({first_line(reason)}). Its samples have the shape "
            f"{_sizes(batch)}, those of the train part {expected}.",
            fix="Give all parts the shape that the model takes.",
        ) from reason


def _sizes(batch: Batch) -> str:
    """The shape of one sample, input by input."""
    named = places_of(batch.args, batch.kwargs).items()
    shapes = {str(place): tuple(leaf.shape[1:]) for place, leaf in named if has_samples(leaf)}
    if list(shapes) == ["0"]:
        return str(shapes["0"])
    return ", ".join(f"{name}: {shapes[name]}" for name in sorted(shapes))


def _check_targets(graph: CapturedGraph, data: Data, loss: str | TaskLoss) -> None:
    """Labels are checked only where they are classes: what they mean to a user's own loss is the user's business."""
    check_loss(loss)
    batch = example_batch(data, EXAMPLE_SAMPLES).to(CPU)
    outputs = batch.run(graph.module())
    reading = kind_of(loss, batch.targets, outputs)
    if batch.targets is None:
        return
    task = objective_of(reading, loss).task
    if reading.custom:
        _check_loss(task, outputs, batch.targets)
    elif reading.kind == BINARY:
        two_classes(logits_of(outputs), batch.targets.shape, probabilities=False)
        _check_labels(data, 2, one_score=True)
        class_warnings(data)
    elif reading.kind == CLASSES:
        scores = logits_of(outputs)
        if one_score_each(scores, batch.targets):
            raise DataError(
                f"The model returns one score per label, {tuple(scores.shape)} for {tuple(batch.targets.shape)}, but "
                "cross-entropy takes one per class.",
                fix="For labels of 0 and 1 pass --loss bce.",
            )
        num_classes = class_last(scores, batch.targets).shape[-1]
        _check_labels(data, num_classes)
        # What can be trained on is said where training begins; what cannot is refused here, before a run has a folder.
        class_warnings(data)
    else:
        task(outputs, batch.targets)


def _check_labels(data: Data, num_classes: int, *, one_score: bool = False) -> None:
    with ExitStack() as stack:
        for split in data.parts().values():
            stack.enter_context(undisturbed(split))
        check_labels(data, num_classes, one_score=one_score)


def _check_loss(loss: TaskLoss, outputs: Any, targets: Tensor) -> None:
    name = getattr(loss, "__name__", type(loss).__name__)
    try:
        # A loss that draws random numbers draws the same ones in training as if it had not been tried.
        with torch.random.fork_rng(devices=[]):
            value = loss(outputs, targets)
    except FOREIGN_ERRORS as reason:
        raise InputError(
            f"The loss {name!r} cannot be computed on the model's outputs and the data's targets "
            f"({first_line(reason)}).",
            fix="It is called with (outputs, targets) of a batch.",
        ) from reason
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"The loss {name!r} returns {found}.",
            fix="Return a floating-point tensor with one number, such as the mean over the batch.",
        )
