"""Tensors as bytes, near the information limit: gaps between nonzeros as one byte each, values in planes of bytes.

A tensor is a small ``.npz`` without pickle. ``values`` holds the values, ``gaps`` their positions in the flattened
tensor (row-major, so rows of CSR), and ``scale`` the factors of int8 rows. Positions are sums of gaps of at least one:
whatever the bytes are, they increase and never repeat, and one comparison bounds them. A ternary tensor has ``scale``,
and either ``codes`` or ``gaps`` with ``signs``, see :mod:`l0compress_runtime.ternary`.

- A gap of g is ``(g - 1) // 255`` bytes of 255 and then one of ``(g - 1) % 255``.
- Byte k of every value is in row k of ``values``: exponents are adjacent, which deflate can use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l0compress_runtime.archive import Archive, FormatError, write_zip
from l0compress_runtime.npy import array_of, npy_of
from l0compress_runtime.planes import narrowed, planes, widened
from l0compress_runtime.ternary import (
    TERNARY,
    code_bytes,
    packed_codes,
    signs_and_scale,
    unpacked_codes,
    unpacked_signs,
)

Array = NDArray[Any]

ESCAPE = 255
FLOAT_STORAGES = ("float32", "float16", "bfloat16", "int8")
DTYPES = (
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
VALUES, GAPS, SCALE = "values.npy", "gaps.npy", "scale.npy"
CODES, SIGNS = "codes.npy", "signs.npy"


@dataclass(frozen=True)
class TensorSpec:
    """How a tensor is stored.

    Attributes:
        member: its file in the bundle.
        shape: its dense shape.
        dtype: of its decoded values.
        storage: of its values in the file: the dtype itself, or float16, bfloat16, int8 or ternary for float32.
        nonzeros: how many values are stored; None if all of them are. Of a ternary tensor, how many are not zero.
        scale_axis: the dimension of the scales of int8 and ternary values; None for other storages.
    """

    member: str
    shape: tuple[int, ...]
    dtype: str
    storage: str
    nonzeros: int | None = None
    scale_axis: int | None = None

    @property
    def size(self) -> int:
        """The number of elements of the dense tensor."""
        return prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """The bytes of the dense tensor in memory."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class Stored:
    """A decoded tensor: its values, with their flat positions if it is sparse.

    Attributes:
        spec: what it was decoded from.
        values: float32 or another dtype; int8 if there is a scale.
        positions: int64, increasing; None if the tensor is dense.
        scale: float32 along ``spec.scale_axis``, or None.
    """

    spec: TensorSpec
    values: Array
    positions: Array | None
    scale: Array | None

    def dense(self) -> Array:
        """Return the tensor with its zeros."""
        values = self._scaled()
        if self.positions is None:
            return values.reshape(self.spec.shape)
        out = np.zeros(self.spec.size, values.dtype)
        out[self.positions] = values
        return out.reshape(self.spec.shape)

    def csr(self, *, transposed: bool = False, row_dims: int = 1) -> tuple[sparse.csr_array, Array | None]:
        """Return the tensor as a matrix with a row for every index of its first dimensions, and its scale by row.

        Args:
            transposed: use the columns of a two-dimensional tensor as rows instead.
            row_dims: how many dimensions count rows. Scales along the last of them repeat for those before.
        """
        shape = (prod(self.spec.shape[:row_dims]), prod(self.spec.shape[row_dims:]))
        by_row = self.scale is not None and self.spec.scale_axis == (1 if transposed else row_dims - 1)
        values = self.values if by_row else self._scaled()
        positions = np.flatnonzero(values) if self.positions is None else self.positions
        if self.positions is None:
            values = values.ravel()[positions]
        rows, columns = np.divmod(positions, shape[1])
        starts = np.searchsorted(rows, np.arange(shape[0] + 1)).astype(np.int32)
        matrix = sparse.csr_array((values, columns.astype(np.int32), starts), shape=shape)
        if transposed:
            matrix = sparse.csr_array(matrix.T)
        matrix.sort_indices()
        scale = self.scale if by_row else None
        return matrix, scale if scale is None else np.tile(scale, prod(self.spec.shape[: row_dims - 1]))

    def _scaled(self) -> Array:
        if self.scale is None or self.spec.scale_axis is None:
            return self.values
        places = np.arange(self.spec.size) if self.positions is None else self.positions
        along = places // prod(self.spec.shape[self.spec.scale_axis + 1 :]) % self.spec.shape[self.spec.scale_axis]
        return self.values.astype(np.float32) * self.scale[along]


def encode(tensor: Array, *, storage: str, is_sparse: bool, scale_axis: int | None = None) -> tuple[TensorSpec, bytes]:
    """Encode a tensor as an ``.npz``; return the spec that decodes it (the caller names its member) and the bytes.

    Args:
        tensor: any shape; a dtype of :data:`DTYPES`.
        storage: the tensor's own dtype, or one of :data:`FLOAT_STORAGES` for float32.
        is_sparse: leave exact zeros out.
        scale_axis: for int8, the dimension with one scale per index.

    Raises:
        OverflowError: a value is beyond what the storage can hold.

    Example:
        >>> spec, data = encode(np.array([[0, 2.0], [0, 0]], np.float32), storage="float16", is_sparse=True)
        >>> spec.nonzeros, decode(spec, data).dense().tolist()
        (1, [[0.0, 2.0], [0.0, 0.0]])
    """
    flat = np.ascontiguousarray(tensor).ravel()
    arrays: dict[str, Array] = {}
    positions = np.flatnonzero(flat) if is_sparse else None
    if positions is not None:
        arrays[GAPS] = _gaps(positions)
    if storage == "int8" and tensor.dtype == np.float32:
        if scale_axis is None:
            raise ValueError("int8 storage of floats needs an axis for its scales")
        scale = _scales(tensor, scale_axis)
        arrays[SCALE] = scale
        shape = [-1 if dim == scale_axis else 1 for dim in range(tensor.ndim)]
        flat = np.rint(tensor / np.where(scale, scale, 1).reshape(shape)).astype(np.int8).ravel()
    else:
        scale_axis = None
    values = flat if positions is None else flat[positions]
    arrays[VALUES] = planes(narrowed(values, storage))
    nonzeros = None if positions is None else len(positions)
    spec = TensorSpec("", tensor.shape, str(tensor.dtype), storage, nonzeros, scale_axis)
    return spec, write_zip({name: npy_of(array) for name, array in arrays.items()})


def encode_ternary(tensor: Array, axes: Iterable[int]) -> tuple[TensorSpec, bytes] | None:
    """Encode a float32 tensor as signs and scales; None unless that is exact with a scale for each index of an axis.

    The first of ``axes`` for which it is counts. Whichever is smaller is written: two bits for every value, or gaps
    and one bit for those that are not zero.

    Example:
        >>> rows = np.array([[0, 0.5, -0.5], [2, 0, 0]], np.float32)
        >>> spec, data = encode_ternary(rows, (0,))
        >>> spec.storage, spec.nonzeros, bool((decode(spec, data).dense() == rows).all())
        ('ternary', 3, True)
    """
    for axis in axes:
        found = signs_and_scale(tensor, axis)
        if found is not None:
            signs, scale = found[0].ravel(), found[1]
            positions = np.flatnonzero(signs)
            forms = (
                {SCALE: scale, CODES: packed_codes(signs)},
                {SCALE: scale, GAPS: _gaps(positions), SIGNS: np.packbits(signs[positions] < 0)},
            )
            written = [write_zip({name: npy_of(array) for name, array in form.items()}) for form in forms]
            return TensorSpec("", tensor.shape, "float32", TERNARY, len(positions), axis), min(written, key=len)
    return None


def decode(spec: TensorSpec, data: bytes, *, limit_bytes: int = 2**31) -> Stored:
    """Decode what :func:`encode` or :func:`encode_ternary` wrote; the bytes are not trusted.

    Raises:
        FormatError: the bytes do not match the spec.
    """
    count = spec.size if spec.nonzeros is None else spec.nonzeros
    archive = Archive.from_bytes(data, limit_bytes=limit_bytes)
    if spec.storage == TERNARY:
        values, positions = _ternary(archive, spec)
        return Stored(spec, values, positions, _scale_of(archive, spec))
    quantized = spec.scale_axis is not None
    _check_names(archive, {VALUES, *([GAPS] if spec.nonzeros is not None else []), *([SCALE] if quantized else [])})
    itemsize = 2 if spec.storage == "bfloat16" else np.dtype(spec.storage).itemsize
    raw = array_of(archive.read(VALUES), (itemsize, count), np.uint8)
    values = widened(np.ascontiguousarray(raw.T).ravel(), spec.storage, "int8" if quantized else spec.dtype)
    if values.dtype.kind == "f" and not np.isfinite(values).all() and spec.nonzeros is not None:
        raise FormatError("holds a value that is not finite")
    positions = None if spec.nonzeros is None else _positions(archive.read(GAPS), spec)
    return Stored(spec, values, positions, _scale_of(archive, spec))


def bits_at_least(size: int, nonzeros: int, value_bits: int) -> float:
    """Return the bits in a random pattern of zeros with independent values: ``log2 C(size, nonzeros)`` and the values.

    Example:
        >>> round(bits_at_least(1000, 20, 32))
        781
    """
    density = nonzeros / size if size else 0.0
    entropy = -sum(p * np.log2(p) for p in (density, 1 - density) if p > 0)
    return float(size * entropy + nonzeros * value_bits)


def _check_names(archive: Archive, expected: set[str]) -> None:
    if set(archive.names) != expected:
        raise FormatError(f"holds {sorted(archive.names)}, expected {sorted(expected)}")


def _scale_of(archive: Archive, spec: TensorSpec) -> Array | None:
    if spec.scale_axis is None:
        return None
    scale = array_of(archive.read(SCALE), (spec.shape[spec.scale_axis],), np.float32)
    if not np.isfinite(scale).all():
        raise FormatError("holds a scale that is not finite")
    return scale


def _ternary(archive: Archive, spec: TensorSpec) -> tuple[Array, Array]:
    """Return the values that are not zero, int8, and where they are."""
    if CODES in archive.names:
        _check_names(archive, {CODES, SCALE})
        signs = unpacked_codes(array_of(archive.read(CODES), (code_bytes(spec.size),), np.uint8), spec.size)
        positions = np.flatnonzero(signs)
        if len(positions) != spec.nonzeros:
            raise FormatError(f"holds {len(positions)} values that are not zero, expected {spec.nonzeros}")
        return signs[positions], positions
    _check_names(archive, {GAPS, SCALE, SIGNS})
    count = spec.nonzeros or 0
    signs = array_of(archive.read(SIGNS), (-(-count // 8),), np.uint8)
    return unpacked_signs(signs, count), _positions(archive.read(GAPS), spec)


def _gaps(positions: Array) -> Array:
    steps = np.diff(positions, prepend=-1) - 1
    escapes = steps // ESCAPE
    out = np.full(len(positions) + int(escapes.sum()), ESCAPE, np.uint8)
    out[np.cumsum(escapes + 1) - 1] = steps % ESCAPE
    return out


def _positions(data: bytes, spec: TensorSpec) -> Array:
    gaps = array_of(data, None, np.uint8)
    placed = gaps != ESCAPE
    if int(placed.sum()) != spec.nonzeros or (len(gaps) and gaps[-1] == ESCAPE):
        raise FormatError(f"holds {int(placed.sum())} positions, expected {spec.nonzeros}")
    ends = np.cumsum(np.where(placed, gaps.astype(np.int64) + 1, ESCAPE))
    positions = ends[placed] - 1
    if len(positions) and positions[-1] >= spec.size:
        raise FormatError(f"holds an index {int(positions[-1])} beyond the {spec.size} elements of shape {spec.shape}")
    return positions


def _scales(tensor: Array, axis: int) -> Array:
    others = tuple(dim for dim in range(tensor.ndim) if dim != axis)
    return (np.abs(tensor).max(axis=others, initial=0) / 127).astype(np.float32)
