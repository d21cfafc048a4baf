"""Data by name: ``digits``, an ``.npz`` file, or ``package.module:function``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0compress.data import AnySplit, Data, Split, StreamSplit
from l0compress.errors import DataError
from l0compress.loading.references import FOREIGN_ERRORS, call_reference, first_line, is_reference

VAL_SHARE = 12
VAL_MOST = 5_000
SPLIT_SHARES = (0.6, 0.2, 0.2)
PARTS = ("train", "val", "test")


def load_data(source: str, *, seed: int = 0) -> Data:
    """Load data by name.

    - ``digits``: scikit-learn's handwritten digits, ``(n, 1, 8, 8)`` float32 in [0, 1], split 60/20/20.
    - ``FILE.npz``: ``x_train y_train`` and, where there are such parts, ``x_val y_val`` and ``x_test y_test``; or
      ``x y``, split 60/20/20. uint8 is divided by 255. Without a validation part, a twelfth of the training part,
      at most 5,000 samples, becomes one. Labels (``y``) may be absent.
    - ``package.module:function``: a function that returns :class:`~l0compress.data.Data`, or a dict with ``train``,
      ``val`` and perhaps ``test``, each ``(x, y)`` tensors or a ``DataLoader``.

    Args:
        source: the name.
        seed: the seed of every split made here. Keep it the same over runs, or samples that a model was trained on
            come into the test part of the next run.

    Example:
        >>> data = load_data("digits")
        >>> {name: len(split) for name, split in data.parts().items()}
        {'train': 1078, 'val': 359, 'test': 360}

    Raises:
        DataError: the source is unknown or unreadable; the message says which part of it.
    """
    if source == "digits":
        return _digits(seed)
    if is_reference(source):
        return as_data(call_reference(source, flag="--data", error=DataError), name=source, seed=seed)
    if source.endswith(".npz"):
        return _npz(Path(source), seed)
    raise DataError(
        f"Cannot read data {source!r}: data is 'digits', an .npz file, or package.module:function that returns parts."
    )


def as_data(value: Any, *, name: str, seed: int = 0) -> Data:
    """Read what a user's function returned as :class:`~l0compress.data.Data`.

    Raises:
        DataError: it has no training part, or a part is neither ``(x, y)`` nor a source of batches.
    """
    if isinstance(value, Data):
        return value
    if not isinstance(value, Mapping) or "train" not in value:
        raise DataError(f"{name!r} must give Data or a dict with 'train', 'val' and perhaps 'test'.")
    unknown = sorted(set(value) - set(PARTS))
    if unknown:
        raise DataError(f"{name!r} gives an unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}.")
    splits = {part: _as_split(content) for part, content in value.items()}
    return _with_val(splits, name, seed)


def _as_split(content: Any) -> AnySplit:
    if isinstance(content, Split | StreamSplit):
        return content
    if isinstance(content, Tensor):
        return Split((content,))
    if isinstance(content, Mapping):
        inputs = dict(content)
        targets = inputs.pop("labels", None)
        return Split(inputs, targets)
    if isinstance(content, tuple) and len(content) == 2 and not isinstance(content[0], tuple | dict):
        return Split((torch.as_tensor(content[0]),), None if content[1] is None else torch.as_tensor(content[1]))
    return StreamSplit(content)


def _with_val(splits: dict[str, AnySplit], name: str, seed: int) -> Data:
    if "val" in splits:
        return Data(splits["train"], splits["val"], splits.get("test"))
    train = splits["train"]
    if not isinstance(train, Split):
        raise DataError(f"{name!r} streams its training part and has no 'val' part. Add one: choices are made on it.")
    num_val = min(len(train) // VAL_SHARE, VAL_MOST)
    if num_val == 0:
        raise DataError(f"{name!r} has {len(train)} training samples, too few to split a validation part off.")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return Data(_part(train, order[num_val:]), _part(train, order[:num_val]), splits.get("test"))


def _part(split: Split, index: Tensor) -> Split:
    batch = split.take(index.sort().values)
    return Split(batch.kwargs or batch.args, batch.targets)


def _split_whole(whole: Split, name: str, seed: int) -> Data:
    num_train, num_val = (int(len(whole) * share) for share in SPLIT_SHARES[:2])
    if num_val == 0:
        raise DataError(f"{name!r} has {len(whole)} samples, too few to split into three parts.")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    train, val, test = order.tensor_split([num_train, num_train + num_val])
    return Data(_part(whole, train), _part(whole, val), _part(whole, test))


def _digits(seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as reason:
        raise DataError(
            "Data 'digits' comes with scikit-learn. Install it: pip install 'l0compress[examples]'."
        ) from reason
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return _split_whole(Split((images,), torch.tensor(labels, dtype=torch.int64)), "digits", seed)


def _npz(path: Path, seed: int) -> Data:
    arrays = _read_npz(path)
    name = str(path)
    if "x" in arrays:
        return _split_whole(_npz_split(arrays, "", name), name, seed)
    if "x_train" not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"Data {name!r} holds {found}. It needs x_train and y_train, or x and y.")
    splits: dict[str, AnySplit] = {
        part: _npz_split(arrays, f"_{part}", name) for part in PARTS if f"x_{part}" in arrays
    }
    return _with_val(splits, name, seed)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise DataError(f"Cannot read data {str(path)!r}: no such file.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"Cannot read data {str(path)!r} as an .npz file (it is no zip archive).")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (*FOREIGN_ERRORS, zipfile.BadZipFile) as reason:
        raise DataError(f"Cannot read data {str(path)!r} as an .npz file ({first_line(reason)}).") from reason


def _npz_split(arrays: Mapping[str, np.ndarray], suffix: str, name: str) -> Split:
    inputs, targets = _as_tensor(arrays[f"x{suffix}"], f"x{suffix}", name), arrays.get(f"y{suffix}")
    if inputs.dtype == torch.uint8:
        inputs = inputs.float() / 255
    if targets is None:
        return _named_split((inputs,), None, f"x{suffix}", name)
    labels = _as_tensor(targets, f"y{suffix}", name)
    labels = labels.float() if labels.is_floating_point() else labels.long()
    return _named_split((inputs,), labels, f"x{suffix}", name)


def _as_tensor(array: np.ndarray, key: str, name: str) -> Tensor:
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise DataError(f"Data {name!r}: {key} is {array.dtype} of shape {array.shape}; an array of numbers is needed.")
    return torch.from_numpy(np.ascontiguousarray(array))


def _named_split(inputs: tuple[Tensor, ...], targets: Tensor | None, key: str, name: str) -> Split:
    try:
        return Split(inputs, targets)
    except DataError as reason:
        raise DataError(f"Data {name!r}, {key}: {reason}") from reason
