"""Data by name: one function that looks at the name and calls the reader of that kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l0compress.data import TARGET_KEYS, AnySplit, Data, Split, StreamSplit
from l0compress.errors import DataError
from l0compress.loading.arrays import load_arrays
from l0compress.loading.images import ImageOptions, Statistics, load_images
from l0compress.loading.references import call_reference, is_reference
from l0compress.loading.splits import PARTS, SHARES, split_whole, with_val
from l0compress.loading.tables import SEPARATORS, TableOptions, load_table
from l0compress.loading.texts import SUFFIXES as TEXT_SUFFIXES
from l0compress.loading.texts import TextOptions, load_texts, part_files

KINDS = (
    "'digits', an .npz file or .npy files, a folder of images, a .csv with --target-column, sentences with "
    "--tokenizer, or package.module:function that returns parts"
)


@dataclass(frozen=True)
class DataSource:
    """Where data come from and how they are read.

    Attributes:
        name: as :func:`load_data` takes it.
        seed: of every split that is made. Keep it the same over runs, or samples that a model was trained on come into
            the test part of the next run.
        shares: of the training, validation and test part, where data come in one piece.
        target_column: of a table.
        tokenizer: the folder of a tokenizer, for text.
        max_length: tokens a sentence; by default the longest in the training part, at most 128.
        image_size: height and width that images are brought to; by default they must be alike.
        normalize: mean and deviation of each channel of images.
        with_labels: False leaves the labels out, so that the dense model alone is the teacher.
        workers: threads that decode images, or processes where a folder does not fit in memory.
        batch_size: samples a batch of a folder that does not fit in memory.
    """

    name: str
    seed: int = 0
    shares: tuple[float, float, float] = SHARES
    target_column: str | None = None
    tokenizer: str | Path | None = None
    max_length: int | None = None
    image_size: int | None = None
    normalize: Statistics | None = None
    with_labels: bool = True
    workers: int = 0
    batch_size: int = 64

    def __str__(self) -> str:
        return self.name

    def load(self) -> Data:
        """Load it; see :func:`load_data`."""
        data = _load(self)
        return data if self.with_labels else _unlabelled(data)


def load_data(source: str | Path | DataSource, *, seed: int = 0) -> Data:
    """Load data by name.

    - ``digits``: scikit-learn's handwritten digits, ``(n, 1, 8, 8)`` float32 in [0, 1], split 60/20/20.
    - ``FILE.npz`` or a folder of ``.npy`` files: ``x_train y_train`` and, where there are such parts, ``x_val y_val``
      and ``x_test y_test``; or ``x y``, split 60/20/20. uint8 is divided by 255. Without a validation part, a twelfth
      of the training part, at most 5,000 samples, becomes one. Labels (``y``) may be absent. ``FILE.npy`` is ``x``.
    - a folder of images: a folder a class, under ``train``, ``val``, ``test`` where there are such.
    - ``FILE.csv`` with a target column.
    - ``FILE.tsv``, ``FILE.txt``, or a folder with ``train.tsv`` and the like: sentences, with a tokenizer.
    - ``package.module:function``: a function that returns :class:`~l0compress.data.Data`, or a dict with ``train``,
      ``val`` and perhaps ``test``, each ``(x, y)`` tensors, where x may be a tuple or a dict of several inputs, or a
      ``DataLoader``.

    Args:
        source: the name, or a :class:`DataSource` with more to say.
        seed: the seed of every split made here, where ``source`` is a name.

    Example:
        >>> data = load_data("digits")
        >>> {name: len(split) for name, split in data.parts().items()}
        {'train': 1078, 'val': 359, 'test': 360}

    Raises:
        DataError: the source is unknown or unreadable; the message says which part of it.
    """
    return (source if isinstance(source, DataSource) else DataSource(str(source), seed=seed)).load()


def _load(source: DataSource) -> Data:
    if source.name == "digits":
        return _digits(source)
    if is_reference(source.name):
        return as_data(call_reference(source.name, flag="--data", error=DataError), name=source.name, seed=source.seed)
    path = Path(source.name)
    is_table = path.suffix in SEPARATORS and (path.suffix == ".csv" or source.target_column is not None)
    known = (".npz", ".npy", *SEPARATORS, *TEXT_SUFFIXES)
    if not path.exists():
        reason = "no such file" if path.suffix in known or len(path.parts) > 1 else f"data is {KINDS}"
        raise DataError(f"Cannot read data {source.name!r}: {reason}. Nothing was changed. Check the path.")
    if path.is_dir():
        return _folder(path, source)
    if path.suffix in (".npz", ".npy"):
        return load_arrays(path, seed=source.seed, shares=source.shares)
    if is_table:
        return load_table(path, TableOptions(source.target_column, source.seed, source.shares))
    if path.suffix in TEXT_SUFFIXES:
        return load_texts(path, _text_options(source))
    raise DataError(f"Cannot read data {source.name!r}: data is {KINDS}. Nothing was changed. Give one of these.")


def _folder(path: Path, source: DataSource) -> Data:
    if any(path.glob("x*.npy")):
        return load_arrays(path, seed=source.seed, shares=source.shares)
    if part_files(path):
        return load_texts(path, _text_options(source))
    options = ImageOptions(
        source.seed, source.shares, source.image_size, source.normalize, source.workers, source.batch_size
    )
    return load_images(path, options)


def _text_options(source: DataSource) -> TextOptions:
    tokenizer = None if source.tokenizer is None else Path(source.tokenizer)
    return TextOptions(tokenizer, source.seed, source.shares, source.max_length)


def _unlabelled(data: Data) -> Data:
    parts = {}
    for name, split in data.parts().items():
        if not isinstance(split, Split):
            raise DataError(f"The {name} part is streamed, so its labels cannot be left out. Nothing was changed.")
        parts[name] = Split(split.inputs)
    return replace(data, **parts)


def as_data(value: Any, *, name: str, seed: int = 0) -> Data:
    """Read what a user's function returned as :class:`~l0compress.data.Data`.

    Raises:
        DataError: it has no training part, or a part is neither ``(x, y)`` nor a source of batches.
    """
    if isinstance(value, Data):
        return value
    if not isinstance(value, Mapping) or "train" not in value:
        raise DataError(
            f"{name!r} must give Data or a dict with 'train', 'val' and perhaps 'test', and gives "
            f"{type(value).__name__}. Nothing was changed. Return for example {{'train': (x, y)}}."
        )
    unknown = sorted(set(value) - set(PARTS))
    if unknown:
        raise DataError(
            f"{name!r} gives an unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}. Nothing was changed. "
            "Rename it."
        )
    splits = {part: _as_split(content) for part, content in value.items()}
    return with_val(splits, name, seed)


def _as_split(content: Any) -> AnySplit:
    if isinstance(content, Split | StreamSplit):
        return content
    if isinstance(content, Tensor):
        return Split((content,))
    if isinstance(content, Mapping):
        inputs = dict(content)
        target_key = next((key for key in TARGET_KEYS if key in inputs), "")
        return _split(inputs, inputs.pop(target_key, None))
    if isinstance(content, tuple) and len(content) == 2 and not _is_batch(content[1]):
        return _split(*content)
    return StreamSplit(content)


def _is_batch(targets: Any) -> bool:
    """Whether what may be targets is a second batch."""
    holds_tensors = isinstance(targets, list) and any(isinstance(value, Tensor) for value in targets)
    return isinstance(targets, tuple | dict) or holds_tensors


def _split(inputs: Any, targets: Any) -> Split:
    if isinstance(inputs, Mapping):
        return Split(dict(inputs), targets)
    several = isinstance(inputs, tuple | list) and inputs and all(isinstance(value, Tensor) for value in inputs)
    positional: tuple[Any, ...] = tuple(inputs) if several else (inputs,)
    return Split(positional, targets)


def _digits(source: DataSource) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as reason:
        raise DataError(
            "Data 'digits' comes with scikit-learn. Install it: pip install 'l0compress[examples]'."
        ) from reason
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return split_whole(Split((images,), torch.tensor(labels, dtype=torch.int64)), "digits", source.seed, source.shares)
