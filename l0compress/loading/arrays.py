"""NumPy files as data: an ``.npz``, an ``.npy``, or a folder of ``.npy`` files. No object is ever unpickled."""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from l0compress.data import AnySplit, Data, Split
from l0compress.data.tensors import tensor_of
from l0compress.errors import NOTHING_LOADED, DataError
from l0compress.loading.foreign_archives import open_archive
from l0compress.loading.references import FOREIGN_ERRORS, first_line
from l0compress.loading.splits import PARTS, SHARES, check_shares, split_whole, with_val

KEYS = ("x", "y", *(f"{letter}_{part}" for letter in "xy" for part in PARTS))
_HEADERS: dict[tuple[int, int], Callable] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_arrays(path: Path, *, seed: int = 0, shares: tuple[float, float, float] = SHARES) -> Data:
    """Read arrays as data; see :func:`l0compress.loading.load_data` for their names.

    Raises:
        DataError: a file is missing or damaged, or does not hold numbers.
    """
    arrays, name = _read(path), str(path)
    if "x" in arrays:
        return split_whole(_split(arrays, "", name), name, seed, shares)
    if "x_train" not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(
            f"Data {name!r} holds {found}. It needs x_train and y_train, or x and y.", fix="Save it with those names."
        )
    check_shares(shares, name)
    splits: dict[str, AnySplit] = {part: _split(arrays, f"_{part}", name) for part in PARTS if f"x_{part}" in arrays}
    return with_val(splits, name, seed)


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        return {key: read_npy(file.read_bytes(), str(file)) for key, file in files.items()}
    if path.suffix == ".npy":
        return {"x": read_npy(path.read_bytes(), str(path))}
    archive = open_archive(path.read_bytes(), f"data {str(path)!r} as an .npz file", error=DataError)
    members = {name.removesuffix(".npy"): name for name in archive.names()}
    wanted = {key: member for key, member in members.items() if key in KEYS} or members
    return {key: read_npy(archive.read(member), f"{path}, {key}") for key, member in wanted.items()}


def read_npy(content: bytes, name: str) -> np.ndarray:
    """Read an array from the bytes of an ``.npy`` file, whose header is checked against the file's size.

    Args:
        content: the file.
        name: what messages call it.

    Raises:
        DataError: it is damaged, holds objects, or claims more elements than there are bytes.

    Example:
        >>> buffer = io.BytesIO()
        >>> np.save(buffer, np.arange(3))
        >>> read_npy(buffer.getvalue(), "x.npy").tolist()
        [0, 1, 2]
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = _HEADERS[version](file)
    except (*FOREIGN_ERRORS, tokenize.TokenError) as reason:
        raise DataError(
            f"Cannot read data {name!r} as an array ({first_line(reason)}).",
            fix="Save it again with numpy.save or numpy.savez.",
        ) from reason
    if dtype.hasobject:
        raise DataError(
            f"Cannot read data {name!r}: it holds Python objects, and loading them runs code.",
            fix="Save an array of numbers.",
            assurance=NOTHING_LOADED,
        )
    start, count = file.tell(), math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - start:
        raise DataError(
            f"Cannot read data {name!r}: its header claims {shape} elements of {dtype}, but {len(content) - start:,} "
            "bytes follow.",
            fix="Copy or save the file again.",
        )
    if count == 0 or dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(content, dtype, count, start)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _split(arrays: dict[str, np.ndarray], suffix: str, name: str) -> Split:
    inputs, targets = _as_tensor(arrays[f"x{suffix}"], f"x{suffix}", name), arrays.get(f"y{suffix}")
    if inputs.dtype == torch.uint8:
        inputs = inputs.float() / 255
    if targets is None:
        return named_split((inputs,), None, f"x{suffix}", name)
    labels = _as_tensor(targets, f"y{suffix}", name)
    labels = labels.float() if labels.is_floating_point() else labels.long()
    return named_split((inputs,), labels, f"x{suffix}", name)


def _as_tensor(array: np.ndarray, key: str, name: str) -> Tensor:
    if array.ndim == 0 or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(
            f"Data {name!r}: {key} is {array.dtype} of shape {array.shape}; an array of numbers is needed.",
            fix="Save it with one.",
        )
    return tensor_of(array)


def named_split(inputs: tuple[Tensor, ...], targets: Tensor | None, key: str, name: str) -> Split:
    """Return a split whose errors name the file and the array."""
    try:
        return Split(inputs, targets)
    except DataError as reason:
        raise DataError(f"Data {name!r}, {key}: {reason}") from reason
