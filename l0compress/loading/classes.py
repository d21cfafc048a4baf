"""Checks of class labels: anything odd about labelled data is reported before training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from l0compress.data import Data, StreamSplit, class_labels
from l0compress.errors import DataError

IGNORED_LABEL = -100
FIRST_BATCHES = 4
# A shuffled stream may begin with a single class by chance; below this probability it is not chance.
_CHANCE = 1e-3
_MOST_NAMED = 5


def class_warnings(data: Data) -> tuple[str, ...]:
    """Return what is odd about the classes of data, one sentence each; nothing if labels are not classes or unread.

    Example:
        >>> from l0compress.data import Split
        >>> train, val = (Split((torch.zeros(len(y), 1),), torch.tensor(y)) for y in ([0, 1, 2, 0], [0, 1]))
        >>> class_warnings(Data(train, val))
        ('The val part has no sample of class 2, which the train part has: its accuracy there is unknown.',)

    Raises:
        DataError: all samples of the training part are of one class, or none has a label.
    """
    labels = {name: split.known_labels() for name, split in data.parts().items()}
    found = {name: known[known != IGNORED_LABEL].unique().cpu() for name, known in labels.items() if known is not None}
    if "train" in found:
        _check_train(found["train"])
    return (*_missing(found), *_unshuffled(data.train))


def _check_train(classes: Tensor) -> None:
    if len(classes) == 0:
        raise DataError(
            f"Every label of the train part is {IGNORED_LABEL}, which marks a sample as ignored: there is nothing to "
            "learn from.",
            fix="Give labels, or pass --no-labels to learn only from the dense model.",
        )
    if len(classes) == 1:
        raise DataError(
            f"All samples of the train part are of class {int(classes)}: there is nothing to distinguish.",
            fix=(
                "Give samples of the other classes (shuffle data sorted by class before you split them), or pass "
                "--no-labels to learn only from the dense model."
            ),
        )


def _missing(found: dict[str, Tensor]) -> Iterable[str]:
    train = found.get("train")
    for name, classes in found.items():
        if train is None or name == "train":
            continue
        if len(classes) == 1:
            yield (
                f"All samples of the {name} part are of class {int(classes)}, and the train part has {len(train)} "
                "classes, so metrics on it mean little. Shuffle data sorted by class before splitting them."
            )
        elif unseen := _without(train, classes):
            yield (
                f"The {name} part has no sample of {_named(unseen)}, which the train part has: "
                f"{'its' if len(unseen) == 1 else 'their'} accuracy there is unknown."
            )
        if unlearned := _without(classes, train):
            yield (
                f"The train part has no sample of {_named(unlearned)}, which the {name} part has: the network will "
                f"unlearn {'it' if len(unlearned) == 1 else 'them'}."
            )


def _without(classes: Tensor, others: Tensor) -> list[int]:
    return classes[~torch.isin(classes, others)].tolist()


def _named(classes: list[int]) -> str:
    """Name classes as in a sentence.

    >>> _named([3]), _named([3, 7]), _named(list(range(9)))
    ('class 3', 'classes 3 and 7', '9 classes (0, 1, 2, 3, 4, ...)')
    """
    if len(classes) > _MOST_NAMED:
        return f"{len(classes)} classes ({', '.join(map(str, classes[:_MOST_NAMED]))}, ...)"
    *most, last = map(str, classes)
    return f"classes {', '.join(most)} and {last}" if most else f"class {last}"


def _unshuffled(train: object) -> Iterable[str]:
    """Yield a warning for a sorted stream; parts in memory and data sets are shuffled here, a stream is not."""
    if not isinstance(train, StreamSplit):
        return
    first = _first_labels(train)
    if len(first) < FIRST_BATCHES:
        return
    begins = torch.cat(first).cpu()
    known = train.known_labels()
    # In a stream whose other classes are unknown, half of the samples may be of this one.
    share = 0.5 if known is None else float((known.cpu() == begins[0]).double().mean())
    if bool((begins == begins[0]).all()) and share < 1 and share ** len(begins) < _CHANCE:
        yield (
            f"The first {FIRST_BATCHES} batches of the train part, {len(begins)} samples, are all of class "
            f"{int(begins[0])}: the stream is sorted by class, and the network unlearns each class while it sees the "
            "next. Shuffle it: DataLoader(..., shuffle=True)."
        )


def _first_labels(train: StreamSplit) -> list[Tensor]:
    if train.labels is not None:
        return list(train.labels[:FIRST_BATCHES])
    if isinstance(train.source, DataLoader) and not _is_ordered(train.source):
        return []
    labels = [class_labels(batch.targets) for batch in islice(train.batches(1, seed=0), FIRST_BATCHES)]
    return [found for found in labels if found is not None]


def _is_ordered(loader: DataLoader) -> bool:
    """Return whether it comes in the order of its data set, so that reading its beginning changes no random state."""
    return type(loader.sampler) is SequentialSampler and loader.generator is None
