"""Data as the rest of the package sees it: splits that yield batches.

A batch is what a model is called with, and the targets beside it. A :class:`Split` keeps its tensors in memory and
slices them; a :class:`DatasetSplit` reads its samples one by one from a ``Dataset``; a :class:`StreamSplit` wraps a
``DataLoader`` or any other re-iterable source of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from l0compress.batches import TARGET_KEYS, Batch, as_batch, as_targets, as_tensor, collate, joined
from l0compress.errors import DataError
from l0compress.loaders import without_persistence

__all__ = [
    "TARGET_KEYS",
    "AnySplit",
    "Batch",
    "Data",
    "DatasetSplit",
    "Split",
    "StreamSplit",
    "as_batch",
    "class_labels",
    "example_batch",
]

Change: TypeAlias = Callable[[Batch], Batch]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data, in memory.

    Args:
        inputs: positional inputs as a tuple, or keyword inputs as a dict; each is a tensor, or an array, ``(n, ...)``.
        targets: ``(n, ...)`` class indices, kept as int64, or floating regression targets; None where there are no
            labels.

    Raises:
        DataError: no samples, inputs and targets of different lengths, inputs that are neither a tuple nor a dict, or
            that are no numbers.

    Example:
        >>> import torch
        >>> split = Split((torch.arange(5.0).view(5, 1),), torch.tensor([0, 1, 0, 1, 0]))
        >>> [batch.args[0].flatten().tolist() for batch in split.batches(2)]
        [[0.0, 1.0], [2.0, 3.0], [4.0]]
        >>> [len(batch) for batch in split.batches(2, seed=0, drop_last=True)]
        [2, 2]
    """

    inputs: tuple[Tensor, ...] | dict[str, Tensor]
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        given: Any = self.inputs
        if not isinstance(given, tuple | list | dict):
            raise DataError(
                f"The inputs of a part are {type(given).__name__}, and have to be a tuple or a dict. Nothing "
                "was changed. Pass (x,) for x."
            )
        if isinstance(given, dict):
            inputs: Any = {name: as_tensor(x, f"input {name!r}") for name, x in given.items()}
        else:
            inputs = tuple(as_tensor(x, f"input {position}") for position, x in enumerate(given))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", None if self.targets is None else as_targets(self.targets))
        self._check_lengths()

    def _check_lengths(self) -> None:
        named = {**self._tensors(), **({} if self.targets is None else {"the targets": self.targets})}
        if not self.inputs:
            raise DataError("The data has no inputs. Give at least one input tensor.")
        single = next((name for name, tensor in named.items() if tensor.ndim == 0), None)
        if single is not None:
            raise DataError(f"A part has a single number as {single}. Nothing was changed. Give one for each sample.")
        lengths = {name: len(tensor) for name, tensor in named.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(
                f"Inputs and targets have different numbers of samples ({listed}). Nothing was changed. Give one "
                "target for each sample."
            )
        if len(self) == 0:
            raise DataError("The data has no samples.")

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(iter(self._tensors().values())))

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Yield the samples in batches.

        Args:
            batch_size: samples a batch; the last batch may be smaller.
            seed: shuffle by this seed; None keeps the order. The global random state is left alone.
            drop_last: leave out a last batch that is smaller, unless it is the only one.
        """
        yield from map(self.take, _cut(len(self), batch_size, seed, drop_last))

    def take(self, index: slice | Tensor) -> Batch:
        """The samples at ``index`` (a slice, or int64 indices) as one batch."""
        targets = None if self.targets is None else self.targets[index]
        if isinstance(self.inputs, dict):
            return Batch((), {name: tensor[index] for name, tensor in self.inputs.items()}, targets)
        return Batch(tuple(tensor[index] for tensor in self.inputs), {}, targets)

    def mapped(self, change: Change) -> Split:
        """The part with ``change`` applied to all of it at once."""
        batch = change(self.take(slice(None)))
        return Split(batch.kwargs or batch.args, batch.targets)

    def known_labels(self) -> Tensor | None:
        """The class of every sample, int64 ``(n,)``; None where they are no classes."""
        return class_labels(self.targets)

    def _tensors(self) -> dict[str, Tensor]:
        if isinstance(self.inputs, dict):
            return {f"input {name!r}": tensor for name, tensor in self.inputs.items()}
        return {f"input {position}": tensor for position, tensor in enumerate(self.inputs)}


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """One part of the data, read sample by sample from a ``Dataset`` or anything else with a length and indices.

    A sample is ``(x, y)``, ``(x1, ..., y)``, ``((x1, ...), y)``, ``({"name": x, ...}, y)``, one input alone, or a dict
    with the target under ``labels``, ``label``, ``targets``, ``target`` or ``y``. Numbers and arrays become tensors.

    Args:
        dataset: the samples.
        index: int64, which of them this part has.
        labels: the class of each of these, where that is known without reading them.
        change: applied to every batch.

    Raises:
        DataError: there are no samples.

    Example:
        >>> split = DatasetSplit([([0.0, 1.0], 1), ([2.0, 3.0], 0), ([4.0, 5.0], 1)], torch.tensor([2, 0]))
        >>> [(batch.args[0].tolist(), batch.targets.tolist()) for batch in split.batches(2)]
        [([[4.0, 5.0], [0.0, 1.0]], [1, 1])]
    """

    dataset: Any
    index: Tensor
    labels: Tensor | None = None
    change: Change | None = None

    def __post_init__(self) -> None:
        if len(self.index) == 0:
            raise DataError("The data has no samples.")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.index)

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Yield the samples in batches; see :meth:`Split.batches`."""
        for rows in _cut(len(self), batch_size, seed, drop_last):
            batch = collate([self.dataset[position] for position in self.index[rows].tolist()])
            yield batch if self.change is None else self.change(batch)

    def part(self, index: Tensor) -> DatasetSplit:
        """The samples at these positions of this part."""
        return replace(self, index=self.index[index], labels=None if self.labels is None else self.labels[index])

    def mapped(self, change: Change) -> DatasetSplit:
        """The part with ``change`` applied to every batch, after what is applied already."""
        return replace(self, change=_after(self.change, change))

    def known_labels(self) -> Tensor | None:
        """The class of every sample, int64 ``(n,)``; None where they are no classes, or unread."""
        return self.labels


@dataclass(frozen=True, eq=False)
class StreamSplit:
    """One part of the data, streamed from a ``DataLoader`` or another source that can be iterated again and again.

    An item is ``(x, y)``, ``(x1, ..., y)``, ``((x1, ...), y)``, ``({"name": x, ...}, y)``, a single tensor (no
    targets), a dict (``labels``, ``label``, ``targets``, ``target`` or ``y`` are taken as targets), or a
    :class:`Batch`; arrays become tensors. The source decides the size and the order of its batches.

    Args:
        source: yields batches; iterating it again starts a new epoch.
        num_samples: samples an epoch; counted by one pass where it is not given.
        labels: the classes in an order in which an epoch may yield them, batch by batch; found by that same pass.
        change: applied to every batch.

    Raises:
        DataError: the source is a one-shot iterator, is empty, or yields something else.
    """

    source: Iterable[Any]
    num_samples: int = 0
    labels: tuple[Tensor, ...] | None = None
    change: Change | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Iterator):
            raise DataError(
                "The data is an iterator that is used up after one epoch. Give a DataLoader or a list of batches."
            )
        if self.num_samples <= 0:
            counted, labels = 0, []
            for batch in self.batches(1, seed=0):
                counted += len(batch)
                labels.append(class_labels(batch.targets))
            object.__setattr__(self, "num_samples", counted)
            if all(found is not None for found in labels):
                object.__setattr__(self, "labels", tuple(labels))
        if self.num_samples == 0:
            raise DataError("The data has no samples.")

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return self.num_samples

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Yield the source's own batches; ``batch_size`` is only what counts as whole for ``drop_last``.

        With a seed, a shuffling ``DataLoader`` without a generator of its own starts from that seed, and so do its
        workers.

        Raises:
            DataError: an item is no batch, or has other inputs than the first.
        """
        first: Batch | None = None
        for position, item in enumerate(_seeded(self.source, seed)):
            batch = as_batch(item)
            if self.change is not None:
                batch = self.change(batch)
            if first is not None:
                _check_form(batch, first, position)
                if drop_last and len(batch) < min(len(first), batch_size):
                    continue
            first = batch if first is None else first
            yield batch

    def mapped(self, change: Change) -> StreamSplit:
        """The part with ``change`` applied to every batch, after what is applied already."""
        return replace(self, change=_after(self.change, change))

    def known_labels(self) -> Tensor | None:
        """The class of every sample, int64 ``(n,)``, in any order; None where they are no classes, or unread."""
        return torch.cat(self.labels) if self.labels else None


AnySplit: TypeAlias = Split | DatasetSplit | StreamSplit


@dataclass(frozen=True, eq=False)
class Data:
    """The data of a run: what is trained on, what choices are made on, and what is read once at the end.

    ``augment`` changes a training batch, drawing from the generator it is given; it must not change shapes.
    ``preprocessing`` describes, as plain values, how raw data became these inputs, so that a deployment can repeat it.
    """

    train: AnySplit
    val: AnySplit
    test: AnySplit | None = None
    augment: Callable[[Batch, torch.Generator], Batch] | None = None
    preprocessing: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, split in self.parts().items():
            if not isinstance(split, Split | DatasetSplit | StreamSplit):
                raise DataError(
                    f"The {name} part is {type(split).__name__}, and has to be a Split or a StreamSplit. Nothing was "
                    "changed. Write Split((x,), y) for tensors, and StreamSplit(loader) for a loader."
                )

    def parts(self) -> dict[str, AnySplit]:
        """The parts that exist, by name."""
        named: dict[str, AnySplit | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def mapped(self, change: Change) -> Data:
        """The same data with ``change`` applied to the batches of every part."""
        test = None if self.test is None else self.test.mapped(change)
        return replace(self, train=self.train.mapped(change), val=self.val.mapped(change), test=test)


def class_labels(targets: Tensor | None) -> Tensor | None:
    """Targets as classes, int64 ``(n,)``: whole numbers, one a sample; None of any others.

    >>> class_labels(torch.tensor([[1], [0]])), class_labels(torch.tensor([0.5]))
    (tensor([1, 0]), None)
    """
    if targets is None or targets.is_floating_point() or targets.is_complex():
        return None
    return targets.flatten().long() if targets.ndim == 1 or targets.shape[1:] == (1,) else None


def example_batch(data: Data, num_samples: int = 2) -> Batch:
    """The first ``num_samples`` samples of the training part, in order: the example that a model is captured with.

    The tensors are copies: a view would carry all of the training part into every file that an example is saved to.

    Raises:
        DataError: the training part has fewer samples.
    """
    found: list[Batch] = []
    for batch in data.train.batches(num_samples):
        found.append(batch)
        if sum(map(len, found)) >= num_samples:
            break
    else:
        count = sum(map(len, found))
        raise DataError(
            f"The training part has {count} sample{'' if count == 1 else 's'}, and at least {num_samples} are needed. "
            "Nothing was changed. Give it more."
        )
    batch = joined(found)
    return Batch(
        tuple(tensor[:num_samples].clone() for tensor in batch.args),
        {name: tensor[:num_samples].clone() for name, tensor in batch.kwargs.items()},
        None if batch.targets is None else batch.targets[:num_samples].clone(),
    )


def _cut(count: int, batch_size: int, seed: int | None, drop_last: bool) -> Iterator[slice | Tensor]:
    """The rows of each batch of an epoch."""
    generator = torch.Generator()
    order = None if seed is None else torch.randperm(count, generator=generator.manual_seed(seed))
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        if drop_last and start > 0 and stop - start < batch_size:
            return
        yield slice(start, stop) if order is None else order[start:stop]


def _after(before: Change | None, change: Change) -> Change:
    return change if before is None else lambda batch: change(before(batch))


def _check_form(batch: Batch, first: Batch, position: int) -> None:
    found, expected = _form(batch), _form(first)
    if found != expected:
        name = next((name for name in (*expected, *found) if found.get(name) != expected.get(name)), "")
        raise DataError(
            f"Batch {position} of the data has {found.get(name, 'nothing')} as {name}, and the first batch "
            f"{expected.get(name, 'nothing')}. Nothing was changed. Give batches that are alike."
        )


def _form(batch: Batch) -> dict[str, str]:
    """What batches of one stream have in common: which tensors, what kind of numbers, how many dimensions."""
    named = {**batch.inputs(), **({} if batch.targets is None else {"the target": batch.targets})}
    return {
        name: f"{'decimal' if tensor.is_floating_point() else 'whole'} numbers of {tensor.ndim} dimensions"
        for name, tensor in named.items()
    }


def _seeded(source: Iterable[Any], seed: int | None) -> Iterator[Any]:
    # A worker that lives on through the epochs has a random state that nothing can put back.
    fresh = without_persistence(source) if isinstance(source, DataLoader) else source
    if seed is None:
        yield from fresh
        return
    # A DataLoader draws its epoch's order when the first item is asked for, from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        iterator = iter(fresh)
        first = next(iterator, None)
    if first is not None:
        yield first
        yield from iterator
