"""A ``DataLoader`` built again, with something else about it and all the rest as it was."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset


def without_persistence(loader: DataLoader) -> DataLoader:
    """The loader with workers that end with their epoch; itself if that is so already.

    >>> loader = DataLoader([1, 2, 3], batch_size=2, num_workers=1, persistent_workers=True)
    >>> fresh = without_persistence(loader)
    >>> fresh.persistent_workers, fresh.sampler is loader.sampler, without_persistence(fresh) is fresh
    (False, True, True)
    """
    return _rebuilt(loader, loader.dataset, _batching(loader)) if loader.persistent_workers else loader


def with_dataset(loader: DataLoader, dataset: Any, *, shuffle: bool) -> DataLoader:
    """The loader on another map-style data set, in batches of the same size.

    >>> loader = DataLoader([1, 2, 3], batch_size=2)
    >>> [batch.tolist() for batch in with_dataset(loader, [4, 5], shuffle=False)]
    [[4, 5]]
    """
    batching = {"batch_size": loader.batch_size, "drop_last": loader.drop_last, "shuffle": shuffle}
    return _rebuilt(loader, dataset, batching)


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
