"""Arrays as ``.npy`` bytes: written like numpy's own, and read by comparison with the one header that is expected."""

from __future__ import annotations

import io
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.archive import FormatError

Array = NDArray[Any]


def npy_of(array: Array) -> bytes:
    """Return an array as the bytes of an ``.npy`` file."""
    return _header(array.shape, array.dtype) + np.ascontiguousarray(array).tobytes()


def _header(shape: tuple[int, ...], dtype: Any) -> bytes:
    stream = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def array_of(data: bytes, shape: tuple[int, ...] | None, dtype: type) -> Array:
    """Return the array of an ``.npy`` file with the one header that fits; the header is not parsed.

    If no shape is expected, the array is one-dimensional and as long as there are bytes.
    """
    begin = 10 + int.from_bytes(data[8:10], "little")
    left = max(len(data) - begin, 0)
    expected = (left // np.dtype(dtype).itemsize,) if shape is None else shape
    if left != prod(expected) * np.dtype(dtype).itemsize or data[:begin] != _header(expected, dtype):
        raise FormatError(f"holds an array that is not {np.dtype(dtype)} {expected} in {left} bytes")
    return np.frombuffer(data, dtype, offset=begin).reshape(expected)
