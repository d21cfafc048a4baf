"""Fit data to the model: shapes are adapted if only one reading is possible, and checked otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from l0compress.data import AnySplit, Batch, Data, Split, StreamSplit, example_batch
from l0compress.data.inputs import has_samples
from l0compress.devices import CPU, device_of
from l0compress.errors import DataError
from l0compress.loading.classes import IGNORED_LABEL
from l0compress.loading.models import Model
from l0compress.loading.references import FOREIGN_ERRORS, first_line

PROBE_SAMPLES = 3
# Samples of a stream whose labels are read before anything is computed.
MOST_LABELS = 16_384
_BATCH = 64
_AS_TRAINED = "Prepare the data as it was prepared for training the model."


def fit_data(data: Data, model: Model) -> Data:
    """Give the data the shapes and the floating-point type that the model takes.

    A single input may lack the channel axis of size one, may have to be flattened, or may have a name that the model
    does not know. Anything else must fit as it is.

    Raises:
        DataError: the model cannot run on the data; the message names both shapes.
    """
    dtype = _floating_type(model)
    data = data.mapped(lambda batch: batch.each(lambda tensor: _cast(tensor, dtype)))
    if isinstance(model, ExportedProgram):
        return _fit_program(data, model)
    return _fit_module(data, model)


def check_values(data: Data) -> None:
    """Refuse data with non-finite values, in its in-memory parts.

    Raises:
        DataError: a value is not finite; the message names the part, the input and the first sample.
    """
    for part, split in data.parts().items():
        if isinstance(split, Split):
            named = {place.label: leaf for place, leaf in split.places().items() if isinstance(leaf, Tensor)}
            if split.targets is not None:
                named["the target"] = split.targets
            for name, tensor in named.items():
                _check_finite(tensor, part, name)


def check_labels(data: Data, num_classes: int, *, one_score: bool = False) -> None:
    """Refuse class labels outside ``0 ... num_classes - 1`` (``-100`` is ignored).

    Parts whose labels are known are checked completely. Of others the first :data:`MOST_LABELS` samples are read
    once; later ones are checked when they are used. ``one_score``: the model returns one number for the classes 0
    and 1, for which floating-point labels are also allowed.

    Example:
        >>> import torch
        >>> part = Split((torch.zeros(3, 4),), torch.tensor([0, 1, 7]))
        >>> check_labels(Data(train=part, val=part), num_classes=3)
        Traceback (most recent call last):
        ...
        l0compress.errors.DataError: Label 7 of sample 2 in the train part is out of range: the model has 3 outputs,
        so labels are 0 to 2. Nothing was changed. Give labels of the model's classes; -100 leaves a sample out.

    Raises:
        DataError: a label is out of range; the message names the part, the sample and its label. Or the labels are not
            integers.
    """
    for part, split in data.parts().items():
        seen = 0
        for targets in _targets_of(split):
            if targets.is_floating_point() and not (one_score and bool(((targets == 0) | (targets == 1)).all())):
                raise DataError(
                    f"The targets of the {part} part are floating-point numbers, not class labels. For regression "
                    "pass --loss mse."
                )
            source = "the model returns one score per label" if one_score else f"the model has {num_classes} outputs"
            _check_range(targets.long(), num_classes, part, before=seen, source=source)
            seen += len(targets)
            if seen >= MOST_LABELS:
                break


def _targets_of(split: AnySplit) -> Iterator[Tensor]:
    if isinstance(split, Split):
        yield from () if split.targets is None else (split.targets,)
        return
    known = split.known_labels()
    if known is not None:
        yield known
        return
    yield from (
        batch.targets
        for batch in split.batches(_BATCH, seed=0 if isinstance(split, StreamSplit) else None)
        if batch.targets is not None
    )


def _check_range(labels: Tensor, num_classes: int, part: str, *, before: int, source: str) -> None:
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != IGNORED_LABEL)
    if wrong.any():
        position = wrong.nonzero()[0].tolist()
        raise DataError(
            f"Label {labels[tuple(position)].item()} of sample {before + position[0]} in the {part} part is out of "
            f"range: {source}, so labels are 0 to {num_classes - 1}.",
            fix="Give labels of the model's classes; -100 leaves a sample out.",
        )


def _check_finite(tensor: Tensor, part: str, name: str) -> None:
    if not tensor.is_floating_point():
        return
    # The sum of a tensor is finite only if all its values are (up to overflow, which the second check rules out).
    if torch.isfinite(tensor.sum()):
        return
    if tensor.ndim == 0:
        raise DataError(f"In the {part} part, {name} is {float(tensor)}.", fix="Give a finite number.")
    wrong = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
    if wrong.any():
        raise DataError(
            f"Sample {int(wrong.nonzero()[0])} of the {part} part has a value that is not finite in {name} "
            f"({int(wrong.sum())} such samples).",
            fix="Remove or repair them.",
        )


def _floating_type(model: Model) -> torch.dtype | None:
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)


def _cast(inputs: Tensor, dtype: torch.dtype | None) -> Tensor:
    return inputs.to(dtype) if dtype is not None and inputs.is_floating_point() else inputs


def _readings(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the sample shapes that a sample of this shape can be read as: as it is, with a channel axis, flat."""
    yield shape
    yield (1, *shape)
    if len(shape) > 1:
        yield (math.prod(shape),)


def _fit_program(data: Data, program: ExportedProgram) -> Data:
    args, kwargs = program.example_inputs or ((), {})
    example = example_batch(data, 1)
    leaves = pytree.tree_leaves((args, kwargs))
    places = example.batch_dims or (0,) * len(leaves)
    if len(places) == len(leaves):
        pairs = zip(leaves, places, strict=True)
        leaves = [leaf.movedim(dim or 0, 0) if has_samples(leaf) else leaf for leaf, dim in pairs]
    wanted, given = _sample_shapes(leaves), _sample_shapes(example.leaves())
    if len(wanted) == len(given) == 1 and (wanted != given or bool(example.kwargs) != bool(kwargs)):
        fitting = [shape for shape in _readings(given[0]) if shape == wanted[0]]
        if fitting:
            data = data.mapped(lambda batch: _single(batch, fitting[0], next(iter(kwargs), None)))
            given = wanted
    if len(wanted) != len(given) or any(len(a) != len(b) for a, b in zip(wanted, given, strict=True)):
        raise _unfit_shapes(wanted, given)
    batch = example_batch(data, PROBE_SAMPLES).to(_device_of(program))
    reason = _raised(program.module(), batch)
    if reason is not None:
        if wanted != given:
            raise _unfit_shapes(wanted, given)
        raise _unfit_types(batch, reason, lambda floats: _raised(program.module(), floats) is None) or DataError(
            f"The exported model cannot run on samples of shape {_shapes(given)} ({reason}).", fix=_AS_TRAINED
        )
    return data


def _single(batch: Batch, shape: tuple[int, ...], name: str | None = None) -> Batch:
    """Return a batch of one input with samples of another shape, given by position, or by that name."""
    (tensor,) = batch.leaves()
    shaped = tensor.reshape(len(tensor), *shape)
    named = ((shaped,), {}) if name is None else ((), {name: shaped})
    return Batch(*named, batch.targets, batch.batch_dims)


def _unfit_types(batch: Batch, reason: str, fits: Callable[[Batch], bool]) -> DataError | None:
    """Return an error if floats would work where integers do not."""
    tensors = [(name, leaf) for name, leaf in batch.inputs().items() if isinstance(leaf, Tensor)]
    whole = {name: tensor.dtype for name, tensor in tensors if not tensor.is_floating_point()}
    if not whole or not fits(batch.each(torch.Tensor.float)):
        return None
    name, dtype = next(iter(whole.items()))
    return DataError(
        f"The model cannot run on {name} of {str(dtype).removeprefix('torch.')} ({reason}), but can on float32.",
        fix="Write x.float() / 255 for pixels, or what the model was trained on.",
    )


def _device_of(program: ExportedProgram) -> torch.device:
    leaves = [*program.state_dict.values(), *pytree.tree_leaves(program.example_inputs)]
    return next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), CPU)


def _unfit_shapes(wanted: list[tuple[int, ...]], given: list[tuple[int, ...]]) -> DataError:
    return DataError(
        f"The model was exported for samples of shape {_shapes(wanted)}, but the data has {_shapes(given)}.",
        fix="Give data of that shape, or export the model for this one.",
    )


def _sample_shapes(leaves: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape[1:]) for leaf in leaves if has_samples(leaf)]


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes) or "no inputs"


def _fit_module(data: Data, module: nn.Module) -> Data:
    batch = example_batch(data, PROBE_SAMPLES).to(device_of(module) or CPU)
    reason = _failure(module, batch)
    if reason is None:
        return data
    if len(batch.inputs()) == 1:
        (tensor,) = batch.inputs().values()
        for shape in _readings(tuple(tensor.shape[1:])):
            if _failure(module, _single(batch, shape)) is None:
                return data.mapped(lambda batch, shape=shape: _single(batch, shape))
    given = _sample_shapes(batch.leaves())
    raise _unfit_types(batch, reason, lambda floats: _failure(module, floats) is None) or DataError(
        f"The model cannot run on samples of shape {_shapes(given)} ({reason}).", fix=_AS_TRAINED
    )


def _failure(module: nn.Module, batch: Batch) -> str | None:
    """Return why the module cannot run on the batch and return one answer per sample, or None."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            output = batch.run(module.eval())
    except FOREIGN_ERRORS as reason:
        return first_line(reason)
    finally:
        for part, training in modes:
            part.training = training
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    # A model that takes the batch in another dimension may return it there.
    sizes = leaves[0].shape if leaves and any(batch.batch_dims) else leaves[0].shape[:1] if leaves else ()
    if len(batch) not in sizes:
        return f"its first output has shape {tuple(leaves[0].shape) if leaves else ()} for {len(batch)} samples"
    return None


def _raised(module: nn.Module, batch: Batch) -> str | None:
    """Return what the module raises on the batch, or None."""
    try:
        with torch.no_grad():
            batch.run(module)
    except FOREIGN_ERRORS as reason:
        return first_line(reason)
    return None
