"""Data as the rest of the package sees it: splits that yield batches.

A batch is what a model is called with, and the targets beside it. A :class:`Split` keeps its tensors in memory and
slices them; a :class:`StreamSplit` wraps a ``DataLoader`` or any other re-iterable source of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from l0compress.errors import DataError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is called with: ``model(*args, **kwargs)``, and what it should answer.

    ``targets`` is None where there are no labels.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    targets: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples, the length of the first input."""
        return len(next(iter((*self.args, *self.kwargs.values()))))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(
            tuple(tensor.to(device) for tensor in self.args),
            {name: tensor.to(device) for name, tensor in self.kwargs.items()},
            None if self.targets is None else self.targets.to(device),
        )


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data, in memory.

    Args:
        inputs: positional inputs as a tuple, or keyword inputs as a dict; each is a tensor, or an array, ``(n, ...)``.
        targets: ``(n, ...)`` int64 class indices or floating regression targets; None where there are no labels.

    Raises:
        DataError: no samples, inputs and targets of different lengths, or inputs that are neither a tuple nor a dict.

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
        named = isinstance(given, dict)
        inputs = {key: torch.as_tensor(x) for key, x in given.items()} if named else tuple(map(torch.as_tensor, given))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", None if self.targets is None else torch.as_tensor(self.targets))
        tensors = self._tensors()
        if not tensors:
            raise DataError("The data has no inputs. Give at least one input tensor.")
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if self.targets is not None:
            lengths["the targets"] = len(self.targets)
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
        generator = torch.Generator()
        order = None if seed is None else torch.randperm(len(self), generator=generator.manual_seed(seed))
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            if drop_last and start > 0 and stop - start < batch_size:
                return
            yield self.take(slice(start, stop) if order is None else order[start:stop])

    def take(self, index: slice | Tensor) -> Batch:
        """The samples at ``index`` (a slice, or int64 indices) as one batch."""
        targets = None if self.targets is None else self.targets[index]
        if isinstance(self.inputs, dict):
            return Batch((), {name: tensor[index] for name, tensor in self.inputs.items()}, targets)
        return Batch(tuple(tensor[index] for tensor in self.inputs), {}, targets)

    def _tensors(self) -> dict[str, Tensor]:
        if isinstance(self.inputs, dict):
            return {f"input {name!r}": tensor for name, tensor in self.inputs.items()}
        return {f"input {position}": tensor for position, tensor in enumerate(self.inputs)}


@dataclass(frozen=True, eq=False)
class StreamSplit:
    """One part of the data, streamed from a ``DataLoader`` or another source that can be iterated again and again.

    An item is ``(x, y)``, ``(x1, ..., y)``, ``((x1, ...), y)``, ``({"name": x, ...}, y)``, a single tensor (no
    targets), a dict (``labels``, ``label``, ``targets``, ``target`` or ``y`` are taken as targets), or a
    :class:`Batch`. The source decides the size of its batches.

    Args:
        source: yields batches; iterating it again starts a new epoch.
        num_samples: samples an epoch; counted by one pass where it is not given.

    Raises:
        DataError: the source is a one-shot iterator, is empty, or yields something else.
    """

    source: Iterable[Any]
    num_samples: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.source, Iterator):
            raise DataError(
                "The data is an iterator that is used up after one epoch. Give a DataLoader or a list of batches."
            )
        if self.num_samples <= 0:
            object.__setattr__(self, "num_samples", sum(len(as_batch(item)) for item in _seeded(self.source, seed=0)))
        if self.num_samples == 0:
            raise DataError("The data has no samples.")

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return self.num_samples

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Yield the source's own batches; ``batch_size`` is only what counts as whole for ``drop_last``.

        With a seed, a shuffling ``DataLoader`` without a generator of its own starts from that seed.
        """
        first_length = 0
        for item in _seeded(self.source, seed):
            batch = as_batch(item)
            if drop_last and first_length and len(batch) < min(first_length, batch_size):
                continue
            first_length = first_length or len(batch)
            yield batch


AnySplit: TypeAlias = Split | StreamSplit


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
            if not isinstance(split, Split | StreamSplit):
                raise DataError(
                    f"The {name} part is {type(split).__name__}, and has to be a Split or a StreamSplit. Nothing was "
                    "changed. Write Split((x,), y) for tensors, and StreamSplit(loader) for a loader."
                )

    def parts(self) -> dict[str, AnySplit]:
        """The parts that exist, by name."""
        named: dict[str, AnySplit | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


def as_batch(item: Any) -> Batch:
    """Read one item of a stream as a batch; see :class:`StreamSplit` for what an item may be.

    Example:
        >>> import torch
        >>> batch = as_batch({"input_ids": torch.zeros(2, 3), "labels": torch.tensor([0, 1])})
        >>> sorted(batch.kwargs), batch.targets.tolist()
        (['input_ids'], [0, 1])

    Raises:
        DataError: the item is none of these.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Tensor):
        return Batch((item,), {})
    if isinstance(item, Mapping) and all(isinstance(value, Tensor) for value in item.values()):
        target_key = next((key for key in TARGET_KEYS if key in item), None)
        kwargs = {name: value for name, value in item.items() if name != target_key}
        if kwargs:
            return Batch((), kwargs, None if target_key is None else item[target_key])
    if isinstance(item, Sequence) and item and all(isinstance(value, Tensor) for value in item):
        *args, last = item
        return Batch(tuple(args), {}, last) if args else Batch((last,), {})
    if isinstance(item, Sequence) and len(item) == 2 and isinstance(item[1], Tensor):
        inputs, targets = item
        if isinstance(inputs, Mapping | Sequence) and inputs and all(isinstance(x, Tensor) for x in _values(inputs)):
            named = isinstance(inputs, Mapping)
            return Batch((), dict(inputs), targets) if named else Batch(tuple(inputs), {}, targets)
    raise DataError(
        f"The data yields {type(item).__name__}, which is no batch. Yield (x, y), (x1, x2, y), ((x1, x2), y), "
        "({'name': x}, y), a tensor, or a dict of tensors."
    )


def _values(inputs: Mapping[str, Any] | Sequence[Any]) -> Iterable[Any]:
    return inputs.values() if isinstance(inputs, Mapping) else inputs


def _seeded(source: Iterable[Any], seed: int | None) -> Iterator[Any]:
    # A DataLoader draws its epoch's order when the first item is asked for, from the global generator.
    if seed is None:
        yield from source
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        iterator = iter(source)
        first = next(iterator, None)
    if first is not None:
        yield first
        yield from iterator


def example_batch(data: Data, num_samples: int = 2) -> Batch:
    """The first ``num_samples`` samples of the training part, in order: the example that a model is captured with.

    The tensors are copies: a view would carry all of the training part into every file that an example is saved to.

    Raises:
        DataError: the first training batch has fewer samples.
    """
    batch = next(iter(data.train.batches(num_samples)))
    if len(batch) < num_samples:
        raise DataError(f"The first training batch has {len(batch)} samples, and {num_samples} are needed.")
    return Batch(
        tuple(tensor[:num_samples].clone() for tensor in batch.args),
        {name: tensor[:num_samples].clone() for name, tensor in batch.kwargs.items()},
        None if batch.targets is None else batch.targets[:num_samples].clone(),
    )
