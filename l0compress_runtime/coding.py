"""Tensors as bytes, near the information limit: gaps between nonzeros as one byte each, values in planes of bytes.

A tensor is a small ``.npz`` without pickle. ``values`` holds the values, ``gaps`` their positions in the flattened
tensor (row-major, so rows of CSR), and ``scale`` the factors of int8 rows. Positions are sums of gaps of at least one:
whatever the bytes are, they increase and never repeat, and one comparison bounds them.

- A gap of g is ``(g - 1) // 255`` bytes of 255 and then one of ``(g - 1) % 255``.
- Byte k of every value is in row k of ``values``: exponents are adjacent, which deflate can use.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l0compress_runtime.archive import Archive, FormatError, write_zip

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


@dataclass(frozen=True)
class TensorSpec:
    """How a tensor is stored.

    Attributes:
        member: its file in the bundle.
        shape: its dense shape.
        dtype: of its decoded values.
        storage: of its values in the file: the dtype itself, or float16, bfloat16 or int8 for float32.
        nonzeros: how many values are stored; None if all of them are.
        scale_axis: the dimension of the int8 scales; None for other storages.
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
    arrays[VALUES] = _planes(_narrowed(values, storage))
    nonzeros = None if positions is None else len(positions)
    spec = TensorSpec("", tensor.shape, str(tensor.dtype), storage, nonzeros, scale_axis)
    return spec, write_zip({name: _npy(array) for name, array in arrays.items()})


def decode(spec: TensorSpec, data: bytes, *, limit_bytes: int = 2**31) -> Stored:
    """Decode what :func:`encode` wrote; the bytes are not trusted.

    Raises:
        FormatError: the bytes do not match the spec.
    """
    count = spec.size if spec.nonzeros is None else spec.nonzeros
    archive = Archive.from_bytes(data, limit_bytes=limit_bytes)
    quantized = spec.scale_axis is not None
    expected = {VALUES, *([GAPS] if spec.nonzeros is not None else []), *([SCALE] if quantized else [])}
    if set(archive.names) != expected:
        raise FormatError(f"holds {sorted(archive.names)}, expected {sorted(expected)}")
    itemsize = 2 if spec.storage == "bfloat16" else np.dtype(spec.storage).itemsize
    planes = _bytes_of(archive.read(VALUES), (itemsize, count), np.uint8)
    values = _widened(np.ascontiguousarray(planes.T).ravel(), spec, quantized=quantized)
    if values.dtype.kind == "f" and not np.isfinite(values).all() and spec.nonzeros is not None:
        raise FormatError("holds a value that is not finite")
    positions = None if spec.nonzeros is None else _positions(archive.read(GAPS), spec)
    scale = None
    if quantized and spec.scale_axis is not None:
        scale = _bytes_of(archive.read(SCALE), (spec.shape[spec.scale_axis],), np.float32)
        if not np.isfinite(scale).all():
            raise FormatError("holds a scale that is not finite")
    return Stored(spec, values, positions, scale)


def bits_at_least(size: int, nonzeros: int, value_bits: int) -> float:
    """Return the bits in a random pattern of zeros with independent values: ``log2 C(size, nonzeros)`` and the values.

    Example:
        >>> round(bits_at_least(1000, 20, 32))
        781
    """
    density = nonzeros / size if size else 0.0
    entropy = -sum(p * np.log2(p) for p in (density, 1 - density) if p > 0)
    return float(size * entropy + nonzeros * value_bits)


def _gaps(positions: Array) -> Array:
    steps = np.diff(positions, prepend=-1) - 1
    escapes = steps // ESCAPE
    out = np.full(len(positions) + int(escapes.sum()), ESCAPE, np.uint8)
    out[np.cumsum(escapes + 1) - 1] = steps % ESCAPE
    return out


def _positions(data: bytes, spec: TensorSpec) -> Array:
    gaps = _bytes_of(data, None, np.uint8)
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


def _narrowed(values: Array, storage: str) -> Array:
    if storage == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        narrow = (rounded >> 16).astype(np.uint16)
        overflows = ((narrow & 0x7F80) == 0x7F80) & np.isfinite(values)
    else:
        with np.errstate(over="ignore"):
            narrow = values.astype(storage)
        overflows = np.isfinite(values) & ~np.isfinite(narrow) if narrow.dtype.kind == "f" else np.False_
    if np.any(overflows):
        raise OverflowError(f"a value is beyond the range of {storage}")
    return narrow


def _widened(raw: Array, spec: TensorSpec, *, quantized: bool) -> Array:
    if spec.storage == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    values = raw.view(np.dtype(spec.storage))
    return values if quantized else values.astype(spec.dtype, copy=False)


def _planes(values: Array) -> Array:
    return np.ascontiguousarray(values.view(np.uint8).reshape(len(values), values.itemsize).T)


def _npy(array: Array) -> bytes:
    return _npy_header(array.shape, array.dtype) + np.ascontiguousarray(array).tobytes()


def _npy_header(shape: tuple[int, ...], dtype: Any) -> bytes:
    stream = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def _bytes_of(data: bytes, shape: tuple[int, ...] | None, dtype: type) -> Array:
    """Return the array of an ``.npy`` file with the one header that fits; the header is not parsed.

    If no shape is expected, the array is one-dimensional and as long as there are bytes.
    """
    begin = 10 + int.from_bytes(data[8:10], "little")
    left = max(len(data) - begin, 0)
    expected = (left // np.dtype(dtype).itemsize,) if shape is None else shape
    if left != prod(expected) * np.dtype(dtype).itemsize or data[:begin] != _npy_header(expected, dtype):
        raise FormatError(f"holds an array that is not {np.dtype(dtype)} {expected} in {left} bytes")
    return np.frombuffer(data, dtype, offset=begin).reshape(expected)
