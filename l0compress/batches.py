"""What a model is called with, read from whatever a loader, a list or a data set holds.

Everything becomes tensors here, and class labels become int64, whatever type they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0compress.devices import moved
from l0compress.errors import DataError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_NUMBERS = "biuf"
# What torch has no arithmetic for.
_WIDER = {"u2": np.int32, "u4": np.int64, "u8": np.int64}


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is called with, and what it should answer.

    Attributes:
        args: positional inputs; the samples lead, in every one of them.
        kwargs: keyword inputs, likewise.
        targets: None where there are no labels.
        batch_dims: the dimension of each input that is the batch in the model, where that is not the first: 1 for
            ``(length, n, features)``. Empty where the samples lead there too.

    Example:
        >>> batch = Batch((torch.zeros(2, 7, 3),), {}, batch_dims=(1,))
        >>> len(batch), tuple(batch.run(lambda x: x.shape))
        (2, (7, 2, 3))
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    targets: Tensor | None = None
    batch_dims: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        """Number of samples, the length of the first input."""
        return len(next(iter((*self.args, *self.kwargs.values()))))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; what is float64 becomes float32 where the device has none."""
        there = self.each(lambda tensor: moved(tensor, device))
        return replace(there, targets=None if self.targets is None else moved(self.targets, device))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every input changed."""
        named = {name: change(tensor) for name, tensor in self.kwargs.items()}
        return replace(self, args=tuple(map(change, self.args)), kwargs=named)

    def call(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """The arguments as the model takes them, the batch where it wants it."""
        if not self.batch_dims:
            return self.args, self.kwargs
        tensors = [
            tensor if dim is None else tensor.movedim(0, dim)
            for tensor, dim in zip((*self.args, *self.kwargs.values()), self.batch_dims, strict=True)
        ]
        count = len(self.args)
        return tuple(tensors[:count]), dict(zip(self.kwargs, tensors[count:], strict=True))

    def run(self, model: Callable[..., Any]) -> Any:
        """What a model answers."""
        args, kwargs = self.call()
        return model(*args, **kwargs)

    def inputs(self) -> dict[str, Tensor]:
        """The inputs by what messages call them."""
        positions = {f"input {position}": tensor for position, tensor in enumerate(self.args)}
        return {**positions, **{f"input {name!r}": tensor for name, tensor in self.kwargs.items()}}


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor of a tensor, an array or a list of numbers; ``what`` is what messages call it.

    Example:
        >>> as_tensor(np.arange(3, dtype=">u2"), "the labels")
        tensor([0, 1, 2], dtype=torch.int32)
        >>> as_tensor([[1, 2], [3]], "input 0")
        Traceback (most recent call last):
        ...
        l0compress.errors.DataError: input 0 is a list whose rows have different lengths. Nothing was changed. Pad them
        to one length.

    Raises:
        DataError: it holds something else than numbers, or rows of different lengths.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        return _stacked(value, what)
    try:
        array = np.asarray(value)
    except ValueError as reason:
        raise DataError(
            f"{what} is a {type(value).__name__} whose rows have different lengths. Nothing was changed. Pad them to "
            "one length."
        ) from reason
    if array.dtype.kind not in _NUMBERS or array.dtype.itemsize > 8:
        kind = {"U": "text", "S": "text", "O": "objects"}.get(array.dtype.kind, str(array.dtype))
        held = f"holds {kind}" if array.ndim else f"is a {type(value).__name__}"
        raise DataError(
            f"{what} {held}, and numbers are needed. Nothing was changed. Make numbers of classes by "
            "numpy.unique(y, return_inverse=True)[1], of sentences by a tokenizer."
        )
    # As torch does it: numbers of Python are single precision, arrays keep what they have.
    from_python = array.dtype == np.float64 and isinstance(value, list | tuple | float)
    return tensor_of(array.astype(np.float32) if from_python else array)


def tensor_of(array: np.ndarray) -> Tensor:
    """A tensor of an array of numbers, of any byte order and any memory layout.

    Unsigned integers of more than a byte, with which torch does not count, become the next wider signed ones.

    Example:
        >>> tensor_of(np.array([7], dtype="<u4")).dtype
        torch.int64
    """
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    wider = _WIDER.get(native.dtype.str[1:])
    whole = np.ascontiguousarray(native if wider is None else native.astype(wider)).reshape(native.shape)
    return torch.from_numpy(whole if whole.flags.writeable else whole.copy())


def as_targets(value: Any, what: str = "the target") -> Tensor:
    """Targets as a tensor: whole numbers and yes/no as int64 classes, decimal numbers as they are.

    Example:
        >>> as_targets(np.array([True, False])), as_targets(torch.tensor([0.5]))
        (tensor([1, 0]), tensor([0.5000]))

    Raises:
        DataError: as :func:`as_tensor` says.
    """
    targets = as_tensor(value, what)
    return targets if targets.is_floating_point() or targets.is_complex() else targets.long()


def class_labels(targets: Tensor | None) -> Tensor | None:
    """Targets as classes, int64 ``(n,)``: whole numbers, one a sample; None of any others.

    >>> class_labels(torch.tensor([[1], [0]])), class_labels(torch.tensor([0.5]))
    (tensor([1, 0]), None)
    """
    if targets is None or targets.is_floating_point() or targets.is_complex():
        return None
    return targets.flatten().long() if targets.ndim == 1 or targets.shape[1:] == (1,) else None


def as_batch(item: Any) -> Batch:
    """Read one item of a stream as a batch; see :class:`~l0compress.data.StreamSplit` for what an item may be.

    Example:
        >>> batch = as_batch({"input_ids": np.zeros((2, 3), np.int64), "labels": torch.tensor([0, 1])})
        >>> sorted(batch.kwargs), batch.targets.tolist()
        (['input_ids'], [0, 1])

    Raises:
        DataError: the item is none of these, or has not one target for each sample.
    """
    args, kwargs, targets = parts_of(item)
    batch = Batch(
        tuple(as_tensor(value, f"input {position} of a batch") for position, value in enumerate(args)),
        {name: as_tensor(value, f"input {name!r} of a batch") for name, value in kwargs.items()},
        None if targets is None else as_targets(targets, "the target of a batch"),
    )
    check_targets(batch, "A batch has")
    return batch


def parts_of(item: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional inputs, keyword inputs and targets of one item, a batch or a sample; targets may be None.

    Example:
        >>> x = torch.zeros(2)
        >>> [len(part) for part in parts_of(((x, x), x))[:2]], parts_of({"x": x, "y": 3})[2]
        ([2, 0], 3)

    Raises:
        DataError: the item is neither.
    """
    if isinstance(item, Batch):
        return item.args, item.kwargs, item.targets
    if is_array(item):
        return (item,), {}, None
    if isinstance(item, Mapping):
        target_key = next((key for key in TARGET_KEYS if key in item), None)
        kwargs = {str(name): value for name, value in item.items() if name != target_key}
        if kwargs:
            return (), kwargs, None if target_key is None else item[target_key]
    elif isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item) > 0:
        *inputs, last = item
        if not inputs:
            return (last,), {}, None
        if len(inputs) == 1 and isinstance(inputs[0], Mapping) and inputs[0]:
            return (), {str(name): value for name, value in inputs[0].items()}, last
        several = len(inputs) == 1 and isinstance(inputs[0], tuple | list) and any(map(is_array, inputs[0]))
        return tuple(inputs[0] if several else inputs), {}, last
    raise DataError(
        f"The data yields {type(item).__name__}, which is no batch. Yield (x, y), (x1, x2, y), ((x1, x2), y), "
        "({'name': x}, y), a tensor, or a dict of tensors."
    )


def is_array(value: Any) -> bool:
    """Whether it is a tensor or an array."""
    return isinstance(value, Tensor | np.ndarray)


def collate(samples: Sequence[Any]) -> Batch:
    """One batch of samples, each an item without the dimension of the batch.

    Example:
        >>> batch = collate([(np.zeros(3), 1), (np.ones(3), 0)])
        >>> tuple(batch.args[0].shape), batch.targets.tolist()
        ((2, 3), [1, 0])

    Raises:
        DataError: the samples have different sizes or inputs.
    """
    read = [parts_of(sample) for sample in samples]
    forms = {(len(args), tuple(kwargs), targets is None) for args, kwargs, targets in read}
    if len(forms) > 1:
        raise DataError(
            "Some samples have other inputs than others, or no target. Nothing was changed. Give all of them the same."
        )
    args, kwargs, targets = read[0]
    return Batch(
        tuple(_column([row[0][at] for row in read], f"input {at}") for at in range(len(args))),
        {name: _column([row[1][name] for row in read], f"input {name!r}") for name in kwargs},
        None if targets is None else as_targets(_column([row[2] for row in read], "the target")),
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one.

    Raises:
        DataError: their samples have different shapes.
    """
    if len(batches) == 1:
        return batches[0]
    targets = [batch.targets for batch in batches if batch.targets is not None]
    return Batch(
        tuple(_joined([batch.args[at] for batch in batches], f"input {at}") for at in range(len(batches[0].args))),
        {name: _joined([batch.kwargs[name] for batch in batches], f"input {name!r}") for name in batches[0].kwargs},
        _joined(targets, "the target") if targets else None,
        batches[0].batch_dims,
    )


def check_targets(batch: Batch, subject: str) -> None:
    """Refuse another number of targets than of samples; ``subject`` begins the message.

    Raises:
        DataError: names both.
    """
    if batch.targets is None:
        return
    name, first = next(iter(batch.inputs().items()))
    if first.ndim == 0 or batch.targets.ndim == 0:
        raise DataError(
            f"{subject} a single number where a row of them is needed, one for each sample. Nothing was changed. Give "
            "batches, or a Dataset of samples."
        )
    if len(first) != len(batch.targets):
        raise DataError(
            f"{subject} different numbers of samples ({name}: {len(first)}, the targets: {len(batch.targets)}). "
            "Nothing was changed. Give one target for each sample."
        )


def _column(values: list[Any], what: str) -> Tensor:
    return _stacked([as_tensor(value, f"{what} of a sample") for value in values], what)


def _stacked(rows: Sequence[Tensor], what: str) -> Tensor:
    _check_shapes([row.shape for row in rows], what)
    return torch.stack(tuple(rows))


def _joined(pieces: Sequence[Tensor], what: str) -> Tensor:
    _check_shapes([piece.shape[1:] for piece in pieces], what)
    return torch.cat(tuple(pieces))


def _check_shapes(found: Iterable[torch.Size], what: str) -> None:
    shapes = sorted(set(map(tuple, found)))
    if len(shapes) > 1:
        raise DataError(
            f"{what} has samples of different shapes, {shapes[0]} and {shapes[-1]}. Nothing was changed. Bring them to "
            "one size, or give a DataLoader with a collate_fn that pads them."
        )
