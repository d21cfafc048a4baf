"""Parts of a data set: named ones are kept, missing ones are split off with a seed.

If there are class labels, splits are stratified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from l0compress.data import AnySplit, Data, DatasetSplit, Split, StreamSplit
from l0compress.data.loaders import dataset_labels, is_plain, is_shuffled, with_samples
from l0compress.errors import DataError

VAL_SHARE = 12
VAL_MOST = 5_000
SHARES = (0.6, 0.2, 0.2)
_ROUNDING = 1e-9
PARTS = ("train", "val", "test")
PART_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

Shares: TypeAlias = tuple[float, float, float]
Whole: TypeAlias = Split | DatasetSplit


class StratifiedShares(tuple[float, float, float]):
    """Shares of training, validation and test part that every class keeps for itself, to within one sample."""


def parse_shares(text: str) -> Shares:
    """Parse shares of the training, validation and test part, such as ``0.6,0.2,0.2``.

    Example:
        >>> parse_shares("0.8,0.1,0.1")
        (0.8, 0.1, 0.1)

    Raises:
        DataError: not three shares that add up to one, or training or validation is not above zero.
    """
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError as reason:
        raise _bad_shares(text) from reason
    if not (0 < train < 1 and 0 < val < 1 and 0 <= test < 1 and abs(train + val + test - 1) < 1e-6):
        raise _bad_shares(text)
    return train, val, test


def _bad_shares(text: str) -> DataError:
    return DataError(
        f"--split {text!r} is not a list of three shares that add up to 1.",
        fix="Write training, validation and test, such as --split 0.6,0.2,0.2.",
    )


def check_shares(shares: Shares, name: str) -> None:
    """Refuse shares for data that already have parts.

    Raises:
        DataError: they are not the default, or are to be kept class by class.
    """
    if isinstance(shares, StratifiedShares):
        raise DataError(
            f"--stratify is for a single set of data, but data {name!r} already has parts.",
            fix="Omit it, or give a single set.",
        )
    if shares != SHARES:
        raise DataError(
            f"--split is for a single set of data, but data {name!r} already has parts.",
            fix="Omit it, or give a single set.",
        )


def with_val(
    splits: Mapping[str, AnySplit], name: str, seed: int, preprocessing: Mapping[str, Any] | None = None
) -> Data:
    """Return data of the given parts; without ``val``, a twelfth of ``train`` (at most 5,000) becomes it.

    Raises:
        DataError: the training part is a stream that no samples can be split off from, or is too small to be split.
    """
    test = splits.get("test")
    if "val" in splits:
        return Data(splits["train"], splits["val"], test, preprocessing=preprocessing)
    train = splits["train"]
    if isinstance(train, StreamSplit) and not (isinstance(train.source, DataLoader) and is_plain(train.source)):
        raise DataError(
            f"Data {name!r} streams its training part and has no 'val' part.", fix="Add one: decisions are made on it."
        )
    num_val = min(len(train) // VAL_SHARE, VAL_MOST)
    if num_val == 0:
        raise DataError(
            f"Data {name!r} has {len(train)} training samples, too few to split a validation part off.",
            fix="Give it a validation part, or more samples.",
        )
    if isinstance(train, StreamSplit):
        return _split_loader(train, num_val, seed, test)
    order = stratified_order(len(train), seed, train.known_labels())
    return Data(part(train, order[num_val:]), part(train, order[:num_val]), test, preprocessing=preprocessing)


def _split_loader(train: StreamSplit, num_val: int, seed: int, test: AnySplit | None) -> Data:
    """Split a loader, keeping its batches, workers and order, except for the samples that it no longer has."""
    loader: Any = train.source
    order = stratified_order(len(loader.dataset), seed, dataset_labels(loader.dataset))
    rest, taken = order[num_val:].sort().values, order[:num_val].sort().values
    kept, held = with_samples(loader, rest, shuffle=is_shuffled(loader)), with_samples(loader, taken, shuffle=False)
    return Data(StreamSplit(kept, change=train.change), StreamSplit(held, change=train.change), test)


def split_whole(whole: Whole, name: str, seed: int, shares: Shares = SHARES) -> Data:
    """Split a single set of data in three at random.

    Raises:
        DataError: there are too few samples.
    """
    indices = shuffled_parts(len(whole), name, seed, shares, whole.known_labels())
    parts = {key: part(whole, index) for key, index in indices.items()}
    return Data(parts["train"], parts["val"], parts.get("test"))


def shuffled_parts(count: int, name: str, seed: int, shares: Shares, labels: Tensor | None = None) -> dict[str, Tensor]:
    """Return which samples go into which part; without ``test`` if its share is zero.

    Args:
        count: number of samples.
        name: what messages call the data.
        seed: of the split.
        shares: of training, validation and test part.
        labels: int64 ``(count,)``; each part gets its share of every class, about so with plain shares, and with
            :class:`StratifiedShares` to within one sample.

    Raises:
        DataError: there are too few samples, or no classes to go by.
    """
    if isinstance(shares, StratifiedShares):
        return _by_class(name, seed, shares, labels)
    num_train, num_val = (int(count * share) for share in shares[:2])
    if num_val == 0:
        raise _too_few(name, count)
    if not shares[2]:
        num_val = count - num_train
    order = stratified_order(count, seed, labels)
    pieces = zip(PARTS, order.tensor_split([num_train, num_train + num_val]), strict=True)
    return {key: index.sort().values for key, index in pieces if len(index)}


def _too_few(name: str, count: int) -> DataError:
    return DataError(
        f"Data {name!r} has {count} samples, too few to split into three parts.",
        fix="Give it more samples, or parts of its own.",
    )


def _by_class(name: str, seed: int, shares: Shares, labels: Tensor | None) -> dict[str, Tensor]:
    if labels is None:
        raise DataError(
            f"--stratify splits by classes, but those of data {name!r} are not known before they are read.",
            fix="Omit it, or give one class for every sample.",
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    pieces: list[tuple[Tensor, ...]] = []
    owed = [0.0, 0.0, 0.0]
    for label in labels.unique():
        members = order[labels[order] == label]
        pieces.append(members.split(_class_counts(len(members), shares, owed)))
    found = {key: torch.cat(parts).sort().values for key, parts in zip(PARTS, zip(*pieces, strict=True), strict=True)}
    if not len(found["train"]) or not len(found["val"]):
        raise _too_few(name, len(labels))
    return {key: index for key, index in found.items() if len(index)}


def _class_counts(count: int, shares: Shares, owed: list[float]) -> list[int]:
    """How many samples of a class go into each part: its share, rounded down or up.

    What is left over goes to the parts that have been rounded down most so far, by ``owed``, which is kept up to date.

    >>> owed = [0.0, 0.0, 0.0]
    >>> [_class_counts(4, (0.6, 0.2, 0.2), owed) for _ in range(5)]
    [[2, 1, 1], [3, 1, 0], [2, 1, 1], [3, 0, 1], [2, 1, 1]]
    """
    exact = [count * share for share in shares]
    counts = [math.floor(number + _ROUNDING) for number in exact]
    between = [part for part in range(len(PARTS)) if exact[part] - counts[part] > _ROUNDING]
    for part in range(len(PARTS)):
        owed[part] += exact[part] - counts[part]
    for part in sorted(between, key=lambda part: -owed[part])[: count - sum(counts)]:
        counts[part] += 1
        owed[part] -= 1
    return counts


def stratified_order(count: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """Return a random order, int64 ``(count,)``; any stretch has its share of every class, to within a sample or two.

    The k-th of a class's n samples is placed at (2k + 1) / 2n of all samples. Classes with a single sample
    go in the middle. Without labels it is a plain permutation.

    >>> labels = torch.tensor([0] * 4 + [1] * 8)
    >>> [labels[piece].bincount().tolist() for piece in stratified_order(12, 0, labels).split(6)]
    [[2, 4], [2, 4]]
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        return order
    _, classes, sizes = labels[order].unique(return_inverse=True, return_counts=True)
    grouped = classes.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(grouped)
    rank[grouped] = torch.arange(count) - starts[classes[grouped]]
    place = (2 * rank + 1).double() / (2 * sizes[classes])
    return order[place.argsort(stable=True)]


def part(split: Whole, index: Tensor) -> Whole:
    """Return the samples at ``index``, in the split's order."""
    ordered = index.sort().values
    if isinstance(split, DatasetSplit):
        return split.part(ordered)
    batch = split.take(ordered)
    return Split.of(batch)
