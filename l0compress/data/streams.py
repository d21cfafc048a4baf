"""Parts of the data that are read as they are used: sample by sample, or batch by batch from a source of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from l0compress.data.batches import Batch, as_batch, collate
from l0compress.data.loaders import without_persistence
from l0compress.data.tensors import class_labels
from l0compress.errors import DataError

Change: TypeAlias = Callable[[Batch], Batch]


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """One part of the data, read sample by sample from a ``Dataset`` or anything else with a length and indices.

    A sample is ``(x, y)``, ``(x1, ..., y)``, ``((x1, ...), y)``, ``({"name": x, ...}, y)``, one input alone, or a dict
    with the target under ``labels``, ``label``, ``targets``, ``target`` or ``y``. An input may be a tuple or a dict of
    arrays, ``((x, (h, c)), y)``. Numbers and arrays become tensors.

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
        """Yield the samples in batches; see :meth:`~l0compress.data.Split.batches`."""
        for rows in cut(len(self), batch_size, seed, drop_last):
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
    :class:`Batch`; arrays become tensors. An input may be a tuple or a dict of tensors, ``((x, (h, c)), y)``; a number,
    or a tensor of no dimensions, is the same for every sample. The source decides the size and the order of its
    batches.

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


def cut(count: int, batch_size: int, seed: int | None, drop_last: bool) -> Iterator[slice | Tensor]:
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
            f"Batch {position} of the data has {found.get(name, 'nothing')} for {name}, but the first batch has "
            f"{expected.get(name, 'nothing')}.",
            fix="Give batches of the same form.",
        )


def _form(batch: Batch) -> dict[str, str]:
    """What batches of one stream have in common: which tensors, what kind of numbers, how many dimensions."""
    named = {**batch.inputs(), **({} if batch.targets is None else {"the target": batch.targets})}
    return {
        name: f"{'decimal' if leaf.is_floating_point() else 'whole'} numbers of {leaf.ndim} dimensions"
        if isinstance(leaf, Tensor)
        else f"a {type(leaf).__name__}"
        for name, leaf in named.items()
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
