"""The layers that run sparse: plain frozen values over scipy's CSR, checked once so that no engine has to.

An engine may read memory at the indices of a layer without looking at them, so a layer that exists has indices in
range, row pointers that do not fall, and finite numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l0compress.errors import InputError

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SparseLinear:
    """``y = activation(x @ W.T + bias)`` over the last dimension of x.

    Args:
        weight: W, CSR of shape (out, in), sorted and without duplicates; float32, or int8 together with ``scale``.
        bias: (out,) float32, or None.
        activation: one of :data:`ACTIVATIONS`, or None. ``gelu`` is the exact one, by the error function.
        scale: (out,) float32: row r of W is ``scale[r]`` times its int8 values. None for float32 values.

    Raises:
        InputError: shapes, dtypes or indices do not fit, or a number is not finite.

    Example:
        >>> SparseLinear(sparse.csr_array(np.eye(3, 4, dtype=np.float32))).shape
        (3, 4)
    """

    weight: sparse.csr_array
    bias: Array | None = None
    activation: str | None = None
    scale: Array | None = None

    def __post_init__(self) -> None:
        _check_weight(self.weight, self.scale)
        _check_epilogue(matrix_shape(self.weight)[0], self.bias, self.activation)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return matrix_shape(self.weight)


@dataclass(frozen=True, eq=False)
class SparseConv:
    """A convolution (cross-correlation) over one or two spatial dimensions; x is (n, channels, *spatial).

    Args:
        weight: CSR of shape (out, in / groups * prod(kernel)): the dense weight (out, in / groups, *kernel), flattened.
        kernel: size of the kernel, one a spatial dimension.
        stride: one a spatial dimension; empty means 1.
        padding: zeros before and after, a pair a spatial dimension; empty means none.
        dilation: one a spatial dimension; empty means 1.
        groups: channels in and out are split into so many independent convolutions.
        bias: (out,) float32, or None.
        activation: one of :data:`ACTIVATIONS`, or None.
        scale: (out,) float32 with int8 values, as in :class:`SparseLinear`.

    Raises:
        InputError: shapes, dtypes, indices or sizes do not fit, or a number is not finite.

    Example:
        >>> weight = sparse.csr_array(np.ones((8, 4 * 9), np.float32))
        >>> conv = SparseConv(weight, (3, 3), padding=((1, 1), (1, 1)))
        >>> conv.channels, conv.output_size((28, 28))
        (4, (28, 28))
    """

    weight: sparse.csr_array
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: Array | None = None
    activation: str | None = None
    scale: Array | None = None

    def __post_init__(self) -> None:
        dims = len(self.kernel)
        object.__setattr__(self, "stride", self.stride or (1,) * dims)
        object.__setattr__(self, "padding", self.padding or ((0, 0),) * dims)
        object.__setattr__(self, "dilation", self.dilation or (1,) * dims)
        _check_weight(self.weight, self.scale)
        _check_epilogue(matrix_shape(self.weight)[0], self.bias, self.activation)
        _check_window(self)

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return matrix_shape(self.weight)[1] // prod(self.kernel) * self.groups

    def output_size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The spatial size of the output for that of the input.

        Raises:
            InputError: the kernel does not fit into the padded input.
        """
        sizes = tuple(
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if min(sizes) < 1:
            raise InputError(
                f"a convolution with kernel {self.kernel}, dilation {self.dilation} and padding {self.padding} does "
                f"not fit into an input of size {spatial}. Nothing was computed. Pass a larger input."
            )
        return sizes


@dataclass(frozen=True, eq=False)
class SparseEmbedding:
    """Rows of a table by integer index; an index below zero counts from the end, as in ONNX's Gather.

    Args:
        weight: CSR of shape (rows, width); float32, or int8 together with ``scale``.
        scale: (rows,) float32 with int8 values, as in :class:`SparseLinear`.

    Raises:
        InputError: shapes, dtypes or indices do not fit, or a number is not finite.

    Example:
        >>> SparseEmbedding(sparse.csr_array(np.eye(5, 2, dtype=np.float32))).weight.shape
        (5, 2)
    """

    weight: sparse.csr_array
    scale: Array | None = None

    def __post_init__(self) -> None:
        _check_weight(self.weight, self.scale)


def matrix_shape(weight: sparse.csr_array) -> tuple[int, int]:
    """(rows, columns); scipy's own property is untyped.

    Example:
        >>> matrix_shape(sparse.csr_array((2, 5)))
        (2, 5)
    """
    shape: Any = weight.shape
    return shape


Layer = SparseLinear | SparseConv | SparseEmbedding


def float_weight(layer: Layer) -> sparse.csr_array:
    """The layer's weight with float32 values: the int8 ones times their row's scale.

    Example:
        >>> weight = sparse.csr_array(np.array([[0, 3]], np.int8))
        >>> float_weight(SparseLinear(weight, scale=np.array([0.5], np.float32))).toarray()
        array([[0. , 1.5]], dtype=float32)
    """
    weight = layer.weight
    if layer.scale is None:
        return weight
    values = weight.data * np.repeat(layer.scale, np.diff(weight.indptr))
    return sparse.csr_array((values, weight.indices, weight.indptr), shape=weight.shape)


def _refuse(problem: str) -> InputError:
    return InputError(f"a sparse layer cannot be made: {problem}. Nothing was computed. Export the model again.")


def _check_weight(weight: sparse.csr_array, scale: Array | None) -> None:
    if not isinstance(weight, sparse.csr_array) or weight.ndim != 2:
        raise _refuse(
            f"its weight is {type(weight).__name__}, and has to be a scipy.sparse.csr_array of two dimensions"
        )
    rows, columns = matrix_shape(weight)
    starts, indices = weight.indptr, weight.indices
    if any(array.dtype.kind not in "iu" or array.ndim != 1 for array in (starts, indices)):
        raise _refuse(
            f"its indices are {indices.dtype} {indices.shape} and its row pointers {starts.dtype} {starts.shape}, "
            "and have to be vectors of integers"
        )
    counts = np.diff(starts.astype(np.int64))
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(indices) or counts.min(initial=0) < 0:
        raise _refuse(f"its row pointers do not divide {len(indices)} nonzeros into {rows} rows")
    if weight.data.shape != indices.shape:
        raise _refuse(f"it has values of shape {weight.data.shape} at {len(indices)} indices")
    if len(indices) and not (indices.min() >= 0 and indices.max() < columns):
        raise _refuse(f"it has indices between {indices.min()} and {indices.max()} in rows of {columns}")
    falls = np.flatnonzero(np.diff(indices.astype(np.int64)) <= 0) + 1
    if not np.isin(falls, starts).all():
        raise _refuse("the indices of a row do not increase")
    expected = np.float32 if scale is None else np.int8
    if weight.data.dtype != expected:
        raise _refuse(f"its values are {weight.data.dtype}, and have to be {np.dtype(expected)}")
    if not np.isfinite(weight.data).all():
        raise _refuse("a value is not finite")
    _check_vector("scale", scale, rows)


def _check_epilogue(rows: int, bias: Array | None, activation: str | None) -> None:
    _check_vector("bias", bias, rows)
    if activation is not None and activation not in ACTIVATIONS:
        raise _refuse(f"its activation is {activation!r}, and has to be None or one of {', '.join(ACTIVATIONS)}")


def _check_vector(name: str, values: Array | None, rows: int) -> None:
    if values is None:
        return
    if values.shape != (rows,) or values.dtype != np.float32:
        raise _refuse(f"its {name} is {values.dtype} {values.shape}, and has to be float32 ({rows},)")
    if not np.isfinite(values).all():
        raise _refuse(f"its {name} is not finite")


def _check_window(layer: SparseConv) -> None:
    dims = len(layer.kernel)
    options = (layer.stride, layer.padding, layer.dilation)
    if dims not in (1, 2) or any(len(option) != dims for option in options):
        raise _refuse(f"kernel {layer.kernel}, stride, padding and dilation {options} are not of 1 or 2 dimensions")
    pads = [pad for pair in layer.padding for pad in pair]
    if len(pads) != 2 * dims or min(pads) < 0 or min(*layer.kernel, *layer.stride, *layer.dilation, layer.groups) < 1:
        raise _refuse(f"kernel {layer.kernel}, groups {layer.groups} or {options} hold a number that is too small")
    rows, columns = matrix_shape(layer.weight)
    if rows % layer.groups or columns % prod(layer.kernel):
        raise _refuse(f"a weight of shape {layer.weight.shape} has no kernel {layer.kernel} in {layer.groups} groups")
