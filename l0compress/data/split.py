"""Data in memory, and the three parts of it: training, validation, test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from l0compress.data.batches import Batch, joined
from l0compress.data.inputs import Form, Place, as_input, has_samples, places_of
from l0compress.data.streams import Change, DatasetSplit, StreamSplit, cut
from l0compress.data.tensors import as_targets, class_labels
from l0compress.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data, in memory.

    Args:
        inputs: positional inputs as a tuple, or keyword inputs as a dict; each is a tensor, or an array, ``(n, ...)``,
            or a tuple or dict of such, as in ``(x, (h, c))``. A number, or a tensor of no dimensions, is the same for
            every sample.
        targets: ``(n, ...)`` class indices, kept as int64, or floating regression targets; None where there are no
            labels.
        batch_dims: of each input, as for :class:`Batch`.
        kwargs: keyword inputs beside positional ones.

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

    inputs: tuple[Any, ...] | dict[str, Any]
    targets: Tensor | None = None
    batch_dims: tuple[int | None, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: Any = self.inputs
        if not isinstance(given, tuple | list | dict):
            raise DataError(
                f"The inputs of a part are {type(given).__name__}, but must be a tuple or a dict.",
                fix="Pass (x,) for x.",
            )
        if isinstance(given, dict):
            inputs: Any = _named(given)
        else:
            inputs = tuple(as_input(x, f"input {position}") for position, x in enumerate(given))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "kwargs", _named(self.kwargs))
        object.__setattr__(self, "targets", None if self.targets is None else as_targets(self.targets))
        self._check_lengths()

    @classmethod
    def of(cls, batch: Batch) -> Split:
        """A part of the samples of one batch."""
        inputs, named = (batch.args, batch.kwargs) if batch.args else (batch.kwargs, {})
        return cls(inputs, batch.targets, batch.batch_dims, named)

    def _check_lengths(self) -> None:
        leaves = {place.label: leaf for place, leaf in self.places().items()}
        if not leaves:
            raise DataError("The data has no inputs. Give at least one input tensor.")
        rows = {name: leaf for name, leaf in leaves.items() if has_samples(leaf)}
        single = None if rows else next(iter(leaves))
        if self.targets is not None:
            single = "the targets" if single is None and self.targets.ndim == 0 else single
            rows["the targets"] = self.targets
        if single is not None:
            raise DataError(f"A part has a single number for {single}.", fix="Give one per sample.")
        lengths = {name: len(tensor) for name, tensor in rows.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(
                f"Inputs and targets have different numbers of samples ({listed}).",
                fix="Give one target for each sample.",
            )
        if len(self) == 0:
            raise DataError("The data has no samples.")

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(filter(has_samples, self.places().values())))

    def places(self) -> dict[Place, Any]:
        """The tensors and numbers of all inputs by where they are, in the order of the call."""
        return places_of(*self._arguments())

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Yield the samples in batches.

        Args:
            batch_size: samples a batch; the last batch may be smaller.
            seed: shuffle by this seed; None keeps the order. The global random state is left alone.
            drop_last: leave out a last batch that is smaller, unless it is the only one.
        """
        yield from map(self.take, cut(len(self), batch_size, seed, drop_last))

    def take(self, index: slice | Tensor) -> Batch:
        """The samples at ``index`` (a slice, or int64 indices) as one batch."""
        return Batch(*self._arguments(), self.targets, self.batch_dims).rows(index)

    def mapped(self, change: Change) -> Split:
        """The part with ``change`` applied to all of it at once."""
        return Split.of(change(self.take(slice(None))))

    def known_labels(self) -> Tensor | None:
        """The class of every sample, int64 ``(n,)``; None where they are no classes."""
        return class_labels(self.targets)

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(self.inputs, dict):
            return (), {**self.inputs, **self.kwargs}
        return self.inputs, self.kwargs


def _named(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: as_input(x, f"input {name!r}") for name, x in inputs.items()}


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
                    f"The {name} part is {type(split).__name__}, but must be a Split or a StreamSplit.",
                    fix="Write Split((x,), y) for tensors, and StreamSplit(loader) for a loader.",
                )

    def parts(self) -> dict[str, AnySplit]:
        """The parts that exist, by name."""
        named: dict[str, AnySplit | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def mapped(self, change: Change) -> Data:
        """The same data with ``change`` applied to the batches of every part."""
        test = None if self.test is None else self.test.mapped(change)
        return replace(self, train=self.train.mapped(change), val=self.val.mapped(change), test=test)

    def placed(self, batch_dims: tuple[int | None, ...]) -> Data:
        """The same data, samples first as they are, for a model that wants the batch in these dimensions."""
        if not any(batch_dims):
            return self
        return self.mapped(lambda batch: replace(batch, batch_dims=batch_dims))

    def called_like(self, form: Form) -> Data:
        """The same data for a model that is called in this form: placed, with the constants that they lack."""
        if form.is_flat and not any(form.batch_dims):
            return self

        def fill(batch: Batch) -> Batch:
            args, kwargs = form.filled(batch.args, batch.kwargs)
            return Batch(args, kwargs, batch.targets, form.batch_dims if any(form.batch_dims) else ())

        return self.mapped(fill)


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
            f"The training part has {count} sample{'' if count == 1 else 's'}, and at least {num_samples} are needed.",
            fix="Give it more samples.",
        )
    batch = joined(found)
    first = batch.each_column(lambda tensor: tensor[:num_samples].clone())
    return replace(first, targets=None if batch.targets is None else batch.targets[:num_samples].clone())
