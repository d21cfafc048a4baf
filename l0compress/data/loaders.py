"""What data sets and loaders of torch tell of themselves, and loaders built again with something else about them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from l0compress.data.batches import TARGET_KEYS
from l0compress.data.tensors import as_targets, class_labels, is_array
from l0compress.errors import DataError

_LABEL_ATTRIBUTES = ("targets", "labels")


def without_persistence(loader: DataLoader) -> DataLoader:
    """The loader with workers that end with their epoch; itself if that is so already.

    >>> loader = DataLoader([1, 2, 3], batch_size=2, num_workers=1, persistent_workers=True)
    >>> fresh = without_persistence(loader)
    >>> fresh.persistent_workers, fresh.sampler is loader.sampler, without_persistence(fresh) is fresh
    (False, True, True)
    """
    return _rebuilt(loader, loader.dataset, _batching(loader)) if loader.persistent_workers else loader


def is_plain(loader: DataLoader) -> bool:
    """Whether an epoch is every sample of a map-style data set once, shuffled or in order, in batches of one size.

    >>> from torch.utils.data import WeightedRandomSampler
    >>> weighted = WeightedRandomSampler([1.0, 2.0], num_samples=2)
    >>> [is_plain(DataLoader([1, 2], **options)) for options in ({"shuffle": True}, {"sampler": weighted})]
    [True, False]
    """
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # pyright: ignore[reportArgumentType]
    return type(sampler) is SequentialSampler


def with_samples(loader: DataLoader, index: Tensor, *, shuffle: bool) -> DataLoader:
    """A plain loader of some of its samples, in batches of the same size.

    >>> import torch
    >>> loader = DataLoader([1, 2, 3], batch_size=2)
    >>> [batch.tolist() for batch in with_samples(loader, torch.tensor([0, 2]), shuffle=False)]
    [[1, 3]]
    """
    batching = {"batch_size": loader.batch_size, "drop_last": loader.drop_last and shuffle, "shuffle": shuffle}
    return _rebuilt(loader, Subset(loader.dataset, index.tolist()), batching)


def is_shuffled(loader: DataLoader) -> bool:
    """Whether it is known to draw the order of an epoch at random."""
    return type(loader.sampler) is RandomSampler


def _batching(loader: DataLoader) -> dict[str, Any]:
    if loader.batch_size is None and loader.batch_sampler is not None:
        return {"batch_sampler": loader.batch_sampler}
    sampler = {} if isinstance(loader.dataset, IterableDataset) else {"sampler": loader.sampler}
    return {"batch_size": loader.batch_size, "drop_last": loader.drop_last, **sampler}


def _rebuilt(loader: DataLoader, dataset: Any, batching: dict[str, Any]) -> DataLoader:
    return DataLoader(
        dataset,
        **batching,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


def tensors_of(dataset: Any) -> tuple[Tensor, ...] | None:
    """The tensors that a data set of tensors is made of, or a subset of one; None of any other."""
    if isinstance(dataset, TensorDataset):
        return tuple(dataset.tensors)
    if isinstance(dataset, Subset):
        whole = tensors_of(dataset.dataset)
        return None if whole is None else tuple(tensor[torch.as_tensor(dataset.indices)] for tensor in whole)
    return None


def dataset_labels(dataset: Any) -> Tensor | None:
    """The class of every sample, int64 ``(n,)``, where a data set tells it without reading its samples, else None.

    It does by ``targets`` or ``labels``, as those of torchvision do, or by a column, as those of Hugging Face do.

    Example:
        >>> dataset = TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1]))
        >>> dataset_labels(Subset(dataset, [2, 0]))
        tensor([1, 2])
    """
    if isinstance(dataset, Subset):
        labels = dataset_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    tensors = tensors_of(dataset)
    if tensors is not None:
        return class_labels(tensors[-1]) if len(tensors) > 1 else None
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        column = next((key for key in TARGET_KEYS if key in columns), None)
        found = None if column is None else list(dataset[column])
    elif getattr(dataset, "target_transform", None) is not None:
        return None
    else:
        found = next((value for name in _LABEL_ATTRIBUTES if (value := getattr(dataset, name, None)) is not None), None)
    return _classes(found, len(dataset))


def _classes(found: Any, count: int) -> Tensor | None:
    if not is_array(found) and not isinstance(found, list | tuple):
        return None
    try:
        labels = class_labels(as_targets(found))
    except DataError:
        return None
    return labels if labels is not None and len(labels) == count else None
