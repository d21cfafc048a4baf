"""Checks that every sparse layer makes on construction."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l0compress_runtime.errors import NOTHING_COMPUTED, InputError

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")

Array = NDArray[Any]


def matrix_shape(weight: sparse.csr_array) -> tuple[int, int]:
    """Return (rows, columns); scipy's own property is untyped.

    Example:
        >>> matrix_shape(sparse.csr_array((2, 5)))
        (2, 5)
    """
    shape: Any = weight.shape
    return shape


def refuse(problem: str) -> InputError:
    """Return the error to raise for a layer with this problem."""
    return InputError(
        f"a sparse layer cannot be made: {problem}.", fix="Export the model again.", assurance=NOTHING_COMPUTED
    )


def check_weight(weight: sparse.csr_array, scale: Array | None) -> None:
    """Check that CSR is safe to read unchecked: increasing indices in range, nondecreasing row pointers, finite values.

    Raises:
        InputError: it is not.
    """
    if not isinstance(weight, sparse.csr_array) or weight.ndim != 2:
        raise refuse(f"its weight is {type(weight).__name__}, but must be a scipy.sparse.csr_array of two dimensions")
    rows, columns = matrix_shape(weight)
    starts, indices = weight.indptr, weight.indices
    if any(array.dtype.kind not in "iu" or array.ndim != 1 for array in (starts, indices)):
        raise refuse(
            f"its indices are {indices.dtype} {indices.shape} and its row pointers {starts.dtype} {starts.shape}, but "
            "must be vectors of integers"
        )
    counts = np.diff(starts.astype(np.int64))
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(indices) or counts.min(initial=0) < 0:
        raise refuse(f"its row pointers do not divide {len(indices)} nonzeros into {rows} rows")
    if weight.data.shape != indices.shape:
        raise refuse(f"it has values of shape {weight.data.shape} at {len(indices)} indices")
    if len(indices) and not (indices.min() >= 0 and indices.max() < columns):
        raise refuse(f"it has indices between {indices.min()} and {indices.max()} in rows of {columns}")
    falls = np.flatnonzero(np.diff(indices.astype(np.int64)) <= 0) + 1
    if not np.isin(falls, starts).all():
        raise refuse("the indices of a row do not increase")
    expected = np.float32 if scale is None else np.int8
    if weight.data.dtype != expected:
        raise refuse(f"its values are {weight.data.dtype}, but must be {np.dtype(expected)}")
    if not np.isfinite(weight.data).all():
        raise refuse("a value is not finite")
    check_vector("scale", scale, rows)


def check_epilogue(rows: int, bias: Array | None, activation: str | None) -> None:
    """Check for a bias of one value per row, or None, and a known activation, or None.

    Raises:
        InputError: one of them is something else.
    """
    check_vector("bias", bias, rows)
    if activation is not None and activation not in ACTIVATIONS:
        raise refuse(f"its activation is {activation!r}, but must be None or one of {', '.join(ACTIVATIONS)}")


def check_vector(name: str, values: Array | None, rows: int) -> None:
    """Check for a float32 vector of this length, or None.

    Raises:
        InputError: it is something else.
    """
    if values is None:
        return
    if values.shape != (rows,) or values.dtype != np.float32:
        raise refuse(f"its {name} is {values.dtype} {values.shape}, but must be float32 ({rows},)")
    if not np.isfinite(values).all():
        raise refuse(f"its {name} is not finite")
