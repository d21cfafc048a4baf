"""Data in the forms that people have in Python: arrays, tensors, data sets, loaders and lists, alone or by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from l0compress.data import AnySplit, Data, DatasetSplit, Split, StreamSplit
from l0compress.data.batches import TARGET_KEYS, collate, parts_of
from l0compress.data.inputs import is_nested, is_number
from l0compress.data.loaders import dataset_labels, tensors_of
from l0compress.data.tensors import is_array
from l0compress.errors import DataError
from l0compress.loading.hub_datasets import dataset_split, is_dataset
from l0compress.loading.references import FOREIGN_ERRORS, first_line
from l0compress.loading.splits import PART_NAMES, SHARES, Shares, check_shares, split_whole, with_val

STREAM_BATCH = 64


@runtime_checkable
class Indexed(Protocol):
    """Anything with samples by position: a map-style ``Dataset``, or one of Hugging Face."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Any: ...


@runtime_checkable
class ArrayLike(Protocol):
    """Anything that NumPy can read: a data frame, a series."""

    def __array__(self) -> np.ndarray: ...


def as_data(value: Any, *, name: str, seed: int = 0, shares: Shares = SHARES) -> Data:
    """Convert data in Python to :class:`~l0compress.data.Data`.

    A single set, ``(x, y)``, a ``Dataset`` or a dict of arrays, is split in three; from a training part or a
    ``DataLoader`` alone a twelfth becomes the validation part.

    Args:
        value: :class:`~l0compress.data.Data`; a part; or a dict of parts by the names ``train``, ``val`` and ``test``.
            A part is ``(x, y)`` or ``(x1, x2, y)`` of arrays or tensors, where x may be a tuple or a dict of several
            inputs, and each of those again, ``((x, (h, c)), y)``; a dict of arrays; a ``Dataset`` of torch or of
            Hugging Face; a ``DataLoader``; or a list of samples or of batches.
        name: what messages call it.
        seed: of every split.
        shares: of the parts of a single set.

    Example:
        >>> x, y = np.zeros((50, 3)), np.arange(50) % 2
        >>> {name: len(part) for name, part in as_data((x, y), name="data").parts().items()}
        {'train': 30, 'val': 10, 'test': 10}

    Raises:
        DataError: it is none of these, or cannot be split; the message says what to write.
    """
    if isinstance(value, Data):
        check_shares(shares, name)
        return value
    if not isinstance(value, Mapping) or not _of_parts(value):
        return _whole(value, name, seed, shares)
    check_shares(shares, name)
    unknown = sorted(str(part) for part in value if part not in PART_NAMES)
    if unknown:
        raise DataError(
            f"{name!r} gives an unknown part {unknown[0]!r}; the parts are train, val, test.", fix="Rename it."
        )
    splits = {PART_NAMES[part]: _read(content, f"the {PART_NAMES[part]} part") for part, content in value.items()}
    if "train" not in splits:
        raise _not_data(value, name)
    return with_val(splits, name, seed)


def _of_parts(value: Mapping[Any, Any]) -> bool:
    """Return whether a dict has parts, rather than the inputs and labels of one."""
    return not value or any(part in PART_NAMES for part in value)


def _whole(value: Any, name: str, seed: int, shares: Shares) -> Data:
    if isinstance(value, IterableDataset):
        raise DataError(
            f"{name!r} is a {type(value).__name__}, which has no random access, so no part can be split off.",
            fix="Give parts: {'train': DataLoader(dataset, batch_size=64), 'val': ...}.",
        )
    if not isinstance(value, Split | DatasetSplit | StreamSplit | Iterable | Indexed | ArrayLike):
        raise _not_data(value, name)
    split = _read(value, repr(name))
    return (
        with_val({"train": split}, name, seed)
        if isinstance(split, StreamSplit)
        else split_whole(split, name, seed, shares)
    )


def _not_data(value: Any, name: str) -> DataError:
    return DataError(
        f"{name!r} must return Data or a dict with 'train', 'val' and optionally 'test', but returns "
        f"{type(value).__name__}.",
        fix="Return for example {'train': (x, y)}.",
    )


def _read(content: Any, what: str) -> AnySplit:
    """Read a part; ``what`` is its name in messages.

    Raises:
        DataError: it is not a part, or reading its samples fails.
    """
    try:
        return as_split(content)
    except DataError as reason:
        raise DataError(f"In {what}: {reason}") from reason
    except FOREIGN_ERRORS as reason:
        raise DataError(
            f"Reading {what}, a {type(content).__name__}, fails ({first_line(reason)}).",
            fix="Check that one pass over it works: for batch in data: ...",
        ) from reason


def as_split(content: Any) -> AnySplit:
    """Convert one part of the data; see :func:`as_data` for what it may be.

    Example:
        >>> [type(as_split(content)).__name__ for content in ((np.zeros((2, 3)), [0, 1]), DataLoader([1.0, 2.0]))]
        ['Split', 'StreamSplit']

    Raises:
        DataError: it is none of these.
    """
    if isinstance(content, Split | DatasetSplit | StreamSplit):
        return content
    if is_dataset(content):
        return dataset_split(content)
    if isinstance(content, Mapping):
        inputs = {str(key): value for key, value in content.items()}
        target_key = next((key for key in TARGET_KEYS if key in inputs), "")
        return _split(inputs, inputs.pop(target_key, None))
    if isinstance(content, tuple):
        return _of_tuple(content)
    if isinstance(content, list):
        return _of_list(content)
    if isinstance(content, IterableDataset):
        return StreamSplit(DataLoader(content, batch_size=STREAM_BATCH))
    if isinstance(content, DataLoader | Iterator):
        return StreamSplit(content)
    if isinstance(content, Dataset):
        return _of_dataset(content)
    if isinstance(content, ArrayLike):
        return _split(content)
    if isinstance(content, Indexed) and not isinstance(content, str | bytes):
        return _of_dataset(content)
    if isinstance(content, Iterable) and not isinstance(content, str | bytes):
        return StreamSplit(content)
    raise DataError(
        f"A part is {type(content).__name__}, but must be arrays (x, y), a Dataset, a DataLoader or a list of samples.",
        fix="Write for example {'train': (x, y)}.",
    )


def _of_tuple(content: tuple[Any, ...]) -> AnySplit:
    if len(content) == 2 and not _is_batch(content[1]):
        return _split(*content)
    if len(content) != 2 and content and is_array(content[-1]) and all(map(_is_input, content)):
        *inputs, targets = content
        return _split(tuple(inputs), targets) if inputs else _split(targets)
    return _of_list(list(content))


def _of_list(content: list[Any]) -> AnySplit:
    if not content:
        raise DataError("The data has no samples.")
    if len(content) == 2 and all(map(is_array, content)) and len(content[0]) == len(content[1]):
        x, y = content
        if x.shape[1:] != y.shape[1:]:
            return _split(x, y)
    if isinstance(content[0], int | float | list) and not any(map(is_array, _items(content[0]))):
        return _split(content)
    if _is_sample(content[0]):
        batch = collate(content)
        return Split.of(batch)
    return StreamSplit(content)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_sample(item: Any) -> bool:
    """Return whether it is a sample, with a single target, rather than a batch."""
    if not isinstance(item, tuple | list | Mapping):
        return False
    targets = parts_of(item)[2]
    return isinstance(targets, int | float | np.generic) or (is_array(targets) and targets.ndim == 0)


def _is_batch(targets: Any) -> bool:
    """Return whether these are a second batch, or a second sample, rather than targets."""
    holds_arrays = isinstance(targets, list) and any(map(is_array, targets))
    return isinstance(targets, tuple | dict) or holds_arrays


def _is_input(value: Any) -> bool:
    """Return whether it is an input by itself, rather than a row of one."""
    return is_array(value) or is_nested(value) or is_number(value)


def _split(inputs: Any, targets: Any = None) -> Split:
    if isinstance(inputs, Mapping):
        return Split(dict(inputs), targets)
    several = isinstance(inputs, tuple | list) and any(map(is_array, inputs)) and all(map(_is_input, inputs))
    positional: tuple[Any, ...] = tuple(inputs) if several else (inputs,)
    return Split(positional, targets)


def _of_dataset(dataset: Any) -> AnySplit:
    tensors = tensors_of(dataset)
    if tensors is not None:
        return _of_tuple(tensors)
    try:
        count = len(dataset)
    except TypeError as reason:
        raise DataError(
            f"A {type(dataset).__name__} has no length.", fix="Give it __len__, or make it an IterableDataset."
        ) from reason
    return DatasetSplit(dataset, torch.arange(count), dataset_labels(dataset))
