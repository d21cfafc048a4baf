"""The layers that run sparse: plain frozen values over scipy's CSR, checked once so that no engine needs to.

An engine may read memory at the indices of a layer unchecked, so every layer that exists has indices in
range, nondecreasing row pointers, and finite numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l0compress_runtime.errors import NOTHING_COMPUTED, InputError
from l0compress_runtime.layer_checks import ACTIVATIONS as ACTIVATIONS
from l0compress_runtime.layer_checks import check_epilogue, check_vector, check_weight, refuse
from l0compress_runtime.layer_checks import matrix_shape as matrix_shape

# Cells, and how many blocks of rows the weights of each have. In ONNX's order: input, output, forget, cell for an LSTM;
# update, reset, hidden for a GRU. "gru" multiplies the state after the reset, "gru_reset_after" resets the product.
GATES = {"lstm": 4, "gru": 3, "gru_reset_after": 3, "rnn_tanh": 1, "rnn_relu": 1}
DIRECTIONS = ("forward", "reverse", "bidirectional")

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SparseLinear:
    """``y = activation(x @ W.T + bias)`` over the last dimension of x.

    Args:
        weight: W, CSR of shape (out, in), sorted and without duplicates; float32, or int8 together with ``scale``.
        bias: (out,) float32, or None.
        activation: one of :data:`ACTIVATIONS`, or None. ``gelu`` is the exact one, with the error function.
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
        check_weight(self.weight, self.scale)
        check_epilogue(matrix_shape(self.weight)[0], self.bias, self.activation)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return matrix_shape(self.weight)


@dataclass(frozen=True, eq=False)
class SparseConv:
    """A convolution (cross-correlation) over one or two spatial dimensions; x is (n, channels, *spatial).

    Args:
        weight: CSR of shape (out, in / groups * prod(kernel)): the dense weight (out, in / groups, *kernel), flattened.
        kernel: size of the kernel, one per spatial dimension.
        stride: one per spatial dimension; empty means 1.
        padding: zeros before and after, one pair per spatial dimension; empty means none.
        dilation: one per spatial dimension; empty means 1.
        groups: input and output channels are split into this many independent convolutions.
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
        check_weight(self.weight, self.scale)
        check_epilogue(matrix_shape(self.weight)[0], self.bias, self.activation)
        _check_window(self)

    @property
    def channels(self) -> int:
        """The number of input channels."""
        return matrix_shape(self.weight)[1] // prod(self.kernel) * self.groups

    def output_size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial size of the output for that of the input.

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
                f"not fit into an input of size {spatial}.",
                fix="Pass a larger input.",
                assurance=NOTHING_COMPUTED,
            )
        return sizes


@dataclass(frozen=True, eq=False)
class SparseEmbedding:
    """Rows of a table by integer index; a negative index counts from the end, as in ONNX's Gather.

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
        check_weight(self.weight, self.scale)


@dataclass(frozen=True, eq=False)
class SparseRecurrent:
    """A recurrent layer over sequences, as ONNX's LSTM, GRU and RNN compute it; x is (length, batch, in).

    The rows of both weights are those of the first direction followed by those of the second, each with one block of
    ``hidden`` rows per gate, in ONNX's order (see :data:`GATES`).

    Args:
        cell: one of :data:`GATES`.
        direction: one of :data:`DIRECTIONS`.
        weight: CSR of shape (directions * gates * hidden, in), which multiplies the input.
        recurrent: CSR of shape (directions * gates * hidden, hidden), which multiplies the state.
        bias: (2 * directions * gates * hidden,) float32, or None: for each direction what is added to the input's
            product and then what is added to the state's.
        scale: one float32 per row of ``weight`` if its values are int8, as in :class:`SparseLinear`.
        recurrent_scale: the same for ``recurrent``.

    Raises:
        InputError: shapes, dtypes or indices do not fit, or a number is not finite.

    Example:
        >>> weight, recurrent = (sparse.csr_array(np.ones((12, size), np.float32)) for size in (5, 3))
        >>> layer = SparseRecurrent("lstm", "forward", weight, recurrent)
        >>> layer.columns, layer.hidden, layer.directions, layer.states
        (5, 3, 1, 2)
    """

    cell: str
    direction: str
    weight: sparse.csr_array
    recurrent: sparse.csr_array
    bias: Array | None = None
    scale: Array | None = None
    recurrent_scale: Array | None = None

    def __post_init__(self) -> None:
        if self.cell not in GATES or self.direction not in DIRECTIONS:
            raise refuse(f"there is no cell {self.cell!r} in direction {self.direction!r}")
        check_weight(self.weight, self.scale)
        check_weight(self.recurrent, self.recurrent_scale)
        rows = self.directions * GATES[self.cell] * self.hidden
        if not rows or (matrix_shape(self.weight)[0], matrix_shape(self.recurrent)[0]) != (rows, rows):
            raise refuse(
                f"its weights are {self.weight.shape} and {self.recurrent.shape}, but must have {rows} rows, "
                f"{GATES[self.cell]} for each hidden unit and direction, and at least one"
            )
        check_vector("bias", self.bias, 2 * rows)

    @property
    def columns(self) -> int:
        """The number of input features."""
        return matrix_shape(self.weight)[1]

    @property
    def hidden(self) -> int:
        """The number of hidden units of one direction."""
        return matrix_shape(self.recurrent)[1]

    @property
    def directions(self) -> int:
        """1, or 2 if the sequence is read in both directions."""
        return 1 + (self.direction == "bidirectional")

    @property
    def states(self) -> int:
        """The number of states carried along: an LSTM has a cell state besides the hidden one."""
        return 1 + (self.cell == "lstm")


Layer = SparseLinear | SparseConv | SparseEmbedding | SparseRecurrent


def float_weight(layer: Layer) -> sparse.csr_array:
    """Return the weight (of a recurrent layer, the input's) in float32: int8 values times their row's scale.

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


def _check_window(layer: SparseConv) -> None:
    dims = len(layer.kernel)
    options = (layer.stride, layer.padding, layer.dilation)
    if dims not in (1, 2) or any(len(option) != dims for option in options):
        raise refuse(f"kernel {layer.kernel}, stride, padding and dilation {options} are not of 1 or 2 dimensions")
    pads = [pad for pair in layer.padding for pad in pair]
    if len(pads) != 2 * dims or min(pads) < 0 or min(*layer.kernel, *layer.stride, *layer.dilation, layer.groups) < 1:
        raise refuse(f"kernel {layer.kernel}, groups {layer.groups} or {options} hold a number that is too small")
    rows, columns = matrix_shape(layer.weight)
    if rows % layer.groups or columns % prod(layer.kernel):
        raise refuse(f"a weight of shape {layer.weight.shape} has no kernel {layer.kernel} in {layer.groups} groups")
