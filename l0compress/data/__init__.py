"""Data as the rest of the package sees it: splits that yield batches.

A batch is what a model is called with, and the targets beside it. A :class:`Split` keeps its tensors in memory and
slices them; a :class:`DatasetSplit` reads its samples one by one from a ``Dataset``; a :class:`StreamSplit` wraps a
``DataLoader`` or any other re-iterable source of batches.
"""

from __future__ import annotations

from l0compress.data.batches import TARGET_KEYS, Batch, as_batch
from l0compress.data.split import AnySplit, Data, Split, example_batch
from l0compress.data.streams import DatasetSplit, StreamSplit
from l0compress.data.tensors import class_labels

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
