"""Load data by name: one function looks at the name and calls the reader for that kind."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from l0compress.data import Batch, Data, Split
from l0compress.errors import DataError, did_you_mean_path
from l0compress.loading.arrays import load_arrays
from l0compress.loading.hub_datasets import HubOptions, is_saved_dataset, load_saved_dataset
from l0compress.loading.images import ImageOptions, Statistics, load_images
from l0compress.loading.parts import as_data
from l0compress.loading.references import call_reference, is_reference
from l0compress.loading.splits import SHARES, StratifiedShares, split_whole
from l0compress.loading.tables import SEPARATORS, TableOptions, load_table
from l0compress.loading.texts import SUFFIXES as TEXT_SUFFIXES
from l0compress.loading.texts import TextOptions, load_texts, part_files

KINDS = (
    "'digits', an .npz file or .npy files, a folder of images, a .csv with --target-column, sentences with "
    "--tokenizer, a folder of datasets.save_to_disk, or package.module:function that returns parts"
)
KIND_NAMES = {
    "digits": "the digits", "function": "a function of yours", "arrays": "arrays", "table": "a table",
    "text": "sentences", "images": "a folder of images", "dataset": "a folder of save_to_disk",
}  # fmt: skip
# Options that apply to one kind of data only.
_OPTIONS = {
    "table": ("target_column",),
    "text": ("tokenizer", "max_length"),
    "images": ("image_size", "normalize", "workers", "augment"),
}
# A folder of save_to_disk holds a table or sentences, which its columns say.
_EITHER = {"dataset": ("table", "text")}


@dataclass(frozen=True)
class DataSource:
    """Where data come from and how they are read.

    Attributes:
        name: as :func:`load_data` takes it.
        seed: of every split. Keep it the same across runs, or samples that a model was trained on end up in
            the test part of the next run.
        shares: of the training, validation and test part, if the data are a single set.
        stratify: every part gets its share of every class, to within one sample.
        target_column: for a table.
        tokenizer: the folder of a tokenizer, for text.
        max_length: tokens per sentence; by default the longest in the training part, at most 128.
        image_size: height and width that images are brought to; by default they must all have the same size.
        normalize: mean and standard deviation of each channel of images.
        with_labels: False ignores the labels, so that the dense model is the only teacher.
        workers: threads that decode images, or processes for a folder that does not fit in memory.
        batch_size: samples per batch for a folder that does not fit in memory.
        augment: the name of a transform of training images, see :mod:`~l0compress.loading.augmentation`.
    """

    name: str
    seed: int = 0
    shares: tuple[float, float, float] = SHARES
    stratify: bool = False
    target_column: str | None = None
    tokenizer: str | Path | None = None
    max_length: int | None = None
    image_size: int | None = None
    normalize: Statistics | None = None
    with_labels: bool = True
    workers: int = 0
    batch_size: int = 64
    augment: str | None = None

    def __str__(self) -> str:
        return self.name

    def load(self) -> Data:
        """Load it; see :func:`load_data`."""
        shares = StratifiedShares(self.shares) if self.stratify else self.shares
        data = _load(replace(self, shares=shares), checked_kind(self))
        return data if self.with_labels else _unlabelled(data)


def load_data(source: str | Path | DataSource, *, seed: int = 0) -> Data:
    """Load data by name.

    - ``digits``: 1,797 handwritten digits, ``(n, 1, 8, 8)`` float32 in [0, 1], split 60/20/20; see :func:`digits`.
    - ``FILE.npz`` or a folder of ``.npy`` files: ``x_train y_train`` and optionally ``x_val y_val``
      and ``x_test y_test``; or ``x y``, split 60/20/20. uint8 is divided by 255. Without a validation part, a twelfth
      of the training part, at most 5,000 samples, becomes one. Labels (``y``) may be absent. ``FILE.npy`` is ``x``.
    - a folder of images: one folder per class, under ``train``, ``val``, ``test`` if these exist.
    - ``FILE.csv`` with a target column.
    - ``FILE.tsv``, ``FILE.txt``, or a folder with ``train.tsv`` and the like: sentences, with a tokenizer.
    - a folder of ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``: sentences with a tokenizer, a table with a
      target column, or columns of numbers.
    - ``package.module:function``: a function that returns :class:`~l0compress.data.Data`, or what
      :func:`~l0compress.loading.parts.as_data` takes: a dict with ``train``, ``val`` and optionally ``test``, each
      ``(x, y)`` of arrays or tensors, a ``Dataset`` or a ``DataLoader``; or one of them alone.

    Args:
        source: the name, or a :class:`DataSource` with further options.
        seed: the seed of every split made here, if ``source`` is a name.

    Example:
        >>> data = load_data("digits")
        >>> {name: len(split) for name, split in data.parts().items()}
        {'train': 1078, 'val': 359, 'test': 360}

    Raises:
        DataError: the source is unknown or unreadable; the message says which part of it.
    """
    return (source if isinstance(source, DataSource) else DataSource(str(source), seed=seed)).load()


def kind_of(name: str, *, target_column: str | None = None) -> str:
    """Return the kind of data that a name stands for, one of the keys of :data:`KIND_NAMES`.

    Example:
        >>> kind_of("digits"), kind_of("package.module:function")
        ('digits', 'function')

    Raises:
        DataError: there is no such file, or it is of a kind that cannot be read.
    """
    if name == "digits":
        return "digits"
    if is_reference(name):
        return "function"
    path = Path(name)
    if not path.exists():
        known = (".npz", ".npy", *SEPARATORS, *TEXT_SUFFIXES)
        reason = "no such file" if path.suffix in known or len(path.parts) > 1 else f"data is {KINDS}"
        meant = did_you_mean_path(path, "digits") if len(path.parts) == 1 else did_you_mean_path(path)
        raise DataError(f"Cannot read data {name!r}: {reason}.", fix=meant or "Check the path.")
    if path.is_dir() and is_saved_dataset(path):
        return "dataset"
    if path.is_dir():
        return "arrays" if any(path.glob("x*.npy")) else "text" if part_files(path) else "images"
    if path.suffix in (".npz", ".npy"):
        return "arrays"
    if path.suffix in SEPARATORS and (path.suffix == ".csv" or target_column is not None):
        return "table"
    if path.suffix in TEXT_SUFFIXES:
        return "text"
    raise DataError(f"Cannot read data {name!r}: data is {KINDS}.", fix="Give one of these.")


def checked_kind(source: DataSource) -> str:
    """Return the kind of data, after checking that all given options apply to it.

    Raises:
        DataError: there are no such data; or an option is for another kind, and the message names its flag.
    """
    kind = kind_of(source.name, target_column=source.target_column)
    nothing = DataSource(source.name)
    for wanted, options in _OPTIONS.items():
        for option in options:
            if wanted not in (kind, *_EITHER.get(kind, ())) and getattr(source, option) != getattr(nothing, option):
                raise DataError(
                    f"--{option.replace('_', '-')} is for {KIND_NAMES[wanted]}, but data {source.name!r} is "
                    f"{KIND_NAMES[kind]}.",
                    fix="Omit it.",
                )
    return kind


def _load(source: DataSource, kind: str) -> Data:
    path = Path(source.name)
    if kind == "digits":
        return _digits(source)
    if kind == "function":
        given = call_reference(source.name, flag="--data", error=DataError)
        return as_data(given, name=source.name, seed=source.seed, shares=source.shares)
    if kind == "arrays":
        return load_arrays(path, seed=source.seed, shares=source.shares)
    if kind == "table":
        return load_table(path, TableOptions(source.target_column, source.seed, source.shares))
    tokenizer = None if source.tokenizer is None else Path(source.tokenizer)
    if kind == "dataset":
        how = HubOptions(tokenizer, source.max_length, source.target_column, source.seed, source.shares)
        return load_saved_dataset(path, how)
    if kind == "text":
        return load_texts(path, TextOptions(tokenizer, source.seed, source.shares, source.max_length))
    options = ImageOptions(
        source.seed,
        source.shares,
        source.image_size,
        source.normalize,
        source.workers,
        source.batch_size,
        source.augment,
    )
    return load_images(path, options)


def _unlabelled(data: Data) -> Data:
    parts = {}
    for name, split in data.parts().items():
        bare = split.mapped(lambda batch: Batch(batch.args, batch.kwargs))
        parts[name] = bare if isinstance(bare, Split) else replace(bare, labels=None)
    return replace(data, **parts)


def digits() -> tuple[Tensor, Tensor]:
    """Return the included handwritten digits: images ``(1797, 1, 8, 8)`` float32 in [0, 1], and int64 labels.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49, CC BY 4.0; the test part, as scikit-learn has it.

    Example:
        >>> images, labels = digits()
        >>> tuple(images.shape), labels.bincount().tolist()
        ((1797, 1, 8, 8), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    """
    content = io.BytesIO((files("l0compress.loading") / "digits.npz").read_bytes())
    with np.load(content, allow_pickle=False) as stored:
        images = torch.from_numpy(stored["images"]).float().unsqueeze(1) / 16
        return images, torch.from_numpy(stored["labels"]).long()


def _digits(source: DataSource) -> Data:
    images, labels = digits()
    return split_whole(Split((images,), labels), "digits", source.seed, source.shares)
