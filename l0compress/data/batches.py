"""What a model is called with, read from whatever a loader, a list or a data set holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from l0compress.data.inputs import as_input, has_samples, is_nested, places_of
from l0compress.data.tensors import as_targets, as_tensor, concatenated, is_array, stacked
from l0compress.devices import moved
from l0compress.errors import DataError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_UNLIKE = "The samples do not all have the same inputs, or some lack a target."


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is called with, and what it should answer.

    Inputs are tensors that the samples lead, or constants (numbers, and tensors of no dimensions), in tuples and dicts
    to any depth: ``(x, (h, c))``.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        targets: None where there are no labels.
        batch_dims: the dimension of each input that is the batch in the model, leaf by leaf, where that is not the
            first: 1 for ``(length, n, features)``. Empty where the samples lead there too.

    Example:
        >>> batch = Batch((torch.zeros(2, 7, 3),), {}, batch_dims=(1,))
        >>> len(batch), tuple(batch.run(lambda x: x.shape))
        (2, (7, 2, 3))
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Tensor | None = None
    batch_dims: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        """Number of samples, the length of the first input that has them."""
        return len(next(filter(has_samples, self.leaves())))

    def leaves(self) -> list[Any]:
        """The tensors and numbers of all inputs, in the order of the call."""
        return pytree.tree_leaves((self.args, self.kwargs))

    def with_leaves(self, leaves: Sequence[Any]) -> Batch:
        """The same batch with others in the place of :meth:`leaves`."""
        args, kwargs = pytree.tree_unflatten(list(leaves), pytree.tree_structure((self.args, self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; what is float64 becomes float32 where the device has none."""
        there = self.each(lambda tensor: moved(tensor, device))
        return replace(there, targets=None if self.targets is None else moved(self.targets, device))

    def pinned(self, device: torch.device | str) -> Batch:
        """The same batch in memory from which a GPU copies while the CPU goes on; as it is for any other device."""
        if torch.device(device).type != "cuda":
            return self

        def pin(tensor: Tensor) -> Tensor:
            return tensor if tensor.is_cuda else tensor.pin_memory()

        return replace(self.each(pin), targets=None if self.targets is None else pin(self.targets))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor among the inputs changed."""
        return self.with_leaves([change(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves()])

    def each_column(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every input changed that the samples lead; constants stay."""
        return self.with_leaves([change(leaf) if has_samples(leaf) else leaf for leaf in self.leaves()])

    def rows(self, index: slice | Tensor) -> Batch:
        """The samples at ``index`` (a slice, or int64 indices), targets and all."""
        chosen = self.each_column(lambda tensor: tensor[index])
        return replace(chosen, targets=None if self.targets is None else self.targets[index])

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the model takes them, the batch where it wants it."""
        if not self.batch_dims:
            return self.args, self.kwargs
        moved_there = self.with_leaves(
            [
                leaf if dim is None or not has_samples(leaf) else leaf.movedim(0, dim)
                for leaf, dim in zip(self.leaves(), self.batch_dims, strict=True)
            ]
        )
        return moved_there.args, moved_there.kwargs

    def run(self, model: Callable[..., Any]) -> Any:
        """What a model answers."""
        args, kwargs = self.call()
        return model(*args, **kwargs)

    def inputs(self) -> dict[str, Any]:
        """The tensors and numbers of all inputs by what messages call them."""
        return {place.label: leaf for place, leaf in places_of(self.args, self.kwargs).items()}


def as_batch(item: Any) -> Batch:
    """Read one item of a stream as a batch; see :class:`~l0compress.data.StreamSplit` for what an item may be.

    Example:
        >>> import numpy as np
        >>> batch = as_batch({"input_ids": np.zeros((2, 3), np.int64), "labels": torch.tensor([0, 1])})
        >>> sorted(batch.kwargs), batch.targets.tolist()
        (['input_ids'], [0, 1])

    Raises:
        DataError: the item is none of these, or has not one target for each sample.
    """
    args, kwargs, targets = parts_of(item)
    answers = None if targets is None else as_targets(targets, "the target of a batch")
    count = _count((answers, *args, *kwargs.values()))
    batch = Batch(
        tuple(as_input(value, f"input {position} of a batch", count) for position, value in enumerate(args)),
        {name: as_input(value, f"input {name!r} of a batch", count) for name, value in kwargs.items()},
        answers,
    )
    check_samples(batch, "A batch has")
    return batch


def _count(values: Sequence[Any]) -> int | None:
    """The rows of the first array that has any: the samples of a batch."""
    return next((len(value) for value in values if is_array(value) and value.ndim > 0), None)


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
        several = (
            len(inputs) == 1
            and isinstance(inputs[0], tuple | list)
            and any(is_array(value) or is_nested(value) for value in inputs[0])
        )
        return tuple(inputs[0] if several else inputs), {}, last
    raise DataError(
        f"The data yields {type(item).__name__}, which is not a batch. Yield (x, y), (x1, x2, y), ((x1, x2), y), "
        "({'name': x}, y), a tensor, or a dict of tensors."
    )


def collate(items: Sequence[Any]) -> Batch:
    """One batch of samples, each an item without the dimension of the batch.

    Example:
        >>> import numpy as np
        >>> batch = collate([(np.zeros(3), 1), (np.ones(3), 0)])
        >>> tuple(batch.args[0].shape), batch.targets.tolist()
        ((2, 3), [1, 0])

    Raises:
        DataError: the samples have different sizes or inputs.
    """
    read = [parts_of(item) for item in items]
    forms = {(len(args), tuple(kwargs), targets is None) for args, kwargs, targets in read}
    if len(forms) > 1:
        raise DataError(_UNLIKE, fix="Give all of them the same ones.")
    flat = [
        pytree.tree_flatten(
            (
                tuple(as_input(value, f"input {at} of a sample") for at, value in enumerate(args)),
                {name: as_input(value, f"input {name!r} of a sample") for name, value in kwargs.items()},
            )
        )
        for args, kwargs, _ in read
    ]
    leaves, structure = flat[0]
    if any(other != structure for _, other in flat):
        raise DataError(_UNLIKE, fix="Give all of them the same ones.")
    names = Batch(*pytree.tree_unflatten(leaves, structure)).inputs()
    columns = zip(names, zip(*(leaves for leaves, _ in flat), strict=True), strict=True)
    args, kwargs = pytree.tree_unflatten([_column(column, name) for name, column in columns], structure)
    targets = [target for _, _, target in read]
    return Batch(args, kwargs, None if targets[0] is None else as_targets(_column(targets, "the target")))


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one.

    Raises:
        DataError: their samples have different shapes.
    """
    if len(batches) == 1:
        return batches[0]
    targets = [batch.targets for batch in batches if batch.targets is not None]
    columns = zip(*(batch.leaves() for batch in batches), strict=True)
    leaves = [
        concatenated(column, name) if has_samples(column[0]) else column[0]
        for name, column in zip(batches[0].inputs(), columns, strict=True)
    ]
    return replace(batches[0].with_leaves(leaves), targets=concatenated(targets, "the target") if targets else None)


def check_samples(batch: Batch, subject: str) -> None:
    """Refuse a batch without samples, or another number of targets than of samples; ``subject`` begins the message.

    Raises:
        DataError: names both.
    """
    name, first = next(((name, leaf) for name, leaf in batch.inputs().items() if has_samples(leaf)), ("", None))
    if first is None or (batch.targets is not None and batch.targets.ndim == 0):
        raise DataError(
            f"{subject} a single number where one per sample is needed.",
            fix="Give batches, or a Dataset of samples.",
        )
    if batch.targets is not None and len(first) != len(batch.targets):
        raise DataError(
            f"{subject} different numbers of samples ({name}: {len(first)}, the targets: {len(batch.targets)}).",
            fix="Give one target for each sample.",
        )


def _column(values: Sequence[Any], what: str) -> Tensor:
    return stacked([as_tensor(value, f"{what} of a sample") for value in values], what)
